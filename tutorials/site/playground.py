"""The playground's page: the sweeps of static/playground as sliders, and the form that draws in the
browser.

What moves is in static/playground.js (sliders), live.js and diffusion.js (drawing). Without scripts
every sweep still shows its first setting. Pure functions of facts, as in pages.py; the pictures are
made by sweeps.py, the networks by live.py.
"""

import html
import json
from dataclasses import dataclass
from pathlib import Path

import pages

HERE = Path(__file__).resolve().parent
SWEEPS = HERE / "static/playground/sweeps.json"
WORDS = (
    ("shapes", "circle square triangle diamond star ring cross"),
    ("colours", "red orange yellow green cyan blue purple pink"),
    ("sizes", "small medium large"),
    ("places", "in the center, on the left, on the right, at the top, at the bottom"),
    ("of two", "left of, right of, above, below"),
    ("backgrounds", "red yellow green blue purple white grey black"),
    ("textures", "plain striped checkered dotted"),
)
EXAMPLES = (
    "a red circle on a blue background",
    "a large yellow star on a dotted purple background",
    "a small green cross at the top on a white background",
    "a green ring left of a pink square on a white background",
    "a blue triangle above a red circle on a checkered yellow background",
)


@dataclass(frozen=True)
class Told:
    """What the page says about a sweep: the method's page, what the knob does, what to look for,
    what the curve shows, the pictures of the last row (`refs`) and of the row above it
    (`companion`).
    """

    title: str
    page: str
    does: str
    look: str
    curve: str
    refs: tuple[str, ...]
    companion: str = ""


TRUTH, EDIT = "one right answer, rendered", ("the true edit, rendered", "the source")
SIX = "tutorials/00_the_six_words.md"
TOLD = {
    "noise": Told(
        "Noise level",
        SIX,
        (
            "A picture is noised to time t; the network looks once, knows the caption, and says "
            "what was there."
        ),
        "Up to t = 700 every attribute is right: the noise hides less than it seems to. At 900 "
        "the texture is gone. "
        "At 1000 nothing is left to see, and the guess is an average over all pictures that the "
        "words allow: pale and "
        "blurred. That is why sampling takes many small steps and not this one.",
        "dB to the truth",
        ("the scene, rendered",),
        "what the network saw, decoded",
    ),
    "steps": Told(
        "Steps",
        SIX,
        "DDIM from the same noise, with fewer or more steps, at guidance 3.",
        "One step is a guess from pure noise, as at t = 1000 above. With three steps all twelve "
        "pictures show what "
        "was said; from five on they are within 37 dB of what 100 steps give, and more steps "
        "bring them nearer "
        "without changing what is there.",
        "dB to 100 steps",
        ("the same noise, 100 steps", TRUTH),
    ),
    "guidance": Told(
        "Guidance",
        SIX,
        (
            "How far sampling follows the words: 0 ignores them, 1 is the model itself, 3 the "
            "default. 20 steps."
        ),
        "At 0 the words are not heard: the same picture three times. At 1 the star is a blot; at "
        "2 and 3 all twelve "
        "pictures show what was said; from 8 on ten do, shapes break, and colours are driven to "
        "the end of their "
        "range (a quarter of the star's picture at 12). The curve is the variety that four noises "
        "give: hearing the "
        "words takes a third to two thirds of it, guiding little.",
        "spread of the pictures of four noises",
        (TRUTH,),
    ),
    "inversion": Told(
        "Inversion steps",
        "tutorials/inversion/ddim.md",
        "A given picture is carried up to noise and back down, with the caption that describes it.",
        "Without guidance (scale 1) every doubling of the steps brings the copy nearer, up to "
        "what the autoencoder "
        "allows. Then set the scale to 5: the same noise leads elsewhere, and a hundred steps do "
        "worse than five. "
        "That gap is what null-text inversion and its cures are for.",
        "dB to the autoencoder's copy",
        ("the picture, rendered", "the autoencoder's copy, the best there can be"),
    ),
    "strength": Told(
        "SDEdit: strength",
        "tutorials/editing/sdedit.md",
        (
            "The picture is noised so far, then drawn again with another colour in the prompt. "
            "25 steps, guidance 3."
        ),
        "Each scene has a strength of its own. The ring is right in everything from .6 on, the "
        "square turns pink at "
        ".7 only, and at .8 the star has left its place, since the short prompt does not say "
        "where it was: one number "
        "trades the new colour against the old layout.",
        "dB to the truth",
        EDIT,
    ),
    "injection": Told(
        "Prompt-to-Prompt: injection time",
        "tutorials/editing/prompt_to_prompt.md",
        "The same edit, with the source's attention maps in the first share of the steps: of "
        "cross-attention (pixels "
        "to words) and of self-attention (pixels to pixels). 25 steps, guidance 5; the picture "
        "was inverted before.",
        "Both at 0 is plain re-prompting of the inverted noise. Self-attention that is held long "
        "keeps things where "
        "they were (the ring gains 5 dB). Cross-attention held to the end helps the square and "
        "ruins the star: no "
        "setting is the best for all three, and the default, cross .3 and self_ .9, is a "
        "compromise.",
        "dB to the truth",
        EDIT,
    ),
}


