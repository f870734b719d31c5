"""Prompt-to-prompt as a whole: two prompts side by side, the second drawn with the first one's
attention maps.
"""

from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor

from minidiff.core import process
from minidiff.core.cfg import guide
from minidiff.core.denoise import noise
from minidiff.core.taps import tap
from minidiff.editing.prompt_to_prompt import (
    CROSS,
    SELF,
    edit_cross,
    edit_self,
    kind_of,
    prompt_to_prompt,
    token_map,
)
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.builds import SOURCE, TARGET, step, tiny
from minidiff.learn.exercises.edits import P2P
from minidiff.pipe.pipe import Pipe


def edit_pair(
    pipe: Pipe,
    source: str,
    target: str,
    x_T: Tensor,
    cross: float,
    self_: float,
    steps: int,
    scale: float,
) -> Tensor:
    """Latents (2 c h w), rows [source, edit], drawn from x_T (1 c h w) with the source's attention
    maps in the edit.

    `cross` and `self_` are the shares of the steps in which cross- and self-attention maps are the
    source's.
    """
    kind = kind_of(pipe.tokenizer, source, target)
    M, alpha = token_map(pipe.tokenizer, source, target, kind)
    weight = torch.ones_like(alpha)
    cond = pipe.embed([source, target])
    null = pipe.null(2)
    x = torch.cat([x_T, x_T])
    latent = tuple(x.shape[2:])
    for i, (t, s) in enumerate(pairwise(pipe.schedule.timesteps(steps, spacing="trailing"))):
        e_null = pipe.eps(x, t, null)
        inject = torch.tensor(float(i < cross * steps))
        limit = max(latent) if i < self_ * steps else 0
        with (
            tap(pipe.net, CROSS, edit_cross(M, alpha, inject, weight)),
            tap(pipe.net, SELF, edit_self(latent, limit)),
        ):
            e_cond = pipe.eps(x, t, cond)
        x = process.ddim_step(pipe.schedule, x, guide(e_null, e_cond, scale), t, s)
    return x


def slow_pair(
    pipe,
    source,
    target,
    x_T,
    cross,
    self_,
    steps,
    scale,
    null_too=False,
    no_self=False,
    ever=False,
    by_place=False,
    swapped=False,
):
    """One after the other: the source is drawn alone and its maps are written down; the edit is
    drawn alone with them.
    """
    M, alpha = token_map(pipe.tokenizer, source, target, kind_of(pipe.tokenizer, source, target))
    if by_place:
        M = torch.eye(len(M))
        alpha = torch.ones(len(M))
    null = pipe.null()
    ts = pipe.schedule.timesteps(steps, spacing="trailing")
    book = {}  # the source's map of every layer, step and evaluation

    def draw(prompt, look):
        x = x_T
        for i, (t, s) in enumerate(pairwise(ts)):

            def listen(probs, name, i=i):
                return look(probs, name, i)

            def listen_null(probs, name, i=i):
                return look(probs, name, i, "null")

            with tap(pipe.net, f"{CROSS}|{SELF}", listen_null) if null_too else nullcontext():
                e_null = pipe.eps(x, t, null)
            with tap(pipe.net, f"{CROSS}|{SELF}", listen):
                e_cond = pipe.eps(x, t, pipe.embed(prompt))
            x = step(pipe.schedule, x, e_null + scale * (e_cond - e_null), t, s)
        return x

    def write(probs, name, i, of="cond"):
        book[name, i, of] = probs.clone()

    def read(probs, name, i, of="cond"):
        old = book[name, i, of]
        if "attn2" in name:
            if ever or i < cross * steps:
                return torch.where(alpha > 0, torch.einsum("bhni,ij->bhnj", old, M), probs)
            return None
        return old if i < self_ * steps and not no_self else None

    if swapped:
        edit = draw(target, write)
        return torch.cat([draw(source, read), edit])
    drawn = draw(source, write)
    return torch.cat([drawn, draw(target, read)])


def pair_cases(seed):
    if seed:
        return []
    x = noise((1, *tiny().shape), seed)
    return [(tiny(), SOURCE, TARGET, x, 2 / 3, 1 / 3, 3, 8.0)]  # whole steps


def as_the_project(fn):
    ours = fn(tiny(), SOURCE, TARGET, noise((1, *tiny().shape), 4), 0.5, 0.5, 2, 5.0)
    theirs = prompt_to_prompt(
        tiny(), SOURCE, TARGET, cross=0.5, self_=0.5, steps=2, scale=5.0, seed=4
    )
    return tiny().decode(ours), theirs


def the_same_words(fn):
    x = noise((1, *tiny().shape), 2)
    source, edit = fn(tiny(), SOURCE, SOURCE, x, 0.5, 0.5, 2, 5.0)
    return edit, source


def pair_like(**how):
    return lambda *args: slow_pair(*args, **how)


pair = Exercise(
    "edit_pair",
    "build",
    "Prompt-to-prompt. From one noise x_T (1 c h w) draw source and edit side by side on "
    '`pipe.schedule.timesteps(steps, spacing="trailing")`, DDIM, guidance `scale` against '
    "`pipe.null(2)`. In the conditional evaluation of the first cross x steps steps the edit's "
    "cross-attention maps are the source's, carried over by the project's `token_map`; in the "
    "first self_ x steps its self-attention maps are the source's as they are. Taps: "
    "`tap(pipe.net, CROSS, fn)` and SELF, where fn(probs, name) gets (b h n m) and returns what "
    "to go on with. Return latents, rows [source, edit].",
    edit_pair,
    slow_pair,
    pair_cases,
    apart="the noise is given here, and re-weighting, blending and given pictures are left out; "
    "a fact compares the answer with `prompt_to_prompt`",
    tolerance=5e-5,
    facts=(
        Fact("the same words draw the same picture twice", the_same_words),
        Fact("it is the project's own", as_the_project),
    ),
    mutants=(
        Mutant(
            "the unconditional maps too",
            pair_like(null_too=True),
            'A widely copied controller edits "the second half of the batch", which is the '
            "conditional one only while both are in one batch. Called twice, it also edits the "
            "empty prompt's.",
        ),
        Mutant(
            "cross-attention alone",
            pair_like(no_self=True),
            "Words stay in place and shapes do not: self-attention says which pixels belong "
            "together.",
        ),
        Mutant(
            "until the end",
            pair_like(ever=True),
            "The counter of steps is never reset or never looked at: the new word gets the old "
            "shape down to the last detail.",
        ),
        Mutant(
            "words by their place",
            pair_like(by_place=True),
            'After an inserted word all maps are one place off: the circle is where "red" looked.',
        ),
        Mutant(
            "source and edit exchanged",
            pair_like(swapped=True),
            "The source is drawn with the edit's maps: the picture that should stay is the one "
            "that changes.",
        ),
    ),
    hints=(
        "Two rows, one noise; a `with tap(...)` around the conditional evaluation only.",
        "`M, alpha = token_map(tok, source, target, kind_of(tok, source, target))`; `source_maps "
        "@ M` where alpha is 1.",
        "`edit_cross(M, alpha, on, weight)` and `edit_self(latent, limit)` in "
        "minidiff.editing.prompt_to_prompt are the two functions.",
    ),
    about="the whole of prompt-to-prompt",
    page=P2P,
)

EXERCISES = (pair,)
