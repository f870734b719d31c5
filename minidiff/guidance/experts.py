"""Experts: another network for every stretch of noise.

eDiff-I: Text-to-Image Diffusion Models with an Ensemble of Expert Denoisers, Yogesh Balaji et al.,
2022, arXiv 2211.01324.

At high noise a denoiser decides what is where, at low noise it draws edges, and one network has to
do both. Train it on all times first, then copy it and train each copy on its own stretch. Sampling
asks the one whose stretch the time lies in: as many evaluations as before, more knowledge for each.

    eps(x_t, t) = eps_k(x_t, t),    low_k < t <= high_k

Try: two experts that are one network (nothing may change); the early snapshot of "tiny" at some
times and the finished one at others: at which times does it matter who is asked?

Weakness: all of them must be kept. What is a stretch is a choice, and every expert has seen fewer
pictures than one network would have.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise

Expert = tuple[int, int, Denoise]  # low < t <= high, who is asked


def check_stretches(stretches: Sequence[Expert], T: int) -> list[Expert]:
    """The experts from clean to noise; ValueError unless their stretches meet end to end from 0 to
    T.
    """
    ordered = sorted(stretches, key=lambda one: one[0])
    said = [(low, high) for low, high, _ in ordered]
    meets = all(a[1] == b[0] for a, b in pairwise(said))
    empty = any(low >= high for low, high in said)
    if not said or said[0][0] != 0 or said[-1][1] != T or not meets or empty:
        raise ValueError(
            f"stretches {said}: each is (low, high], and together they must run from 0 to {T} "
            "without a gap or an overlap"
        )
    return ordered


def experts(stretches: Sequence[Expert], T: int) -> Denoise:
    """One denoiser of several, each for times low < t <= high. Rows with times of their own are
    asked expert by expert. ValueError: stretches that leave a gap or overlap; times outside 1..T.
    """
    ordered = check_stretches(stretches, T)

    def ask(x_t: Tensor, t: int | Tensor, cond: Cond | None) -> Tensor:
        if not ((0 < torch.as_tensor(t)) & (torch.as_tensor(t) <= T)).all():
            raise ValueError(f"t={t}: no expert is asked about times outside 1..{T}")
        if not isinstance(t, Tensor):
            return next(denoise for _, high, denoise in ordered if t <= high)(x_t, t, cond)
        eps = torch.empty_like(x_t)
        for low, high, denoise in ordered:
            mine = ((low < t) & (t <= high)).nonzero()[:, 0]
            if len(mine):
                rows = cond[mine] if cond is not None and len(cond) == len(x_t) else cond
                eps[mine] = denoise(x_t[mine], t[mine], rows)
        return eps

    return ask
