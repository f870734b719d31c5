"""Regions: several prompts share one canvas, each in its own part of it.

Mixture of Diffusers for scene composition and high resolution image generation, Alvaro Barbero
Jimenez, 2023, arXiv 2302.02412. MultiDiffusion: Fusing Diffusion Paths for Controlled Image
Generation, Omer Bar-Tal, Lior Yariv, Yaron Lipman, Tali Dekel, 2023, arXiv 2302.08113.

A model knows pictures of one size. To draw a larger one, lay windows of that size over the canvas,
ask the network about each window under that window's own prompt, and where windows overlap take a
weighted mean of what they say.

    eps(canvas) = sum_i w_i eps(canvas[R_i], c_i) / sum_i w_i

Mixture of Diffusers averages the noise with weights that fall off towards a window's edges (a
Gaussian, or a quartic), so that no seam is drawn. MultiDiffusion averages the moved states, with
even weights; since a step without noise is linear in the noise and has the same factors in every
window, that is the same line with w_i = 1.

Try: even weights against Gaussian ones, and look at the seams; windows that hardly overlap; the
same prompt everywhere, which makes a panorama.

Weakness: windows know nothing of each other but where they overlap, so a horizon may bend. The cost
grows with the number of windows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise

WEIGHTS = ("gauss", "quartic", "even")


@dataclass(frozen=True)
class Region:
    """A window of the canvas, in latents, and its condition (1 row, or one for each picture)."""

    top: int
    left: int
    height: int
    width: int
    cond: Cond

    @property
    def place(self) -> tuple[slice, slice]:
        rows = slice(self.top, self.top + self.height)
        return rows, slice(self.left, self.left + self.width)


def profile(n: int, kind: str) -> Tensor:
    """Weights (n,) along one side of a window, largest in the middle."""
    u = torch.arange(n, dtype=torch.float32)
    middle = (n - 1) / 2
    if kind == "even":
        return torch.ones(n)
    if kind == "gauss":  # a deviation of a tenth of the side
        return torch.exp(-((u - middle) ** 2) / (2 * 0.01 * n**2))
    s = (u - middle) / max(middle, 0.5) * 0.995
    return 15 / 16 * (1 - s**2) ** 2


def window(region: Region, kind: str) -> Tensor:
    """Weights (height width) of a window."""
    return profile(region.height, kind)[:, None] * profile(region.width, kind)[None, :]


def check_regions(regions: Sequence[Region], size: tuple[int, int], kind: str) -> None:
    """ValueError: unknown weights, a window that is empty or leaves the canvas, a hole between
    them.
    """
    if kind not in WEIGHTS:
        raise ValueError(f"weights={kind!r} are unknown; choose one of {', '.join(WEIGHTS)}")
    h, w = size
    covered = torch.zeros(h, w)
    for r in regions:
        inside = 0 <= r.top and 0 <= r.left and r.top + r.height <= h and r.left + r.width <= w
        if r.height < 1 or r.width < 1 or not inside:
            raise ValueError(
                f"a region of {r.height} x {r.width} latents at ({r.top}, {r.left}) is empty or "
                f"leaves the canvas of {h} x {w}"
            )
        covered[r.place] += window(r, kind)
    holes = int((covered == 0).sum())
    if holes:
        raise ValueError(
            f"the regions leave {holes} of {h * w} latents of the canvas empty: let them meet"
        )


def regional(
    denoise: Denoise,
    regions: Sequence[Region],
    size: tuple[int, int],
    *,
    weights: Literal["gauss", "quartic", "even"] = "gauss",
) -> Denoise:
    """A denoiser of whole canvases (b c h w) of `size` latents that asks `denoise` about each
    region under the region's own condition; the condition it is called with is not looked at.

    ValueError as of `check_regions`.
    """
    check_regions(regions, size, weights)
    shares = [window(r, weights) for r in regions]
    total = torch.zeros(size)
    for r, share in zip(regions, shares):
        total[r.place] += share
    shares = [share / total[r.place] for r, share in zip(regions, shares)]  # they sum to 1

    def guided(x_t: Tensor, t: int | Tensor, cond: Cond | None) -> Tensor:
        if tuple(x_t.shape[2:]) != size:
            raise ValueError(
                f"a canvas of {tuple(x_t.shape[2:])} latents; the regions are of {size}"
            )
        eps = torch.zeros_like(x_t)
        for r, share in zip(regions, shares):
            rows, columns = r.place
            seen = x_t[..., rows, columns]
            said = denoise(seen, t, r.cond.expand(len(x_t)))
            eps[..., rows, columns] += share.to(x_t) * said
        return eps

    return guided


def row_of_windows(
    conds: Sequence[Cond], side: int, width: int, height: int | None = None
) -> list[Region]:
    """Windows of `side` latents from left to right over a canvas of that width, evenly spaced, one
    for each condition; ValueError if they leave gaps.
    """
    n = len(conds)
    if n < 1 or width < side or (n == 1 and width != side) or n * side < width:
        raise ValueError(
            f"{n} window(s) of {side} latents on a canvas {width} wide: they must cover it, and "
            "may not be wider than it"
        )
    regions = []
    for i, cond in enumerate(conds):
        left = round(i * (width - side) / max(n - 1, 1))
        regions.append(Region(0, left, height or side, side, cond))
    return regions


def seam(image: Tensor, columns: Sequence[int]) -> float:
    """How visible vertical borders are in pictures (b 3 H W): mean horizontal gradient across these
    columns, over that elsewhere. 1: like anywhere else.
    """
    gradient = (image[..., 1:] - image[..., :-1]).abs().mean((0, 1, 2))  # W - 1
    across = torch.zeros(len(gradient), dtype=torch.bool)
    across[[c - 1 for c in columns]] = True
    elsewhere = gradient[~across].mean().item()
    return gradient[across].mean().item() / max(elsewhere, math.ulp(1.0))
