"""The pages that the site adds, and the links of those it takes over: pure functions of text, no
Sphinx here.

papers.md says which paper is in which file and what it answers; minidiff/techniques.py says which
techniques there are. The gallery and the links between pages and code follow from those two.
"""

import html
import os
import re
import runpy
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# the first there is
BENCH = tuple(ROOT / p / "bench.json" for p in ("tutorials/editing", "runs/bench", "out/bench"))
ROOMS = {
    "samplers": "Samplers",
    "guidance": "Guidance",
    "inversion": "Inversion",
    "editing": "Editing",
    "restoration": "Restoration",
    "analysis": "Looking inside",
    "bench": "The bench",
    "control": "Control",
    "weights": "Real weights",
}
# what the bar at the left shows above the rooms of techniques; a page that is not there is left out
NAVIGATION = (
    ("Play", ("playground.md", "gallery.md", "leaderboard.md")),
    (
        "Read",
        (
            "00_the_six_words.md",
            "unified_perspective.md",
            "plane.md",
            "networks.md",
            "Papers, file by file <papers.md>",
            "surveys.md",
            "conventions.md",
            "seeds.md",
            "why_your_fid_differs.md",
        ),
    ),
    ("Notebooks", ("notebooks.md",)),
    ("Exercises", ("write_it_yourself.md", "course.md", "assistants.md")),
    ("Reading group", ("reading_group.md",)),
    ("What was measured", ("how_good.md", "proofs.md")),
    ("Reference", ("API <api/index.md>", "Code, explained <code/index.md>")),
)
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.S | re.M)
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)")
PATH = re.compile(r"(?<!\[)`((?:minidiff|tutorials|notebooks)/[\w/.]+\.(?:py|md|ipynb))`(?!\])")


@dataclass(frozen=True)
class Paper:
    paper: str
    files: tuple[str, ...]
    tests: tuple[str, ...]
    tutorial: str
    answers: str


@dataclass(frozen=True)
class Card:
    """`file`, `page` and `triptych` are paths in the repository; the latter two may be "". A
    triptych is source, true answer and the method's best, side by side.
    """

    name: str
    room: str
    title: str
    idea: str
    file: str
    page: str
    triptych: str


def papers(text: str) -> list[Paper]:
    """The rows of papers.md. A row names its files, tests and page in backticks."""
    rows = []
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip().strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 5 and "`" in cells[1]:
            named = [tuple(re.findall(r"`([^`]+)`", c)) for c in cells[1:4]]
            rows.append(
                Paper(cells[0], named[0], named[1], named[2][0] if named[2] else "", cells[4])
            )
    return rows


def short(paper: str) -> str:
    """ "Meng et al. 2021, [2108.01073](...), SDEdit" -> "SDEdit"."""
    return paper.split("), ", 1)[-1] if "), " in paper else paper


def techniques(root: Path = ROOT) -> dict:
    """{name: record} of minidiff/techniques.py, without importing the package."""
    return runpy.run_path(str(root / "minidiff/techniques.py"))["TECHNIQUES"]


def cards(root: Path = ROOT) -> list[Card]:
    """One per technique, in the order of techniques.py."""
    found = []
    for name, technique in techniques(root).items():
        page = technique.tutorial if (root / technique.tutorial).is_file() else ""
        triptych = f"tutorials/figures/triptychs/{name}.png"
        triptych = triptych if (root / triptych).exists() else ""
        title = re.split(r"\d{4}\.\d{4,5}, ", technique.paper)[-1]
        found.append(
            Card(name, technique.room, title, technique.about, technique.path, page, triptych)
        )
    return found


def code_files(root: Path = ROOT) -> list[str]:
    """Files that get a page of code and explanation: every technique, every file of papers.md, and
    the core.
    """
    named = [c.file for c in cards(root)] + [
        f for r in papers((root / "tutorials/papers.md").read_text()) for f in r.files
    ]
    core = [
        str(p.relative_to(root))
        for p in sorted((root / "minidiff/core").glob("*.py"))
        if p.stem != "__init__"
    ]
    return sorted(
        {
            f
            for f in core + named
            if f.startswith("minidiff/") and f.endswith(".py") and (root / f).is_file()
        }
    )


# ---- where things are in the site ----------------------------------------------------------------


def place(path: str, code: set[str]) -> str | None:
    """A repository path -> its place in the site's sources; None: not in the site."""
    if path == "README.md":
        return "index.md"
    if path in code:
        return "code/" + path.removeprefix("minidiff/").removesuffix(".py") + ".md"
    if path.startswith("tutorials/") and path.endswith((".md", ".png")):
        return path.removeprefix("tutorials/")
    if path.startswith("notebooks/blank/") and path.endswith(".ipynb"):
        return path  # to download
    if path.startswith("notebooks/") and path.endswith(".ipynb"):
        return path.removesuffix(".ipynb") + ".md"  # its page is made by notebook_pages.py
    return None


