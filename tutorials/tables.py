"""What README and the pages copy: tables of names and lines of algorithms from the code, tables of
figures from tutorials/measured/*.json. The last stage of `make refresh`.

    python tutorials/tables.py  # rewrites what stands between <!-- table NAME --> and <!-- end -->,
                                          # and between <!-- code FILE NAME --> and <!-- end -->,
                                          # and between <!-- output --> and <!-- end -->,
                                          # and between <!-- proof NAME --> and <!-- end -->
                                          # and between <!-- bench NAMES --> and <!-- end -->
                                          # and between <!-- masthead NAMES --> and <!-- end -->

A table is the one that the package itself uses, or what `minidiff evaluate` and `minidiff prove`
wrote. Code is a function of minidiff/FILE without its docstring. Output is what the Python block
right above prints. A proof is what `minidiff prove NAME` found. Bench says how techniques, whose
names stand with blanks between, score against the plain control on each split, and for which kinds
of edits. A masthead says where their paper, code, tests and proof are, and what they cost.
"""

import ast
import contextlib
import io
import json
import os
import re
import tempfile
import textwrap
from pathlib import Path

import numpy as np

from minidiff.bench.methods import lacks
from minidiff.evaluate.backbones import table as backbones_table
from minidiff.evaluate.evaluate import ROWS, SETS
from minidiff.evaluate.guides import table as guides_table
from minidiff.evaluate.metrics import bootstrap_ci
from minidiff.evaluate.solvers import best_at, recommended
from minidiff.formats.family import DROPPED, VARIANTS
from minidiff.formats.keymaps import RESNET, TABLES
from minidiff.formats.layouts import MINIDIFF, ORIGINAL, TOWERS
from minidiff.learn.exercise import LADDERS
from minidiff.learn.exercises import exercises
from minidiff.proofs.prove import HEAD, cells, proofs
from minidiff.samplers import SAMPLERS
from minidiff.techniques import TECHNIQUES
from minidiff.weights.store import PARTS, manifest

HERE = Path(__file__).parent
SOURCE = HERE.parent / "minidiff"
MEASURED = HERE / "measured"
README = HERE.parent / "README.md"
WORDS_ALONE = ("told both prompts", "told the target prompt alone")  # tasks of the bench
SHOWN = ("ddim-inversion", "sdedit", "prompt-to-prompt")  # the proofs of "proofs-in-short"
CODE = re.compile(r"(<!-- code ([\w/.]+) (\w+) -->\n).*?(<!-- end -->)", re.S)
OUTPUT = re.compile(r"(```python\n([^`]*)```\n\n<!-- output -->\n).*?(<!-- end -->)", re.S)
MASTHEAD = re.compile(r"(<!-- masthead ([\w -]+) -->\n).*?(<!-- end -->)", re.S)
BENCH = re.compile(r"(<!-- bench ([\w -]+) -->\n).*?(<!-- end -->)", re.S)
PROOF = re.compile(r"(<!-- proof ([\w-]+) -->\n).*?(<!-- end -->)", re.S)
BLOCK = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.S)


def lines(head: tuple[str, ...], rows) -> str:
    """A Markdown table; names are shown as code."""
    show = lambda c: f"`{c}`" if set(c) & set("._{") and " " not in c else c  # noqa: E731
    rows = [f"| {' | '.join(map(show, r))} |" for r in rows]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *rows])


def names(part: str, layout: str) -> str:
    """Our names of one part against those of a layout."""
    rows = [
        (k, *(v if isinstance(v, tuple) else (v, "same"))) for k, v in TABLES[part, layout].items()
    ]
    return lines(
        ("ours", "theirs", "op"), [(ours, theirs or "not stored", op) for ours, theirs, op in rows]
    )


def dropped() -> str:
    found = {}
    for name, why in DROPPED.items():
        found.setdefault(why, []).append(f"`{name}`")
    return lines(("dropped", "why"), [(" ".join(n), why) for why, n in found.items()])


def prefixes() -> str:
    rows = [
        ("UNet", ORIGINAL["unet"], MINIDIFF["unet"]),
        ("autoencoder", ORIGINAL["vae"], MINIDIFF["vae"]),
        ("text tower, SD 1", TOWERS["diffusers"] + "text_model.", MINIDIFF["text"]),
        ("text tower, SD 2", TOWERS["original"], MINIDIFF["text"]),
        ("ControlNet", ORIGINAL["controlnet"], "none"),
    ]
    return lines(("part", "original file", "minidiff file"), rows)


