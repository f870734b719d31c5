"""The playground's page: the sweeps of static/playground as sliders, and three forms: one draws in
the browser, one edits what the reader painted, one trains a model of the plane.

What moves is in static/: playground.js (sliders), live.js, edit.js and diffusion.js (drawing and
editing), train.js and train2d.js (training), chance.js (noise for both), state.js (what is set, in
the address). Without scripts every sweep still shows its first setting. The pictures of the sweeps
are made by sweeps.py, the networks by live.py.
"""

import base64
import html
import json
from dataclasses import dataclass
from pathlib import Path

import live
import pages
import sweeps as scenes

from minidiff.data import shapes

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
SIZE = 14  # MB of runtime.js and model.js; check_playground.py compares
# what the form that edits begins with
START, INK, STRENGTH = "white-ground", "red", 0.7
STROKE_WORDS = "a red circle on a white background"


@dataclass(frozen=True)
class Told:
    """What the page says about a sweep: the method's page, what the knob does, what to look for,
    what the curve shows, the pictures of the last row (`refs`) and of the row above it
    (`companion`). In what the knob does, {scale} stands for the guidance of the pictures and
    {default} for the model's own.
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
        "DDIM from the same noise, with fewer or more steps, at guidance {scale}.",
        "One step is a guess from pure noise, as at t = 1000 above: seven of twelve pictures "
        "show what was said. With two steps all twelve do. From five on they are within 33 dB "
        "of what 100 steps give, and more steps bring them nearer without changing what is "
        "there.",
        "dB to 100 steps",
        ("the same noise, 100 steps", TRUTH),
    ),
    "guidance": Told(
        "Guidance",
        SIX,
        (
            "How far sampling follows the words: 0 ignores them, 1 is the model itself, {default} "
            "the default. 20 steps."
        ),
        "At 0 the words are not heard: the same picture three times. From 1 on all twelve "
        "pictures show what was said. More guidance drives colours to the end of their range, at "
        "12 in two fifths of the star's picture. The curve is the variety that four noises give. "
        "Hearing the words takes more than half of it, guiding takes nothing.",
        "spread of the pictures of four noises",
        (TRUTH,),
    ),
    "inversion": Told(
        "Inversion steps",
        "tutorials/inversion/ddim.md",
        "A given picture is carried up to noise and back down, with the caption that describes it.",
        "Without guidance (scale 1) every doubling of the steps brings the copy nearer, up to "
        "what the autoencoder allows. Then set the scale to 5: colours are driven too far, and a "
        "hundred steps are hardly better than ten. That gap is what null-text inversion and its "
        "cures are for.",
        "dB to the autoencoder's copy",
        ("the picture, rendered", "the autoencoder's copy, the best there can be"),
    ),
    "strength": Told(
        "SDEdit: strength",
        "tutorials/editing/sdedit.md",
        (
            "The picture is noised so far, then drawn again with another colour in the prompt. "
            "25 steps, guidance {scale}."
        ),
        "Each scene has a strength of its own. The ring is right in everything from .4 to .9. "
        "The star is right at .6 and .7; at .8 it has left its place, since the short prompt "
        "does not say where it was. The square fades, is gone at .7, and comes back pink and "
        "small at .8. One number trades the new colour against the old layout.",
        "dB to the truth",
        EDIT,
    ),
    "injection": Told(
        "Prompt-to-Prompt: injection time",
        "tutorials/editing/prompt_to_prompt.md",
        "The same edit, with the source's attention maps in the first share of the steps: of "
        "cross-attention (pixels "
        "to words) and of self-attention (pixels to pixels). 25 steps, guidance {scale}; the picture "
        "was inverted before.",
        "Both at 0 is plain re-prompting of the inverted noise. It keeps the place of things, "
        "for that noise remembers the picture, but not their size. Attention that is held longer "
        "brings all three nearer: self-attention at .8 gains 5 dB for the star. In pictures that "
        "are drawn from fresh noise so much of it can erase an object, so the defaults are the "
        "authors', cross .8 and self_ .4.",
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


def pressed(field: str, label: str, values: dict[str, str], first: str) -> str:
    """A group of buttons of which one is pressed: {value: what stands on it}."""
    buttons = "".join(
        f'<button type="button" value="{value}" aria-pressed="{str(value == first).lower()}">'
        f"{html.escape(text)}</button>"
        for value, text in values.items()
    )
    return (
        f'<div class="choices" data-field="{field}" role="group" aria-label="{label}">'
        f'<span class="of">{label}</span>{buttons}</div>'
    )


def slider(name: str, label: str, low: float, high: float, step: float, value: float) -> str:
    return (
        f'<label>{label} <output>{value:g}</output><input name="{name}" type="range" '
        f'min="{low:g}" max="{high:g}" step="{step:g}" value="{value:g}" '
        'autocomplete="off"></label>\n'
    )


def seed(label: str) -> str:
    return (
        f'<label>{label} <input name="seed" type="number" min="0" max="4294967295" step="1" '
        'value="0" autocomplete="off"></label>\n'
    )


def words(value: str) -> str:
    return (
        f'<label>words <input name="prompt" value="{html.escape(value)}" autocomplete="off" '
        'spellcheck="false"></label>\n'
    )


def main_button(name: str, text: str) -> str:
    """The button that loads the model if it is not there yet."""
    return (
        f'<button name="{name}" class="primary" data-loaded="{text}">Load {SIZE} MB and '
        f"{text.lower()}</button>"
    )


def stage(canvases: str) -> str:
    return (
        f'<div class="stage">{canvases}<progress value="0" max="1" aria-label="steps done">'
        '</progress><p class="status" role="status">nothing drawn yet</p></div>'
    )


STOP = '<button type="button" name="stop" disabled>Stop</button>'


def not_here(missing: str) -> str:
    return f'<p class="missing">Not in this build of the site: {html.escape(missing)}.</p>'


def draw_form() -> str:
    examples = "".join(f'<button type="button">{e}</button>' for e in EXAMPLES)
    known = "".join(f"<li>{what}: {which}</li>" for what, which in WORDS)
    canvas = '<canvas width="64" height="64" role="img" aria-label="nothing drawn yet"></canvas>'
    return f"""<form class="live" id="form-draw" data-folder="_static/live">
{stage(canvas)}
<div class="controls">
{words(EXAMPLES[0])}<div class="examples" role="group" aria-label="examples">{examples}</div>
<label>away from (may be empty) <input name="negative" autocomplete="off" spellcheck="false"></label>
{slider("steps", "steps", 1, 50, 1, 20)}{slider("scale", "guidance", 0, 12, 0.5, live.guidance())}{seed("noise number")}
<div class="buttons">{main_button("draw", "Draw")}{STOP}<button type="button" name="other">Other noise</button></div>
<details><summary>words it knows</summary><ul>{known}</ul></details>
</div><div class="kept"></div></form>"""


def in_model_range(colour: tuple[float, float, float]) -> list[float]:
    return [round(2 * value - 1, 4) for value in colour]


def css(colour: tuple[float, float, float]) -> str:
    return "rgb(" + " ".join(str(round(255 * value)) for value in colour) + ")"


def planes(scene: shapes.Scene) -> str:
    """A rendered scene as base64 of 3 x 64 x 64 bytes."""
    pixels = ((shapes.render(scene)[0] + 1) * 127.5).round().byte()
    return base64.b64encode(pixels.numpy().tobytes()).decode()


def edit_form() -> str:
    grounds = {f"{name}-ground": colour for name, colour in shapes.BACKGROUNDS.items()}
    inks = shapes.COLORS | {name: shapes.BACKGROUNDS[name] for name in ("white", "grey", "black")}
    facts = {
        "grounds": {name: in_model_range(colour) for name, colour in grounds.items()},
        "colours": {name: in_model_range(colour) for name, colour in inks.items()},
        "scenes": {f"scene-{i + 1}": planes(s) for i, s in enumerate(scenes.SCENES)},
    }
    starts = {name: f"a blank {name.removesuffix('-ground')} ground" for name in grounds}
    for i, scene in enumerate(scenes.SCENES):
        starts[f"scene-{i + 1}"] = f"rendered: {shapes.short_caption(scene)}"
    options = "".join(
        f'<option value="{value}"{" selected" if value == START else ""}>{text}</option>'
        for value, text in starts.items()
    )
    swatches = "".join(
        f'<button type="button" value="{name}" aria-pressed="{str(name == INK).lower()}" '
        f'style="--ink:{css(colour)}"><span>{name}</span></button>'
        for name, colour in inks.items()
    )
    modes = pressed(
        "mode", "what to do", {"stroke": "Paint over it", "mask": "Mask a part"}, "stroke"
    )
    brushes = pressed(
        "brush", "brush", {"1.5": "fine", "3": "middle", "5": "broad", "9": "huge"}, "5"
    )
    keys = (
        "Painting, 64 by 64 pixels. Arrow keys move the brush, the space bar puts it down; or use "
        "the button that paints for you."
    )
    canvases = (
        f'<canvas class="pad" width="64" height="64" tabindex="0" role="img" aria-label="{keys}">'
        "</canvas>"
        '<canvas class="result" width="64" height="64" role="img" aria-label="no result yet">'
        "</canvas>"
    )
    return f"""<form class="live" id="form-edit" data-folder="_static/live" data-strength="{STRENGTH:g}">
{stage(canvases)}
<div class="controls">
<label>begin with <select name="start" autocomplete="off">{options}<option value="drawn" disabled>the picture drawn last</option></select></label>
{modes}<div class="choices ink" data-field="colour" role="group" aria-label="colour"><span class="of">colour</span>{swatches}</div>
{brushes}<div class="buttons"><button type="button" name="preset">Paint a blot for me</button>
<button type="button" name="undo">Undo</button><button type="button" name="clear">Clear</button></div>
{words(STROKE_WORDS)}{slider("strength", "strength", 0.1, 1, 0.05, STRENGTH)}{slider("steps", "steps", 10, 50, 1, 25)}
{slider("scale", "guidance", 0, 12, 0.5, live.guidance())}{seed("noise number")}
<div class="buttons">{main_button("edit", "Edit from here")}{STOP}</div>
</div><div class="kept"></div>
<script type="application/json">{json.dumps(facts)}</script></form>"""


def train_form() -> str:
    data = {"moons": "two moons", "spiral": "spiral", "checkerboard": "checkerboard"}
    sets = pressed("data", "data", data | {"letter": "a letter by hand"}, "moons")
    widths = pressed("width", "hidden width", {w: w for w in ("32", "64", "96")}, "64")
    picture = "grey: the data; coloured: the samples, and where the first of them came from"
    return f"""<form class="train live" id="form-train">
