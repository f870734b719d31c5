# %% [markdown]
# # 03 · Samplers against exact answers
#
# Ho et al. 2020, [2006.11239](https://arxiv.org/abs/2006.11239) (DDPM); Song, Meng, Ermon 2020, [2010.02502](https://arxiv.org/abs/2010.02502) (DDIM); Song et al. 2020, [2011.13456](https://arxiv.org/abs/2011.13456) (the equations behind both); Lu et al. 2022, [2211.01095](https://arxiv.org/abs/2211.01095) (DPM-Solver++). About 20 minutes of reading, half a minute of running, no network.
#
# A sampler turns a denoiser into pictures. If the pictures are bad, who is to blame, the network or the sampler? With pictures one cannot tell. In the plane one can: for a mixture of Gaussians the *perfect* denoiser is a formula, so every error that is left is the sampler's own. We ask three questions of every sampler: does it draw from the right distribution, how fast does its error fall with the number of steps, and what does it do with a denoiser that is *not* perfect?

# %%
import math
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

import minidiff
from minidiff.core import schedule
from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import noise
from minidiff.core.process import eps_to_x0, q_sample, transition
from minidiff.data.toy2d import energy_distance, gauss_aniso, gaussian_flow_map, gmm8
from minidiff.learn.twins import twins
from minidiff.samplers.ddim import ddim
from minidiff.samplers.differentiable import sample_with_gradients
from minidiff.samplers.dpm_solver_pp import dpm_solver_pp

D = torch.float64
sch = schedule.linear()
data = gmm8(radius=1.0, std=0.15)
exact = data.denoise(sch)  # (x_t, t, cond) -> E[eps | x_t]
truth = data.sample(2000, seed=5)

# %% [markdown]
# How far apart are two clouds of points? The *energy distance* needs nothing but distances,
#
# $$2\,\mathbb E|X - Y| - \mathbb E|X - X'| - \mathbb E|Y - Y'| ,$$
#
# and is 0 if, and only if, both clouds come from the same distribution. From 2000 points it is known up to a small noise, of either sign. So we first measure that noise: several fresh clouds of true data against the truth.

# %%
level = [energy_distance(data.sample(2000, seed=k), truth) for k in range(10, 20)]
print(
    f"true data against true data: {min(level):.5f} to {max(level):.5f};  "
    f"a cloud without modes against the data: {energy_distance(data.sample(2000, seed=1).std() * noise((1, 2000, 2))[0].double(), truth):.3f}"
)
blur = max(map(abs, level))

# %% [markdown]
# ## 1. Ancestral sampling
#
# Noise was added step by step. Given both ends, $x_t$ and $x_0$, the state in between is a Gaussian whose mean and variance are known (DDPM, eq. 7). For any two times $s < t$, with $a = \alpha_t/\alpha_s$ and $\beta = \sigma_t^2 - a^2\sigma_s^2$, the noise added on the way:
#
# $$q(x_s \mid x_t, x_0) = N\Big(\frac{a\,\sigma_s^2}{\sigma_t^2}\, x_t + \frac{\alpha_s\, \beta}{\sigma_t^2}\, x_0,\ \ \frac{\beta\,\sigma_s^2}{\sigma_t^2}\Big) .$$

# %% exercise="posterior"

# %% [markdown]
# Is that formula true? Count. From one $x_0$ walk a million times to $s$ and on to $t$, keep the walks that happen to end near one place, and look where they were at $s$.

# %%
g = torch.Generator().manual_seed(0)
s, t, place, x0 = 200, 400, 0.5, torch.tensor([1.0], dtype=D)
a, var = transition(sch, s, t, x0)
x_s = q_sample(sch, x0, s, torch.randn(1_000_000, generator=g, dtype=D))
x_t = a * x_s + var**0.5 * torch.randn(1_000_000, generator=g, dtype=D)
near = x_s[(x_t - place).abs() < 0.01]
mean, variance = posterior(sch, torch.tensor([place], dtype=D), x0, t, s)
print(
    f"{len(near)} walks: mean {near.mean():.4f}, variance {near.var():.4f};  formula {mean.item():.4f}, {variance:.4f}"
)
assert abs(near.mean() - mean.item()) < 0.02 and abs(near.var() / variance - 1) < 0.06

# %% [markdown]
# A sampler does not know $x_0$. It puts in the denoiser's guess $\hat x_0$, and draws. That is DDPM. Note the approximation: $\hat x_0$ is the *mean* of all pictures that $x_t$ may have come from, and between two blobs the mean is neither. It becomes harmless as steps become small.
#
# ## 2. DDIM: one step with a dial
#
# A denoiser only knows how $x_t$ relates to $x_0$, and many processes share that. DDIM keeps the guess and splits the noise that belongs at time $s$ into an old part, $\hat\epsilon$ itself, and a fresh one, $z$:
#
# $$x_s = \alpha_s\, \hat x_0 + \sqrt{\sigma_s^2 - \tau^2}\; \hat\epsilon + \tau\, z, \qquad \tau = \eta\, \sqrt{\beta}\, \sigma_s / \sigma_t, \qquad 0 \le \eta \le 1 .$$
#
# The variances add up to $\sigma_s^2$ whatever $\eta$ is. Write it:

# %% exercise="ddim_noisy_step"

# %% [markdown]
# At $\eta = 1$ this must be DDPM's draw, to the last digits: two papers, one step. And then the same five starting points, carried down without noise and with it.


# %%
def walk(denoise, x, steps, eta=0.0, seed=1):
    """All states of a run from T to clean, with your step."""
    g, states = torch.Generator().manual_seed(seed), [x]
    for t, s in pairwise(sch.timesteps(steps, spacing="trailing")):
        z = torch.randn(x.shape, generator=g, dtype=D)
        states.append(ddim_noisy_step(sch, states[-1], denoise(states[-1], t, None), t, s, eta, z))
    return states


start = noise((1, 2000, 2), dtype=D)[0]
x, z, t, s = start, truth.flip(0), 700, 650
eps = exact(x, t, None)
mean, variance = posterior(sch, x, eps_to_x0(sch, x, eps, t), t, s)
error = (ddim_noisy_step(sch, x, eps, t, s, 1.0, z) - (mean + variance**0.5 * z)).abs().max().item()
print(f"DDIM with eta = 1 against a draw from the posterior: {error:.0e}")
assert error < 1e-12

fig, ax = plt.subplots(1, 3, figsize=(9.5, 3.2), layout="constrained", sharex=True, sharey=True)
for a, eta in zip(ax, (0.0, 0.5, 1.0)):
    path = torch.stack(walk(exact, start[:5], 60, eta))  # steps n d
    a.plot(*truth[:300].T, ".", ms=1, color="silver")
    for k in range(5):
        a.plot(*path[:, k].T, lw=0.7)
        a.plot(*path[-1, k], "k.", ms=5)
    a.set_title(f"η = {eta:g}")

# %% [markdown]
# Without noise the paths are smooth, and a point's end is a function of its start. With $\eta = 1$ the start is forgotten on the way. All end on the blobs.
#
# ## 3. Without noise: an equation, and how fast it is solved
#
# Divide the step at $\eta = 0$ by $\alpha_s$, with $\bar x = x/\alpha$ and $\bar\sigma = \sigma/\alpha$:
#
# $$\bar x_s = \bar x_t + (\bar\sigma_s - \bar\sigma_t)\, \hat\epsilon .$$
#
# That is Euler's method for $d\bar x / d\bar\sigma = \epsilon(x)$, the *probability-flow* equation: DDIM follows its tangent. On flow tables ($\alpha = 1 - \sigma$), where the network says the velocity $\epsilon - x_0$, the very same step is Euler's method in $\sigma$. Write it in that language:

# %% exercise="euler_step"

# %%
flow = schedule.flow()
velocity_of = data.denoise(flow)
x = y = start[:200]
for t, s in pairwise(flow.timesteps(20, spacing="trailing")):
    eps = velocity_of(x, t, None)
    v = eps - eps_to_x0(flow, x, eps, t)
    x = euler_step(flow, x, v, t, s)
    y = ddim_noisy_step(flow, y, velocity_of(y, t, None), t, s, 0.0, torch.zeros_like(y))
print(f"20 steps of Euler along the flow against 20 of DDIM: {(x - y).abs().max():.0e}")
assert (x - y).abs().max() < 1e-10

# %% [markdown]
# Euler's method has order 1: twice the steps, half the error. For one Gaussian the exact end of every path is known (`gaussian_flow_map`), so this can be measured. Better: a second order method from the same denoiser calls. DPM-Solver++ writes the equation in $\hat x_0$ and $\lambda = \log(\alpha/\sigma)$, solves its linear half exactly, and draws a line through the last *two* guesses:
#
# $$D = \hat x_0 + \frac{h}{2h'}\,(\hat x_0 - \hat x_0^{\text{before}}), \qquad x_s = \frac{\sigma_s}{\sigma_t}\, x_t + \alpha_s\,(1 - e^{-h})\, D, \qquad h = \lambda_s - \lambda_t,\ \ h' = \lambda_t - \lambda_r .$$

# %% exercise="dpm_step"


# %%
def dpm(denoise, sch, x, ts):
    """DPM-Solver++(2M) with your step; the first move has no guess before it, the last no finite h: both are DDIM's."""
    before = r = None
    for t, s in pairwise(ts):
        eps = denoise(x, t, None)
        guess = eps_to_x0(sch, x, eps, t)
        if before is None or s == 0:
            x = sch.at(s)[0] * guess + sch.at(s)[1] * eps
        else:
            x = dpm_step(sch, x, guess, before, r, t, s)
        before, r = guess, t
    return x