def variants() -> str:
    return lines(("channels in", "model"), [(str(n), what) for n, what in VARIANTS.items()])


def ladders() -> str:
    """All exercises, by length."""
    rows = []
    for ladder, time in LADDERS.items():
        some = [e for e in exercises().values() if e.ladder == ladder]
        rows.append(
            (
                f"{ladder}, {time} each",
                str(len(some)),
                str(sum(len(e.mutants) for e in some)),
                " ".join(f"`{e.name}`" for e in some),
            )
        )
    every = exercises().values()
    rows.append(("all", str(len(every)), str(sum(len(e.mutants) for e in every)), ""))
    return lines(("ladder", "exercises", "known mistakes", "names"), rows)


def apart() -> str:
    """How many exercises are functions of the package itself, and why the others are not."""
    every = exercises().values()
    others = [exercise for exercise in every if exercise.apart]
    own = len(every) - len(others)
    rows = [f"| `{exercise.name}` | {exercise.apart} |" for exercise in others]
    table = "\n".join(["| exercise | why |", "| --- | --- |", *rows])
    return (
        f"{own} of the {len(every)} exercises are functions that the package itself runs: the stub "
        f"is cut from there, and `reveal` shows those very lines. {len(others)} were written for "
        f"the exercise, each for a reason:\n\n{table}"
    )


def notebooks() -> str:
    """Every notebook, with the functions that its blank version asks for."""
    rows = []
    for path in sorted((HERE.parent / "notebooks/source").glob("*.py")):
        text, link = path.read_text(), f"../notebooks/{path.stem}.ipynb"
        title = re.search(r"^# # (.+)$", text, re.M)[1]
        asked = re.findall(r'^# %% exercise="(\w+)"', text, re.M)
        blank = f"[to fill in](../notebooks/blank/{path.stem}.ipynb)" if asked else ""
        rows.append((f"[{title}]({link})", blank, " ".join(f"`{a}`" for a in asked)))
    return lines(("notebook", "", "you write"), rows)


def techniques() -> str:
    """Paper, file, test, page and purpose of every technique, from its record."""
    rows = []
    for technique in TECHNIQUES.values():
        said = ", ".join(f"`{t}`" for t in tests_of(technique))
        file = f"`{technique.path}`"
        row = (linked(technique.paper), file, said, f"`{technique.tutorial}`", technique.about)
        rows.append("| " + " | ".join(row) + " |")
    head = "| paper | file | test | tutorial | what it answers |\n|---|---|---|---|---|\n"
    return head + "\n".join(rows)


def tests_of(technique) -> list[str]:
    """The files of its tests, from the root of the repository."""
    tests = [f"tests/{technique.room}/test_{technique.file or technique.stem}.py"]
    if technique.file:
        tests.append(f"tests/inversion/test_{technique.stem}.py")
    return [test for test in tests if (HERE.parent / test).exists()]


def measured(name: str) -> dict | None:
    """What was measured last; None: nothing yet."""
    file = MEASURED / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def percent(cell: dict | None) -> str:
    """Mean of a cell of `minidiff evaluate`, with its 95% interval if that is known."""
    if not cell:
        return "-"
    known = cell["low"] is not None
    return f"{cell['mean']:.0f}" + (f" ({cell['low']:.0f} to {cell['high']:.0f})" if known else "")


def evaluated() -> str:
    """The shipped model, attribute by attribute, and what the measures themselves are worth."""
    found = measured("tiny")
    if not found:
        return "Not measured yet: `make refresh`."
    columns = found["sets"]
    rows = []
    for name in ROWS:
        if not any(name in columns[c] for c in SETS):
            continue
        said = {"joint": "**everything stated**", "silhouette": "silhouette, IoU"}.get(name, name)
        rows.append([said, *[percent(columns[c].get(name)) for c in SETS]])
    head = ["percent (95%)", *[f"{c} ({columns[c]['joint']['n']})" for c in SETS]]
    ideal = {name: found[name]["joint"] for name in ("renders", "round trips")}
    how = (
        f"`minidiff evaluate tiny --n {found['n']} --seed {found['seed']}`, {found['steps']} "
        f"steps, guidance {found['scale']:g}; what a prompt states is counted, and "
        '"held out" tuples were never trained on:'
    )
    worth = (
        f"The autoencoder's round trip has {found['vae_psnr']['mean']:.1f} dB; the oracle reads "
        f"everything right in {ideal['renders']['mean']:.1f}% of {ideal['renders']['n']} held-out "
        f"renders and in {ideal['round trips']['mean']:.1f}% of their round trips."
    )
    notes = [found["note"]] if found.get("note") else []
    return "\n\n".join([how, plain(head, rows), worth, *remarks(notes)])


