"""A second round: unusual right answers, and wrong ones that are right for one kind of input only."""

import functools
import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce, repeat

from minidiff.core.cond import Cond
from minidiff.core.process import (
    ddim_step,
    eps_to_x0,
    posterior,
    q_sample,
    renoise,
    transition,
    v_target,
    x0_to_eps,
)
from minidiff.core.schedule import linear
from newcomers import right, wrong

D = torch.float64


# ---- tables --------------------------------------------------------------------------------------


right("alpha_bar_of")(
    lambda b: torch.tensor(
        [math.prod(1 - x for x in b.tolist()[:k]) for k in range(len(b) + 1)], dtype=D
    )
)
right("alpha_bar_of")(lambda b: torch.cumprod(torch.cat([b.new_ones(1), 1 - b]), 0))
wrong("alpha_bar_of", "the product of all")(lambda b: torch.cat([b.new_ones(1), 1 - b]))
wrong("alpha_bar_of")(lambda b: torch.cat([b.new_zeros(1), (1 - b).cumprod(0)]))
wrong("alpha_bar_of")(lambda b: torch.cat([(1 - b).cumprod(0), b.new_zeros(1)]))
wrong("alpha_bar_of")(lambda b: 1 - torch.cat([b.new_ones(1), (1 - b).cumprod(0)]))

right("alpha_bar_cosine")(
    lambda T, s: torch.tensor(
        [
            math.cos((t + s * T) / (T + s * T) * math.pi / 2) ** 2
            / math.cos(s / (1 + s) * math.pi / 2) ** 2
            for t in range(T + 1)
        ],
        dtype=D,
    )
)
right("alpha_bar_cosine")(
    lambda T, s: torch.from_numpy(
        np.cos((np.linspace(0, 1, T + 1) + s) / (1 + s) * np.pi / 2) ** 2
        / np.cos(s / (1 + s) * np.pi / 2) ** 2
    )
)
wrong("alpha_bar_cosine")(
    lambda T, s: torch.cos((torch.arange(T + 1, dtype=D) / T + s) / (1 + s) * 90) ** 2
)
wrong("alpha_bar_cosine")(
    lambda T, s: torch.cos(torch.arange(T + 1, dtype=D) / T * math.pi / 2) ** 2
)
wrong("alpha_bar_cosine")(
    lambda T, s: (
        (
            torch.cos((torch.arange(T + 1, dtype=D) / 1000 + s) / (1 + s) * math.pi / 2)
            / math.cos(s / (1 + s) * math.pi / 2)
        )
        ** 2
    )
)