def cell(file: str, columns: int, rows: int, column: int, row: int, label: str, kind: str) -> str:
    """One picture of a strip. `kind`: "now" and "seen" follow the slider, "ref" stays."""
    style = (
        f"background-image:url(_static/playground/{file});--columns:{columns};--rows:{rows};--column:{column};"
        f"--row:{row}"
    )
    return (
        f'<figure><span class="cell" data-kind="{kind}" role="img" '
        f'aria-label="{html.escape(label)}" style="{style}">'
        f"</span><figcaption>{html.escape(label)}</figcaption></figure>"
    )


def shape(s: dict, told: Told) -> tuple[int, int]:
    """(columns, rows) of the strips of a sweep."""
    values = [len(k["values"]) for k in s["knobs"]]
    return max(values[0], len(told.refs)), (values[1] if len(values) > 1 else 1) + bool(
        told.companion
    ) + 1


def sweep(s: dict, told: Told) -> str:
    """One sweep as HTML: scenes to choose from, pictures, sliders, what is said, the curve (which
    the script draws).
    """
    first, (columns, rows) = s["scenes"][0], shape(s, told)
    at = [k["start"] for k in s["knobs"]]
    row = at[1] if len(at) > 1 else 0
    views = [cell(first["file"], columns, rows, at[0], row, "at this setting", "now")]
    if told.companion:
        views.append(cell(first["file"], columns, rows, at[0], rows - 2, told.companion, "seen"))
    views += [
        cell(first["file"], columns, rows, i, rows - 1, ref, "ref")
        for i, ref in enumerate(told.refs)
    ]
    scenes = "".join(
        (
            '<button type="button" '
            f'aria-pressed="{str(i == 0).lower()}">{html.escape(x["name"])}</button>'
        )
        for i, x in enumerate(s["scenes"])
    )
    knobs = "".join(
        f"<label>{html.escape(k['name'])} <output>{k['values'][k['start']]}</output>"
        f'<input type="range" min="0" max="{len(k["values"]) - 1}" step="1" value="{k["start"]}" '
        f'autocomplete="off" aria-valuetext="{k["values"][k["start"]]}"></label>'
        for k in s["knobs"]
    )
    facts = json.dumps(s | {"curve": told.curve}).replace("<", "\\u003c")
    return (
        f'<div class="sweep" id="sweep-{s["name"]}"><div class="scenes" role="group" '
        f'aria-label="scene">{scenes}</div>'
        f'<div class="views">{"".join(views)}</div><div class="knobs">{knobs}</div>'
        f'<p class="says" aria-live="polite">{html.escape(first["frames"][row][at[0]]["says"])}</p>'
        '<figure class="curve"><svg viewBox="0 0 320 90" role="img" '
        f'aria-label="{html.escape(told.curve)}, at every '
        'setting"></svg><figcaption></figcaption></figure><script '
        f'type="application/json">{facts}</script></div>'
    )