<div class="stage"><canvas width="640" height="640" role="img" aria-label="{picture}"></canvas>
<p class="numbers">not trained yet</p>
<svg viewBox="0 0 320 90" role="img" aria-label="the loss of every step so far"></svg>
<p class="of"></p>
<p class="status" role="status"></p></div>
<div class="controls">
{sets}<div class="letter" hidden><p>Draw a letter on the picture, in one stroke or several, or take one of ours.</p>
<button type="button" name="letter">Another letter</button></div>
{widths}{slider("rate", "learning rate", 0.001, 0.03, 0.001, 0.01)}{seed("seed")}
<div class="buttons"><button name="train" class="primary">Train</button>{STOP}</div>
{slider("back", "way back", 0, 20, 1, 20)}</div></form>"""


LINK_BAR = """<div class="link-bar"><button type="button">Copy link</button>
<span role="status"></span></div>"""

HEAD = """---
hide-toc: true
---

# Playground

Turn a knob and see what the shipped model makes of it, next to the true picture, with a number. Below the sliders the model
itself [draws](#draw) in this page and [edits](#edit) what you paint, and you can [train](#train) a small one. What you set
is in the address of the page: "Copy link" at the foot of the window copies it.

The pictures of the sliders were drawn before, by `tutorials/site/sweeps.py` from fixed noises; each is 64 x 64. They show one scene
and one noise at a time, so they illustrate; what holds on average is on the pages they link to. Likeness (dB) is to the
picture named; attributes are read by the learned oracle.
"""
DRAW = """## Draw

The text tower, the UNet and the autoencoder of `minidiff.load("tiny")`, run by ONNX Runtime Web inside this page; nothing
leaves this computer. Keep the noise number and change one word to see what the words decide and what the noise does.
"""
SCRIPTS = """<noscript>Drawing, training and sliders need JavaScript.</noscript>
""" + "\n".join(
    f'<script src="_static/{name}.js" defer></script>'
    for name in ("state", "playground", "chance", "diffusion", "live", "edit", "train2d", "train")
)
LOOP = """Twenty steps are 2 seconds of one core in Chromium, fifty 6; the first picture takes longer, as the browser still
compiles. For the same starting noise the picture is that of `pipe.generate` to 5 digits; `make check-site` compares them.
The same *number* gives other noise here than in Python, since torch draws its own.
"""
EDITING = """## Edit

Paint something crude and let the model draw it properly, or mask a part and let it draw that part anew. Painting over a
picture is [SDEdit](editing/sdedit.md): what you see is noised to a middle time, which drowns the brush strokes and keeps
the layout, and comes down again with your words. A high strength follows the words, a low one the painting. The mask is
[inpainting](editing/inpaint.md) with a model that was not taught to: after every step what is outside is put back, noised
to the time of the state. A latent is four pixels wide, and it is edited if any of its pixels is masked. What you paint
stays in this page; it is not in the address.
"""
EDIT_LOOP = """With the same noise the results are those of `sdedit` and `inpaint` in Python; `make check-site` compares these, too. This
is all of it, drawing and editing:
"""
TRAIN = """## Train

A diffusion model of points in the plane, trained in this page from nothing. The network has two hidden layers; it is given
a point, sines and cosines of its place and of the time, and guesses the noise, as in notebook 01. While it learns, 500
samples are drawn again and again by DDIM in 20 steps. A *stray* is a sample that is farther than 0.15 from every point
of the data; the picture is 4 wide. A training is 2,500 steps of 128
points, about 7 seconds of one core and what the pictures take.
"""
TRAINED = """The loss does not fall to zero: what a little noise on a point was, nobody can tell. The share of strays says more. Take
the width down to 32, or the learning rate to .001, and see which of the two costs more.
"""


def page(sweeps: list[dict], missing: str, code: set[str]) -> str:
    """The page in MyST. `missing`: why there is no live part, "" if there is."""

    def raw(text: str) -> str:
        return f"````{{raw}} html\n{text}\n````\n"

    def script(name: str) -> str:
        return f"```javascript\n{(HERE / f'static/{name}.js').read_text().rstrip()}\n```\n"

    parts = [HEAD]
    for s in sweeps:
        told = TOLD[s["name"]]
        does = told.does.format(scale=f"{s['scale'] or 0:g}", default=f"{live.guidance():g}")
        parts += [
            f"## {told.title}\n\n{does}\n",
            raw(sweep(s, told)),
            f"**What to look for.** {told.look} [How it works]({pages.place(told.page, code)})\n",
        ]
    parts += [DRAW, raw(not_here(missing) if missing else draw_form()), LOOP]
    parts += [EDITING, raw(not_here(missing) if missing else edit_form()), EDIT_LOOP]
    parts += [script("chance"), script("diffusion")]
    parts += [TRAIN, raw(train_form()), TRAINED]
    parts.append(raw("<details><summary>All of the training, in JavaScript</summary>"))
    parts.append(script("train2d"))
    parts.append(raw("</details>" + SCRIPTS + LINK_BAR))
    return "\n".join(parts)