right("times")(
    lambda n, T, kind: [
        torch.tensor(v)
        for v in (
            [round(T - i * T / n) for i in range(n)]
            if kind == "trailing"
            else [i * (T // n) + 2 for i in range(n)][::-1]
        )
    ]
)
right("times")(
    lambda n, T, kind: sorted(
        [round((i + 1) * T / n) for i in range(n)]
        if kind == "trailing"
        else [i * (T // n) + 2 for i in range(n)],
        reverse=True,
    )
)
right("times")(
    lambda n, T, kind: (
        np.arange(T, 0, -T / n).round().astype(int)[:n].tolist()
        if kind == "trailing"
        else list(range(2, 2 + n * (T // n), T // n))[::-1]
    )
)
wrong("times")(
    lambda n, T, kind: (
        [T - i * (T // n) for i in range(n)]
        if kind == "trailing"
        else [i * (T // n) + 2 for i in reversed(range(n))]
    )
)
wrong("times")(lambda n, T, kind: [round(T - i * T / n) for i in range(n)])
wrong("times")(
    lambda n, T, kind: (
        [round(1000 - i * 1000 / n) for i in range(n)]
        if kind == "trailing"
        else [i * (1000 // n) + 2 for i in reversed(range(n))]
    )
)


# ---- process and moves ---------------------------------------------------------------------------


@right("q_sample")
@torch.no_grad()
def _(sch, x0, t, eps):
    a, s = sch.at(t, x0)
    return (
        torch.stack([x0, eps], 0)
        .mul(
            torch.stack(
                [
                    torch.as_tensor(a, dtype=x0.dtype).expand_as(x0),
                    torch.as_tensor(s, dtype=x0.dtype).expand_as(x0),
                ],
                0,
            )
        )
        .sum(0)
    )


right("q_sample")(
    lambda sch, x0, t, eps: renoise(
        sch, x0, torch.zeros_like(t) if isinstance(t, torch.Tensor) else 0, t, eps
    )
)
right("q_sample")(
    lambda sch, x0, t, eps: torch.from_numpy(
        (
            sch.alpha[t].numpy().reshape(-1, 1, 1, 1) * x0.numpy()
            + sch.sigma[t].numpy().reshape(-1, 1, 1, 1) * eps.numpy()
        ).astype(np.float32)
    )
)
wrong("q_sample")(lambda sch, x0, t, eps: linear().at(t, x0)[0] * x0 + linear().at(t, x0)[1] * eps)
wrong("q_sample")(
    lambda sch, x0, t, eps: q_sample(sch, x0, t if isinstance(t, int) else t[0].item(), eps)
)
wrong("q_sample")(lambda sch, x0, t, eps: q_sample(sch, x0, t, eps).clamp(-1, 1))
wrong("q_sample")(
    lambda sch, x0, t, eps: (
        (1 - t / sch.T if isinstance(t, int) else 1 - t.view(-1, 1, 1, 1) / sch.T) * x0
        + (t / sch.T if isinstance(t, int) else t.view(-1, 1, 1, 1) / sch.T) * eps
    )
)

right("ddim_step")(lambda sch, x, e, t, s: ddim_step(sch, x.double(), e.double(), t, s).to(x.dtype))
right("ddim_step")(
    lambda sch, x, e, t, s: (
        sch.at(s, x)[0] * (x / sch.at(t, x)[0] - sch.at(t, x)[1] / sch.at(t, x)[0] * e)
        + sch.at(s, x)[1] * e
    )
)
wrong("ddim_step", "clipped")(
    lambda sch, x, e, t, s: q_sample(sch, eps_to_x0(sch, x, e, t).clamp(-1, 1), s, e)
)
wrong("ddim_step")(
    lambda sch, x, e, t, s: (
        q_sample(sch, eps_to_x0(sch, x, e, t), s, e) if isinstance(t, int) and s < t else x
    )
)
wrong("ddim_step")(lambda sch, x, e, t, s: x - (sch.at(t, x)[1] - sch.at(s, x)[1]) * e)
wrong("ddim_step")(lambda sch, x, e, t, s: q_sample(sch, eps_to_x0(sch, x, e, t), t - 1, e))

right("eps_to_x0")(
    lambda sch, x, e, t: ddim_step(sch, x, e, t, 0 if isinstance(t, int) else torch.zeros_like(t))
)
right("eps_to_x0")(
    lambda sch, x, e, t: (
        (x.double() - sch.at(t, x.double())[1] * e.double()) / sch.at(t, x.double())[0]
    ).float()
)
wrong("eps_to_x0", "clipped")(lambda sch, x, e, t: eps_to_x0(sch, x, e, t).clamp(-1, 1))
wrong("eps_to_x0")(lambda sch, x, e, t: (x - e) / sch.at(t, x)[0])
wrong("eps_to_x0")(lambda sch, x, e, t: eps_to_x0(sch, x, e, t - 1))

right("v_target")(
    lambda a, s, x, e: torch.addcmul(
        torch.mul(e, a), torch.as_tensor(s, dtype=x.dtype), x, value=-1
    )
)
right("v_target")(lambda a, s, x, e: (a * e.double() - s * x.double()).float())
wrong("v_target")(lambda a, s, x, e: a * e - (1 - a**2) ** 0.5 * x)
wrong("v_target")(lambda a, s, x, e: a * x - s * e)
wrong("v_target")(lambda a, s, x, e: a**2 * e - s**2 * x)

right("renoise")(lambda sch, x, s, t, n: renoise(sch, x.double(), s, t, n.double()).to(x.dtype))
wrong("renoise")(lambda sch, x, s, t, n: q_sample(sch, x / sch.at(s, x)[0], t, n))
wrong("renoise")(
    lambda sch, x, s, t, n: sch.at(t, x)[0] / sch.at(s, x)[0] * x + sch.at(t, x)[1] * n
)
wrong("renoise")(
    lambda sch, x, s, t, n: x + (sch.at(t, x)[1] ** 2 - sch.at(s, x)[1] ** 2) ** 0.5 * n
)

right("posterior")(
    lambda sch, x, x0, t, s: (
        posterior(sch, x, x0, t, s)[0],
        torch.as_tensor(posterior(sch, x, x0, t, s)[1]).float().reshape(-1, 1, 1, 1),
    )
)
wrong("posterior")(
    lambda sch, x, x0, t, s: (
        ddim_step(sch, x, x0_to_eps(sch, x, x0, t), t, s),
        posterior(sch, x, x0, t, s)[1],
    )
)
wrong("posterior", "exchanged")(lambda sch, x, x0, t, s: posterior(sch, x0, x, t, s))
wrong("posterior")(lambda sch, x, x0, t, s: posterior(sch, x, x0, t, s)[::-1])
wrong("posterior")(lambda sch, x, x0, t, s: (posterior(sch, x, x0, t, s)[0], 0.0))
wrong("posterior")(
    lambda sch, x, x0, t, s: (
        posterior(sch, x, x0, t, s)[0],
        torch.as_tensor(posterior(sch, x, x0, t, s)[1]).mean(),
    )
)

right("guide")(
    lambda n, c, w: torch.stack([n, c]).movedim(0, -1) @ torch.tensor([1 - w, w], dtype=n.dtype)
)
right("guide")(lambda n, c, w: torch.add(n, c - n, alpha=w))
wrong("guide")(lambda n, c, w: w * (c - n))
wrong("guide")(lambda n, c, w: n + 7.5 * (c - n))
wrong("guide")(lambda n, c, w: torch.where(torch.tensor(w > 1), n + w * (c - n), c))

right("invert_step")(
    lambda d, sch, x, s, t, c: functools.reduce(
        lambda e, _: q_sample(sch, eps_to_x0(sch, x, e, s), t, e), [0], d(x, t, c)
    )
)
right("invert_step")(
    lambda d, sch, x, s, t, c, *rest: (
        lambda e: (
            x * (sch.alpha[t] / sch.alpha[s])
            + (sch.sigma[t] - sch.sigma[s] * sch.alpha[t] / sch.alpha[s]) * e
        )
    )(d(x, t, c))
)
wrong("invert_step")(lambda d, sch, x, s, t, c: q_sample(sch, x, t, d(x, t, c)))
wrong("invert_step")(lambda d, sch, x, s, t, c: ddim_step(sch, x, d(x, t - 1, c), s, t))
wrong("invert_step")(
    lambda d, sch, x, s, t, c: ddim_step(sch, x, d(ddim_step(sch, x, d(x, t, c), s, t), t, c), s, t)
)


# ---- solvers and guidance ------------------------------------------------------------------------


wrong("ddpm_step")(lambda sch, x, x0, t, s, n, v: posterior(sch, x, x0, t, s)[0])
wrong("ddpm_step")(
    lambda sch, x, x0, t, s, n, v: (
        posterior(sch, x, x0, t, s)[0]
        + (
            0
            if s <= 1
            else (
                posterior(sch, x, x0, t, s)[1]
                if v == "fixed_small"
                else transition(sch, s, t, x)[1]
            )
            ** 0.5
            * n
        )
    )
)
wrong("ddpm_step", "clipped")(
    lambda sch, x, x0, t, s, n, v: (
        posterior(sch, x, x0.clamp(-1, 1), t, s)[0]
        + (
            0
            if s == 0
            else (posterior(sch, x, x0, t, s)[1] if v == "small" else transition(sch, s, t, x)[1])
            ** 0.5
            * n
        )
    )
)

right("ddim_noisy_step")(
    lambda sch, x, e, t, s, eta, n: ddim_step(sch, x, e, t, s, eta=eta, noise=n).to(x)
)
right("ddim_noisy_step")(
    lambda sch, x, e, t, s, eta, n: ddim_step(
        sch, x.double(), e.double(), t, s, eta, n.double()
    ).float()
)
wrong("ddim_noisy_step", "eta squared")(
    lambda sch, x, e, t, s, eta, n: ddim_step(sch, x, e, t, s, eta**2, n)
)
wrong("ddim_noisy_step")(
    lambda sch, x, e, t, s, eta, n: ddim_step(sch, x, e, t, s, 1.0 if eta else 0.0, n)
)
wrong("ddim_noisy_step")(lambda sch, x, e, t, s, eta, n: ddim_step(sch, x, e, t, s) + eta * n)
wrong("ddim_noisy_step")(
    lambda sch, x, e, t, s, eta, n: (
        (1 - eta) * ddim_step(sch, x, e, t, s) + eta * ddim_step(sch, x, e, t, s, 1.0, n)
    )
)

wrong("dpm_step")(
    lambda sch, x, x0, b, r, t, s: ddim_step(sch, x, x0_to_eps(sch, x, 1.5 * x0 - 0.5 * b, t), t, s)
)
wrong("dpm_step")(
    lambda sch, x, x0, b, r, t, s: ddim_step(
        sch, x, x0_to_eps(sch, x, x0 + (t - s) / (2 * (r - t)) * (x0 - b), t), t, s
    )
)

W = [[1], [1.5, -0.5], [23 / 12, -4 / 3, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -3 / 8]]
right("plms_noise")(
    lambda old: functools.reduce(torch.add, [w * e for w, e in zip(W[len(old) - 1], old)])
)
right("plms_noise")(
    lambda old: torch.tensordot(torch.tensor(W[len(old) - 1]).float(), torch.stack(old), 1)
)
wrong("plms_noise")(lambda old: sum(w * old.pop(0) for w in W[len(old) - 1]))
wrong("plms_noise")(lambda old: 1.5 * old[0] - 0.5 * old[1] if len(old) > 1 else old[0])
wrong("plms_noise")(
    lambda old: sum(w * e for w, e in zip(W[len(old) - 1], old)) * (24 if len(old) == 4 else 1)
)

right("euler_step")(
    lambda sch, x, v, t, s: (
        (1 - sch.sigma[s]) * (x - sch.sigma[t] * v) + sch.sigma[s] * (x + (1 - sch.sigma[t]) * v)
    )
)
right("euler_step")(
    lambda sch, x, v, t, s: torch.lerp(x, x + v, float(sch.sigma[s] - sch.sigma[t]))
)
wrong("euler_step")(lambda sch, x, v, t, s: x - v * (t - s) / 1000)
wrong("euler_step")(lambda sch, x, v, t, s: x + (sch.sigma[s] - sch.sigma[t]) / sch.sigma[t] * v)
wrong("euler_step")(lambda sch, x, v, t, s: x + (sch.sigma[t - 1] - sch.sigma[t]) * v)

right("rescale")(
    lambda g, c, phi: rearrange(
        [phi * gi * c[i].std() / gi.std() + (1 - phi) * gi for i, gi in enumerate(g)],
        "b c h w -> b c h w",
    )
)
wrong("rescale")(
    lambda g, c, phi: (
        phi
        * (g - g.mean((1, 2, 3), True))
        * c.std((1, 2, 3), keepdim=True)
        / g.std((1, 2, 3), keepdim=True)
        + (1 - phi) * g
    )
)
wrong("rescale")(
    lambda g, c, phi: (
        phi
        * g
        * torch.linalg.vector_norm(c, dim=(1, 2, 3), keepdim=True)
        / torch.linalg.vector_norm(g, dim=(1, 2, 3), keepdim=True)
        + (1 - phi) * g
    )
)
wrong("rescale")(
    lambda g, c, phi: g * c.std((1, 2, 3), keepdim=True) / g.std((1, 2, 3), keepdim=True)
)

right("guide_within")(
    lambda n, c, w, t, lo, hi: torch.where(
        ((t > lo) * (t <= hi)).reshape(len(t), *[1] * (n.ndim - 1)), torch.lerp(n, c, w), c
    )
)
right("guide_within")(
    lambda n, c, w, t, lo, hi: torch.cat(
        [
            (n[i : i + 1] + w * (c[i : i + 1] - n[i : i + 1]))
            if lo < t[i].item() <= hi
            else c[i : i + 1]
            for i in range(len(t))
        ]
    )
)
wrong("guide_within")(
    lambda n, c, w, t, lo, hi: torch.where(
        ((t > lo) & (t < hi)).view(-1, 1, 1, 1), n + w * (c - n), c
    )
)
wrong("guide_within")(
    lambda n, c, w, t, lo, hi: torch.where(
        ((t > lo) | (t <= hi)).view(-1, 1, 1, 1), n + w * (c - n), c
    )
)
wrong("guide_within")(
    lambda n, c, w, t, lo, hi: torch.where(((t > lo) & (t <= hi)).all(), n + w * (c - n), c)
)

right("threshold")(
    lambda x, p: torch.stack(
        [
            (lambda s: r.clamp(-s, s) / s)(max(float(np.quantile(r.abs().numpy(), p)), 1.0))
            for r in x
        ]
    )
)
right("threshold")(
    lambda x, p: (lambda s: torch.minimum(torch.maximum(x, -s), s) / s)(
        x.abs().flatten(1).quantile(p, 1).clamp_min(1)[:, None, None, None]
    )
)
wrong("threshold")(
    lambda x, p: (lambda s: x.clamp(-s, s) / s)(
        x.abs().flatten(1).max(1).values.clamp(min=1)[:, None, None, None]
    )
)
wrong("threshold")(
    lambda x, p: (lambda s: x.clamp(-s, s) / s)(
        x.abs().flatten(2).quantile(p, 2).clamp(min=1)[:, :, None, None]
    )
)
wrong("threshold")(
    lambda x, p: (lambda s: x.clamp(-s, s) / s)(
        x.abs().flatten(1).quantile(p, 1, interpolation="nearest").clamp(min=1)[:, None, None, None]
    )
)
wrong("threshold")(lambda x, p: (lambda s: x.clamp(-s, s) / s)(x[0].abs().quantile(p).clamp(min=1)))


# ---- training ------------------------------------------------------------------------------------


right("ema_update")(
    lambda a, w, d, k: [
        x.clone().mul_(min(d, (1 + k) / (10 + k))).add_(y, alpha=1 - min(d, (1 + k) / (10 + k)))
        for x, y in zip(a, w)
    ]
)
right("ema_update")(
    lambda a, w, d, k: torch._foreach_lerp(list(w), list(a), min(d, (1 + k) / (10 + k)))
)
wrong("ema_update")(lambda a, w, d, k: [min(d, (1 + k) / (10 + k)) * x + y for x, y in zip(a, w)])
wrong("ema_update")(
    lambda a, w, d, k: [
        min(d, k / (10 + k)) * x + (1 - min(d, k / (10 + k))) * y for x, y in zip(a, w)
    ]
)
wrong("ema_update")(
    lambda a, w, d, k: min(d, (1 + k) / (10 + k)) * a[0] + (1 - min(d, (1 + k) / (10 + k))) * w[0]
)

right("drop_condition")(lambda x, e, u, p: x + (u < p).to(x.dtype)[:, None, None] * (e - x))
right("drop_condition")(lambda x, e, u, p: torch.stack([e if v < p else r for v, r in zip(u, x)]))
wrong("drop_condition")(lambda x, e, u, p: torch.where((u < p)[:, None, None], e[:1], x))
wrong("drop_condition")(lambda x, e, u, p: x[u >= p])
wrong("drop_condition")(lambda x, e, u, p: torch.where((u < 0.1)[:, None, None], e, x))

right("min_snr_weight")(
    lambda sch, t, g, p: torch.tensor(
        [
            min(float((sch.alpha[k] / sch.sigma[k]) ** 2), g)
            / (float((sch.alpha[k] / sch.sigma[k]) ** 2) + (p == "v"))
            for k in t
        ],
        dtype=D,
    )
)
right("min_snr_weight")(
    lambda sch, t, g, p: (
        lambda snr: (
            torch.stack([snr, torch.full_like(snr, g)]).amin(0) / (snr + (1 if p == "v" else 0))
        )
    )(sch.alpha_bar[t] / (1 - sch.alpha_bar[t]))
)
wrong("min_snr_weight")(
    lambda sch, t, g, p: (lambda snr: snr.clamp(max=g) / (snr + 1))(
        (sch.alpha[t] / sch.sigma[t]) ** 2
    )
)
wrong("min_snr_weight")(
    lambda sch, t, g, p: (lambda snr: snr.clamp(max=g) / (snr if p == "eps" else snr + 1))(
        (sch.alpha[t - 1] / sch.sigma[t].clamp(min=1e-9)) ** 2
    )
)
wrong("min_snr_weight")(
    lambda sch, t, g, p: (lambda snr: snr.clamp(max=5) / (snr if p == "eps" else snr + 1))(
        (sch.alpha[t] / sch.sigma[t]) ** 2
    )
)


def _loss(net, b, sch, p, time=1, what=lambda d: (d**2).mean(), cut=True, whole=None):
    a, s = sch.at(b["t"], b["x0"])
    out = net(
        a * b["x0"] + s * b["eps"], b["t"] - time, Cond(text=b.get("text"), label=b.get("label"))
    )
    out = out[:, : b["x0"].shape[1]] if cut else out.chunk(2, 1)[0]
    goal = {"eps": b["eps"], "x0": b["x0"], "v": v_target(a, s, b["x0"], b["eps"])}[whole or p]
    return what(out - goal)


right("diffusion_loss")(lambda *a: _loss(*a, cut=False))
right("diffusion_loss")(
    lambda *a: _loss(*a, what=lambda d: torch.stack([(r**2).mean() for r in d]).mean())
)
wrong("diffusion_loss")(lambda *a: _loss(*a, what=lambda d: (d**2).mean().detach()))
wrong("diffusion_loss")(lambda *a: _loss(*a, what=lambda d: 0.5 * (d**2).mean()))
wrong("diffusion_loss")(lambda *a: _loss(*a, what=lambda d: (d**2).mean((1, 2, 3))))
wrong("diffusion_loss")(lambda *a: _loss(*a, what=lambda d: d.mean() ** 2))
wrong("diffusion_loss")(lambda *a: _loss(*a, whole="x0"))
wrong("diffusion_loss")(lambda *a: _loss(*a, what=lambda d: F.smooth_l1_loss(d, 0 * d)))


# ---- networks ------------------------------------------------------------------------------------


def _heads(x, h):
    return rearrange(x, "b n (h d) -> (b h) n d", h=h)


right("attention")(
    lambda q, k, v, h: rearrange(
        torch.baddbmm(
            torch.zeros(1), _heads(q, h), _heads(k, h).mT, alpha=(q.shape[2] // h) ** -0.5
        ).softmax(-1)
        @ _heads(v, h),
        "(b h) n d -> b n (h d)",
        h=h,
    )
)
wrong("attention")(
    lambda q, k, v, h: rearrange(
        (_heads(q, h) @ _heads(k, h).mT * (q.shape[2] // h) ** -0.5).softmax(-1) @ _heads(v, h),
        "(b h) n d -> b n (d h)",
        h=h,
    )
)
wrong("attention")(
    lambda q, k, v, h: rearrange(
        (_heads(q, h) @ _heads(k, h).mT * (q.shape[2] // h) ** -0.5).sigmoid() @ _heads(v, h),
        "(b h) n d -> b n (h d)",
        h=h,
    )
)
wrong("attention")(
    lambda q, k, v, h: rearrange(
        (_heads(q, h) @ _heads(k, h).mT * h**-0.5).softmax(-1) @ _heads(v, h),
        "(b h) n d -> b n (h d)",
        h=h,
    )
)
wrong("attention")(
    lambda q, k, v, h: rearrange(
        (_heads(k, h) @ _heads(q, h).mT * (q.shape[2] // h) ** -0.5).softmax(-1).mT @ _heads(v, h),
        "(b h) n d -> b n (h d)",
        h=h,
    )
)


right("causal_mask")(
    lambda n: torch.full((n, n), -math.inf).masked_fill(
        torch.tril(torch.ones(n, n, dtype=torch.bool)), 0.0
    )
)
right("causal_mask")(
    lambda n: torch.tensor(np.where(np.tri(n) > 0, 0, -np.inf), dtype=torch.float32)
)
wrong("causal_mask")(lambda n: torch.full((n, n), -torch.inf).tril(-1))
wrong("causal_mask")(lambda n: torch.full((1, 1, n, n), -torch.inf).triu(1))
wrong("causal_mask")(lambda n: torch.full((n, n), torch.inf).triu(1))
wrong("causal_mask", "minus infinity")(lambda n: torch.full((n, n), -1e4).triu(1))

right("geglu")(
    lambda h: torch.mul(*(lambda a, g: (a, torch.nn.GELU()(g)))(*h.split(h.shape[-1] // 2, -1)))
)
right("geglu")(
    lambda h: (
        h[:, :, : h.shape[2] // 2]
        * h[:, :, h.shape[2] // 2 :]
        * torch.special.ndtr(h[:, :, h.shape[2] // 2 :])
    )
)
wrong("geglu")(lambda h: F.gelu(h.chunk(2, -1)[0] * h.chunk(2, -1)[1]))
wrong("geglu")(lambda h: F.gelu(h.chunk(2, -1)[0]) * F.gelu(h.chunk(2, -1)[1]))
wrong("geglu")(lambda h: (lambda a, g: a * g * torch.sigmoid(1.702 * g))(*h.chunk(2, -1)))
wrong("geglu")(lambda h: F.relu(h.chunk(2, -1)[1]) * h.chunk(2, -1)[0])


@right("group_norm")
def _(x, groups, weight, bias, eps):
    norm = torch.nn.GroupNorm(groups, x.shape[1], eps=eps)
    norm.weight.data, norm.bias.data = weight, bias
    return norm(x)


right("group_norm")(
    lambda x, g, w, b, eps: (
        torch.cat([F.layer_norm(p, p.shape[1:], eps=eps) for p in x.chunk(g, 1)], 1)
        * w.view(-1, 1, 1)
        + b.view(-1, 1, 1)
    )
)
wrong("group_norm")(
    lambda x, g, w, b, eps: (
        F.layer_norm(x, x.shape[1:], eps=eps) * w[:, None, None] + b[:, None, None]
    )
)
wrong("group_norm")(lambda x, g, w, b, eps: F.group_norm(x, g, w, b, 1e-5))
wrong("group_norm")(lambda x, g, w, b, eps: F.batch_norm(x, None, None, w, b, True, 0.0, eps))
wrong("group_norm")(lambda x, g, w, b, eps: F.group_norm(x, g, b, w, eps))

right("res_block")(lambda block, x, temb: block(x, temb))
wrong("res_block")(
    lambda block, x, temb: (
        x
        + block.conv2(
            F.silu(
                block.norm2(
                    block.conv1(F.silu(block.norm1(x)))
                    + block.time_emb_proj(F.silu(temb))[..., None, None]
                )
            )
        )
    )
)

right("modulate")(
    lambda x, b, s: (
        einsum(x, 1 + s, "b n d, b d -> b n d") + repeat(b, "b d -> b n d", n=x.shape[1])
    )
)
right("modulate")(
    lambda x, b, s: torch.baddbmm(b[:, None].expand_as(x), x, torch.diag_embed(1 + s))
)
wrong("modulate")(lambda x, b, s: x * (1 + s[0]) + b[0])
wrong("modulate")(lambda x, b, s: x * (1 - s[:, None]) + b[:, None])
wrong("modulate")(lambda x, b, s: x * s.exp()[:, None] + b[:, None])


right("patchify")(
    lambda x, p: torch.stack(
        [
            x[:, :, i : i + p, j : j + p].flatten(1)
            for i in range(0, x.shape[2], p)
            for j in range(0, x.shape[3], p)
        ],
        1,
    )
)
right("patchify")(lambda x, p: F.pixel_unshuffle(x, p).flatten(2).mT)
wrong("patchify")(lambda x, p: F.pixel_unshuffle(x, p).flatten(2))
wrong("patchify")(lambda x, p: rearrange(x, "b c (h p) (w q) -> b (h w) (q p c)", p=p, q=p))
wrong("patchify")(
    lambda x, p: rearrange(x[:, :, :, : x.shape[2]], "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
)

right("unpatchify")(
    lambda t, p, r: F.pixel_shuffle(
        rearrange(t, "b (h w) (p q c) -> b (c p q) h w", h=r, p=p, q=p), p
    )
)
right("unpatchify")(
    lambda t, p, r: torch.cat(
        [
            torch.cat([k.unflatten(1, (p, p, -1)).permute(0, 3, 1, 2) for k in row.unbind(1)], 3)
            for row in t.chunk(r, 1)
        ],
        2,
    )
)
wrong("unpatchify")(lambda t, p, r: F.pixel_shuffle(rearrange(t, "b (h w) d -> b d h w", h=r), p))
wrong("unpatchify")(
    lambda t, p, r: rearrange(t, "b (h w) (p q c) -> b c (h p) (w q)", h=r, p=p, q=p, c=3)
)
wrong("unpatchify")(
    lambda t, p, r: rearrange(t, "b (h w) (p q c) -> b c (p h) (q w)", h=r, p=p, q=p)
)
wrong("unpatchify")(
    lambda t, p, r: rearrange(t, "b (h w) (p q c) -> b c (h p) (w q)", w=r, p=p, q=p)
)


right("gaussian_kl")(lambda m, v: (0.5 * (m.square() + v.expm1() - v)).mean())
right("gaussian_kl")(lambda m, v: reduce(0.5 * (m**2 + v.exp() - 1 - v), "b c h w -> ", "mean"))
wrong("gaussian_kl")(lambda m, v: 0.5 * (m**2 + v - 1 - v.log()).mean())
wrong("gaussian_kl")(lambda m, v: 0.5 * (m + v.exp() - 1 - v).mean())
wrong("gaussian_kl")(lambda m, v: 0.5 * (m**2 + v.exp() - 1 - v).mean(0).sum())
wrong("gaussian_kl")(lambda m, v: (0.5 * (m**2 + v.exp() - 1 - v)).mean().detach())
wrong("gaussian_kl")(lambda m, v: 0.5 * (m**2 + v.exp() + v).mean())

right("latent_scale")(lambda z: torch.rsqrt(z.var(correction=0)))
right("latent_scale")(lambda z: 1 / math.sqrt(((z - z.mean()) ** 2).sum().item() / z.numel()))
right("latent_scale")(lambda z: 1 / ((z**2).mean() - z.mean() ** 2) ** 0.5)
wrong("latent_scale")(lambda z: 1 / z.std((1, 2, 3), correction=0).mean())
wrong("latent_scale")(lambda z: 1 / z.abs().max())
wrong("latent_scale")(lambda z: 0.18215)
wrong("latent_scale")(lambda z: z / z.std(correction=0))


# ---- words, maps, masks --------------------------------------------------------------------------


def _lcs(source, target):
    """Without mismatches the alignment is a longest common subsequence."""

    @functools.cache
    def best(i, j):
        if i == 0 or j == 0:
            return 0
        both = best(i - 1, j - 1) + 1 if source[i - 1] == target[j - 1] else 0
        return max(best(i - 1, j), best(i, j - 1), both)

    out, i, j = [-1] * len(target), len(source), len(target)
    while i and j:
        if best(i, j) == best(i, j - 1):
            j -= 1
        elif best(i, j) == best(i - 1, j):
            i -= 1
        else:
            out[j - 1] = i - 1
            i, j = i - 1, j - 1
    return out


right("align")(_lcs)
right("align")(lambda s, t: tuple(_lcs(s, t)))
wrong("align")(lambda s, t: [k if k >= 0 else 0 for k in _lcs(s, t)])
wrong("align")(lambda s, t: [None if k < 0 else k for k in _lcs(s, t)])
wrong("align")(lambda s, t: [j if j < len(s) and s[j] == t[j] else -1 for j in range(len(t))])


def _where(
    maps, words, size, threshold=0.3, tokens="sum", over=3, swap=False, turn=False, at_least=False
):
    rows = zip(maps, words[::-1] if swap else words)
    m = torch.stack(
        [getattr(r[w], tokens)(0) if tokens != "amax" else r[w].amax(0) for r, w in rows]
    )[:, None]
    m = F.interpolate(F.max_pool2d(m, over, 1, over // 2), size[::-1] if turn else size)
    m = m / m.amax((2, 3), keepdim=True)
    return ((m >= threshold) if at_least else (m > threshold)).any(0, keepdim=True).to(maps.dtype)


right("blend_mask")(lambda *a: _where(*a, tokens="mean"))
right("blend_mask")(lambda *a: _where(*a).logical_not().logical_not().float())
wrong("blend_mask")(lambda *a: _where(*a, over=5))
wrong("blend_mask")(lambda *a: _where(*a, swap=True))
wrong("blend_mask")(lambda *a: _where(*a, turn=True))
wrong("blend_mask", "strongest token")(lambda *a: _where(*a, tokens="amax"))
wrong("blend_mask")(lambda *a: 1 - _where(*a))
wrong("blend_mask")(lambda *a: _where(*a)[0])

right("threshold_mask")(
    lambda d, th=0.5, g=0: torch.stack(
        [F.max_pool2d((r > 3 * th * r.mean()).float(), 2 * g + 1, 1, g) for r in d]
    )
)
right("threshold_mask")(
    lambda d, th=0.5, g=0: functools.reduce(
        lambda m, _: F.max_pool2d(m, 3, 1, 1),
        range(g),
        (d / (3 * d.mean((1, 2, 3), True)).clamp(min=1e-12) > th).float(),
    )
)
wrong("threshold_mask")(
    lambda d, th=0.5, g=0: F.max_pool2d((d > th * d.mean((1, 2, 3), True)).float(), 2 * g + 1, 1, g)
)
wrong("threshold_mask")(
    lambda d, th=0.5, g=0: F.max_pool2d(
        (d > 1.5 * d.mean((1, 2, 3), True)).float(), 2 * g + 1, 1, g
    )
)
wrong("threshold_mask")(
    lambda d, th=0.5, g=0: F.max_pool2d(
        (d < 3 * th * d.mean((1, 2, 3), True)).float(), 2 * g + 1, 1, g
    )
)
wrong("threshold_mask")(
    lambda d, th=0.5, g=0: F.max_pool2d((d > 3 * th * d.median()).float(), 2 * g + 1, 1, g)
)

wrong("span_map")(
    lambda s, t, n: sum(
        F.one_hot(torch.tensor(a), n).float().sum(0)[:, None]
        * F.one_hot(torch.tensor(b), n).sum(0)[None]
        for a, b in zip(s, t)
    )
)
wrong("span_map")(
    lambda s, t, n: sum(
        torch.zeros(n, n).index_put((torch.tensor(a[:1]), torch.tensor(b[:1])), torch.tensor(1.0))
        for a, b in zip(s, t)
    )
)
wrong("span_map")(lambda s, t, n: torch.eye(n))
wrong("span_map")(
    lambda s, t, n: sum(
        torch.zeros(n, n).index_put(
            (torch.tensor(a)[torch.arange(len(b)) * len(a) // len(b)], torch.tensor(b)),
            torch.tensor(1.0),
        )
        for a, b in zip(s, t)
    )
)

right("edited_maps")(lambda s, e, M, a, on, w: w * torch.lerp(e, s @ M, on * a))
right("edited_maps")(
    lambda s, e, M, a, on, w: torch.stack(
        [w[j] * ((s * M[:, j]).sum(-1) if on and a[j] else e[..., j]) for j in range(len(a))], -1
    )
)
wrong("edited_maps")(lambda s, e, M, a, on, w: ((a * (s @ M) + (1 - a) * e) if on else s) * w)
wrong("edited_maps")(lambda s, e, M, a, on, w: (on * (a * s + (1 - a) * e) + (1 - on) * e) * w)
wrong("edited_maps")(
    lambda s, e, M, a, on, w: (on * ((1 - a) * (s @ M) + a * e) + (1 - on) * e) * w
)
wrong("edited_maps")(lambda s, e, M, a, on, w: on * (a * (s @ M) + (1 - a) * e) * w + (1 - on) * e)

right("lora_weight")(
    lambda W, A, B, al, st: (
        W
        + (st * al / A.shape[0])
        * (einsum(B.flatten(1), A.flatten(1), "o r, r i -> o i")).reshape_as(W)
    )
)
right("lora_weight")(
    lambda W, A, B, al, st: torch.addmm(
        W.flatten(1), B.flatten(1), A.flatten(1), alpha=st * al / len(A)
    ).view_as(W)
)
right("lora_weight")(
    lambda W, A, B, al, st: torch.from_numpy(
        W.numpy()
        + np.float32(st * al / len(A))
        * (B.flatten(1).numpy() @ A.flatten(1).numpy()).reshape(W.shape)
    )
)
wrong("lora_weight")(
    lambda W, A, B, al, st: (
        W + st * al / len(A) * (A.flatten(1).T @ B.flatten(1).T).reshape(W.shape)
    )
)
wrong("lora_weight")(
    lambda W, A, B, al, st: (
        (1 - st) * W + st * al / len(A) * (B.flatten(1) @ A.flatten(1)).view_as(W)
    )
)
wrong("lora_weight")(
    lambda W, A, B, al, st: W + al / len(A) * (B.flatten(1) @ A.flatten(1)).view_as(W)
)
wrong("lora_weight")(
    lambda W, A, B, al, st: W + st * al / len(A) ** 0.5 * (B.flatten(1) @ A.flatten(1)).view_as(W)
)

right("expand_word")(
    lambda ids, w, f, n: functools.reduce(
        lambda o, i: o + (list(range(f, f + n)) if i == w else [i]), ids, []
    )
)
right("expand_word")(
    lambda ids, w, f, n: np.concatenate(
        [np.arange(f, f + n) if i == w else [i] for i in ids]
    ).tolist()
)
wrong("expand_word")(
    lambda ids, w, f, n: [k for i in ids for k in (range(w, w + n) if i == w else [i])]
)
wrong("expand_word")(
    lambda ids, w, f, n: [k for i in ids for k in (reversed(range(f, f + n)) if i == w else [i])]
)
wrong("expand_word")(
    lambda ids, w, f, n: [k for i in ids for k in ([i, *range(f, f + n)] if i == w else [i])]
)
wrong("expand_word", "ints")(
    lambda ids, w, f, n: [float(k) for i in ids for k in (range(f, f + n) if i == w else [i])]
)

right("keep_rows")(lambda t, b, rows: b.index_copy(0, torch.tensor(rows), t[rows]))
right("keep_rows")(
    lambda t, b, rows: torch.where(
        torch.isin(torch.arange(len(t)), torch.tensor(rows))[:, None], t, b
    )
)
wrong("keep_rows")(
    lambda t, b, rows: torch.cat([b[: rows[0]], t[rows[0] : rows[0] + 1], b[rows[0] + 1 :]])
)
wrong("keep_rows")(
    lambda t, b, rows: torch.where(
        torch.isin(torch.arange(len(t)), torch.tensor(rows))[:, None], (t + b) / 2, b
    )
)
wrong("keep_rows")(lambda t, b, rows: torch.cat([b[: -len(rows)], t[-len(rows) :]]))


# ---- paths, loops, what is known -----------------------------------------------------------------


right("times_of_strength")(
    lambda ts, a: [t for i, t in enumerate(ts) if i >= len(ts) - 1 - int((len(ts) - 1) * a)]
)
right("times_of_strength")(
    lambda ts, a: torch.tensor(ts)[len(ts) - 1 - int((len(ts) - 1) * a) :].tolist()
)
wrong("times_of_strength")(lambda ts, a: ts[math.floor((len(ts) - 1) * (1 - a)) :])
wrong("times_of_strength")(lambda ts, a: ts[: int((len(ts) - 1) * a) + 1])
wrong("times_of_strength")(lambda ts, a: ts[len(ts) - 1 - math.ceil((len(ts) - 1) * a) :])
wrong("times_of_strength")(
    lambda ts, a: ts[len(ts) - 1 - int((len(ts) - 1) * a) :] if a < 1 else ts[1:]
)

right("mix")(
    lambda sch, x, z, nu, t, s, n: torch.lerp(x, sch.alpha[s] * z + sch.sigma[s] * n, 1 - nu)
)
right("mix")(
    lambda sch, x, z, nu, t, s, n: q_sample(sch, z, s, n) + nu * (x - q_sample(sch, z, s, n))
)
wrong("mix")(lambda sch, x, z, nu, t, s, n: q_sample(sch, nu * x + (1 - nu) * z, s, n))
wrong("mix")(lambda sch, x, z, nu, t, s, n: nu * x + (1 - nu) * sch.at(s)[0] * z)
wrong("mix")(lambda sch, x, z, nu, t, s, n: nu * x + q_sample(sch, z, s, n))

right("follow")(lambda x, g, w: x + torch.cat([g - x[: len(g)], w * (g - x[: len(g)])]))
right("follow")(
    lambda x, g, w: rearrange(
        torch.stack([g, x.unflatten(0, (2, -1))[1] + w * (g - x.unflatten(0, (2, -1))[0])]),
        "k b c h w -> (k b) c h w",
    )
)
wrong("follow")(lambda x, g, w: torch.cat([g, x[len(g) :] + w * g]))
wrong("follow")(lambda x, g, w: torch.cat([g[:1], x[1:2] + w * (g[:1] - x[:1])]))
wrong("follow")(
    lambda x, g, w: torch.cat(
        [x[: len(g)] + w * (g - x[: len(g)]), x[len(g) :] + (g - x[: len(g)])]
    )
)

right("landing_null")(
    lambda sch, x, g, e, t, s, w: (
        (
            x0_to_eps(
                sch,
                x,
                (x * sch.at(s)[1] / sch.at(t)[1] - g)
                / (sch.at(t)[0] * sch.at(s)[1] / sch.at(t)[1] - sch.at(s)[0]),
                t,
            )
            - w * e
        )
        / (1 - w)
    )
)
wrong("landing_null")(
    lambda sch, x, g, e, t, s, w: (lambda eps: (eps - e) / w + e)(
        (g - sch.at(s)[0] / sch.at(t)[0] * x)
        / (sch.at(s)[1] - sch.at(s)[0] / sch.at(t)[0] * sch.at(t)[1])
    )
)
wrong("landing_null")(
    lambda sch, x, g, e, t, s, w: (lambda eps: (w * eps - e) / (w - 1))(
        (g - sch.at(s)[0] / sch.at(t)[0] * x)
        / (sch.at(s)[1] - sch.at(s)[0] / sch.at(t)[0] * sch.at(t)[1])
    )
)
wrong("landing_null")(
    lambda sch, x, g, e, t, s, w: (lambda eps: (eps - w * e) / (1 - w))(
        (g - x) / (sch.at(s)[1] - sch.at(t)[1])
    )
)

right("noise_map")(
    lambda sch, x, y, e, t, s: torch.sub(
        y, posterior(sch, x, (x - sch.at(t)[1] * e) / sch.at(t)[0], t, s)[0]
    )
)
right("noise_map")(
    lambda sch, x, y, e, t, s: (
        y.double() - posterior(sch, x.double(), eps_to_x0(sch, x.double(), e.double(), t), t, s)[0]
    ).float()
)
wrong("noise_map")(
    lambda sch, x, y, e, t, s: y - posterior(sch, x, eps_to_x0(sch, x, e, t).clamp(-1, 1), t, s)[0]
)
wrong("noise_map")(
    lambda sch, x, y, e, t, s: y - posterior(sch, y, eps_to_x0(sch, x, e, t), t, s)[0]
)
wrong("noise_map")(
    lambda sch, x, y, e, t, s: x - posterior(sch, x, eps_to_x0(sch, x, e, t), t, s)[0]
)

right("refine")(
    lambda x, y, f: (
        x
        + repeat(
            reduce(y - x, "b c (h p) (w q) -> b c h w", "mean", p=f, q=f),
            "b c h w -> b c (h p) (w q)",
            p=f,
            q=f,
        )
    )
)
right("refine")(
    lambda x, y, f: (
        x
        - F.conv_transpose2d(
            F.avg_pool2d(x - y, f), torch.ones(x.shape[1], 1, f, f), stride=f, groups=x.shape[1]
        )
    )
)
wrong("refine")(lambda x, y, f: y + F.interpolate(F.avg_pool2d(x - y, f), scale_factor=f))
wrong("refine")(lambda x, y, f: x + F.interpolate(F.max_pool2d(y - x, f), scale_factor=f))
wrong("refine")(lambda x, y, f: x + F.interpolate(F.avg_pool2d(y - x, 2), scale_factor=2))
wrong("refine")(lambda x, y, f: F.interpolate(F.avg_pool2d(y, f), scale_factor=f))
wrong("refine")(lambda x, y, f: x + (y - x).mean((2, 3), keepdim=True))


def _down(d, sch, x, y, t, s, c, p, swap, order=(0, 1), share=None):
    z = [x, y]
    for i in (1, 0) if swap else (0, 1):
        z[i] = ddim_step(sch, z[i], d(z[1 - i], t, c), t, s)
    for i in order:
        z[i] = (share or p) * z[i] + (1 - (share or p)) * z[1 - i]
    return tuple(z)


right("down")(_down)
wrong("down")(lambda *a: _down(*a, order=(1, 0)))
wrong("down")(lambda *a: _down(*a, order=()))
wrong("down")(lambda *a: _down(*a, share=0.93))
wrong("down")(lambda *a: _down(*a)[::-1])
wrong("down")(lambda d, sch, x, y, t, s, c, p, swap: _down(d, sch, x, y, t, s, None, p, swap))


def _jumps(ts, length, repeats, first=1, last=0, level_of_time=False):
    n = len(ts) - 1
    out = [n]
    counts = {}
    while out[-1] > 0:
        k = out[-1] - 1
        out.append(k)
        may = k >= first and (k - first) % length == 0 and k <= n - length - last
        if may and counts.get(k, 0) < repeats - 1:
            counts[k] = counts.get(k, 0) + 1
            out.append(k + length)
    return [ts[k] if level_of_time else ts[n - k] for k in out]


right("jumps")(_jumps)
wrong("jumps")(lambda *a: _jumps(*a, first=0))
wrong("jumps")(lambda *a: _jumps(*a, last=1))
wrong("jumps")(lambda *a: _jumps(*a, level_of_time=True))
wrong("jumps")(lambda ts, length, repeats: _jumps(ts, length, repeats)[1:])
wrong("jumps")(lambda ts, length, repeats: _jumps(ts, length, 2))
wrong("jumps")(lambda ts, length, repeats: _jumps(ts, length, repeats)[::-1])

right("project_average")(
    lambda x, y, f: (
        x
        + F.conv_transpose2d(
            y - F.avg_pool2d(x, f), torch.ones(x.shape[1], 1, f, f), stride=f, groups=x.shape[1]
        )
    )
)
wrong("project_average")(lambda x, y, f: x + F.interpolate(y, scale_factor=f))
wrong("project_average")(lambda x, y, f: x - F.interpolate(F.avg_pool2d(x, f), scale_factor=f))
wrong("project_average")(
    lambda x, y, f: x - F.interpolate(F.interpolate(x, scale_factor=1 / f) - y, scale_factor=f)
)
wrong("project_average")(lambda x, y, f: 0.5 * x + 0.5 * F.interpolate(y, scale_factor=f))

right("luma_pinv")(lambda y, w: torch.einsum("bohw,c->bchw", y, w / (w @ w)))
right("luma_pinv")(
    lambda y, w: rearrange(
        torch.linalg.lstsq(
            w[None].double(), rearrange(y.double(), "b 1 h w -> 1 (b h w)")
        ).solution,
        "c (b h w) -> b c h w",
        b=len(y),
        h=y.shape[2],
    ).float()
)
wrong("luma_pinv")(lambda y, w: y / w[:, None, None])
wrong("luma_pinv")(lambda y, w: y.repeat(1, 3, 1, 1) * w[:, None, None] / w.abs().max())
wrong("luma_pinv")(lambda y, w: y * w[:, None, None] / w.square().mean())

right("to_latent_mask")(
    lambda m, pipe: (
        F.unfold(m, pipe.factor, stride=pipe.factor)
        .amax(1)
        .view(len(m), 1, m.shape[2] // pipe.factor, -1)
    )
)
right("to_latent_mask")(
    lambda m, pipe: reduce(m, "b 1 (h p) (w q) -> b 1 h w", "max", p=pipe.factor, q=pipe.factor)
)
wrong("to_latent_mask")(
    lambda m, pipe: F.max_pool2d(m, 8) if m.shape[2] % 8 == 0 else F.max_pool2d(m, 2)
)
wrong("to_latent_mask")(
    lambda m, pipe: m[
        :, :, pipe.factor // 2 :: pipe.factor, pipe.factor // 2 :: pipe.factor
    ].clone()
)
wrong("to_latent_mask")(
    lambda m, pipe: (F.interpolate(m, scale_factor=1 / pipe.factor, mode="bilinear") > 0).float()
)
wrong("to_latent_mask")(lambda m, pipe: F.max_pool2d(m, pipe.factor, stride=1))
wrong("to_latent_mask")(lambda m, pipe: 1 - F.max_pool2d(m, pipe.factor))

right("paste")(lambda o, i, m: i.masked_scatter(m.expand_as(i).bool(), o[m.expand_as(i).bool()]))
right("paste")(
    lambda o, i, m: torch.stack(
        [torch.where(m[k % len(m)] > 0.5, o[k], i[k]) for k in range(len(i))]
    )
)
wrong("paste")(lambda o, i, m: torch.where(m[:1].bool(), o, i))
wrong("paste")(lambda o, i, m: 0.5 * (i + o) * m + (1 - m) * i)
wrong("paste", "last bit")(lambda o, i, m: (1 - m) * (i + 1e-6) + m * o)
wrong("paste")(lambda o, i, m: torch.where(m.bool(), o, i).clamp(-1, 1))

right("blend_known")(
    lambda sch, x, z, m, t, s, n: x.where(
        m.bool(), sch.alpha[s].float() * z + sch.sigma[s].float() * n
    )
)
right("blend_known")(
    lambda sch, x, z, m, t, s, n: torch.lerp(q_sample(sch, z, s, n), x, m.expand_as(x))
)
wrong("blend_known")(
    lambda sch, x, z, m, t, s, n: m * x + (1 - m) * q_sample(sch, z, max(s - 1, 0), n)
)
wrong("blend_known")(lambda sch, x, z, m, t, s, n: q_sample(sch, m * x + (1 - m) * z, s, n))
wrong("blend_known")(lambda sch, x, z, m, t, s, n: m * x + (1 - m) * sch.at(s)[0] * z)
wrong("blend_known", "its own")(
    lambda sch, x, z, m, t, s, n: m * x + (1 - m) * q_sample(sch, z, s, torch.randn_like(z))
)


@right("ddpm_sample")
def _(denoise, sch, x, ts, zs):
    moves = list(pairwise(ts))
    while moves:
        t, s = moves.pop(0)
        a, beta = transition(sch, s, t, x)
        mean = (x - beta / sch.at(t)[1] * denoise(x, t, None)) / a
        x = (
            mean
            if s == 0
            else mean + (beta**0.5 * sch.at(s)[1] / sch.at(t)[1]) * zs[len(zs) - len(moves) - 1]
        )
    return x


@wrong("ddpm_sample", "clipped")
def _(denoise, sch, x, ts, zs):
    for i, (t, s) in enumerate(pairwise(ts)):
        x0 = eps_to_x0(sch, x, denoise(x, t, None), t).clamp(-1, 1)
        mean, var = posterior(sch, x, x0, t, s)
        x = mean + var**0.5 * zs[i] if s else mean
    return x


@wrong("ddpm_sample")
def _(denoise, sch, x, ts, zs):
    for t, s in pairwise(ts):
        mean, var = posterior(sch, x, eps_to_x0(sch, x, denoise(x, t, None), t), t, s)
        x = mean + var**0.5 * zs[0] if s else mean
    return x


@wrong("ddpm_sample")
def _(denoise, sch, x, ts, zs):
    for i, (t, s) in enumerate(pairwise(ts[:-1])):
        mean, var = posterior(sch, x, eps_to_x0(sch, x, denoise(x, t, None), t), t, s)
        x = mean + var**0.5 * zs[i]
    return x