def relinked(text: str, path: str, code: set[str], root: Path = ROOT) -> str:
    """A page of the repository as a page of the site: its links, and the files it names in
    backticks, lead to pages.

    What the site does not hold loses its link and keeps its words. Fenced code is left alone.
    """
    here = os.path.dirname(place(path, code) or "")

    def to(target: str, base: str) -> str | None:
        there = place(os.path.normpath(os.path.join(base, target)), code)
        exists = (root / os.path.normpath(os.path.join(base, target))).is_file()
        return os.path.relpath(there, here or ".") if there and exists else None

    def link(m: re.Match) -> str:
        target, _, anchor = m[2].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return m[0]
        found = to(target, os.path.dirname(path))
        if found is None:
            return m[0] if m[1].startswith("!") else m[1][1:-1]
        return f"{m[1]}({found}{'#' + anchor if anchor else ''})"

    def name(m: re.Match) -> str:
        found = to(m[1], "")
        return m[0] if found is None else f"[`{m[1]}`]({found})"

    def outside(part: str) -> str:
        return PATH.sub(name, LINK.sub(link, part))

    out, end = [], 0
    for m in FENCE.finditer(text):
        out += [outside(text[end : m.start()]), m[0]]
        end = m.end()
    return "".join(out) + outside(text[end:])


def html_of(page: str, code: set[str]) -> str:
    return (place(page, code) or "").removesuffix(".md") + ".html"


# ---- the gallery ---------------------------------------------------------------------------------


def gallery(found: list[Card], code: set[str]) -> str:
    """Buttons and cards, as HTML, those with a picture first; site.js filters by data-room and by
    what is typed.
    """
    found = sorted(found, key=lambda card: not card.triptych)
    rooms = [r for r in ROOMS if any(c.room == r for c in found)]
    buttons = [
        (
            '<button type="button" data-room="" aria-pressed="true">All '
            f"<small>{len(found)}</small></button>"
        )
    ]
    buttons += [
        f'<button type="button" data-room="{r}" aria-pressed="false">{ROOMS[r]} '
        f"<small>{sum(c.room == r for c in found)}</small></button>"
        for r in rooms
    ]
    out = [
        '<div class="filters" role="group" aria-label="rooms">',
        *buttons,
        (
            '<input type="search" placeholder="find by name or idea" aria-label="find a '
            'technique"></div>'
        ),
        '<div class="cards">',
    ]
    for c in found:
        target = html_of(c.page or c.file, code)
        tutorial = f'<a href="{target}">page</a> · ' if c.page else ""
        out.append(
            f'<article class="card" data-room="{c.room}">{triptych(c, target)}<h3><a '
            f'href="{target}">{c.name}</a></h3>'
            f'<p class="of">{html.escape(c.title)}</p><p>{html.escape(c.idea)}</p>'
            f'<p class="more"><span>{ROOMS.get(c.room, c.room)}</span> {tutorial}'
            f'<a href="{html_of(c.file, code)}">code | explanation</a></p></article>'
        )
    return "\n".join([*out, "</div>", '<p class="empty" hidden>No technique is called so.</p>'])


def triptych(c: Card, target: str) -> str:
    """The three pictures of a card with their names, or a line that says there are none."""
    if not c.triptych:
        return '<div class="none">no picture here: see its page</div>'
    names = "".join(f"<span>{name}</span>" for name in ("source", "truth", c.name))
    return (
        f'<a class="triptych" href="{target}" tabindex="-1"><img loading="lazy" '
        f'src="_static/triptychs/{c.name}.png" alt="a scene, its true edit, and the edit by '
        f'{c.name}"><span class="names">{names}</span></a>'
    )


# ---- the leaderboard -----------------------------------------------------------------------------

