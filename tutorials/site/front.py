"""The front page of the site: what this is, three doors (play, read, write), a program, the best
techniques, and what is inside. Pure functions of text and of bench.json, as in pages.py.

README greets whoever finds the code; this page greets whoever finds the site. What both must say
(the three sentences, the commands to start, the program) is taken from README, so that it is
written once and run by the tests of README.
"""

import html
import re
from dataclasses import dataclass

import pages

BEST = 5  # techniques in the table
PARAGRAPH = re.compile(r"\n\n(minidiff holds .*?)\n\n", re.S)
PROGRAM = re.compile(r"```python\n(.*?)```", re.S)
START = re.compile(r"## Start\n\n```\n(.*?)```", re.S)


@dataclass(frozen=True)
class Door:
    """`picture`: a file of tutorials/figures, or "" for `text`, which stands in its place."""

    name: str
    says: str
    to: tuple[tuple[str, str], ...]
    picture: str = ""
    alt: str = ""
    text: str = ""


TASK = """def ddim_step(sch, x_t, eps, t, s):
    alpha_t, sigma_t = sch.at(t, x_t)
    alpha_s, sigma_s = sch.at(s, x_t)
    x0 = (x_t - sigma_t * eps) / alpha_t
    return alpha_s * x0 + ..."""
DOORS = (
    Door(
        "Play",
        "Turn a knob and watch the picture change. Draw with the model, inside this page, and "
        "train one of your own in ten seconds.",
        (
            ("playground.html", "Playground"),
            ("gallery.html", "Gallery of techniques"),
            ("leaderboard.html", "Leaderboard"),
        ),
        "door_play.png",
        "twelve pictures that the shipped model drew from captions",
    ),
    Door(
        "Read",
        "Follow diffusion from one derivation to thirty techniques. Every page shows the "
        "algorithm, its code, and what was measured.",
        (
            ("00_the_six_words.html", "The six words"),
            ("notebooks.html", "Notebooks"),
            ("reading_group.html", "A reading group's twelve weeks"),
        ),
        "door_read.png",
        "a star that is noised step by step until nothing of it is left",
    ),
    Door(
        "Write",
        "Write each formula yourself. The checker runs your function, and names the mistake if "
        "it knows it.",
        (
            ("write_it_yourself.html", "Exercises"),
            ("course.html", "A course, with grading"),
            ("api/index.html", "API"),
        ),
        text=TASK,
    ),
)

HERO = "demo.png"
PICTURES = (HERO, *[d.picture for d in DOORS if d.picture])  # of tutorials/figures


def taken(readme: str, pattern: re.Pattern, what: str) -> str:
    """The part of README that a pattern finds; ValueError if README has it no more."""
    found = pattern.search(readme)
    if not found:
        raise ValueError(f"README.md has no {what}; say in tutorials/site/front.py where it went")
    return found[1].strip()


def door(d: Door, known: set[str]) -> str:
    """`known`: the pages of the site; a door leads to no other."""
    links = []
    for target, name in d.to:
        if target.removesuffix(".html") + ".md" in known:
            links.append(f'<li><a href="{target}">{html.escape(name)}</a></li>')
    top = f"<pre>{html.escape(d.text)}</pre>"
    if d.picture:
        top = f'<img src="_static/front/{d.picture}" alt="{html.escape(d.alt)}">'
    first = d.to[0][0]
    return (
        f'<article class="door"><a class="top" href="{first}" tabindex="-1" aria-hidden="true">'
        f"{top}</a>"
        f'<h2><a href="{first}">{d.name}</a></h2><p>{html.escape(d.says)}</p>'
        f"<ul>{''.join(links)}</ul></article>"
    )


def best(facts: dict | None, code: set[str]) -> str:
    """The best techniques that are told words alone, and the control below them, as a table; ""
    without results.
    """
    if facts is None:
        return ""
    told = [s for s in facts["methods"] if pages.task_of(s) in pages.WORDS_ALONE]
    if not told:  # a file of the first edition does not say who was told what
        return ""
    told.sort(key=lambda s: -s["score"])
    controls = [s for s in facts["methods"] if s["method"] == "inverted"]
    by_name = {c.name: c for c in pages.cards()}
    rows = []
    for s in told[:BEST] + controls:
        name = s["method"]
        shown = f"<code>{html.escape(name)}</code>"
        if name in by_name:
            card = by_name[name]
            target = pages.html_of(card.page or card.file, code)
            shown = f'<a href="{target}">{shown}</a> <small>{html.escape(card.idea)}</small>'
        else:
            shown += " <small>a control: the source's noise, played back with new words</small>"
        low, high = s["score_ci"]
        rows.append(
            f'<tr><td>{shown}</td><td class="bar"><span style="--share:{s["score"]:.3f}"></span>'
            f"{s['score']:.2f} <small>{low:.2f} to {high:.2f}</small></td>"
            f"<td>{s['nfe']:.0f}</td></tr>"
        )
    head = "<tr><th>technique</th><th>EditScore (95%)</th><th>evaluations</th></tr>"
    table = f'<div class="best"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
    said = f"<p>({html.escape(facts['note'])}.)</p>" if facts.get("note") else ""
    return table + said + "</div>"


def page(readme: str, facts: dict | None, known: set[str], code: set[str]) -> str:
    """The page in MyST, without its tables of contents."""

    def raw(text: str) -> str:
        return f"````{{raw}} html\n{text}\n````\n"

    lead = taken(readme, PARAGRAPH, "paragraph that begins 'minidiff holds'")
    program = taken(readme, PROGRAM, "program in Python")
    start = taken(readme, START, "commands below '## Start'")
    doors = "".join(door(d, known) for d in DOORS)
    hero = (
        f'<div class="hero"><img src="_static/front/{HERO}" alt="one scene, generated and edited '
        'three ways, each above its true answer"></div>'
    )
    parts = [
        "---\nhide-toc: true\n---\n",
        "# minidiff\n",
        raw(
            '<p class="tagline">Image diffusion and the editing techniques built on it, small '
            "enough to read, and tested against known answers.</p>"
            f'<div class="doors">{doors}</div>'
        ),
        "## What it is\n",
        lead + "\n",
        raw(hero),
        "Top: what the shipped model drew, and three edits of one scene. Bottom: the scene "
        "itself, and what each edit should have given. Scene and seed were chosen; what the "
        "model does on average is [measured](how_good.md).\n",
    ]
    table = best(facts, code)
    if table:
        parts += [
            "## Which technique is best?\n",
            "Every technique edits the same scenes, and the true answer of each is rendered. "
            "EditScore is 1 for the true picture and 0 for doing nothing. These were told words "
            "alone; [the leaderboard](leaderboard.md) has all others.\n",
            raw(table),
        ]
    parts += [
        "## Start\n",
        f"```\n{start}\n```\n",
        f"```python\n{program}\n```\n",
    ]
    return "\n".join(parts)
