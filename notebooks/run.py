"""Run every notebook, first cell to last: `python notebooks/run.py`, or `python notebooks/run.py 03
08` for some.

Fails for an error in any of them, and for one that hangs. (How long each takes is printed: on a
quiet machine at most three minutes. Beside a test suite it says nothing.) A blank one must stop at
its first exercise, and with a sentence. Nothing is written back. A cell put in front (in
memory only) closes the network, so that no notebook can depend on a download.
"""

import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

HERE = Path(__file__).parent
HANGS = 900  # seconds
CLOSED = """
import os as _o, socket as _s
_o.environ["MINIDIFF_HOME"] = {home!r}
def _closed(*args, **kw): raise OSError("notebooks run without network")
_s.getaddrinfo = _s.create_connection = _s.socket.connect = _closed
"""


def execute(notebook: NotebookNode, name: str) -> str:
    """Run a notebook in place; what went wrong, or ""."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as home:  # not the reader's own record of progress
        notebook.cells.insert(0, nbformat.v4.new_code_cell(CLOSED.format(home=home)))
        try:
            NotebookClient(
                notebook,
                timeout=HANGS,
                kernel_name="python3",
                extra_arguments=["--log-level=ERROR"],
                resources={"metadata": {"path": str(HERE)}},
            ).execute()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as e:
            return str(e).strip() or type(e).__name__
        finally:
            del notebook.cells[0]
    spent = time.perf_counter() - start
    print(f"{name:50} {spent:6.1f} s", flush=True)
    return f"took {spent:.0f} s: it hangs" if spent > HANGS else ""


def stops(notebook: NotebookNode, name: str) -> str:
    """Does a blank notebook stop at its first exercise, saying so in one line? What went wrong, or
    "".
    """
    first = next(n for n, c in enumerate(notebook.cells) if "exercise" in c.metadata)
    wrong = execute(notebook, name)
    if not wrong:
        return "ran to its end, though nothing is filled in"
    done = [n for n, c in enumerate(notebook.cells) if c.cell_type == "code" and c.execution_count]
    said = [o for o in notebook.cells[first].get("outputs", []) if o.output_type == "error"]
    if done[-1] != first or not said:
        return f"stopped in cell {done[-1]}, not in its first exercise, cell {first}: {wrong}"
    clean = said[0].ename == "NotYet" and len(said[0].traceback) == 1
    print(f"{name:50} stops: {said[0].evalue}", flush=True)
    return (
        ""
        if clean
        else (
            f"its first exercise stops with {said[0].ename} and {len(said[0].traceback)} lines "
            "of traceback"
        )
    )


def main(names: list[str]) -> int:
    jobs = [
        (p, job)
        for folder, job in ((HERE, execute), (HERE / "blank", stops))
        for p in sorted(folder.glob("*.ipynb"))
        if not names or p.name.startswith(tuple(names))
    ]
    wrong = {
        str(p.relative_to(HERE)): message
        for p, job in jobs
        if (message := job(nbformat.read(p, as_version=4), str(p.relative_to(HERE))))
    }
    for name, message in wrong.items():
        print(f"\n---- {name}\n{message}", file=sys.stderr)
    print(f"notebooks: {len(jobs) - len(wrong)} of {len(jobs)} did what they should")
    return 1 if wrong or (names and not jobs) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
