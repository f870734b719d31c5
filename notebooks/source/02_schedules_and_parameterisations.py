# %% [markdown]
# # 02 · Schedules and parameterisations
#
# Ho et al. 2020, [2006.11239](https://arxiv.org/abs/2006.11239); Nichol, Dhariwal 2021, [2102.09672](https://arxiv.org/abs/2102.09672); Salimans, Ho 2022, [2202.00512](https://arxiv.org/abs/2202.00512); Lipman et al. 2022, [2210.02747](https://arxiv.org/abs/2210.02747); Lin et al. 2023, [2305.08891](https://arxiv.org/abs/2305.08891). About 20 minutes of reading, half a minute of running, no network.
#
# Two repositories sample the same model and get different pictures. One calls clean what the other calls a little noisy, one starts at time 1000 and the other at 981, one network says noise and the other "velocity". Most bugs of this field live in these differences, and none of them raises an error. So this notebook sorts them: what is a *choice* (it changes what is learned), what is a *spelling* (it changes nothing), and what is a *mistake*.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch

import minidiff
from minidiff.core import schedule
from minidiff.core.cfg import cfg_batched
from minidiff.core.process import PREDICTIONS, eps_to_x0, q_sample, target, to_eps, x0_to_eps
from minidiff.core.schedule import Schedule
from minidiff.data import shapes
from minidiff.data.shapes import Obj, Scene
from minidiff.data.toy2d import Mixture, gauss_aniso, gaussian_flow_map, gmm8
from minidiff.samplers.ddim import ddim

D = torch.float64

# %% [markdown]
# ## 1. Two columns of numbers
#
# A schedule says how much of the picture, $\alpha_t$, and how much noise, $\sigma_t$, is in the state of time $t = 0 \dots T$:
#
# $$x_t = \alpha_t\, x_0 + \sigma_t\, \epsilon, \qquad \epsilon \sim N(0, I), \qquad \alpha_0 = 1,\ \sigma_0 = 0 .$$
#
# *Variance preserving* (VP) schedules keep $\alpha_t^2 + \sigma_t^2 = 1$, so one column is enough; the papers print $\bar\alpha_t = \alpha_t^2$. DDPM multiplies up small steps, $\bar\alpha_t = \prod_{s \le t}(1 - \beta_s)$ with betas that grow evenly ("linear"); Stable Diffusion lets $\sqrt{\beta}$ grow evenly ("scaled linear"). Improved DDPM draws the curve first, a squared cosine. Write that one:

# %% exercise="alpha_bar_cosine"

# %% [markdown]
# At $t = T$ the curve is exactly 0: pure noise. The project's table stops just short of that (no $\beta$ above .999), because a sampler divides by $\alpha$. Everywhere else the two are the same numbers.

# %%
ours, table = alpha_bar_cosine(1000, 0.008), schedule.cosine().alpha_bar
print(
    f"largest difference before T: {(ours - table)[:-1].abs().max():.1e};  at T: {ours[-1]:.1e} and {table[-1]:.1e}"
)
assert (ours - table)[:-1].abs().max() < 1e-12

tables = [schedule.linear(), schedule.scaled_linear(), schedule.cosine(), schedule.flow()]
fig, ax = plt.subplots(1, 3, figsize=(8.5, 2.5), layout="constrained")
for sch in tables:
    (line,) = ax[0].plot(sch.alpha, label=sch.name)
    ax[0].plot(sch.sigma, ":", color=line.get_color())
    ax[1].plot(range(1, sch.T + 1), sch.log_snr[1:])
    ax[2].plot(sch.alpha, sch.sigma, lw=1 if sch.name == "flow" else 3, alpha=0.6)
ax[0].set(title="α (lines) and σ (dots)", xlabel="t")
ax[0].legend(fontsize=8)
ax[1].set(title="log SNR = log α²/σ²", xlabel="t")
ax[2].set(title="the path in the plane (α, σ)", xlabel="α", ylabel="σ", aspect="equal")
for sch in tables:
    print(
        f"{sch.name:14} alpha_T {sch.alpha[-1]:.5f}   sigma_T/alpha_T {sch.sigma[-1] / sch.alpha[-1]:8.1f}   "
        f"as much picture as noise at t = {sch.log_snr[1:].abs().argmin() + 1}"
    )

