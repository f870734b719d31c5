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
    "bench": "The bench",
    "control": "Control",
    "weights": "Real weights",
}
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
    """`file`, `page` and `sheet` are paths in the repository; page and sheet may be ""."""

    name: str
    room: str
    title: str
    idea: str
    file: str
    page: str
    sheet: str


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
        sheet = f"tutorials/figures/sheets/{name}.png"
        sheet = sheet if (root / sheet).exists() else ""
        title = re.split(r"\d{4}\.\d{4,5}, ", technique.paper)[-1]
        found.append(
            Card(name, technique.room, title, technique.about, technique.path, page, sheet)
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
        return path.removesuffix(".ipynb") + ".md"  # its page is made by notebooks.py
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


def opening(readme: str, until: str = "How good is it?") -> str:
    """README up to a heading. ValueError: it has no such heading."""
    head, found, _ = readme.partition(f"\n## {until}")
    if not found:
        raise ValueError(
            f"README.md has no heading {until!r}; say in tutorials/site/pages.py where its opening ends"
        )
    return head + "\n"


def html_of(page: str, code: set[str]) -> str:
    return (place(page, code) or "").removesuffix(".md") + ".html"


# ---- the gallery ---------------------------------------------------------------------------------


def gallery(found: list[Card], code: set[str]) -> str:
    """Buttons and cards, as HTML; site.js filters by data-room and by what is typed."""
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
        sheet = (
            f'<a href="{target}" tabindex="-1"><img loading="lazy" '
            f'src="_static/sheets/{c.name}.png" '
            f'alt="pictures made by {c.name}"></a>'
            if c.sheet
            else '<div class="none">no contact sheet</div>'
        )
        tutorial = f'<a href="{target}">page</a> · ' if c.page else ""
        out.append(
            f'<article class="card" data-room="{c.room}">{sheet}<h3><a '
            f'href="{target}">{c.name}</a></h3>'
            f'<p class="of">{html.escape(c.title)}</p><p>{html.escape(c.idea)}</p>'
            f'<p class="more"><span>{ROOMS.get(c.room, c.room)}</span> {tutorial}'
            f'<a href="{html_of(c.file, code)}">code | explanation</a></p></article>'
        )
    return "\n".join([*out, "</div>", '<p class="empty" hidden>No technique is called so.</p>'])


# ---- the leaderboard -----------------------------------------------------------------------------

# key of bench.json, head, factor, digits
COLUMNS = (
    ("method", "method", 1, 0),
    ("inputs", "inputs", 1, 0),
    ("rows", "n", 1, 0),
    ("T", "T %", 100, 0),
    ("K", "K %", 100, 0),
    ("Bn", "Bn", 1, 2),
    ("Cn", "Cn", 1, 2),
    ("B", "B dB", 1, 1),
    ("C", "C dB", 1, 1),
    ("P", "P", 1, 3),
    ("D", "D ×10³", 1000, 1),
    ("Q1", "Q1", 1, 2),
    ("Q2", "Q2", 1, 2),
    ("score", "EditScore", 1, 3),
    ("disagree", "disagree %", 100, 0),
    ("nfe", "evals", 1, 0),
    ("seconds", "s/edit", 1, 2),
    ("mb", "MB", 1, 0),
)


def board(facts: dict, kind: str = "") -> str:
    """The table of bench.json as HTML: data-v holds what a column sorts by, "" what is missing
    (always last).
    """
    head = "".join(
        f'<th scope="col"><button type="button">{title}</button></th>' for _, title, _, _ in COLUMNS
    )
    body = []
    for s in facts["methods"]:
        cells = []
        for key, _, factor, digits in COLUMNS:
            v = s.get(key)
            if isinstance(v, str):
                shown = f"<code>{html.escape(v)}</code>" if key == "method" else html.escape(v)
                cells.append(f'<td data-v="{html.escape(v)}">{shown}</td>')
            elif v is None or v != v:
                cells.append('<td data-v="">-</td>')
            else:
                more = ""
                if s.get(f"{key}_ci"):
                    more = " <small>{:.{d}f} to {:.{d}f}</small>".format(
                        *[factor * x for x in s[f"{key}_ci"]], d=digits
                    )
                cells.append(f'<td data-v="{factor * v:.6g}">{factor * v:.{digits}f}{more}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="board"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(body)
        + "\n</tbody></table></div>"
    )


def leaderboard(facts: dict | None) -> str:
    """The page of the bench, with or without results."""
    head = (
        "# Leaderboard\n\nEvery method against the right answer. What the columns mean, and what "
        "they cannot say, is "
        "on the [page of the bench](editing/leaderboard.md).\n\n"
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
    return (
        head
        + f"Split {facts['split']}, up to {facts['scenes']} scenes of each kind, {facts['seeds']} "
        "noise seed(s). "
        "Click a column to sort by it; again for the other way. Intervals are 95%.\n\n"
        f"````{{raw}} html\n{board(facts)}\n````\n\n"
        + (f"## Controls\n\n{checks}\n" if checks else "")
    )
