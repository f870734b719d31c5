"""Boundary diffusion: a flat wall between two kinds of pictures, and a push across it.

Ye Zhu, Yu Wu, Zhiwei Deng, Olga Russakovsky, Yan Yan, "Boundary Guided Learning-Free Semantic
Control with Diffusion Models", 2023, arXiv 2302.08357.

Invert pictures of two kinds half of the way to noise. There, at the mixing step t_m, a plane parts
the two kinds: one in the space of noisy latents z, one at the bottleneck h. Find both with a linear
support vector machine, push a new picture's z and h along the normals to the other side, and
denoise. Nothing is trained but the two planes.

    f(v) = a . v + c,  |a| = 1    the signed distance of v to its plane, positive on the
                                  target's side
    v'   = v + (d - f(v)) a       then f(v') = d: for z at t_m, and for h in the first `hold`
                                  steps from there

    w, b = argmin |w|^2 / 2 + C sum_i max(0, 1 - y_i (w . v_i + b)),    a = w / |w|,  c = b / |w|

Try: `distance` 0 (on the wall) to 3 (1: as deep as the average picture of the target); space "z",
"h" or "both"; `mix` .3 to .9 beside the searched one; `hold=1`, which is what the published code
comes to.

Weakness: distances of 150 in the published code mean something for one model only; here the unit is
how deep the target's own pictures lie. Parting pictures that the machine was fitted to is no feat,
as there are more axes than pictures: so the mixing step is searched by accuracy on the half it
never saw, and if that half cannot be told apart, a warning says so.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import noises, step_pairs
from minidiff.core.process import ddim_step
from minidiff.core.taps import tap
from minidiff.editing.asyrp import H, bottleneck, check_bottleneck, drawn
from minidiff.inversion.ddim import invert_step
from minidiff.pipe.checks import door, one_by_one
from minidiff.pipe.pipe import Pipe

SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # mixing steps that the search tries


# ---- the plane -----------------------------------------------------------------------------------


def linear_svm(
    x: np.ndarray, y: np.ndarray, C: float = 1.0, sweeps: int = 200
) -> tuple[np.ndarray, float]:
    """(w, b) of the linear support vector machine for rows x (n d) with labels y (n,) of -1 and 1.

    Dual coordinate descent (Hsieh et al. 2008): one multiplier 0 <= u_i <= C after the other is set
    to its best value, and w = sum u_i y_i x_i is kept up to date. b is the weight of an axis on
    which every row is 1.
    """
    if x.ndim != 2 or y.shape != (len(x),) or set(np.unique(y)) != {-1, 1}:
        raise ValueError(
            f"rows {x.shape}, labels {y.shape} of {sorted(set(y.tolist()))}: "
            "expected (n, d), n of -1, 1"
        )
    x = np.concatenate([x, np.ones((len(x), 1))], 1).astype(np.float64)
    n, d = x.shape
    rng = np.random.default_rng(0)
    size = (x**2).sum(1)  # |x_i|^2
    u = np.zeros(n)
    w = np.zeros(d)
    for _ in range(sweeps):
        largest = 0.0
        for i in rng.permutation(n):
            slack = 1 - y[i] * (w @ x[i])  # how far row i is from the margin
            best = min(max(u[i] + slack / size[i], 0.0), C)
            step = best - u[i]
            u[i] = best
            w = w + step * y[i] * x[i]
            largest = max(largest, abs(step))
        if largest < 1e-6 * C:
            break
    return w[:-1], float(w[-1])


@dataclass(frozen=True)
class Plane:
    """`normal` (c y x), of length 1, `offset`, `depth`: the target's mean distance, `accuracy` on
    pictures not fitted.
    """

    normal: Tensor
    offset: float
    depth: float
    accuracy: float

    def distance(self, v: Tensor) -> Tensor:
        """(b,) signed distances of v (b c y x), positive on the target's side."""
        return (v * self.normal).sum((1, 2, 3)) + self.offset

    def push(self, v: Tensor, d: Tensor | float) -> Tensor:
        """v (b c y x) moved along the normal to distance d (one, or one each)."""
        gap = (d - self.distance(v)).to(v)
        return v + gap[:, None, None, None] * self.normal


def plane(before: Tensor, after: Tensor) -> Plane:
    """The plane between two sets of vectors (n c y x each): fitted to their even rows, judged on
    the odd, then to all.
    """

    def fit(*sets: Tensor):
        rows = torch.cat(sets).flatten(1).double().cpu().numpy()
        labels = np.repeat([-1.0, 1.0], [len(s) for s in sets])
        # one size for all: still a plane
        spread = np.sqrt(((rows - rows.mean(0)) ** 2).sum(1).mean())
        w, b = linear_svm((rows - rows.mean(0)) / spread, labels)
        length = np.linalg.norm(w)
        return w / length, (b * spread - w @ rows.mean(0)) / length

    a, c = fit(before[::2], after[::2])
    sides = [(s[1::2].flatten(1).double().cpu().numpy() @ a + c) for s in (before, after)]
    accuracy = ((sides[0] < 0).mean() + (sides[1] > 0).mean()) / 2
    a, c = fit(before, after)
    depth = (after.flatten(1).double().cpu().numpy() @ a + c).mean()
    return Plane(
        torch.from_numpy(a).view(after.shape[1:]).to(after), float(c), float(depth), float(accuracy)
    )


# ---- where pictures are at the mixing step -------------------------------------------------------