# %% [markdown]
# In the plane on the right the three VP schedules are one and the same quarter circle: they differ only in *how fast* they walk along it. Flow matching, $\alpha = 1 - \sigma$, takes the chord. But even that is a smaller difference than it looks. Divide a state by its $\alpha$:
#
# $$x_t / \alpha_t = x_0 + (\sigma_t / \alpha_t)\, \epsilon .$$
#
# What is left depends on the signal-to-noise ratio $\mathrm{SNR}_t = \alpha_t^2/\sigma_t^2$ alone. Below, the same picture and noise: at the same $t$ (top), and, in each schedule, at the $t$ whose log SNR is nearest to 2 (bottom, divided by $\alpha$).

# %%
scene = Scene(
    (Obj("star", "purple", "large", 1.0, -1.0, 0.05),), "center", "yellow", "dotted", (3.0, 5.0)
)
x0 = shapes.render(scene, 32)
eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
even = {sch.name: int((sch.log_snr[1:] - 2).abs().argmin()) + 1 for sch in tables}
same_t = [q_sample(sch, x0, 300, eps) for sch in tables]
same_snr = [
    q_sample(sch, x0, even[sch.name], eps) / sch.alpha[even[sch.name]].item() for sch in tables
]


def show(ax, x, title):
    ax.imshow((x.permute(1, 2, 0) / 2 + 0.5).clamp(0, 1), interpolation="nearest")
    ax.set_title(title, fontsize=8)
    ax.axis("off")


fig, ax = plt.subplots(2, 4, figsize=(7, 3.8), layout="constrained")
for k, sch in enumerate(tables):
    show(ax[0, k], same_t[k][0], f"{sch.name}, t = 300")
    show(ax[1, k], same_snr[k][0], f"{sch.name}, t = {even[sch.name]}")
apart = max((x - same_snr[0]).abs().max().item() for x in same_snr)
print(
    f"bottom row: largest difference of a pixel {apart:.4f}; top row {max((x - same_t[0]).abs().max() for x in same_t):.2f}"
)
assert apart < 0.03

# %% [markdown]
# So a schedule is three things: which noise levels training sees how often, which grid a sampler walks on, and the scale on which the network sees its input. It is not another kind of model.
#
# **Stop and think.** A network was trained on `scaled_linear`. Could you sample it on the flow path, without training? What would you multiply its input by, and which time would you tell it?
#
# ## 2. The noisy end: is T noise?
#
# Samplers start from pure noise. The tables above do not all end there: Stable Diffusion's state at $T$ still holds $\alpha_T = .068$ of the picture. Seven percent sounds harmless. But think of the *mean brightness* $b$ of a picture with $n$ values. Averaging leaves only $1/\sqrt n$ of the noise, so in units of that noise the brightness at $T$ is visible with strength
#
# $$\sqrt n\; \frac{\alpha_T}{\sigma_T}\; b .$$
#
# For latents of $4 \times 64 \times 64$ values, $\sqrt n = 128$: the brightness of the picture can be read off the "noise" at 8.7 standard deviations. A network learns that. Then we hand it real noise, whose mean brightness is always about 0, and it concludes: a picture of medium grey.
#
# No network is needed to see it. Brightness is one number, its exact denoiser is that of a one-dimensional mixture, and we sample it from what samplers start from (unit noise) and from what they should start from (the true $x_T$).

# %%
root_n, levels = 128.0, torch.linspace(-1, 1, 21, dtype=D)  # brightness: 21 equally likely levels
data = Mixture((root_n * levels)[:, None], (0.02 * root_n) ** 2 * torch.ones(21, 1, 1, dtype=D))
n = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0), dtype=D)