fine, one = schedule.linear(20_000), gauss_aniso()  # so fine that time is nearly continuous
eps_one, x = one.denoise(fine), start[:100]
end = gaussian_flow_map(one.means[0], one.covs[0], x, fine, fine.T, 0)
assert (
    dpm(eps_one, fine, x, fine.timesteps(20, spacing="trailing"))
    - dpm_solver_pp(eps_one, fine, x, steps=20, spacing="trailing")
).abs().max() < 1e-10


def distance(y):
    return (y - end).norm(dim=1).mean().item()


counts = (5, 10, 20, 40, 80, 160)
error = {
    "DDIM": [distance(ddim(eps_one, fine, x, steps=n, spacing="trailing")) for n in counts],
    "DPM-Solver++(2M)": [
        distance(dpm(eps_one, fine, x, fine.timesteps(n, spacing="trailing"))) for n in counts
    ],
}
order = {k: math.log2(e[-3] / e[-1]) / 2 for k, e in error.items()}
fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
for k, e in error.items():
    ax.loglog(counts, e, "o-", label=f"{k}: order {order[k]:.2f}")
ax.loglog(counts, [2 / n for n in counts], "k:", lw=0.8)
ax.loglog(counts, [8 / n**2 for n in counts], "k:", lw=0.8)
ax.set(title="distance to the exact end of the path", xlabel="steps (= evaluations)")
ax.legend(fontsize=8)
assert 0.9 < order["DDIM"] < 1.1 < 1.6 < order["DPM-Solver++(2M)"]

# %% [markdown]
# The dotted lines have slopes 1 and 2. The order is read off the last two doublings. At 5 steps both are far from where the formula for their order begins to hold.
#
# **Stop and think.** The last move of both goes straight to clean. How large may that move be before it spoils a second-order method? (Try `spacing="linspace"` and "trailing", and look at `solver_times`.)
#
# ## 4. With noise, or without?
#
# Now the distribution, of 2000 points on eight blobs, over the number of steps. On the left the perfect denoiser. On the right one with a flaw that every trained network has in some form: it takes away too little, $.9\,\hat\epsilon$.


# %%
def flawed(x, t, cond):
    return 0.9 * exact(x, t, cond)


counts = (5, 10, 20, 50)
fig, ax = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
distances = {}
for a, (name, denoise) in zip(ax, {"perfect": exact, "flawed": flawed}.items()):
    for eta in (0.0, 0.5, 1.0):
        distances[name, eta] = [
            energy_distance(walk(denoise, start, n, eta)[-1], truth) for n in counts
        ]
        a.plot(counts, distances[name, eta], "o-", label=f"η = {eta:g}")
        print(
            f"{name:8} eta {eta:3}: "
            + "  ".join(f"{n} steps {d:7.4f}" for n, d in zip(counts, distances[name, eta]))
        )
    a.axhspan(-blur, blur, color="silver", alpha=0.5)
    a.set(title=f"{name} denoiser: energy distance to the data", xlabel="steps")
    a.set_xscale("log")
    a.set_yscale("symlog", linthresh=1e-3)
    a.set_xticks(counts, counts)
    a.minorticks_off()
ax[0].legend(fontsize=8)
assert (
    distances["perfect", 1.0][1] > distances["perfect", 0.0][1]
    and distances["flawed", 0.0][-1] > 4 * distances["flawed", 1.0][-1]
)

# %% [markdown]
# Two different answers to one question, and both are right.
#
# * **Perfect denoiser, few steps:** noise costs. A noisy path is harder to follow in big strides: $\eta = 1$ is the worst at 5 and at 10 steps. At 50 all three are as good as can be measured.
# * **Flawed denoiser, many steps:** noise repairs. Without it every error stays in the state and adds up, so more steps even make it *worse*. With it the state is pulled back to where states of that time belong, and at 50 steps $\eta = 1$ draws clouds that cannot be told from data, with a denoiser that is wrong by a tenth everywhere.
#
# So "DDIM is better" and "DDPM is better" are statements about a network and a number of steps. (Grey: the noise of the measurement.)
#
# ## 5. The same on pictures
#
# `tiny`, one prompt, one starting noise, scale 3. Nobody knows the exact denoiser now, but the *network's own* equation has an exact solution, and a run of 60 second-order steps is close to it. Each picture says how far its latent is from that one (rms).

