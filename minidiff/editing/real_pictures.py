"""Prompt-to-Prompt on pictures that are given: five ways to make its source row come back.

Direct inversion: Xuan Ju, Ailing Zeng, Yuxuan Bian, Shaoteng Liu, Qiang Xu, 2023, arXiv 2310.01506.
Negative-prompt inversion: Daiki Miyake, Akihiro Iohara, Yu Saito, Toshiyuki Tanaka, 2023, arXiv
2305.16807. Null-text inversion and pivotal tuning: inversion/null_text.py and
inversion/pivotal_tuning.py, whose learning is used here; edit-friendly noise:
inversion/edit_friendly.py.

An inverted picture z*_T .. z*_0 comes back only without guidance. With it, the source row of an
edit leaves its path, and what the edit borrows from it is wrong. Rows [source, edit], and D the
guided move from t to s:

    negative-prompt   compare with the source's own words instead of "": in the source row guidance
                      cancels
    direct            d = z*_s - D(z_t, source);   source: D + d = z*_s exactly,   edit: D
    closed form       the same, and edit: D + share d   (share 0 is direct inversion)
    edit-friendly     share 1 on states that were noised apart, D a move of ancestral sampling
                      without its noise: d is then the noise of that step, and both rows get it
    null-text         learn what guidance compares with, one embedding a step
    pivotal tuning    learn weights of the network

Why "closed form": the null prediction that null-text inversion looks for is known, (eps* - scale
eps_cond) / (1 - scale), where eps* is what leads to z*_s. A move is linear in it, so changing the
null of both rows by as much adds d to both.

Try: the same prompt twice. With share=1 the edit is the autoencoder's copy; with share=0 it drifts
like any guided replay.

Weakness: an exact source row says nothing yet about the edit row; direct inversion leaves that to
the shared attention. `share` carries the correction over. The tutorial has reconstruction, edit and
cost of all of them in one table.
"""

import torch
from torch import Tensor

from minidiff.editing.prompt_to_prompt import prompt_to_prompt
from minidiff.inversion.ddim import Inverted, invert
from minidiff.inversion.edit_friendly import scattered
from minidiff.inversion.null_text import learn_nulls
from minidiff.inversion.pivotal_tuning import tune
from minidiff.pipe.checks import check_share, door, needs_text, prompt_each
from minidiff.pipe.pipe import Pipe
from minidiff.train.finetune import READS_TEXT, in_float32, tuned


def edit_each(
    pipe: Pipe, inverted: Inverted, source: str | list[str], target: str | list[str], **knobs
) -> Tensor:
    """Prompt-to-prompt on every picture of an inversion; returns
    the edits (b 3 H W). knobs: those of prompt_to_prompt.
    """
    b = len(inverted.states[0])
    sources = prompt_each(source, b, "source")
    targets = prompt_each(target, b, "target")
    # rows: [sources, edits]
    return prompt_to_prompt(pipe, sources, targets, inverted=inverted, **knobs)[b:]


@door
def direct_inversion(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    share: float = 0.0,
    cross: float | None = 0.8,
    self_: float = 0.4,
    blend: tuple[str, str] | list[tuple[str, str] | None] | None = None,
    steps: int = 50,
    scale: float | None = None,
    progress: bool = False,
    **knobs,
) -> Tensor:
    """Prompt-to-prompt on pictures `image` (b 3 H W), each
    source row put back on its inversion; returns (b 3 H W).

    share   of the source row's correction that the edit gets too, 0..1: 0 direct inversion, 1 the
            closed form
    cross   share of the steps in which cross-attention is the source's
    self_   the same for self-attention
    blend   (word of source, word of target): edit only where these are

    More knobs: those of `prompt_to_prompt`. Identical prompts give the autoencoder's copy with
    share=1, a guided replay with share=0. ValueError: a share outside 0..1, unequal numbers of
    pictures and prompts.
    """
    check_share("share", share)
    states = invert(pipe, image, source, steps=steps, progress=progress)
    return edit_each(
        pipe,
        Inverted(states, share=share),
        source,
        target,
        cross=cross,
        self_=self_,
        blend=blend,
        steps=steps,
        scale=scale,
        progress=progress,
        **knobs,
    )


@door
def negative_prompt(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    cross: float | None = 0.8,
    self_: float = 0.4,
    blend: tuple[str, str] | list[tuple[str, str] | None] | None = None,
    steps: int = 50,
    scale: float | None = None,
    progress: bool = False,
    **knobs,
) -> Tensor:
    """Prompt-to-prompt on pictures `image` (b 3 H W), guided
    away from `source` instead of from ""; returns (b 3 H W).

    cross   share of the steps in which cross-attention is the source's
    self_   the same for self-attention
    blend   (word of source, word of target): edit only where these are

    More knobs: those of `prompt_to_prompt`. Identical prompts give the DDIM round trip at scale 1,
    whatever `scale` is.
    """
    states = invert(pipe, image, source, steps=steps, progress=progress)
    null = pipe.embed(source).expand(len(image))
    return edit_each(
        pipe,
        Inverted(states, [null] * steps),
        source,
        target,
        cross=cross,
        self_=self_,
        blend=blend,
        steps=steps,
        scale=scale,
        progress=progress,
        **knobs,
    )