def to_zero_snr(sch, floor):
    """Lin et al.'s repair: stretch alpha so that it ends at `floor` (there 0), and leave its first value."""
    a = 1 - (1 - sch.alpha) * (1 - floor) / (1 - sch.alpha[-1])
    return Schedule(a, (1 - a**2).clamp(min=0).sqrt(), f"{sch.name}, floor {floor:g}")


ends = [schedule.scaled_linear(), schedule.linear(), to_zero_snr(schedule.scaled_linear(), 1e-4)]
fig, ax = plt.subplots(1, 4, figsize=(11, 2.4), layout="constrained", sharey=True)
spread = {}
for a, sch in zip(ax, ends):
    out = (
        ddim(data.denoise(sch), sch, sch.sigma[-1] * n, steps=250, spacing="trailing")[:, 0]
        / root_n
    )
    true = (
        ddim(
            data.denoise(sch),
            sch,
            q_sample(sch, data.sample(1000), sch.T, n),
            steps=250,
            spacing="trailing",
        )
        / root_n
    )
    spread[sch.name] = out.std().item()
    a.hist(out, bins=40, range=(-1.1, 1.1))
    a.set_title(
        f"{sch.name}\nspread {out.std():.2f}; from the true $x_T$ {true.std():.2f}", fontsize=9
    )
ax[3].hist(data.sample(1000)[:, 0] / root_n, bins=40, range=(-1.1, 1.1), color="gray")
ax[3].set_title(f"data\nspread {data.sample(1000).std() / root_n:.2f}", fontsize=9)
assert spread["scaled_linear"] < 0.2 and spread["scaled_linear, floor 0.0001"] > 0.5

# %% [markdown]
# With the perfect denoiser and Stable Diffusion's table, every picture comes out medium grey: less than a fifth of the data's spread. From the true $x_T$ the same denoiser gets it right, so it is the start that is wrong. DDPM's `linear` ($\alpha_T = .006$) suffers little. Letting $\alpha_T$ go to zero repairs it, and breaks something else: an exact zero is refused here, since nothing can divide by it.

# %%
try:
    to_zero_snr(schedule.scaled_linear(), 0.0)
except ValueError as e:
    print(e)

# %% [markdown]
# At $\alpha_T = 0$ the state *is* the noise, "predict the noise" is answered by copying the input, and the answer says nothing about the picture. A model that is to start there must be trained to say something else. Which brings us to what a network says.
#
# ## 3. One answer in four coordinates
#
# Given $x_t$, only one thing per pixel is unknown, and it has four names in use:
#
# | `prediction` | the network says | read as noise |
# | --- | --- | --- |
# | `eps` | $\epsilon$ | $\epsilon$ |
# | `x0` | $x_0$ | $(x_t - \alpha_t x_0) / \sigma_t$ |
# | `v` | $\alpha_t \epsilon - \sigma_t x_0$ | $(\sigma_t x_t + \alpha_t v) / (\alpha_t^2 + \sigma_t^2)$ |
# | `flow` | $\epsilon - x_0$ | $(x_t + \alpha_t f) / (\alpha_t + \sigma_t)$ |
#
# `v` looks arbitrary until it is drawn. On a VP schedule write $\alpha = \cos\phi$, $\sigma = \sin\phi$. Then $x_t = \cos\phi\, x_0 + \sin\phi\, \epsilon$ turns from the picture to the noise, and $v = dx/d\phi$ is where it is going.

# %% exercise="v_target"

# %%
sch = schedule.scaled_linear()
# picture and noise as two directions
x, e = torch.tensor([[1.0, 0.0]], dtype=D), torch.tensor([[0.0, 1.0]], dtype=D)
fig, ax = plt.subplots(figsize=(3.4, 3.4), layout="constrained")
for t in (1, 150, 300, 500, 1000):
    p = q_sample(sch, x, t, e)[0]
    v = v_target(*sch.at(t), x, e)[0]
    ax.plot(*p, "ko", ms=4)
    ax.annotate(f"t = {t}", p - 0.17 * p / p.norm(), fontsize=8, ha="center", va="center")
    ax.arrow(*p, *(0.35 * v), head_width=0.04, color="tab:red")