# %%
pipe = minidiff.load("tiny")
guided, cond, x_T = (
    cfg_batched(pipe.eps, pipe.null(), 3.0),
    pipe.embed("a green star on a dotted purple background"),
    pipe.noise(1, 4),
)
best = dpm_solver_pp(guided, pipe.schedule, x_T, cond, steps=60, spacing="trailing")
runs = {
    f"{name}, {n} steps": f(guided, pipe.schedule, x_T, cond, steps=n, spacing="trailing", **how)
    for name, f, how in (("DDIM", ddim, {}), ("DPM++", dpm_solver_pp, {}))
    for n in (5, 10, 20)
}
runs["η = 1, 20 steps"] = ddim(
    guided, pipe.schedule, x_T, cond, steps=20, eta=1.0, spacing="trailing"
)
off = {k: (z - best).pow(2).mean().sqrt().item() for k, z in runs.items()}
fig, ax = plt.subplots(1, 8, figsize=(11, 1.9), layout="constrained")
for a, (name, z) in zip(ax, {"60 second-order steps": best, **runs}.items()):
    a.imshow((pipe.decode(z)[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1), interpolation="nearest")
    a.set_title(f"{name}\n{off.get(name, 0):.2f}", fontsize=7)
    a.axis("off")
assert off["DDIM, 20 steps"] < off["DDIM, 5 steps"]

# %% [markdown]
# Five steps are already this picture: 0.20 apart, on latents of size 1. DPM-Solver++ is ahead, but its error only halves with twice the steps, where section 3 promised a quarter. (A likely reason: a network's guess is less smooth than a Gaussian's, and the last move, to clean, is of first order.) With $\eta = 1$ it is *another* star. That is no error: the dice drew it, and no distance to a single solution can grade it. What can is a judge of many pictures, such as the oracle of the next but one notebook.
#
# What would have happened with a single step? Left of the line one step of DDIM, right of it fifty, from the same three noises. (Move the slider below the pictures.)

# %%
x_T = pipe.noise(3, 4)  # the first is the one above
in_one, in_fifty = (
    pipe.decode(ddim(guided, pipe.schedule, x_T, cond, steps=n, spacing="trailing"))
    for n in (1, 50)
)
twins(in_one, in_fifty, ("one step", "fifty steps"), [f"noise {seed}" for seed in (4, 5, 6)])

# %% [markdown]
# One step asks the network once, when there is nothing to see but noise. Its best answer is a mean of all the pictures that this noise may still become, and the mean of stars in several places is no star: on the first picture there are two, on the others a smear. Fifty steps ask again after every small move. Each answer rules out some of the pictures, until one place, straight edges and even dots are left.
#
# ## 6. Outlook: a sampler has a derivative
#
# Without noise the end is a smooth function of the start, so one may differentiate through the whole run: that is how a loss on the *picture* can train a network or move a latent. Kept naively, the activations of every step are held in memory. `sample_with_gradients` keeps one state per step and evaluates again on the way back. For one Gaussian the answer is known: the map is linear, and its Jacobian has the eigenvalues $\sqrt{(\alpha_s^2 c + \sigma_s^2)/(\alpha_t^2 c + \sigma_t^2)}$ for the variances $c$ of the data, here from $T$ to 0.

# %%
x = start[:1].clone()
ts = fine.timesteps(200, spacing="trailing")
rows = []
for k in range(2):
    x.requires_grad_(True)
    y = sample_with_gradients(eps_one, fine, x, ts)
    rows.append(torch.autograd.grad(y[0, k], x)[0][0])
jacobian = torch.stack(rows)
c, U = torch.linalg.eigh(one.covs[0])
a, sig = fine.at(fine.T)
known = U @ torch.diag((c / (a**2 * c + sig**2)).sqrt()) @ U.T
print(
    "Jacobian of 200 steps",
    [[round(v, 4) for v in row] for row in jacobian.tolist()],
    "\nexact                ",
    [[round(v, 4) for v in row] for row in known.tolist()],
)
assert (jacobian - known).abs().max() < 0.02

# %% [markdown]
# ## Exercises
#
# 1. Section 4 with `gmm8(1.4, .05)`, narrower blobs. Which curve moves most?
# 2. Make the denoiser too eager, $1.1\,\hat\epsilon$. Is $\eta = 0$ still the one that suffers?
# 3. Write `ddpm_step` (`python -m minidiff learn task ddpm_step`) with the "large" variance, and add it to section 4. It is the best of all at 10 steps here; why is that luck? (Which data is it right for?)
# 4. Add `plms` (`minidiff/samplers/plms.py`) to section 3's figure. Its order on paper is four. Where does it lose it?
# 5. Run section 3's DDIM upwards, from data to noise, and down again (`ddim_invert`). That is the beginning of every edit of a real picture.
#
# Next: [04, attention and conditioning](04_attention_and_conditioning.ipynb). Each sampler is one file in `minidiff/samplers/`, and says its weakness at the top; section 4 of `tutorials/unified_perspective.md` derives them together.