def models() -> str:
    """All shipped models: what they cost, and how often everything that is stated is right."""
    rows = []
    for name, parts in PARTS.items():
        found = measured(name)
        if not found:
            continue
        cost = manifest()[parts["net"]]
        joint = {c: row["joint"] for c, row in found["sets"].items()}
        counts = sorted({cell["n"] for cell in joint.values()})
        rows.append(
            [
                f"`{name}`",
                f"{cost['cpu_minutes']:.0f}",
                f"{found['scale']:g}",
                *[percent(joint.get(c)) for c in SETS],
                percent(joint.get("classes")),
                ", ".join(map(str, counts)),
            ]
        )
    head = ["everything stated, %", "CPU minutes", "guidance", *SETS, "classes", "n a column"]
    return plain(head, rows)


def plain(head, rows) -> str:
    """A Markdown table of text as it is."""
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def results() -> list[dict]:
    """What every measured proof wrote, in the order of the proofs."""
    return [r for r in (measured(f"proofs/{name}") for name in proofs()) if r]


def proved(names: tuple[str, ...] = ()) -> str:
    """The claims of some proofs (default: all), and how many hold of all that were measured."""
    found = results()
    every = [row for result in found for row in result["rows"]]
    shown = [cells(row) for row in every if not names or row["proof"] in names]
    holding = sum(row["holds"] for row in every)
    notes = {result["note"] for result in found if result.get("note")}
    said = f"{holding} of the {len(every)} claims of {len(found)} measured proofs hold; there are "
    return "\n\n".join([plain(HEAD, shown), f"{said}{len(proofs())} proofs.", *remarks(notes)])


def remarks(notes) -> list[str]:
    """What is to be known about figures that no run of the present code wrote."""
    return [f"(These figures: {note}.)" for note in sorted(notes)]


def numbers() -> str:
    """README's five numbers, each with what prints it."""
    found = measured("tiny")
    one = found["sets"]["one held out"]
    two = found["sets"]["two held out"]
    seen = f"of {one['joint']['n']} pictures"
    best = told_words()[0]
    every = exercises().values()
    mistakes = sum(len(e.mutants) for e in every)
    rows = [
        ["everything a prompt states is right, one object", f"{percent(one['joint'])}% {seen}"],
        ["the same, two objects", f"{percent(two['joint'])}% {seen}"],
        ["an object's silhouette against the true one (IoU)", f"{percent(one['silhouette'])}%"],
        ["the best edit from words alone, EditScore", f"{scored(best)}, {best['method']}"],
        ["mistakes that the exercises know by name", f"{mistakes}, in {len(every)} exercises"],
    ]
    commands = [f"evaluate tiny --n {found['n']}"] * 3 + ["bench --split test", "learn list"]
    notes = [f"EditScore: {bench()['note']}"] if bench().get("note") else []
    table = [[*row, f"`minidiff {command}`"] for row, command in zip(rows, commands)]
    return "\n\n".join([plain(["", "95% intervals in brackets", "says"], table), *remarks(notes)])


def bench(split: str = "test") -> dict:
    """The leaderboard of a split, as the last report wrote it; {"methods": []} if there is none."""
    file = HERE / ("editing/bench.json" if split == "test" else f"editing/bench_{split}.json")
    return json.loads(file.read_text()) if file.exists() else {"methods": []}


def bench_rows(split: str = "test") -> list[dict]:
    return bench(split)["methods"]


def told_words() -> list[dict]:
    """The rows of the leaderboard that are told words alone, the best first."""
    rows = [row for row in bench_rows() if row["task"] in WORDS_ALONE]
    return sorted(rows, key=lambda row: -row["score"])


def scored(row: dict) -> str:
    """EditScore with its interval."""
    low, high = row["score_ci"]
    return f"{row['score']:.2f} ({low:.2f} to {high:.2f})"