ax.set(
    title="$x_t$ (dots) and v (arrows)",
    xlabel="share of $x_0$",
    ylabel="share of ε",
    xlim=(-0.5, 1.2),
    ylim=(-0.1, 1.4),
    aspect="equal",
)
t, h = 400, 1e-5  # v is the derivative along the arc
phi = math.atan2(sch.sigma[t], sch.alpha[t])
before, after = (math.cos(f) * x + math.sin(f) * e for f in (phi - h, phi + h))
error = ((after - before) / (2 * h) - v_target(*sch.at(t), x, e)).abs().max().item()
print(f"v against dx/dφ by finite differences: {error:.0e}")
assert error < 1e-8

# %% [markdown]
# Near the clean end v asks for the noise, near the noisy end for (minus) the picture: never for what is already in plain sight. And the four are the same information. Say it in one coordinate, read it as noise (`to_eps`), turn that into $x_0$: the round trip is exact up to rounding, at every time of every schedule.

# %%
g = torch.Generator().manual_seed(1)
pic, noise = torch.randn(2, 6, 4, 16, 16, generator=g, dtype=D)
times = torch.tensor([1, 10, 100, 500, 900, 1000])  # a time for each of the six rows
for sch in tables:
    x_t, gain = q_sample(sch, pic, times, noise), (sch.sigma[-1] / sch.alpha[-1]).item()
    error = {
        k: (
            eps_to_x0(
                sch, x_t, to_eps(sch, x_t, target(sch, pic, noise, times, k), times, k), times
            )
            - pic
        )
        .abs()
        .max()
        for k in PREDICTIONS
    }
    print(
        f"{sch.name:14}",
        "   ".join(f"{k} {v:.0e}" for k, v in error.items()),
        f"   sigma_T/alpha_T = {gain:.0f}",
    )
    assert max(error.values()) < 1e-14 * gain

# %% [markdown]
# The float64 rounding of $10^{-16}$ comes back multiplied by $\sigma_T / \alpha_T$. So the coordinates are equal, but not equally *safe*: reading $x_0$ off a noise divides by $\alpha$, reading noise off $x_0$ divides by $\sigma$.
#
# ## 4. What the spelling does change
#
# A network is never exact. An error in what it says is multiplied on its way to $x_0$, and by the same token a plain squared error of what it says is a *weighted* squared error of $x_0$:
#
# | | error of $x_0$ per unit of error | weight that a plain loss puts on $\lVert x_0 - \hat x_0 \rVert^2$ |
# | --- | --- | --- |
# | `x0` | 1 | 1 |
# | `eps` | $\sigma/\alpha$ | $\alpha^2/\sigma^2 = \mathrm{SNR}$ |
# | `v` | $\sigma/(\alpha^2+\sigma^2)$ | $\mathrm{SNR} + 1$ (VP) |
# | `flow` | $\sigma/(\alpha+\sigma)$ | $(1 + \sqrt{\mathrm{SNR}})^2$ |
#
# We measure it with a denoiser that is wrong by a known amount: the exact one of eight blobs (`gmm8`), plus an error of size .1 in $x_0$.