WORDS_ALONE = ("told both prompts", "told the target prompt alone")


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard: the key in bench.json, its head, what the number is multiplied
    with and its digits, and what it says.
    """

    key: str
    head: str
    factor: float
    digits: int
    says: str


COLUMNS = (
    Column("method", "method", 1, 0, "A technique, or a control in italics."),
    Column(
        "inputs",
        "inputs",
        1,
        0,
        "What it is told: P the target prompt, S the source prompt, W the name of the edited "
        "object, M the exact mask. F: something is learned for every edit.",
    ),
    Column("rows", "n", 1, 0, "How many edits were made."),
    Column(
        "score",
        "EditScore",
        1,
        3,
        "T times the cube root of K, Bn and (1 + Cn) / 2: 1 for the true picture, 0 for doing "
        "nothing.",
    ),
    Column("T", "T %", 100, 0, "Edits that are there, by both oracles."),
    Column("K", "K %", 100, 0, "How much of what should stay reads as before."),
    Column("Bn", "Bn", 1, 2, "Likeness to the true picture outside the mask, as a share."),
    Column("Cn", "Cn", 1, 2, "The same inside the mask."),
    Column("B", "B dB", 1, 1, "Likeness outside the mask in dB, at most 50."),
    Column("C", "C dB", 1, 1, "Likeness inside the mask in dB."),
    Column("P", "P", 1, 3, "Perceptual distance to the true picture; 0 is best."),
    Column("D", "D ×10³", 1000, 1, "Change of structure against the source."),
    Column("Q1", "Q1", 1, 2, "Likeness to the target caption by a small CLIP. Methods may cheat."),
    Column("Q2", "Q2", 1, 2, "The same inside the mask."),
    Column("disagree", "disagree %", 100, 0, "Edits on which the two oracles disagree."),
    Column("nfe", "evals", 1, 0, "Evaluations of the network for one edit."),
    Column("seconds", "s/edit", 1, 2, "Seconds for one edit made alone."),
    Column("mb", "MB", 1, 0, "Memory that one edit took."),
)


def task_of(line: dict) -> str:
    """What a method was told, in the words of the bench; "" in files of its first edition."""
    return line.get("task", "")


def board(facts: dict, code: set[str] = frozenset()) -> str:
    """The table of bench.json as HTML, the best first; data-v holds what a column sorts by, ""
    what is missing (always last), data-task by what the buttons above filter. `code`: the files
    that have a page, to which the names of techniques lead.
    """
    targets = {card.name: html_of(card.page or card.file, code) for card in cards()} if code else {}
    head = "".join(
        f'<th scope="col" title="{html.escape(c.says)}"'
        f"{' aria-sort=descending' if c.key == 'score' else ''}>"
        f'<button type="button">{c.head}</button></th>'
        for c in COLUMNS
    )
    body = []
    for line in sorted(facts["methods"], key=lambda line: -line["score"]):
        target = targets.get(re.split("[+@]", line["method"])[0], "")
        cells = "".join(board_cell(line, c, target) for c in COLUMNS)
        body.append(f'<tr data-task="{html.escape(task_of(line))}">{cells}</tr>')
    return (
        f'<div class="board"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(body)
        + "\n</tbody></table></div>"
    )


def board_cell(line: dict, column: Column, target: str = "") -> str:
    """`target`: the page of the method, or ""."""
    value = line.get(column.key)
    if isinstance(value, str):
        shown = html.escape(value)
        if column.key == "method":
            shown = f"<code>{shown}</code>"
            if task_of(line) == "controls":
                shown = f"<em>{shown}</em>"
            if target:
                shown = f'<a href="{target}">{shown}</a>'
        return f'<td data-v="{html.escape(value)}">{shown}</td>'
    if value is None or value != value:
        return '<td data-v="">-</td>'
    more = ""
    ends = line.get(f"{column.key}_ci")
    if ends:
        low, high = (f"{column.factor * end:.{column.digits}f}" for end in ends)
        more = f" <small>{low} to {high}</small>"
    value = column.factor * value
    return f'<td data-v="{value:.6g}">{value:.{column.digits}f}{more}</td>'


def legend() -> str:
    """What each column of the leaderboard says, as a list."""
    entries = "".join(f"<dt>{c.head}</dt><dd>{html.escape(c.says)}</dd>" for c in COLUMNS)
    return f'<details class="legend" open><summary>What the columns say</summary><dl>{entries}</dl></details>'


def tasks(facts: dict) -> str:
    """Buttons that leave only the methods which were told the same; "" if the file cannot say."""
    named = list(dict.fromkeys(task_of(line) for line in facts["methods"]))
    if len(named) < 2:
        return ""
    buttons = ['<button type="button" data-task="" aria-pressed="true">all</button>']
    for name in named:
        escaped = html.escape(name)
        buttons.append(
            f'<button type="button" data-task="{escaped}" aria-pressed="false">{escaped}</button>'
        )
    return f'<div class="filters tasks" role="group" aria-label="tasks">{"".join(buttons)}</div>'


def leaderboard(facts: dict | None, code: set[str] = frozenset()) -> str:
    """The page of the bench, with or without results. `code`: the files that have a page."""
    head = (
        "# Leaderboard\n\nEvery method edits the same scenes, and is graded against the true "
        "picture. Methods that are told different things do different tasks: compare them "
        "within a task. The [page of the bench](editing/leaderboard.md) says how the scores are "
        "made, and [another](bench/what_it_cannot_tell.md) what they cannot tell. [Your own "
        "method](bench/your_method.md) can be entered, in any language.\n\n"
    )
    if facts is None:
        return head + (
            "No results yet. This writes them (hours; it resumes where it was); the next build "
            "shows them:\n\n"
            "```\npython -m minidiff bench --split test --seeds 3 --out runs/bench\n```\n"
        )
    checks = "\n".join(
        f"- {'holds' if ok else '**fails**'}: {claim}" for claim, ok in facts.get("controls", [])
    )
    said = f" ({facts['note'].capitalize()}.)" if facts.get("note") else ""
    return (
        head
        + f"Split {facts['split']}, up to {facts['scenes']} scenes of each kind, {facts['seeds']} "
        f"noise seed(s). Intervals are 95%. The best EditScore stands first; click the head of "
        f"a column to sort by it, again for the other way.{said}\n\n"
        f"````{{raw}} html\n{tasks(facts)}{board(facts, code)}{legend()}\n````\n\n"
        + (f"## Controls\n\n{checks}\n" if checks else "")
    )
