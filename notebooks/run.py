"""Run every notebook of this folder, first cell to last: `make notebooks`, or `python notebooks/run.py 01*.ipynb`.

Fails for an error in any of them, and for one that takes longer than its budget. Nothing is written back. A cell put in
front (in memory only) closes the network, so that no notebook can depend on a download.
"""
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

HERE, BUDGET = Path(__file__).parent, 180                                  # seconds for one notebook
CLOSED = """
import socket as _s
def _closed(*args, **kw): raise OSError("notebooks run without network")
_s.getaddrinfo = _s.create_connection = _s.socket.connect = _closed
"""


def run(path: Path) -> str:
    """What went wrong with a notebook, or ""."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(CLOSED))
    start = time.perf_counter()
    try:
        NotebookClient(notebook, timeout=BUDGET, kernel_name="python3", extra_arguments=["--log-level=ERROR"],
                       resources={"metadata": {"path": str(HERE)}}).execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as e:
        return str(e).strip() or type(e).__name__
    spent = time.perf_counter() - start
    print(f"{path.name:40} {spent:6.1f} s", flush=True)
    return f"took {spent:.0f} s, at most {BUDGET} s are allowed" if spent > BUDGET else ""


def main(patterns: list[str]) -> int:
    paths = sorted({p for pattern in patterns or ["*.ipynb"] for p in HERE.glob(Path(pattern).name)})
    wrong = {p.name: message for p in paths if (message := run(p))}
    for name, message in wrong.items():
        print(f"\n---- {name}\n{message}", file=sys.stderr)
    print(f"notebooks: {len(paths) - len(wrong)} of {len(paths)} ran")
    return 1 if wrong or (patterns and not paths) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