def leaderboard_top(best: int = 5) -> str:
    """The best methods that are told words and nothing else, and two controls."""
    controls = [row for row in bench_rows() if row["method"] in ("inverted", "resample")]
    rows = []
    for row in told_words()[:best] + controls:
        name = f"`{row['method']}`" + (" (control)" if row in controls else "")
        rows.append([name, f"{row['score']:.2f}", "{:.2f} to {:.2f}".format(*row["score_ci"])])
        rows[-1] += [str(row["rows"]), f"{row['nfe']:.0f}"]
    head = ["method", "EditScore", "95% interval", "edits", "evaluations an edit"]
    notes = [bench()["note"]] if bench().get("note") else []
    return "\n\n".join([plain(head, rows), *remarks(notes)])


def against_control(names: list[str]) -> str:
    """How techniques score on each split of the bench, and for which kinds of edits they are shown
    to beat the plain control or to fall behind it. KeyError: there is no such technique.
    """
    rows = []
    for name in names:
        for split in ("test", "hard"):
            for row in bench_rows(split):
                if row["method"] in (name, f"{name}+mask"):
                    rows.append(against_row(row, split))
    if not rows:
        return no_bench_row(names)
    head = ["method", "split", "edits", "EditScore (95%)", "against the control (95%)"]
    table = plain([*head, "better for", "worse for"], rows)
    said = (
        "The control replays the source's inverted noise with the target prompt, at its own best "
        "guidance, and is paired with the method scene by scene. A kind of edit is named where "
        "the interval of its difference leaves out 0. "
        "([Leaderboard](LEADERBOARD), `minidiff bench`.)"
    )
    return "\n\n".join([table, said])


def against_row(row: dict, split: str) -> list[str]:
    cells = [f"`{row['method']}`", split, str(row["rows"]), scored(row)]
    gap = row.get("against")
    if gap is None:
        return [*cells, "-", "-", "-"]
    better = []
    worse = []
    for kind, (mean, low, high) in gap["by_kind"].items():
        if low > 0:
            better.append(f"{kind} {mean:+.2f}")
        if high < 0:
            worse.append(f"{kind} {mean:+.2f}")
    mean, low, high = gap["all"]
    cells.append(f"{mean:+.2f} ({low:+.2f} to {high:+.2f})")
    return [*cells, ", ".join(better) or "none", ", ".join(worse) or "none"]


def no_bench_row(names: list[str]) -> str:
    """Why the bench says nothing of these techniques."""
    said = []
    for name in names:
        technique = TECHNIQUES[name]
        if technique.same_as:
            said.append(
                f"On a model like `tiny`, `{name}` at equal options is the row "
                f"`{technique.same_as}` of the [leaderboard](LEADERBOARD)."
            )
        elif technique.no_row:
            said.append(
                f"`{name}` has no row on the [leaderboard](LEADERBOARD): {technique.no_row}."
            )
        elif lacks(technique.load()):
            needed = " and ".join(lacks(technique.load()))
            said.append(
                f"`{name}` has no row on the [leaderboard](LEADERBOARD): it needs {needed}."
            )
        else:
            said.append(
                f"(`{name}` is not measured yet with the weights as they are: "
                f"`minidiff bench --split test --methods {name} --items 32`.)"
            )
    return " ".join(said)


def proof(name: str) -> str:
    """The claims of one proof, for its page. KeyError: there is no such proof."""
    found = measured(f"proofs/{name}")
    if name not in proofs():
        raise KeyError(name)
    if not found:
        return f"(Not measured yet with the weights as they are: `minidiff prove {name}`.)"
    return plain(HEAD[1:], [cells(row)[1:] for row in found["rows"]])


def masthead(names: list[str]) -> str:
    """What a page's techniques are, and where. KeyError: there is none of that name."""
    rows = []
    for name in names:
        technique = TECHNIQUES[name]
        rows += [
            ["what for", ended(technique.about) + (f" (`{name}`)" if len(names) > 1 else "")],
            ["paper", linked(technique.paper)],
            ["code", ", ".join(f"`{path}`" for path in (technique.path, *tests_of(technique)))],
            ["costs", cost(name)],
            ["run", f"`minidiff edit {name} --help`"],
        ]
        if technique.proof:
            rows[-1][1] += f", `minidiff prove {name}`"
    return plain(["", ""], [row for row in rows if row[1]])


def ended(sentence: str) -> str:
    """A sentence with its full stop, a question as it is."""
    return sentence if sentence.endswith("?") else f"{sentence}."


def linked(paper: str) -> str:
    """The number of arXiv as a link."""
    return re.sub(r"(\d{4}\.\d{4,5})", r"[\1](https://arxiv.org/abs/\1)", paper)


