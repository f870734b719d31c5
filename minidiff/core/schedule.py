"""Schedules: how much signal and how much noise a picture holds at each time.

Every Gaussian diffusion in this library is two tables, `alpha` and `sigma`, with

    x_t = alpha_t x0 + sigma_t eps,    eps ~ N(0, I),    t = 0 .. T

Index 0 is the clean picture (alpha 1, sigma 0), index T the noise. DDPM, flow matching and
variance-exploding models are then different numbers in the same two columns: VP has alpha^2 +
sigma^2 = 1, flow alpha + sigma = 1, VE alpha = 1. A network trained on times 0 .. T-1 calls t - 1
what is index t here. Three places make that shift, and callers never do: `Pipe.eps` when sampling,
`diffusion_loss` (foundations/latent_diffusion.py) in training, and `steered`
(control/controlnet.py) when a side network is asked.

Try: plot `log_snr` of `linear`, `cosine` and `sigmoid` over t. Training sees the noise levels where
the curve is flat.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

SPACINGS = ("linspace", "leading", "trailing")  # even in time, as public models are sampled
LEVELS = ("karras", "lambda")  # even in what the tables say: how much noise there is
RHO = 7.0  # of "karras": EDM's


@dataclass(frozen=True, eq=False)
class Schedule:
    """Two float64 CPU tables of length T + 1 with sigma
    / alpha strictly increasing from 0, and a name.
    """

    alpha: Tensor
    sigma: Tensor
    name: str = "custom"

    def __post_init__(self) -> None:
        a = self.alpha
        s = self.sigma
        kinds = {(v.dtype, v.device.type) for v in (a, s)}
        if kinds != {(torch.float64, "cpu")} or a.ndim != 1 or a.shape != s.shape or len(a) < 2:
            raise ValueError(
                f"schedule {self.name!r}: alpha and sigma must be float64 CPU tables of 2 or more, "
                f"got {a.dtype} {tuple(a.shape)} on {a.device} and {s.dtype} {tuple(s.shape)} on "
                f"{s.device}"
            )
        if not (a.isfinite().all() and s.isfinite().all() and (a > 0).all()):
            raise ValueError(
                f"schedule {self.name!r}: tables must be finite and alpha > 0 everywhere (it "
                "divides)"
            )
        if a[0] != 1 or s[0] != 0 or not ((s / a).diff() > 0).all():
            raise ValueError(
                f"schedule {self.name!r}: must start at alpha 1, sigma 0 and grow noisier at every "
                "index"
            )

    @property
    def T(self) -> int:
        return len(self.alpha) - 1

    @property
    def alpha_bar(self) -> Tensor:
        """DDPM's cumulative product, alpha^2 here (DDIM's paper calls it alpha)."""
        return self.alpha**2

    @property
    def log_snr(self) -> Tensor:
        """log(alpha^2 / sigma^2), infinite at index 0."""
        return 2 * (self.alpha.log() - self.sigma.log())

    @cached_property
    def _pairs(self) -> list[tuple[float, float]]:
        return list(zip(self.alpha.tolist(), self.sigma.tolist()))

    @cached_property
    def _lams(self) -> list[float]:
        return (self.log_snr / 2).tolist()

    def at(self, t: int | Tensor, like: Tensor | None = None) -> tuple[Any, Any]:
        """(alpha_t, sigma_t): floats for an int t; for a
        LongTensor (b,), b 1 1 .. in `like`'s dtype, on its device.
        """
        if not isinstance(t, Tensor):
            if not 0 <= t <= self.T:  # a negative index would silently read the noisy end
                raise ValueError(
                    f"time {t} is outside 0..{self.T} of {self.name!r}; 0 is clean, {self.T} is "
                    "noise"
                )
            return self._pairs[t]
        if like is None:
            raise ValueError("times in a tensor need `like`, the tensor they belong to")
        shape = (-1,) + (1,) * (like.ndim - 1)
        # cast first, then move: MPS has no float64
        index = t.to(like.device)
        alpha = self.alpha.to(like.dtype).to(like.device)[index]
        sigma = self.sigma.to(like.dtype).to(like.device)[index]
        return alpha.view(shape), sigma.view(shape)

    def lam(self, t: int) -> float:
        """lambda_t = log(alpha_t / sigma_t), half the log SNR, in which exponential solvers measure
        their steps; infinite at the clean end.
        """
        self.at(t)  # refuses what is no time
        return self._lams[t]

    def timesteps(
        self,
        n: int,
        start: int | None = None,
        spacing: str = "linspace",
        end: int = 0,
        times: Sequence[int] | None = None,
    ) -> list[int]:
        """n + 1 decreasing times for n steps from `start` (default T) to `end`; or `times`, a grid
        of one's own, in place of the other four.

        linspace  start .. 1 in n even times, then the end (the last step is short)
        trailing  start .. 0 in n even steps (what few-step samplers want)
        leading   i * (start // n) + 2 for i = n-1 .. 0, then the end. Stable Diffusion's own:
                  network times 1, 21, ..
                  981 at 50 of 1000; it never visits T.
        karras    even in (sigma / alpha)^(1/7), from start to 1: most of them near clean
        lambda    even in log(alpha / sigma), from start to 1
        end       0, clean; or 1, the least noise a network knows, taken for clean: what Stable
                  Diffusion does (its
                  `set_alpha_to_one` is False). A grid that visits 1 itself then ends with a move
                  from 1 to 1.
        """
        if times is not None:
            return self.checked(times)
        start = self.T if start is None else start
        if not 1 <= start <= self.T:
            raise ValueError(
                f"start={start} is outside 1..{self.T}; it is an index of schedule {self.name!r}"
            )
        if end not in (0, 1):
            raise ValueError(
                f"end={end}: sampling ends at 0, the clean picture, or at 1, where Stable "
                "Diffusion stops"
            )
        if isinstance(n, bool) or not isinstance(n, Integral):
            raise ValueError(f"steps={n!r}: a whole number was expected, such as 50")
        if not 1 <= n <= start:
            raise ValueError(
                f"steps={n} is outside 1..{start}; one step per time at most, 20 to 100 are usual"
            )
        known = (*SPACINGS, *LEVELS)
        if spacing not in known:
            raise ValueError(f"spacing={spacing!r} is unknown; choose one of {', '.join(known)}")
        if spacing in LEVELS:
            return level_times(self, n, start, spacing) + [end]
        return even_times(n, start, spacing) + [end]

    def checked(self, times: Sequence[int]) -> list[int]:
        """The same times as a list; ValueError unless they fall from one to the next, inside
        0..T.
        """
        given = list(times)
        whole = all(isinstance(t, Integral) for t in given)
        ts = [int(t) for t in given] if whole else []
        falls = all(t > s for t, s in pairwise(ts))
        if len(ts) < 2 or not falls:
            raise ValueError(
                f"times={given}: a grid is two whole numbers or more, each smaller than the "
                "one before"
            )
        if ts[0] > self.T or ts[-1] < 0:
            raise ValueError(f"times={ts}: they must lie in 0..{self.T}, as {self.name!r} has them")
        return ts


def level(sch: Schedule, t: int) -> float:
    """sigma / alpha at index t: the noise of x_t / alpha_t."""
    alpha, sigma = sch.at(t)
    return sigma / alpha


def nearest(sch: Schedule, wanted: float) -> int:
    """The index, from 1 to T, whose `level` is nearest to the wanted one in ratio."""
    t = bisect_left(range(sch.T), wanted, key=lambda t: level(sch, t))  # the first not below it
    if t <= 1:
        return 1
    return t if level(sch, t) / wanted < wanted / level(sch, t - 1) else t - 1


def falling(sch: Schedule, levels: Sequence[float], start: int | None = None) -> list[int]:
    """The times `nearest` to falling levels, none above `start` (default T). Where two meet, the
    noisier moves up; where there is no room above, all move down.

    ValueError: levels that do not fall from one to the next, or more of them than times.
    """
    falls = all(a > b for a, b in pairwise(levels))
    if not levels or not falls or not 0 < levels[-1] or not math.isfinite(levels[0]):
        raise ValueError(
            f"levels {list(levels)}: sigma / alpha at each time was expected, finite, above 0 and "
            "each smaller than the one before"
        )
    if len(levels) > sch.T:
        raise ValueError(f"{len(levels)} levels: {sch.name!r} has no more than {sch.T} noisy times")
    ts = [nearest(sch, wanted) for wanted in levels]
    for i in reversed(range(len(ts) - 1)):
        ts[i] = max(ts[i], ts[i + 1] + 1)
    highest = sch.T if start is None else start
    for i, t in enumerate(ts):
        ts[i] = min(t, highest - i)
    return ts


def level_times(sch: Schedule, n: int, start: int, spacing: str) -> list[int]:
    """The n falling times whose noise is nearest to levels that are even in (sigma / alpha)^(1/7),
    or in its logarithm, from `start` to 1.
    """
    noisy, clean = level(sch, start), level(sch, 1)
    levels = []
    for i in range(n):
        share = i / max(n - 1, 1)
        if spacing == "karras":
            root = (1 - share) * noisy ** (1 / RHO) + share * clean ** (1 / RHO)
            levels.append(root**RHO)
        else:
            levels.append(noisy ** (1 - share) * clean**share)
    return falling(sch, levels, start)


def flow_time(sch: Schedule, t: int) -> tuple[float, float]:
    """(k, tau) of index t: a state x_t divided by k lies on the straight line between data and
    noise, the share tau of the way to noise.
    """
    alpha, sigma = sch.at(t)
    k = alpha + sigma
    return k, sigma / k


def solver_times(
    sch: Schedule,
    steps: int,
    spacing: str = "linspace",
    start: int | None = None,
    times: Sequence[int] | None = None,
    end: int = 0,
) -> list[int]:
    """steps + 1 times from `start` (default T) to `end`, as public code lays them for solvers that
    measure their steps in lambda; or `times`, a grid of one's own.

    "linspace" and "leading" count steps + 1 points, of which the last is dropped: that one lies
    next to clean, where a step of higher order would divide by a lambda about to be infinite. The
    other spacings are used as they are. A grid that would visit 1 twice, because that is its `end`
    too, has one step less: no step in lambda is nothing long.
    """
    ts = sch.timesteps(steps, start, spacing, end, times)
    if times is not None:
        return ts
    # every time visited: nothing can be dropped
    if spacing in ("linspace", "leading") and steps < (start or sch.T):
        ts = sch.timesteps(steps + 1, start, spacing)[:-2] + [end]
    return ts[:-1] if len(ts) > 2 and ts[-2] == end else ts


def even_times(n: int, start: int, spacing: str) -> list[int]:
    """The n decreasing times at which a sampler of n steps asks the network.

    trailing  start - i start / n, rounded, for i = 0 .. n - 1
    leading   i (start // n) + 2 for i = n - 1 .. 0 (+ 1 if n = start: there is no room to shift)
    linspace  n even times from start to 1, rounded
    """
    if spacing == "trailing":
        return [round(start - i * start / n) for i in range(n)]
    if spacing == "leading":
        offset = 2 if n < start else 1
        return [i * (start // n) + offset for i in reversed(range(n))]
    stride = (start - 1) / max(n - 1, 1)
    return [start] + [1 + round(i * stride) for i in reversed(range(n - 1))]


def times_of_strength(ts: list[int], strength: float) -> list[int]:
    """The clean end of a grid of n + 1 falling times: the last int(n strength) steps, which are one
    time more than that.
    """
    n = len(ts) - 1
    return ts[n - int(n * strength) :]  # cut off, not rounded: .58 of 50 are 28, as in diffusers


def alpha_bar_of(betas: Tensor) -> Tensor:
    """DDPM's alpha_bar for the betas (T,) of a chain: (T + 1,) in float64, index 0 the clean
    picture.
    """
    kept = (1 - betas).cumprod(0)  # DDPM eq. 4
    return torch.cat([torch.ones(1, dtype=torch.float64), kept])


def _vp(betas: Tensor, name: str) -> Schedule:
    alpha_bar = alpha_bar_of(betas)
    return Schedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), name)


def _check_length(T: int) -> None:
    if T < 1:
        raise ValueError(f"T={T} is too small; a schedule needs at least one noisy time")


def _even(lo: float, hi: float, n: int) -> Tensor:
    _check_length(n)
    return torch.linspace(lo, hi, n, dtype=torch.float64)


def _betas_to_vp(betas: Tensor, name: str) -> Schedule:
    # the published betas belong to T = 1000; scaling keeps the end of a shorter chain at noise
    # (Improved DDPM)
    return _vp((betas * 1000 / len(betas)).clamp(max=0.999), name)


def linear(T: int = 1000, beta0: float = 1e-4, beta1: float = 0.02) -> Schedule:
    """Ho, Jain, Abbeel 2020 (arXiv 2006.11239): beta grows
    linearly. Betas are given for T = 1000, scaled otherwise.
    """
    return _betas_to_vp(_even(beta0, beta1, T), "linear")


def scaled_linear(T: int = 1000, beta0: float = 0.00085, beta1: float = 0.012) -> Schedule:
    """Rombach et al. 2021 (arXiv 2112.10752), Stable Diffusion's: sqrt(beta) grows linearly."""
    return _betas_to_vp(_even(beta0**0.5, beta1**0.5, T) ** 2, "scaled_linear")


def _curve_to_vp(curve: Tensor, max_beta: float, name: str) -> Schedule:
    # keeps alpha > 0 where the curve itself reaches 0
    betas = (1 - curve[1:] / curve[:-1]).clamp(max=max_beta)
    return _vp(betas, name)


def alpha_bar_cosine(T: int, s: float) -> Tensor:
    """The cosine curve of `cosine`, (T + 1,) in float64, before any beta is limited: 1 at index 0,
    0 at index T.
    """
    u = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    f = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return f / f[0]


def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """Nichol & Dhariwal 2021 (arXiv 2102.09672):
    alpha_bar = cos^2, slower at both ends than `linear`.
    """
    _check_length(T)
    return _curve_to_vp(alpha_bar_cosine(T, s), max_beta, "cosine")


def sigmoid(
    T: int = 1000, lo: float = -3.0, hi: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> Schedule:
    """Jabri, Fleet, Chen 2022 (arXiv 2212.11972):
    alpha_bar = a sigmoid stretched to go from 1 to 0.
    """
    end = torch.tensor(hi / tau, dtype=torch.float64).sigmoid()
    u = _even(0, 1, T + 1)
    return _curve_to_vp(end - ((lo + u * (hi - lo)) / tau).sigmoid(), max_beta, "sigmoid")


def flow(T: int = 1000, sigma_max: float = 0.999) -> Schedule:
    """Rectified flow / flow matching: the straight line between data and noise, alpha = 1 - sigma.

    The line stops at sigma_max < 1, for both tables: cutting alpha alone would bend it at the first
    step.
    """
    sigma = _even(0, sigma_max, T + 1)
    return Schedule(1 - sigma, sigma, "flow")


def _ve(sigma: Tensor, name: str) -> Schedule:
    sigma = torch.cat([torch.zeros(1, dtype=torch.float64), sigma])
    return Schedule(torch.ones_like(sigma), sigma, name)


def ve(T: int = 1000, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
    """Song & Ermon 2019 (arXiv 1907.05600): sigma in a
    geometric row. Start it from sigma_T times unit noise.
    """
    return _ve(_even(math.log(sigma_min), math.log(sigma_max), T).exp(), "ve")


def karras(
    T: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Schedule:
    """Karras et al. 2022 (arXiv 2206.00364): sigma^(1/rho)
    even, more of the times at low noise. Start as for `ve`.
    """
    # EDM eq. 5
    return _ve(_even(sigma_min ** (1 / rho), sigma_max ** (1 / rho), T) ** rho, "karras")
