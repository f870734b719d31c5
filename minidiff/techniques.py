"""The techniques: one record each, and the only list of them.

The command line, the bench, the contact sheets, the shared tests, tutorials/papers.md and the
site's gallery all read this list. It holds addresses and settings only: to list the techniques
imports none of them.

A technique is a function (pipe, image, ..., *, seed, progress) -> pictures behind
`pipe.checks.door`, with the argument names `image`, `source` (the prompt that describes the
picture), `target` or `prompt` (what is wanted) and `mask`; its options become those of `minidiff
edit NAME`. Its name, with _ for -, is the name of its function and, unless `file` says otherwise,
of its file, its test and its page. Its proof, `prove(pipe, n, seed)`, is found in proofs/ under the
same name.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec

__all__ = [
    "ALL",
    "GUIDANCE",
    "TECHNIQUES",
    "Sheet",
    "Sweep",
    "Technique",
    "find",
    "names",
    "strengths",
]


GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)  # of models that read words; 1 is none


@dataclass(frozen=True)
class Sweep:
    """How `minidiff bench` runs it, and what `--fit` tries.

    tries     {option: values} of its own, at most four combinations; each is run with every
              guidance
    guidance  the values of its option `Technique.guidance`
    fixed     {option: value} that the bench always runs with, where the defaults leave parts of the
              method off
    curve     (option, values) of the knob that trades the edit against the rest
    per_step  a setting does more in more steps, so it is fitted in as many as the tables have
    """

    tries: dict = field(default_factory=dict)
    guidance: tuple = GUIDANCE
    fixed: dict = field(default_factory=dict)
    curve: tuple[str, tuple] = ("", ())
    per_step: bool = False


@dataclass(frozen=True)
class Sheet:
    """The contact sheet of its page: one row per scene of `kind`; `knob` takes the `values`,
    `fixed` is the same in every picture.
    """

    kind: str
    knob: str
    values: tuple
    fixed: dict = field(default_factory=dict)
    rows: int = 3
    model: str = "tiny"


@dataclass(frozen=True)
class Technique:
    """One technique.

    room     its folder in minidiff/, tests/ and tutorials/
    paper    authors, year, arXiv number, name
    about    one sentence: what one wants it for
    file     stem of its file, where several techniques share one
    page     its page in tutorials/, where that is not room/file
    needs    the model it is made for: tiny, tiny-pixel, tiny-dit, or sd (a public model's weights)
    tunes    learns something for every edit: weights, embeddings, a direction
    guidance its option that says how strongly it is pulled towards the words; without an option of
             that name it has none
    same_as  the row of the bench that it equals at equal options, on a model like tiny: it has none
             of its own
    no_row   why the bench has no row of it, though it could be called
    cheap    options that make it quick, for the shared tests
    apart    why the shared tests on latents leave it out, and where it is tested
    """

    name: str
    room: str
    paper: str
    about: str
    file: str = ""
    page: str = ""
    needs: str = "tiny"
    tunes: bool = False
    guidance: str = "scale"
    same_as: str = ""
    no_row: str = ""
    sweep: Sweep = Sweep()
    sheet: Sheet | None = None
    cheap: dict = field(default_factory=dict)
    apart: str = ""

    @property
    def stem(self) -> str:
        return self.name.replace("-", "_")

    @property
    def path(self) -> str:
        """Its file, from the root of the repository."""
        return f"minidiff/{self.room}/{self.file or self.stem}.py"

    @property
    def tutorial(self) -> str:
        """Its page, from the root of the repository."""
        return f"tutorials/{self.page or f'{self.room}/{self.file or self.stem}'}.md"

    def load(self):
        """The function, imported now."""
        module = import_module(f"minidiff.{self.room}.{self.file or self.stem}")
        return getattr(module, self.stem)

    @property
    def proof(self) -> str:
        """The module of its proof; "" if it has none."""
        module = f"minidiff.proofs.{self.stem}"
        return module if find_spec(module) else ""


def strengths(
    *values: float,
    guidance: tuple = GUIDANCE,
    fixed: dict | None = None,
    per_step: bool = False,
    **more: tuple,
) -> Sweep:
    """Of a technique whose `strength` says how much of the picture is forgotten."""
    curve = ("strength", (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9))
    return Sweep({"strength": values} | more, guidance, fixed or {}, curve, per_step)


SHARES = {"cross": (0.1, 0.4), "self_": (0.2, 0.9)}  # of the steps with the source's attention maps
HELD = {"cross": 0.8, "self_": 0.8}

ALL = (
    Technique(
        "sdedit",
        "editing",
        "Meng et al. 2021, 2108.01073, SDEdit",
        "Turn strokes, a collage or a photo into a picture of the prompt",
        sweep=strengths(0.4, 0.55, 0.7, 0.85),
        sheet=Sheet("recolour", "strength", (0.2, 0.4, 0.6, 0.8, 1.0)),
    ),
    Technique(
        "prompt-to-prompt",
        "editing",
        "Hertz et al. 2022, 2208.01626, Prompt-to-Prompt",
        "Change one word, keep the layout",
        sweep=Sweep(SHARES),
        sheet=Sheet("recolour", "self_", (0.0, 0.2, 0.4, 0.6, 0.8), {"cross": 0.4}),
    ),
    Technique(
        "inpaint",
        "editing",
        "Rombach et al. 2022, 2112.10752, Stable Diffusion's inpainting",
        "Redraw a hole, with a network that sees its surroundings or one that does not",
        same_as="sdedit+mask",
        sheet=Sheet("recolour", "strength", (0.2, 0.4, 0.6, 0.8, 1.0), {"steps": 25}, rows=2),
    ),
    Technique(
        "ilvr",
        "restoration",
        "Choi et al. 2021, 2108.02938, ILVR",
        "The coarse part of this picture, the rest invented",
        sweep=strengths(0.5, 0.7, factor=(2, 4), fixed={"stop": 0.3}),
        sheet=Sheet("reshape", "factor", (1, 2, 4, 8, 16), {"steps": 25}, rows=2),
    ),
    Technique(
        "classifier-guidance",
        "guidance",
        "Dhariwal, Nichol 2021, 2105.05233, classifier guidance",
        "How is a model led to a class that it was never told about?",
        sweep=strengths(0.5, 0.6, 0.7, guidance=(1.0, 3.0, 6.0, 12.0)),
        sheet=Sheet("move", "scale", (0.0, 1.0, 3.0, 6.0, 20.0), {"steps": 40}, rows=2),
        apart="its classifier reads the tiny model's latents: test_classifier_guidance.py",
    ),
    Technique(
        "semantic-guidance",
        "guidance",
        "Liu et al. 2021, 2112.05744, semantic diffusion guidance",
        "Words, or a picture's content, structure or style, for a model that knows of neither",
        guidance="text",
        sweep=strengths(0.5, 0.6, 0.7, guidance=(300.0, 1000.0, 3000.0)),
        sheet=Sheet("recolour", "structure", (0.0, 300.0, 1000.0, 3000.0), {"steps": 25}, rows=2),
    ),
    Technique(
        "instruct-pix2pix",
        "editing",
        "Brooks et al. 2022, 2211.09800, InstructPix2Pix: sampling",
        "Say what to do instead of what to show",
        page="editing/sdedit",
        needs="sd",
        apart="its eight channels: test_sd_parity.py",
    ),
    Technique(
        "asyrp",
        "editing",
        "Kwon et al. 2022, 2210.10960, Asyrp",
        "Is there a place in the network where one direction means the same in every picture?",
        tunes=True,
        sweep=Sweep({"strength": (0.5, 1.0, 2.0)}),
        sheet=Sheet("texture", "strength", (0.0, 1.0, 2.0, 4.0), {"steps": 15}, rows=1),
        cheap={"pictures": 2, "learn": 1},
    ),
    Technique(
        "boundary",
        "editing",
        "Zhu et al. 2023, 2302.08357, boundary diffusion",
        "Learn an edit from labelled pictures, without training a network",
        tunes=True,
        sweep=Sweep({"distance": (1.0, 2.0, 4.0)}, per_step=True),
        sheet=Sheet(
            "background", "distance", (0.0, 0.5, 1.0, 2.0), {"steps": 20, "mix": 0.4}, rows=2
        ),
        cheap={"pictures": 4},
    ),
    Technique(
        "zecon",
        "editing",
        "Yang et al. 2023, 2303.08622, ZeCon",
        "Another style, with everything where it was",
        guidance="style",
        sweep=strengths(0.5, 0.7, 0.9, guidance=(1.0, 3.0, 5.0), per_step=True),
        sheet=Sheet("texture", "style", (0.0, 1.0, 2.0, 3.0, 5.0), rows=2),
    ),
    Technique(
        "visual-anagrams",
        "guidance",
        "Geng et al. 2023, 2311.17919, visual anagrams",
        "One picture that shows two things",
        sheet=Sheet(
            "move",
            "view",
            ("rotate180", "mirror", "flip", "jigsaw"),
            {"other": "a blue circle on a white background", "steps": 25},
            rows=2,
        ),
        cheap={"other": "a red square"},
    ),
    Technique(
        "hybrid-images",
        "guidance",
        "Geng et al. 2024, 2404.11615, factorized diffusion",
        "One thing from afar, another from nearby",
        cheap={"other": "a red square"},
    ),
    Technique(
        "null-text",
        "editing",
        "Mokady et al. 2022, 2211.09794, null-text inversion",
        "Get the given picture back in spite of guidance, by learning",
        file="real_pictures",
        page="inversion/null_text",
        tunes=True,
        sweep=Sweep(SHARES),
        sheet=Sheet("recolour", "inner", (0, 1, 3, 10), {"steps": 25, "scale": 7.5} | HELD, rows=2),
        cheap={"inner": 1},
    ),
    Technique(
        "negative-prompt",
        "editing",
        "Miyake et al. 2023, 2305.16807, negative-prompt inversion",
        "Guide away from the picture's own words, and learn nothing",
        file="real_pictures",
        sweep=Sweep(SHARES),
        sheet=Sheet("recolour", "scale", (1.0, 2.0, 3.0, 5.0, 7.5), {"steps": 25} | HELD, rows=2),
    ),
    Technique(
        "direct-inversion",
        "editing",
        "Ju et al. 2023, 2310.01506, direct inversion",
        "Put the source row back on its path after every step",
        file="real_pictures",
        sweep=Sweep(SHARES),
        sheet=Sheet("recolour", "share", (0.0, 0.25, 0.5, 0.75, 1.0), {"steps": 25} | HELD, rows=2),
    ),
    Technique(
        "p2p-edit-friendly",
        "editing",
        "Huberman-Spiegelglas et al. 2023, 2304.06140, edit-friendly noise with Prompt-to-Prompt",
        "The noise of the picture and its attention maps at once",
        file="real_pictures",
        sweep=Sweep(SHARES),
    ),
    Technique(
        "edict",
        "inversion",
        "Wallace et al. 2022, 2211.12446, EDICT",
        "Inversion without any error, at any guidance",
        sweep=strengths(0.5, 0.7, 0.9, per_step=True),
        sheet=Sheet("recolour", "strength", (0.2, 0.4, 0.6, 0.8, 1.0), {"steps": 25}, rows=2),
        cheap={"p": 0.98},
    ),
    Technique(
        "edit-friendly",
        "inversion",
        "Huberman-Spiegelglas et al. 2023, 2304.06140, edit-friendly DDPM noise",
        "Which noises would have drawn this picture, step by step?",
        sweep=strengths(0.5, 0.64, 0.8, 0.9),
        sheet=Sheet("recolour", "strength", (0.4, 0.5, 0.6, 0.7, 0.8), {"steps": 25}),
    ),
    Technique(
        "ddib",
        "editing",
        "Su et al. 2022, 2203.08382, DDIB",
        "Translate between two models that share nothing but noise",
        same_as="inverted",
        sheet=Sheet("recolour", "scale", (1.0, 1.5, 2.0, 3.0, 5.0), {"steps": 50}),
    ),
    Technique(
        "diffusion-clip",
        "editing",
        "Kim, Kwon, Ye 2021, 2110.02711, DiffusionCLIP",
        "Teach the network an edit, once, for all pictures",
        tunes=True,
        no_row="it learns one change from many pictures, once, and applies it to others, where an "
        "item is one picture and one change: its proof is its measure",
        sheet=Sheet("recolour", "updates", (0, 10, 20, 30), rows=1),
        cheap={"updates": 1, "train_steps": 2, "batch": 1},
    ),
    Technique(
        "imagic",
        "editing",
        "Kawar et al. 2022, 2210.09276, Imagic",
        "Walk from a picture to words, by words alone",
        tunes=True,
        sheet=Sheet(
            "recolour",
            "eta",
            (0.0, 0.5, 0.7, 0.8, 1.0),
            {"text_updates": 40, "net_updates": 40},
            rows=1,
        ),
        cheap={"text_updates": 1, "net_updates": 1, "batch": 2, "eta": 0.5},
    ),
    Technique(
        "unitune",
        "editing",
        "Valevski et al. 2022, 2210.09477, UniTune",
        "Give a picture a name, and use it in the prompt",
        tunes=True,
        sweep=strengths(0.6, 0.8, 0.95),
        sheet=Sheet("recolour", "updates", (0, 20, 40, 80, 160), rows=1),
        cheap={"updates": 1, "batch": 2},
    ),
    Technique(
        "pivotal-tuning",
        "editing",
        "after Roich et al. 2021, 2106.05744, pivotal tuning",
        "Bend the network until a guided replay returns the picture",
        file="real_pictures",
        page="inversion/pivotal_tuning",
        tunes=True,
        sheet=Sheet("recolour", "updates", (0, 5, 20, 40), rows=1),
        cheap={"updates": 1},
    ),
    Technique(
        "diffedit",
        "editing",
        "Couairon et al. 2022, 2210.11427, DiffEdit",
        "Where does the edit belong, if nobody draws a mask?",
        sweep=strengths(0.7, 1.0, threshold=(0.3, 0.5)),
        sheet=Sheet("reshape", "threshold", (0.2, 0.35, 0.5, 0.65, 0.8), {"steps": 15}, rows=2),
    ),
    Technique(
        "magicmix",
        "editing",
        "Liew et al. 2022, 2210.16056, MagicMix",
        "The layout of one thing, the meaning of another, and no ghost",
        sweep=Sweep({"nu": (0.8, 0.9), "kmax": (0.6, 0.9)}, per_step=True),
        sheet=Sheet(
            "reshape",
            "nu",
            (0.4, 0.6, 0.7, 0.8, 1.0),
            {"kmin": 0.1, "kmax": 0.9, "steps": 20},
            rows=2,
        ),
    ),
    Technique(
        "blended-latent",
        "editing",
        "Avrahami et al. 2022, 2206.02779, Blended Latent Diffusion",
        "Draw inside a mask, in a tenth of the time",
        tunes=True,
        sweep=strengths(0.75, 0.9, 1.0, fixed={"grow": 2, "background": "decoder"}),
        sheet=Sheet("reshape", "grow", (0, 1, 2, 3), {"steps": 20}, rows=2),
    ),
    Technique(
        "blended-diffusion",
        "editing",
        "Avrahami et al. 2021, 2111.14818, Blended Diffusion",
        "Can a model without words be led by CLIP?",
        guidance="weight",
        sweep=strengths(0.6, 0.75, guidance=(100.0, 500.0, 2500.0)),
        sheet=Sheet(
            "recolour", "weight", (0.0, 100.0, 500.0, 2500.0), {"steps": 20, "runs": 1}, rows=2
        ),
    ),
    Technique(
        "delta-denoising",
        "editing",
        "Hertz et al. 2023, 2304.07090, Delta Denoising Score",
        "Edit by gradient descent on the picture, without its blur",
        sweep=Sweep({"iterations": (50, 100, 200)}),
        sheet=Sheet("recolour", "iterations", (10, 25, 50, 100), rows=2),
        cheap={"iterations": 2},
    ),
    Technique(
        "flowedit",
        "editing",
        "Kulikov et al. 2024, 2412.08629, FlowEdit",
        "Walk from picture to picture, without a detour through noise",
        sweep=strengths(0.8, 0.9, 1.0),
        sheet=Sheet("reshape", "strength", (0.4, 0.6, 0.7, 0.8, 0.9), rows=2),
    ),
    Technique(
        "sige",
        "editing",
        "Li et al. 2022, 2211.02048, SIGE",
        "What need not be computed again after a small change?",
    ),
    Technique(
        "plug-and-play",
        "editing",
        "Tumanyan et al. 2022, 2211.12572, Plug-and-Play",
        "Keep a picture's layout, change all else",
        sweep=Sweep({"features": (0.4, 0.8), "attention": (0.2, 0.5)}),
        sheet=Sheet("background", "attention", (0.0, 0.25, 0.5, 0.75, 1.0), {"steps": 20}, rows=2),
    ),
    Technique(
        "masactrl",
        "editing",
        "Cao et al. 2023, 2304.08465, MasaCtrl",
        "Move or reshape a thing that stays the same thing",
        sweep=Sweep({"start": (0.1, 0.3), "layer": (0.3, 0.6)}),
        sheet=Sheet("move", "start", (0.0, 0.1, 0.4, 0.7, 1.0), {"steps": 20}, rows=2),
    ),
    Technique(
        "pix2pix-zero",
        "editing",
        "Parmar et al. 2023, 2302.03027, pix2pix-zero",
        "Edit along a direction of meaning",
        sweep=Sweep({"hold": (0.0, 1.0, 2.5, 5.0)}),
        sheet=Sheet("recolour", "hold", (0.0, 2.0, 6.0, 20.0, 60.0), {"steps": 20}, rows=2),
    ),
    Technique(
        "attend-and-excite",
        "guidance",
        "Chefer et al. 2023, 2301.13826, Attend-and-Excite",
        "Two things were asked for; where is the other one?",
        sheet=Sheet(
            "add",
            "strength",
            (0.0, 2.0, 5.0, 20.0),
            {"words": None, "steps": 10},
            rows=2,
            model="tiny-dit",
        ),
        cheap={"words": ("cyan", "ring"), "most": 1},
    ),
    Technique(
        "ddnm",
        "restoration",
        "Wang, Yu, Zhang 2022, 2212.00490, DDNM and DDNM+",
        "Restore what was lost, exactly true to what was measured",
        needs="tiny-pixel",
        cheap={"task": "sr2"},
        apart="its operators act on pixels",
    ),
    Technique(
        "ddrm",
        "restoration",
        "Kawar et al. 2022, 2201.11793, DDRM",
        "The same in twenty steps, one singular vector at a time",
        needs="tiny-pixel",
        cheap={"task": "sr2"},
        apart="its operators act on pixels",
    ),
    Technique(
        "repaint",
        "restoration",
        "Lugmayr et al. 2022, 2201.09865, RePaint",
        "Fill a hole so that it continues what is around it",
        sweep=Sweep(per_step=True),
        sheet=Sheet("delete", "repeats", (1, 2, 3, 5), rows=2),
    ),
)
TECHNIQUES: dict[str, Technique] = {technique.name: technique for technique in ALL}


def find(name: str) -> Technique:
    """By name; ValueError names them all."""
    if name not in TECHNIQUES:
        raise ValueError(f"no technique called {name!r}; there are: {names(name, TECHNIQUES)}")
    return TECHNIQUES[name]


def names(missed: str, known: Iterable[str]) -> str:
    """The names there are, for the error about one that is not among them, and behind them those
    most like it.
    """
    listed = ", ".join(known)
    near = get_close_matches(missed, list(known), 3, 0.6)
    return f"{listed} (did you mean {' or '.join(near)}?)" if near else listed