def cost(name: str) -> str:
    """Evaluations and seconds of one edit at the bench's settings, "" if it has no row."""
    found = [row for row in bench_rows() if row["method"] in (name, f"{name}+mask")]
    if not found or found[0]["seconds"] is None:
        return ""
    row = found[0]
    return (
        f"{row['nfe']:.0f} evaluations of the network an edit, {row['seconds']:.1f} s on one core "
        "with `tiny`"
    )


def samplers() -> str:
    """Every sampler: its paper, its order on paper, what it is for, and its page."""
    rows = []
    for sampler in SAMPLERS.values():
        order = f"{sampler.order:g}" if sampler.order else "-"
        link = f"[page]({os.path.relpath(sampler.page, 'samplers')}.md)"
        rows.append([f"`{sampler.name}`", sampler.about, order, linked(sampler.paper), link])
    return plain(["sampler", "what for", "order on paper", "paper", ""], rows)


def sampler_orders() -> str:
    """Errors in the plane and the measured orders, on the grid each sampler is made for."""
    found = measured("samplers")
    if not found:
        return "(Not measured yet: `minidiff samplers`.)"
    own = {name: sampler.even_in for name, sampler in SAMPLERS.items()}
    rows = []
    for name in dict.fromkeys(c["sampler"] for c in found["curves"]):
        mine = [c for c in found["curves"] if c["sampler"] == name]
        curves = {c["data"]: c for c in mine if c["even_in"] == own[name]}
        other = next(c for c in mine if c["data"] == "mixture" and c["even_in"] != own[name])
        mixture = curves["mixture"]
        errors = [f"{e:.1e}" for e in mixture["errors"][:3]]
        orders = [f"{curves[data]['order']:.2f}" for data in ("mixture", "one Gaussian")]
        paper = f"{SAMPLERS[name].order:g}"
        rows.append([f"`{name}`", own[name], *errors, *orders, paper, f"{other['order']:.2f}"])
    steps = [f"error, {n} steps" for n in found["curves"][0]["steps"][:3]]
    head = ["sampler", "steps even in", *steps, "order", "of one Gaussian", "on paper"]
    return plain([*head, "on the other grid"], rows)


def guides() -> str:
    """Guidances on pictures: accuracy, variety, colours, evaluations."""
    found = measured("guides")
    if not found:
        return "(Not measured yet: `minidiff guides`.)"
    return f"```\n{guides_table(found['rows'], found['renders_apart'])}\n```"


def backbones() -> str:
    """Networks after equal minutes: loss, shape gain, right pictures, speed."""
    found = measured("backbones")
    if not found:
        return "(Not measured yet: `minidiff backbones`.)"
    return f"```\n{backbones_table(found['rows'])}\n```"


def sampler_pictures() -> str:
    """Percent of right pictures by sampler and evaluations, and what follows from it."""
    found = measured("samplers")
    if not found or not found["pictures"]:
        return "(Not measured yet: `minidiff samplers --pictures`.)"
    rows = found["pictures"]
    budgets = sorted({row["budget"] for row in rows})
    marked = {b: [row["sampler"] for row in best_at(rows, b)[1]] for b in budgets}
    table = []
    for name in dict.fromkeys(row["sampler"] for row in rows):
        cells = [f"`{name}`"]
        for b in budgets:
            row = next((r for r in rows if r["sampler"] == name and r["budget"] == b), None)
            if row is None:
                cells.append("-")
                continue
            mean, low, high = (100 * x for x in bootstrap_ci(row["right"]))
            said = f"{mean:.0f} ({low:.0f} to {high:.0f})"
            cells.append(f"**{said}**" if name in marked[b] else said)
        table.append(cells)
    enough = recommended(rows)
    names = " or ".join(f"`{name}`" for name, _ in enough)
    n = rows[0]["n"]
    said = (
        f"Percent of {n} pictures (95%) in which everything is right that the prompt states. Bold: "
        "the best with that many evaluations, and all that cannot be told from it on the same "
        f"prompts. The fewest evaluations at which something cannot be told from the best of "
        f"{budgets[-1]}: **{enough[0][1]}, with {names}**."
    )
    head = ["sampler", *[f"{b} evaluations" for b in budgets]]
    return "\n\n".join([plain(head, table), said])


