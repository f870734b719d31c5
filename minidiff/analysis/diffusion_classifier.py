"""Diffusion classifier: which words explain a picture's noise best?

Your Diffusion Model is Secretly a Zero-Shot Classifier, Alexander C. Li, Mihir Prabhudesai, Shivam
Duggal, Ellis Brown, Deepak Pathak, 2023, arXiv 2303.16203.

A network that draws from words has learned p(picture | words), and Bayes' rule turns that round.
The likelihood is bounded by the denoising error, so no picture need be drawn: noise the given one,
ask the network to find the noise under each description, and take the description with the least
error.

    c* = argmin_c  mean over (t, n) of |n - eps(alpha_t x0 + sigma_t n, t, c)|^2

The errors of two descriptions differ by far less than one error changes with the noise. So every
description sees the *same* noises at the same times, and what they share falls out of the
comparison. With many descriptions the worse half is dropped after each round.

Try: `shared=False`, and count what is lost; one time instead of three; t = 900, where shapes are
gone and colours are not.

Weakness: every description costs an evaluation for every noise. It finds what the model can tell
apart, which is a measure of the model more than of the picture, and even weights over t are not
those of the bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minidiff.core.denoise import noises
from minidiff.core.process import q_sample
from minidiff.pipe.pipe import Pipe

TIMES = (300, 500, 700)  # of a schedule of 1000: where shapes and colours are decided


@dataclass(frozen=True)
class Choice:
    """What a picture was taken for.

    best    which description, (b,)
    errors  mean squared error of the noise under each, (b, descriptions); infinite where a
            description was dropped before the last round
    evaluations  of the network for each picture
    """

    best: Tensor
    errors: Tensor
    evaluations: int


@torch.no_grad()
def noise_error(pipe: Pipe, z: Tensor, prompts: list[str], t: int, n: Tensor) -> Tensor:
    """Squared error (p,), mean over values, of the noise that the network finds in one picture's
    latents z (1 c h w), noised to t by n (1 or p, c h w), under each of p prompts.
    """
    cond = pipe.embed(prompts)
    n = n.expand(len(prompts), *z.shape[1:])
    x_t = q_sample(pipe.schedule, z.expand_as(n), t, n)
    return (pipe.eps(x_t, t, cond) - n).square().mean((1, 2, 3))


@torch.no_grad()
def diffusion_classifier(
    pipe: Pipe,
    image: Tensor,
    prompts: Sequence[str] | Sequence[Sequence[str]],
    *,
    times: Sequence[int] = TIMES,
    rounds: int = 1,
    shared: bool = True,
    halve: bool = False,
    seed: int = 0,
) -> Choice:
    """Which of the prompts describes each picture of `image` (b 3 H W) best.

    prompts  descriptions for all pictures, or a list of them for each
    times    one evaluation of each description at each of them, in every round
    rounds   with fresh noise; errors are averaged
    shared   the same noise for all descriptions
    halve    after each round, keep the better half of the descriptions

    Picture i has its noise from seed + i, and without `shared` its description k from seed + i + k.
    ValueError: fewer than two descriptions, no times, times
    outside 1..T, no rounds.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts={prompts!r}: expected a list of two descriptions or more")
    each = [list(prompts)] if isinstance(prompts[0], str) else [list(p) for p in prompts]
    each = each * len(image) if len(each) == 1 else each
    counts = {len(p) for p in each}
    if len(each) != len(image) or len(counts) != 1 or min(counts) < 2:
        raise ValueError(
            f"{len(each)} list(s) of {sorted(counts)} descriptions for {len(image)} picture(s): "
            "expected one list of two or more for all, or one of equal length for each"
        )
    T = pipe.schedule.T
    if not times or not all(1 <= t <= T for t in times) or rounds < 1:
        raise ValueError(
            f"times={list(times)}, rounds={rounds}: expected times in 1..{T} and one round or more"
        )
    z = pipe.encode(image)
    rows = []
    asked = 0
    for i, said in enumerate(each):
        errors, asked = _errors(pipe, z[i : i + 1], said, times, rounds, shared, halve, seed + i)
        rows.append(errors)
    errors = torch.stack(rows)
    return Choice(errors.argmin(1), errors, asked)


def _errors(
    pipe: Pipe,
    z: Tensor,
    said: list[str],
    times: Sequence[int],
    rounds: int,
    shared: bool,
    halve: bool,
    seed: int,
) -> tuple[Tensor, int]:
    """(mean error of each description, inf where dropped; evaluations) for one picture."""
    total = torch.zeros(len(said))
    alive = list(range(len(said)))
    asked = 0
    rows = 1 if shared else len(said)
    streams = noises(z.expand(rows, *z.shape[1:]), seed)
    for done in range(1, rounds + 1):
        for t in times:
            n = next(streams)
            n = n if shared else n[alive]
            found = noise_error(pipe, z, [said[k] for k in alive], t, n)
            total[alive] += found.float().cpu()
            asked += len(alive)
        if halve and done < rounds:
            ranked = sorted(alive, key=lambda k: total[k].item())
            alive = sorted(ranked[: max(2, -(-len(ranked) // 2))])
    mean = torch.full((len(said),), float("inf"))
    mean[alive] = total[alive] / (rounds * len(times))
    return mean, asked
