"""The notebooks in the repository are those their sources make; what a blank one asks for is
written nowhere in it.
"""

import sys
from pathlib import Path

import nbformat
import pytest

from minidiff.learn.exercises import find
from minidiff.learn.stub import head, source

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
sys.path.insert(0, str(FOLDER))  # before the site's folder, which has a build.py of its own
import build  # noqa: E402

SOURCES = sorted((FOLDER / "source").glob("*.py"))
BLANK = [p for p in SOURCES if build.has_exercises(p)]
by_stem = pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)


def cells(notebook) -> list[tuple]:
    return [(c.cell_type, c.source, dict(c.metadata)) for c in notebook.cells]


def read(path: Path):
    return nbformat.read(path, as_version=4)


@by_stem
def test_a_notebook_is_what_its_source_makes(path):
    made = read(FOLDER / f"{path.stem}.ipynb")
    assert cells(made) == cells(build.notebook(path)), (
        f"run: python notebooks/build.py {path.stem[:2]}"
    )


@by_stem
def test_a_solved_notebook_was_run_and_drew_pictures(path):
    made = read(FOLDER / f"{path.stem}.ipynb")
    assert all(c.execution_count for c in made.cells if c.cell_type == "code")
    outputs = [o for c in made.cells for o in c.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error"]
    assert [o for o in outputs if "image/png" in o.get("data", {})]
    assert (FOLDER / f"{path.stem}.ipynb").stat().st_size < 700_000


@pytest.mark.parametrize("path", BLANK, ids=lambda p: p.stem)
def test_a_blank_notebook_asks_and_does_not_answer(path):
    made = read(FOLDER / "blank" / f"{path.stem}.ipynb")
    assert cells(made) == cells(build.notebook(path, blank=True)) and not [
        c for c in made.cells if c.get("outputs")
    ]
    for cell in made.cells:
        if name := cell.metadata.get("exercise"):
            reference = find(name).reference
            _, _, body = source(reference).partition(head(reference))
            assert f"def {name}(" in cell.source
            assert f'raise NotImplementedError("write {name}")' in cell.source
            assert body.strip() not in cell.source


def test_there_is_no_notebook_without_a_source():
    names = {p.stem for p in SOURCES}
    assert {p.stem for p in FOLDER.glob("*.ipynb")} == names
    assert {p.stem for p in (FOLDER / "blank").glob("*.ipynb")} == {p.stem for p in BLANK}


def test_an_unknown_notebook_is_named():
    with pytest.raises(ValueError, match="no notebook begins with 77"):
        build.paths(["77"])