def sampler_likeness() -> str:
    """dB to the settled picture by sampler and evaluations; in bold the best of each column, and
    what cannot be told from it on the same pictures.
    """
    found = measured("samplers")
    if not found or not found["likeness"]:
        return "(Not measured yet: `minidiff samplers --pictures`.)"
    near = {(r["sampler"], r["budget"]): r["psnr"] for r in found["likeness"]}
    budgets = sorted({budget for _, budget in near})
    table = []
    for name in dict.fromkeys(sampler for sampler, _ in near):
        cells = [f"`{name}`"]
        for budget in budgets:
            mine = near.get((name, budget))
            if mine is None:
                cells.append("-")
                continue
            rivals = [db for (_, b), db in near.items() if b == budget]
            _, low, _ = bootstrap_ci(np.subtract(max(rivals, key=np.mean), mine))
            said = f"{np.mean(mine):.1f}"
            cells.append(said if low > 0 else f"**{said}**")
        table.append(cells)
    return plain(["dB", *[f"{b} evaluations" for b in budgets]], table)


MADE = {
    "sampler-likeness": sampler_likeness,
    "samplers": samplers,
    "sampler-orders": sampler_orders,
    "sampler-pictures": sampler_pictures,
    "guides": guides,
    "backbones": backbones,
    "numbers": numbers,
    "leaderboard-top": leaderboard_top,
    "evaluated": evaluated,
    "models": models,
    "proofs": proved,
    "proofs-in-short": lambda: proved(SHOWN),
    "techniques": techniques,
    "apart": apart,
    "ladders": ladders,
    "notebooks": notebooks,
    "unet": lambda: names("unet", "original"),
    "vae": lambda: names("vae", "original"),
    "text": lambda: names("text", "original"),
    "controlnet": lambda: names("controlnet", "original"),
    "t2i": lambda: names("t2i", "original"),
    "t2i-light": lambda: names("t2i-light", "original"),
    "dit": lambda: names("dit", "diffusers"),
    "resnet": lambda: lines(("ours", "theirs"), RESNET.items()),
    "dropped": dropped,
    "prefixes": prefixes,
    "variants": variants,
}


def code(file: str, name: str) -> str:
    """A function of minidiff/`file` without its docstring, as a Markdown block; of a function and a
    method of that name, the function. KeyError: there is neither.
    """
    text = (SOURCE / file).read_text()
    nodes: dict[str, ast.FunctionDef | ast.ClassDef] = {}
    for node in ast.walk(ast.parse(text)):  # outer ones first
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            nodes.setdefault(node.name, node)
    node, all_lines = nodes[name], text.splitlines()
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    head = all_lines[node.lineno - 1 : node.body[0].lineno - 1]
    shown = textwrap.dedent("\n".join([*head, *all_lines[body[0].lineno - 1 : node.end_lineno]]))
    return f"```python\n{shown}\n```"


def output(program: str) -> str:
    """What a block of Python prints, as a Markdown block. A reader's record of exercises is left
    alone.
    """
    said, before = io.StringIO(), os.environ.get("MINIDIFF_HOME")
    with tempfile.TemporaryDirectory() as home, contextlib.redirect_stdout(said):
        os.environ["MINIDIFF_HOME"] = home
        exec(compile(program, "page", "exec"), {})
        os.environ.pop("MINIDIFF_HOME") if before is None else os.environ.update(
            MINIDIFF_HOME=before
        )
    return f"```text\n{said.getvalue().rstrip()}\n```"


def filled(text: str, page: Path) -> str:
    """A page with its tables, code and output as they are now. KeyError: no table, no function of
    that name.
    """
    board = os.path.relpath(HERE / "editing/leaderboard.md", page.parent)
    text = OUTPUT.sub(lambda m: f"{m[1]}{output(m[2])}\n{m[3]}", text)
    text = MASTHEAD.sub(lambda m: f"{m[1]}{masthead(m[2].split())}\n{m[3]}", text)
    text = PROOF.sub(lambda m: f"{m[1]}{proof(m[2])}\n{m[3]}", text)
    scores = lambda m: against_control(m[2].split()).replace("LEADERBOARD", board)  # noqa: E731
    text = BENCH.sub(lambda m: f"{m[1]}{scores(m)}\n{m[3]}", text)
    text = BLOCK.sub(lambda m: f"{m[1]}{MADE[m[2]]()}\n{m[3]}", text)
    return CODE.sub(lambda m: f"{m[1]}{code(m[2], m[3])}\n{m[4]}", text)


def main() -> None:
    for page in (README, *sorted(HERE.rglob("*.md"))):
        old = page.read_text()
        if (new := filled(old, page)) != old:
            page.write_text(new)
            print(page)


if __name__ == "__main__":
    main()