@door
def null_text(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    inner: int = 10,
    lr: float = 0.01,
    tolerance: float = 1e-5,
    cross: float | None = 0.8,
    self_: float = 0.4,
    blend: tuple[str, str] | list[tuple[str, str] | None] | None = None,
    steps: int = 50,
    scale: float | None = None,
    progress: bool = False,
    **knobs,
) -> Tensor:
    """Prompt-to-prompt on pictures `image` (b 3 H W)
    with nulls learned for each; returns (b 3 H W).

    inner      updates at each step, at most
    lr         learning rate, falling to half
    tolerance  squared error of a step that is good enough
    cross      share of the steps in which cross-attention is the source's
    self_      the same for self-attention
    blend      (word of source, word of target): edit only where these are

    More knobs: those of `prompt_to_prompt`. Identical prompts give the replay with the learned
    nulls, close to the picture. ValueError: a model without text, a negative number of updates,
    unequal numbers of pictures and prompts.
    """
    with in_float32(pipe):
        states = invert(pipe, image, source, steps=steps, progress=progress)
        learned = learn_nulls(
            pipe,
            states,
            source,
            scale=scale,
            inner=inner,
            lr=lr,
            tolerance=tolerance,
            progress=progress,
        )
        out = edit_each(
            pipe,
            learned,
            source,
            target,
            cross=cross,
            self_=self_,
            blend=blend,
            steps=steps,
            scale=scale,
            progress=progress,
            **knobs,
        )
    return out.to(pipe.dtype)


@door
def p2p_edit_friendly(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    cross: float | None = 0.8,
    self_: float = 0.4,
    blend: tuple[str, str] | list[tuple[str, str] | None] | None = None,
    steps: int = 50,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
    **knobs,
) -> Tensor:
    """Prompt-to-prompt on pictures `image` (b 3 H W), replayed
    with their edit-friendly noise; returns (b 3 H W).

    cross   share of the steps in which cross-attention is the source's
    self_   the same for self-attention
    blend   (word of source, word of target): edit only where these are

    More knobs: those of `prompt_to_prompt`. Both rows have the same guidance, so identical prompts
    give the autoencoder's copy.
    """
    z = pipe.encode(image)
    states = scattered(pipe.schedule, z, pipe.timesteps(steps), seed)[::-1]
    return edit_each(
        pipe,
        Inverted(states, share=1.0, eta=1.0),
        source,
        target,
        cross=cross,
        self_=self_,
        blend=blend,
        steps=steps,
        scale=scale,
        progress=progress,
        **knobs,
    )


@door
def pivotal_tuning(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    updates: int = 25,
    lr: float = 1e-3,
    locality: float = 0.1,
    reach: float = 30.0,
    cross: float = 0.8,
    self_: float = 0.8,
    steps: int = 25,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Prompt-to-Prompt on pictures `image` (b 3 H W)
    with the network tuned to each; returns (b 3 H W).

    updates   of the weights, for each picture; 0 edits a guided replay of the inversion as it is
    lr        learning rate of Adam
    locality  weight of the second term: how much the network must stay as it was near the picture's
              words
    reach     how near: distance of those other words' states from the source's
    cross     share of the steps in which cross-attention is the source's
    self_     the same for self-attention

    Identical prompts: the picture, as well as the tuned network returns it. ValueError: a model
    without text, unequal numbers of pictures and prompts, a negative option.
    """
    needs_text(pipe, "pivotal tuning")
    if updates < 0 or locality < 0 or reach < 0:
        raise ValueError(
            f"updates={updates}, locality={locality}, reach={reach}: none of them can be negative"
        )
    check_share("cross", cross)
    check_share("self_", self_)
    b = len(image)
    sources = prompt_each(source, b, "source")
    targets = prompt_each(target, b, "target")
    out = []
    with in_float32(pipe):
        states = invert(pipe, image, sources, steps=steps)  # by the untuned network
        for i in range(b):
            own = Inverted([x[i : i + 1] for x in states])
            with tuned(pipe.net, READS_TEXT) as weights:
                tune(
                    pipe,
                    weights,
                    own.states,
                    sources[i],
                    updates=updates,
                    lr=lr,
                    locality=locality,
                    reach=reach,
                    scale=scale,
                    seed=seed + i,
                    progress=progress,
                )
                pair = prompt_to_prompt(
                    pipe,
                    sources[i],
                    targets[i],
                    inverted=own,
                    cross=cross,
                    self_=self_,
                    steps=steps,
                    scale=scale,
                    progress=progress,
                )
            out.append(pair[1:])
    return torch.cat(out).to(pipe.dtype)
