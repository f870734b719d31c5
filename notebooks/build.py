"""Make the notebooks from their sources: `python notebooks/build.py`, or `python notebooks/build.py
03 08` for some.

`source/NN_name.py` is a script with `# %%` cells, so that diffs can be read. Of each there are two
versions: solved, run, with pictures (`NN_name.ipynb`), and blank (`blank/NN_name.ipynb`). They
differ in cells marked `# %% exercise="q_sample"`, which hold the project's own lines in one and the
stub in the other, both cut from where that function lives.
"""

import sys
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from minidiff.io import write_bytes
from minidiff.learn.exercises import find
from minidiff.learn.stub import imports, source, stub

HERE = Path(__file__).parent
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
TODO = (
    '*Blank version: fill in the functions that raise `NotImplementedError`. `hint("name")` helps; '
    "the solved one is `../{}`.*"
)


def exercise_cell(name: str, blank: bool, known: set[str], tail: str) -> str:
    """The code of an exercise's cell: imports of what is not `known`, the function or its stub, and
    its check.
    """
    exercise = find(name)
    reference = exercise.reference
    if blank:
        function = stub(exercise)
    else:
        function = source(reference).replace(f"def {reference.__name__}(", f"def {name}(", 1)
    lines = imports(reference, known | {name}, whole=not blank)
    if lines:
        lines += ["", ""]
    lines += [function.rstrip(), "", "", f'check("{name}", {name}, must=True);']
    if tail:
        lines.append(tail)
    return "\n".join(lines)


def notebook(path: Path, blank: bool = False) -> NotebookNode:
    """The notebook of a source, not run."""
    made = jupytext.read(path, fmt="py:percent")
    names = [c.metadata["exercise"] for c in made.cells if "exercise" in c.metadata]
    known: set[str] = set()
    for n, cell in enumerate(made.cells):
        cell["id"] = f"{path.stem[:2]}-{n:02}"
        cell.metadata.pop("lines_to_next_cell", None)
        if name := cell.metadata.get("exercise"):
            cell.source = exercise_cell(name, blank, known, cell.source.strip())
            known.add(name)
    if names:
        first = next(c for c in made.cells if c.cell_type == "code")
        first.source = "from minidiff.learn import check, hint\n" + first.source
    if blank:
        made.cells[0].source += "\n\n" + TODO.format(path.stem + ".ipynb")
    made.metadata = NotebookNode(KERNEL)
    return made


def write(made: NotebookNode, path: Path) -> None:
    for cell in made.cells:  # times of day would change every diff
        cell.metadata.pop("execution", None)
    write_bytes((nbformat.writes(made) + "\n").encode(), path)


def has_exercises(path: Path) -> bool:
    return any("exercise" in c.metadata for c in jupytext.read(path, fmt="py:percent").cells)


def paths(names: list[str]) -> list[Path]:
    """Sources by the beginnings of their names, or all; ValueError for one that does not exist."""
    every = sorted((HERE / "source").glob("*.py"))
    if missing := [n for n in names if not any(p.name.startswith(n) for p in every)]:
        raise ValueError(
            f"no notebook begins with {', '.join(missing)}; there are "
            f"{', '.join(p.stem for p in every)}"
        )
    return [p for p in every if not names or any(p.name.startswith(n) for n in names)]


def main(names: list[str]) -> int:
    from run import execute

    for path in paths(names):
        if has_exercises(path):
            write(notebook(path, blank=True), HERE / "blank" / f"{path.stem}.ipynb")
        made = notebook(path)
        if wrong := execute(made, path.stem):
            print(wrong, file=sys.stderr)
            return 1
        write(made, HERE / f"{path.stem}.ipynb")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