@torch.no_grad()
def states(
    pipe: Pipe, z: Tensor, cond: Cond, ts: list[int], steps: int
) -> dict[int, tuple[Tensor, Tensor]]:
    """{t: (z_t, h_t)} of latents z (n c h w) inverted to the times ts, which are on the grid of
    `steps` steps.
    """
    found, grid = {}, pipe.timesteps(steps)[::-1]
    for s, t in step_pairs([t for t in grid if t <= max(ts)]):
        z = invert_step(pipe.eps, pipe.schedule, z, s, t, cond)
        if t in ts:
            found[t] = z, bottleneck(pipe, z, t, cond)
    return found


Planes = dict[int, tuple[Plane, Plane]]  # {t: (in z, in h)}


def boundaries(
    pipe: Pipe, before: Tensor, after: Tensor, ts: list[int], *, steps: int = 50
) -> Planes:
    """The planes for every time of ts, from latents (n c h w) of the two kinds, at least 4 of
    each.
    """
    if min(len(before), len(after)) < 4:
        raise ValueError(
            f"{len(before)} and {len(after)} pictures of the two kinds: give 4 of each or "
            "more, half to check"
        )
    found = [states(pipe, z, pipe.null(len(z)), ts, steps) for z in (before, after)]
    return {t: tuple(plane(found[0][t][k], found[1][t][k]) for k in (0, 1)) for t in ts}


def mixing_step(planes: Planes, share: float = 0.95) -> int:
    """The middle one of the times at which z tells unseen pictures apart nearly (`share`) as well
    as at the best time.

    Noisier ones lose more of the picture, cleaner ones leave less to draw after the push.
    """
    best = max(p[0].accuracy for p in planes.values())
    good = sorted(t for t, p in planes.items() if p[0].accuracy >= share * best)
    return good[(len(good) - 1) // 2]


# ---- the edit ------------------------------------------------------------------------------------


@door
def boundary(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    distance: float = 1.0,
    space: Literal["both", "z", "h"] = "both",
    mix: float | None = None,
    hold: int = 5,
    eta: float = 0.0,
    pictures: int = 16,
    planes: Planes | None = None,
    steps: int = 50,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Push pictures `image` (b 3 H W) in [-1, 1] from the side of `source` to that of `target`;
    returns (b 3 H W).

    distance  how far behind the plane, in units of the target's own mean distance; 0: onto the
              plane
    space     what is pushed: the noisy latent z, the bottleneck h, or both
    mix       the mixing step as a share of the noise scale; default: searched
    hold      steps in which h is pushed; the first of them is the mixing step
    eta       1 draws fresh noise on the way, as the published code does; 0 none
    pictures  the model draws so many of each kind to find the planes by

    `planes`: those of `boundaries` for pictures of your own with labels of your own; then no prompt
    is used. Without them every picture has its own. The network is told nothing (the empty prompt),
    so no word speaks against the push. Identical prompts: the picture is rebuilt. Warns if the two
    kinds cannot be told apart. ValueError: options out of range, a network without a bottleneck.
    """
    if (
        not 0 < (0.5 if mix is None else mix) <= 1
        or not 0 <= eta <= 1
        or space not in ("both", "z", "h")
        or hold < 1
    ):
        raise ValueError(
            f"mix={mix}, eta={eta}, space={space!r}, hold={hold}: expected 0 < mix <= 1, eta in "
            "0..1, both, z "
            "or h, and 1 step or more"
        )
    if planes is None and len(image) > 1:
        options = dict(
            distance=distance,
            space=space,
            mix=mix,
            hold=hold,
            eta=eta,
            pictures=pictures,
            steps=steps,
            progress=progress,
        )
        return one_by_one(boundary, pipe, image, source, target, seed=seed, **options)
    check_bottleneck(pipe)
    ts = pipe.timesteps(steps)
    near = lambda share: min(ts[:-1], key=lambda t: abs(t - share * pipe.schedule.T))  # noqa: E731
    wanted = sorted({near(m) for m in (SHARES if mix is None else (mix,))})
    if planes is None and source != target:
        planes = boundaries(
            pipe,
            *(drawn(pipe, p, pictures, seed=seed) for p in (source, target)),
            wanted,
            steps=steps,
        )
    t_m = near(mix or 0.5) if planes is None else mixing_step(planes)
    if planes and planes[t_m][0].accuracy < 0.7:
        warnings.warn(
            f"boundary: at t={t_m} only {planes[t_m][0].accuracy:.0%} of unseen pictures fall on "
            "their side of "
            "the plane: what it parts may not be what the prompts say; draw more pictures",
            stacklevel=2,
        )
    z = pipe.encode(image)
    x = states(pipe, z, pipe.null(len(z)), [t_m], steps)[t_m][0]
    if planes and space != "h":
        x = planes[t_m][0].push(x, distance * planes[t_m][0].depth)
    return pipe.decode(
        denoised(
            pipe,
            x,
            [t for t in ts if t <= t_m],
            planes[t_m][1] if planes and space != "z" else None,
            distance,
            hold,
            eta,
            seed,
            progress,
        )
    )


@torch.no_grad()
def denoised(
    pipe: Pipe,
    x: Tensor,
    ts: list[int],
    wall: Plane | None,
    distance: float,
    hold: int,
    eta: float,
    seed: int,
    progress: bool = False,
) -> Tensor:
    """Clean latents from x (b c h w) at ts[0], with h behind `wall` in the first `hold` steps."""
    null, fresh = pipe.null(len(x)), noises(x, seed)
    for i, (t, s) in enumerate(step_pairs(ts, progress)):
        if wall is not None and i < hold:
            with tap(pipe.net, H, lambda h, name: wall.push(h, distance * wall.depth)):
                eps = pipe.eps(x, t, null)
        else:
            eps = pipe.eps(x, t, null)
        x = ddim_step(pipe.schedule, x, eps, t, s, eta, next(fresh) if eta else None)
    return x
