"""The exercises, by topic: each module of this folder holds a tuple `EXERCISES`."""

from functools import cache
from importlib import import_module

from minidiff.learn.exercise import Exercise

TOPICS = {  # each a module of this folder: what it is about
    "tables": "time, and how much noise there is when",
    "process": "noising, and the DDIM step",
    "moves": "moves of a state, and guidance",
    "solvers": "steps of other samplers",
    "integrators": "steps that integrate exactly",
    "second_order": "steps that ask twice, and noise that goes up",
    "guides": "around the step: flow, guidance with limits",
    "zoo": "guidance by inner products",
    "guesses": "what a guess is: to be derived",
    "networks": "attention and gates",
    "blocks": "norms and blocks",
    "gates": "gates of features: by place, by channel",
    "tokens": "tokens, positions, latents",
    "training": "training",
    "edits": "prompt-to-prompt and DiffEdit: words and masks",
    "words": "maps, LoRA, learned words",
    "paths": "keeping to a path",
    "loops": "what other loops do between two moves",
    "joined": "guesses put together, a step undone, a text tower",
    "inverse": "what is known of a picture, put in",
    "builds": "whole methods",
    "control": "whole methods: prompt-to-prompt",
    "views": "pictures with two readings",
    "special": "around sampling: streams, means, matrices",
}
# the notebooks that ask for exercises; their sources say the same, and a test compares
NOTEBOOKS = {
    "01": ("q_sample", "eps_to_x0", "posterior"),
    "02": ("alpha_bar_cosine", "v_target", "times", "timestep_embedding"),
    "03": ("posterior", "ddim_noisy_step", "euler_step", "dpm_step"),
    "04": ("attention", "causal_mask", "attend"),
    "05": ("guide", "rescale", "guide_within"),
    "06": ("gaussian_kl", "latent_scale", "guide"),
    "07": ("patchify", "unpatchify", "modulate", "dit_block"),
    "08": ("invert_step", "landing_null", "follow"),
    "09": ("span_map", "align", "edited_maps", "blend_mask"),
    "10": ("to_latent_mask", "blend_known", "threshold_mask"),
    "11": ("project_average", "jumps", "renoise"),
    "12": ("causal_mask", "attention", "timestep_embedding"),
    "13": ("geglu",),
}


@cache
def exercises() -> dict[str, Exercise]:
    """All of them by name, in the order of a course. ValueError if two have the same name."""
    found: dict[str, Exercise] = {}
    for topic in TOPICS:
        for e in of_topic(topic):
            if e.name in found:
                raise ValueError(f"two exercises are called {e.name}")
            found[e.name] = e
    return found


def of_topic(topic: str) -> tuple[Exercise, ...]:
    """Those of one of the `TOPICS`."""
    return import_module(f"{__name__}.{topic}").EXERCISES


def notebooks_of(name: str) -> list[str]:
    """The numbers of the notebooks that ask for an exercise."""
    return [number for number, names in NOTEBOOKS.items() if name in names]


def find(name: str) -> Exercise:
    """The exercise of that name; KeyError lists the nearest there are."""
    if name not in exercises():
        from difflib import get_close_matches

        near = get_close_matches(name, exercises(), 4, 0.4) or list(exercises())[:6]
        raise KeyError(f"no exercise is called {name!r}; some that exist: {', '.join(near)}")
    return exercises()[name]