# %%
sch, mix = schedule.scaled_linear(), gmm8()
snr = (sch.alpha / sch.sigma).square()
formula = {
    "x0": lambda t: 1.0,
    "eps": lambda t: snr[t],
    "v": lambda t: snr[t] + 1,
    "flow": lambda t: (1 + snr[t].sqrt()) ** 2,
}
ts = [1, 3, 10, 30, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
exact, clean = mix.denoise(sch), mix.sample(2000, seed=0)
weight, floor = ({k: [] for k in PREDICTIONS} for _ in range(2))
for t in ts:
    eps = torch.randn(2000, 2, generator=g, dtype=D)
    x_t = q_sample(sch, clean, t, eps)
    best = eps_to_x0(sch, x_t, exact(x_t, t, None), t)  # E[x0 | x_t]: nothing can be better
    off = best + 0.1 * torch.randn(2000, 2, generator=g, dtype=D)
    for k in PREDICTIONS:
        said, ideal, truth = (
            target(sch, p, x0_to_eps(sch, x_t, p, t), t, k) for p in (off, best, clean)
        )
        weight[k].append(((said - ideal).pow(2).mean() / (off - best).pow(2).mean()).item())
        floor[k].append((ideal - truth).pow(2).mean().item())
        assert abs(weight[k][-1] / formula[k](t) - 1) < 1e-6

fig, ax = plt.subplots(1, 2, figsize=(8.5, 2.6), layout="constrained")
for k in PREDICTIONS:
    ax[0].semilogy(sch.log_snr[ts], weight[k], "o", ms=4, label=k)
    ax[0].semilogy(
        sch.log_snr[1:],
        [formula[k](t) for t in range(1, 1001)],
        lw=0.8,
        color=ax[0].lines[-1].get_color(),
    )
    ax[1].semilogy(ts, floor[k], label=k)
ax[0].set(
    title="weight on the error of $x_0$: measured, and the formula",
    xlabel="log SNR (clean is right)",
)
ax[1].set(title="loss of the perfect denoiser, in each coordinate", xlabel="t", ylim=(1e-3, 3))
ax[0].legend(fontsize=8)

# %% [markdown]
# On the left: a plain loss in `eps` spends itself on the clean end (fine grain) and almost ignores the noisy end (layout), one in `x0` treats all alike, `v` is the larger of the two. That is a choice of what the network is *for*, and it hides in a choice of spelling. On the right: what the best possible network would score. A loss of .1 is excellent in one coordinate and poor in another, so losses of two repositories cannot be compared.
#
# **Stop and think.** A step at $\alpha_T \approx 0$ needs $\hat x_0$. What does an error of .01 in `eps` become there, on `cosine` ($\sigma_T/\alpha_T \approx 20{,}000$)? In `v`? This is why zero terminal SNR goes with `v`. (`tiny`, our latent model, is trained on v.)
#
# ## 5. Which times are visited
#
# Training knows 1000 times, a sampler visits 5 to 50 of them. Three ways of choosing are in use. Write two:

# %% exercise="times"

# %%
sch = schedule.scaled_linear()
fig, ax = plt.subplots(figsize=(9, 2), layout="constrained")
for row, kind in enumerate(schedule.SPACINGS):
    ts = sch.timesteps(5, spacing=kind)
    ax.plot(ts, [row] * 6, "o-", label=kind)
    print(f"{kind:9} {ts}")
for kind in ("trailing", "leading"):
    for n_steps in (5, 50):
        assert [*times(n_steps, 1000, kind), 0] == sch.timesteps(n_steps, spacing=kind)
ax.set(yticks=range(3), yticklabels=schedule.SPACINGS, xlabel="t (0 is clean)", title="five steps")
ax.invert_xaxis()

# %% [markdown]
# "leading" never visits $T$. With 5 steps it begins at 802, with a state that is pure noise and belongs at 1000. What does that cost? Where the exact flow is known (one Gaussian), and on `tiny`, five steps, scale 3, the same noise in both rows:

# %%
flow, x = gauss_aniso(), torch.randn(500, 2, generator=g, dtype=D)
truth = gaussian_flow_map(flow.means[0], flow.covs[0], x, sch, sch.T, 0)
for n_steps in (5, 50):
    print(
        f"{n_steps:3} steps, distance to the exact end:",
        *[
            f"{kind} {(ddim(flow.denoise(sch), sch, x, steps=n_steps, spacing=kind) - truth).norm(dim=1).mean():.3f}  "
            for kind in schedule.SPACINGS
        ],
    )

pipe = minidiff.load("tiny")
prompts = [
    "a red circle on a black background",
    "a large yellow star on a dotted purple background",
    "a green ring left of a orange square on a white background",
]
guided, cond = cfg_batched(pipe.eps, pipe.null(), 3.0), pipe.embed(prompts)
fig, ax = plt.subplots(1, 6, figsize=(7.2, 1.5), layout="constrained")
for k, kind in enumerate(("leading", "trailing")):
    images = pipe.decode(
        ddim(guided, pipe.schedule, pipe.noise(3, seed=0), cond, steps=5, spacing=kind)
    )
    for a, image in zip(ax[3 * k :], images):
        show(a, image, kind)

# %% [markdown]
# Less than one would think. For a broad Gaussian the late start even pays: five moves have less far to go, and their error is larger than that of the start. On `tiny` the background is told by the prompt, and the black one stays black. What a late start costs is what section 2 showed: that which only the noise at $T$ decides.
#
# **The off-by-one.** In this project index 0 is clean and the network of a 1000-step model is told $t - 1$, because it was trained on times 0 to 999. Public code has tables whose index 0 is already a little noisy. Mixed up, the network is told a neighbouring time, or the last step stops at the first noisy time instead of at clean. Nothing fails. To *find* it, take a case with a known answer and no other error: data that is a single point. The exact denoiser then knows $x_0$, every step of DDIM is exact, and what is left is the mistake alone.

# %%
place, counts = torch.tensor([[1.0, -1.0]], dtype=D), (10, 100, 1000)
point = Mixture(place, torch.zeros(1, 2, 2, dtype=D)).denoise(sch)
start = q_sample(sch, place, sch.T, torch.randn(20, 2, generator=g, dtype=D))
cases = {"right": (0, 0), "told t + 1": (1, 0), "told t - 1": (-1, 0), "stops at time 1": (0, 1)}
print(f"{'rms error after steps':24}", *[f"{n:7}" for n in counts])
errors = {}
for name, (by, end) in cases.items():

    def shifted(x, t, cond, by=by):
        return point(x, min(max(t + by, 1), sch.T), cond)

    ends = [ddim(shifted, sch, start, steps=n, spacing="trailing", end=end) for n in counts]
    errors[name] = [(x - place).pow(2).mean().sqrt().item() for x in ends]
    print(f"{name:24}", *[f"{e:7.0e}" for e in errors[name]])
assert max(errors["right"]) < 1e-12 and min(errors["told t + 1"]) > 1e-4
assert all(0.5 < e / sch.sigma[1] < 2 for e in errors["stops at time 1"])

# %% [markdown]
# Right is right to 16 digits, at any number of steps, so each of the mistakes stands out, however small. (Told $t - 1$ at 1000 steps comes out right: every time is visited, and the last move, from 1, is then told the truth.) A sampler that stops at time 1 leaves that time's noise, $\sigma_1 = .029$, whatever the number of steps: a film of grain that is easily taken for a property of the model.
#
# ## 6. How the network is told
#
# A time is one number; a network wants features. It gets clock hands: `dim / 2` of them, from one radian per step down to one in ten thousand.

# %% exercise="timestep_embedding"

# %% [markdown]
# Two times are compared by the scalar product of their hands, $\sum_k \cos\omega_k t \cos\omega_k t' + \sin\omega_k t \sin\omega_k t' = \sum_k \cos\omega_k (t - t')$: only their distance counts.

# %%
emb = timestep_embedding(torch.arange(1000), 48)  # 48: what tiny uses
alike = emb @ emb.T / 24
apart = torch.arange(1000)
closed = torch.cos(apart[:, None].double() * 10000.0 ** (-torch.arange(24, dtype=D) / 24)).mean(1)
fig, ax = plt.subplots(1, 2, figsize=(8.5, 2.3), layout="constrained")
ax[0].imshow(emb[:64].T, aspect="auto", cmap="RdBu", interpolation="nearest")
ax[0].set(
    title="embedding: cosines above, sines below",
    xlabel="network time (the first 64)",
    ylabel="channel",
)
ax[1].plot(closed, "k", lw=0.8, label="closed form")
for t in (0, 300):
    ax[1].plot(apart[: 1000 - t : 25], alike[t, t::25], ".", label=f"from time {t}")
ax[1].set(title="likeness of two times", xlabel="distance")
ax[1].legend(fontsize=8)
error = max((alike[t, t:] - closed[: 1000 - t]).abs().max().item() for t in (0, 300, 700))
print(f"against the closed form: {error:.0e}")
assert error < 1e-3

# %% [markdown]
# How closely does a network listen? We give `tiny` noisy pictures of time $t$, tell it other times, and look at its loss. The crosses are the right time with sines first: the 2020 DDPM code has that order, Stable Diffusion the other, and with one's weights in the other's code every shape fits.

# %%
rng = np.random.default_rng(0)
scenes = [shapes.scene(rng) for _ in range(4)]
z, cond, noise = (
    pipe.encode(shapes.render(scenes)),
    pipe.embed([shapes.caption(s) for s in scenes]),
    pipe.noise(4, seed=5),
)


@torch.no_grad()
def loss(t, claimed):
    v = pipe.net(q_sample(pipe.schedule, z, t, noise), torch.full((4,), claimed - 1), cond)
    return (v - v_target(*pipe.schedule.at(t), z, noise)).pow(2).mean().item()


fig, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
heard = {}
for t in (100, 300, 900):
    says = sorted({1, t - 50, t - 1, t, t + 1, t + 50, t + 100, 600})
    heard[t] = {claimed: loss(t, claimed) for claimed in says}
    (line,) = ax.semilogy(says, heard[t].values(), ".-", label=f"truly t = {t}")
    ax.plot(t, heard[t][t], "o", color=line.get_color())
    pipe.net.cos_first = False
    heard[t]["sines"] = loss(t, t)
    pipe.net.cos_first = True
    ax.plot(t, heard[t]["sines"], "x", ms=8, color=line.get_color())
    print(
        f"t = {t}: told t {heard[t][t]:.4f}, t + 1 {heard[t][t + 1]:.4f}, t + 100 {heard[t][t + 100]:.4f}, "
        f"sines first {heard[t]['sines']:.4f}"
    )
    assert abs(heard[t][t + 1] / heard[t][t] - 1) < 0.05
ax.set(title="loss of tiny (in v), by what time it is told", xlabel="told")
ax.legend(fontsize=8)
assert heard[100]["sines"] > 2 * heard[100][100]

# %% [markdown]
# An off-by-one does not show in the loss at all, and in no picture either: a network cannot find that mistake for you, only a known answer can. The wrong order of sines and cosines multiplies the loss where there is little noise, and hardly touches it where there is much, since the network sees from $x_t$ itself how noisy it is.
#
# ## Exercises
#
# 1. In section 2, take 50 steps in place of 250, and `schedule.cosine()`. Why is a table that ends at noise grey again, with few steps? (Look at `sch.alpha` at the first two times visited.)
# 2. Write `min_snr_weight` (`python -m minidiff learn task min_snr_weight`), the weight $\min(\mathrm{SNR}, \gamma)$ of Hang et al. 2023, [2303.09556](https://arxiv.org/abs/2303.09556), and draw it into section 4's left panel.
# 3. Section 5's table, with `gauss_aniso()` and `gaussian_flow_map` in place of the point: at which number of steps can you no longer see that the network was told $t - 1$? Why is it even *better* there?
# 4. `schedule.ve()` and `schedule.karras()` have $\alpha = 1$. Add them to section 1. What are they in the rightmost panel, and what does a sampler have to start from?
# 5. Answer section 1's question in code: a Denoise that takes a state on the flow path and asks a `scaled_linear` network (`minidiff/core/schedule.py`, `log_snr`).
#
# Next: [03, samplers against exact answers](03_samplers_against_exact_answers.ipynb). The derivations are in `tutorials/unified_perspective.md`, the traps in `tutorials/conventions.md`, the code in `minidiff/core/schedule.py` and `process.py`.