def form(missing: str) -> str:
    """The part that draws, or a sentence that says why it is not here."""
    if missing:
        return f'<p class="missing">Not in this build of the site: {html.escape(missing)}.</p>'
    examples = "".join(f'<button type="button">{e}</button>' for e in EXAMPLES)
    words = "".join(f"<li>{what}: {which}</li>" for what, which in WORDS)
    return f"""<form class="live" data-folder="_static/live">
<div class="stage"><canvas width="64" height="64" role="img" aria-label="nothing drawn yet"></canvas>
<progress value="0" max="1" aria-label="steps done"></progress><p class="status" role="status">nothing drawn yet</p></div>
<div class="controls">
<label>words <input name="prompt" value="{EXAMPLES[0]}" autocomplete="off" spellcheck="false"></label>
<div class="examples" role="group" aria-label="examples">{examples}</div>
<label>away from (may be empty) <input name="negative" autocomplete="off" spellcheck="false"></label>
<label>steps <output>20</output><input name="steps" type="range" min="1" max="50" value="20" autocomplete="off"></label>
<label>guidance <output>3</output><input name="scale" type="range" min="0" max="12" step="0.5" value="3" autocomplete="off">
</label>
<label>noise number <input name="seed" type="number" min="0" max="4294967295" step="1" value="0" autocomplete="off"></label>
<div class="buttons"><button name="draw">Load 14 MB and draw</button>
<button type="button" name="stop" disabled>Stop</button><button type="button" name="other">Other noise</button></div>
<details><summary>words it knows</summary><ul>{words}</ul></details>
</div><div class="kept"></div></form>"""


HEAD = """---
hide-toc: true
---

# Playground

Turn a knob and see what the shipped model makes of it, next to the true picture, with a number. Below the sliders the model
itself [draws](#draw), in this page.

The pictures of the sliders were drawn before, by `tutorials/site/sweeps.py` from fixed noises; each is 64 x 64. They show one scene
and one noise at a time, so they illustrate; what holds on average is on the pages they link to. Likeness (dB) is to the
picture named; attributes are read by the learned oracle.
"""
DRAW = """## Draw

The text tower, the UNet and the decoder of `minidiff.load("tiny")`, run by ONNX Runtime Web inside this page; nothing
leaves this computer. Keep the noise number and change one word to see what the words decide and what the noise does.
"""
SCRIPTS = """<noscript>Drawing and sliders need JavaScript.</noscript>
<script src="_static/playground.js" defer></script>
<script src="_static/diffusion.js" defer></script>
<script src="_static/live.js" defer></script>"""
LOOP = """Twenty steps are 2 seconds of one core in Chromium, fifty 6; the first picture takes longer, as the browser still
compiles. For the same starting noise the picture is that of `pipe.generate` to 5 digits; `make check-site` compares them.
The same *number* gives other noise here than in Python, since torch draws its own. This is all of the loop:
"""


def page(sweeps: list[dict], missing: str, code: set[str]) -> str:
    """The page in MyST. `missing`: why there is no live part, "" if there is."""

    def raw(text: str) -> str:
        return f"````{{raw}} html\n{text}\n````\n"

    parts = [HEAD]
    for s in sweeps:
        told = TOLD[s["name"]]
        parts += [
            f"## {told.title}\n\n{told.does}\n",
            raw(sweep(s, told)),
            f"**What to look for.** {told.look} [How it works]({pages.place(told.page, code)})\n",
        ]
    loop = (HERE / "static/diffusion.js").read_text().rstrip()
    return "\n".join(
        [*parts, DRAW, raw(form(missing) + SCRIPTS), LOOP, f"```javascript\n{loop}\n```\n"]
    )
