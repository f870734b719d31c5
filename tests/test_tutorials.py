"""The pages say what the code says: tables of names, files and modules that are mentioned."""

import ast
import importlib.util
import re
import shlex
import shutil
import time
from pathlib import Path

import pytest
import torch

import minidiff
from minidiff.cli.main import main
from minidiff.learn.exercises import exercises
from minidiff.models.sizes import SIZES
from minidiff.models.unet import UNet
from minidiff.proofs.prove import proofs
from minidiff.techniques import TECHNIQUES as RECORDS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "tutorials").rglob("*.md"))
FENCE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "tutorials/tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_and_code_are_those_of_the_package(tables):
    pages = [ROOT / "README.md", *PAGES]
    stale = [p.name for p in pages if tables.filled(p.read_text(), p) != p.read_text()]
    assert not stale, "run python tutorials/refresh.py --only readme"
    used = {name for p in pages for _, name, _ in tables.BLOCK.findall(p.read_text())}
    assert used == set(tables.MADE)  # every table stands on some page


def test_a_page_names_the_kinds_whose_interval_leaves_out_0(tables, monkeypatch):
    gaps = {"move": (0.2, 0.1, 0.3), "add": (0.1, -0.1, 0.3), "delete": (-0.4, -0.5, -0.3)}
    row = {"method": "flowedit", "rows": 256, "score": 0.6, "score_ci": (0.55, 0.65)}
    row["against"] = {"all": (0.05, 0.01, 0.09), "scenes": 256, "by_kind": gaps}
    monkeypatch.setattr(tables, "bench_rows", lambda split: [row] if split == "hard" else [])
    said = tables.against_control(["flowedit"])
    cells = "| `flowedit` | hard | 256 | 0.60 (0.55 to 0.65) | +0.05 (+0.01 to +0.09) |"
    assert f"{cells} move +0.20 | delete -0.40 |" in said and " test " not in said
    assert "not measured yet" in tables.against_control(["edict"])
    assert "is the row `sdedit+mask`" in tables.against_control(["inpaint"])
    assert "it learns one change" in tables.against_control(["diffusion-clip"])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_pages_that_a_page_names_exist(page):
    text = page.read_text()
    links = [t for t in re.findall(r"\]\(([^)#]+)", text) if "://" not in t]
    files = re.findall(r"`((?:minidiff|tests|tutorials|notebooks)/[\w/.]+\.(?:py|ipynb|md))`", text)
    missing = [t for t in links if not (page.parent / t).exists()] + [
        f for f in files if not (ROOT / f).exists()
    ]
    assert not missing


# ---- the form of a page ----------------------------------------------------------------------------

FORM = (
    "The problem",
    "The idea",
    "The algorithm",
    "Run it",
    "What came out",
    "Where it falls short",
    "What to try",
    "Questions",
    "A 20-minute task",
)
MAY_COME = ("The derivation",)  # before the algorithm
IN_FORM = [page for page in PAGES if "<!-- masthead " in page.read_text()]


def section(page: Path, heading: str) -> str:
    _, _, rest = page.read_text().partition(f"\n## {heading}\n")
    return rest.partition("\n## ")[0]


def test_the_page_of_every_technique_is_in_the_form():
    assert {ROOT / technique.tutorial for technique in RECORDS.values()} <= set(IN_FORM)


@pytest.mark.parametrize("page", IN_FORM, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_has_the_sections_of_the_form_in_their_order(page):
    headings = re.findall(r"^## (.+)$", page.read_text(), re.M)
    assert [h for h in headings if h not in MAY_COME] == list(FORM)
    assert "<!-- code " in section(page, "The algorithm")


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder like a clone, and in place of every model one of the same kind that draws nonsense
    in no time: what is asked is whether the commands run.
    """
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minidiff, "load", lambda name="tiny", **options: quick(str(name)))
    return tmp_path


def quick(name: str):
    pipe = minidiff.build(name)
    if name == "tiny":
        torch.manual_seed(0)
        pipe.net = UNet(**SIZES["tiny"]["unet"] | {"channels": (16, 16)}).eval()
        pipe.net.requires_grad_(False)
    return pipe


@pytest.mark.parametrize("page", IN_FORM, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_says_to_run_runs(page, desk):
    text = section(page, "Run it")
    programs = FENCE.findall(text)
    assert programs, "there is nothing to run"
    for program in programs:
        exec(compile(program, page.name, "exec"), {})
    for command in re.findall(r"^minidiff (.+)$", text, re.M):
        words = shlex.split(command, comments=True)
        if words[0] == "prove":  # minutes: here only whether there is such a proof
            assert words[1] in proofs()
        else:
            assert main(words) == 0, command


# ---- the 20-minute tasks -------------------------------------------------------------------------

FOLDERS = ("samplers", "guidance", "inversion", "editing", "restoration", "analysis")
TECHNIQUES = sorted(p for f in FOLDERS for p in (ROOT / "tutorials" / f).glob("*.md"))
TASK = "## A 20-minute task"


def task(page) -> str:
    """The section that ends a page, "" if there is none."""
    _, found, rest = page.read_text().partition(f"\n{TASK}\n")
    return rest if found and "\n## " not in rest else ""


def answers_and_checks(section: str) -> tuple[list[str], list[str]]:
    """Blocks of Python that are folded away, and those that are not."""
    folded = "".join(re.findall(r"<details>.*?</details>", section, re.S))
    return FENCE.findall(folded), [b for b in FENCE.findall(section) if b not in folded]


@pytest.mark.parametrize("page", TECHNIQUES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_technique_s_page_has_five_questions_and_ends_with_a_task(page):
    questions = re.findall(
        r"^\d\. .+<details><summary>answer</summary>.+</details>$", page.read_text(), re.M
    )
    assert len(questions) == 5
    assert task(page), f"the last section is not {TASK!r}"
    answers, checks = answers_and_checks(task(page))
    for block in answers + checks:
        ast.parse(block)
    named = set(re.findall(r'check\("(\w+)"', task(page))) | set(
        re.findall(r"learn task (\w+)", task(page))
    )
    assert named <= exercises().keys()
    assert named or (answers and any("assert" in b for b in checks)), (
        "nothing says whether the task is done"
    )


def test_the_answer_of_every_task_passes_its_check_and_without_it_nothing_does():
    """All in one go: they take under a second each, and the whole must stay below 30. Exercises
    have their own proof.
    """
    tried, begun = 0, time.perf_counter()
    for page in TECHNIQUES:
        answers, checks = answers_and_checks(task(page))
        if not answers:
            continue
        with pytest.raises(NameError):
            exec("\n".join(checks), {})
        exec("\n".join(answers + checks), {})
        tried += 1
    assert tried >= 15 and time.perf_counter() - begun < 30
