# %% [markdown]
# # 01 · DDPM from scratch
#
# *Denoising Diffusion Probabilistic Models*, Ho, Jain, Abbeel 2020, [2006.11239](https://arxiv.org/abs/2006.11239).
# About 20 minutes of reading, a minute of running on one core, no network. You need some Python and PyTorch, and to know
# what a Gaussian is.
#
# The plan: destroy data with noise in a way we can write down, train a network to guess the noise, and run the
# destruction backwards. We do it first on points in the plane, because there the **exact** answer is known: for a
# Gaussian mixture the best possible denoiser has a closed form. So we never have to ask "does this look right?".

# %%
import textwrap

import matplotlib.pyplot as plt
import torch
from torch import nn

import minidiff
from minidiff.core import schedule
from minidiff.data.toy2d import energy_distance, gmm8

torch.manual_seed(0)
data = gmm8()  # eight blobs on a circle, each of standard deviation .1
x0 = data.sample(2000, seed=0).float()

# %% [markdown]
# ## 1. The forward process
# A `Schedule` is two tables, $\alpha_t$ and $\sigma_t$, and the whole forward process is one line:
#
# $$x_t = \alpha_t\, x_0 + \sigma_t\, \epsilon, \qquad \epsilon \sim N(0, I) \qquad \text{(DDPM eq. 4)}$$
#
# with $\alpha_t^2 = \bar\alpha_t = \prod_{s \le t} (1 - \beta_s)$ and $\sigma_t^2 = 1 - \bar\alpha_t$. Index 0 is clean,
# index $T$ is noise. That line is the first one to write: `sch.at(t, x0)` gives the two coefficients, floats for one
# time, columns that fit `x0` for a tensor of times.

# %% exercise="q_sample"

# %%
sch = schedule.linear(T=200)
fig, ax = plt.subplots(1, 5, figsize=(11, 2.5), sharex=True, sharey=True, layout="constrained")
for a, t in zip(ax, (0, 20, 60, 120, 200)):
    x_t = q_sample(sch, x0, t, torch.randn_like(x0))
    a.scatter(*x_t.T, s=1)
    a.set_title(f"t = {t}:  α = {sch.alpha[t]:.2f}, σ = {sch.sigma[t]:.2f}", fontsize=9)

# %% [markdown]
# **Stop and think.** At $t = 200$, could you tell this cloud from $N(0, I)$? What would happen to sampling if you could?
#
# ## 2. The network and its loss
# Predict the noise from the noisy point and the time; the loss is a plain mean squared error (eq. 14):
#
# $$L_\text{simple} = E_{x_0, \epsilon, t}\, \| \epsilon - \epsilon_\theta(\alpha_t x_0 + \sigma_t \epsilon,\ t) \|^2$$


# %% [markdown]
# A network that is handed two bare coordinates draws smooth functions of them, and eight small blobs are anything but
# smooth. So it also gets sines and cosines of the coordinates, and of the time. (Exercise 3 takes them away again.)


# %%
class MLP(nn.Module):
    def __init__(self, width=128, waves=4):
        super().__init__()
        self.of_time = torch.exp(torch.linspace(0, 2, 16))
        self.of_place = torch.pi * torch.arange(1, waves + 1)
        inputs = 2 + 2 * 16 + 2 * 2 * waves
        self.net = nn.Sequential(
            nn.Linear(inputs, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 2),
        )

    def forward(self, x, t):  # x: b 2, t: b
        time = t[:, None] / sch.T * self.of_time  # b 16
        place = (x[:, :, None] * self.of_place).flatten(1)  # b 2*waves
        return self.net(torch.cat([x, place.sin(), place.cos(), time.sin(), time.cos()], dim=1))


torch.manual_seed(0)
net = MLP()
opt = torch.optim.Adam(net.parameters(), lr=2e-3)
steps, losses = 5000, []
for step in range(steps):
    x = x0[torch.randint(len(x0), (512,))]
    t, eps = torch.randint(1, sch.T + 1, (512,)), torch.randn(512, 2)
    loss = (net(q_sample(sch, x, t, eps), t) - eps).pow(2).mean()  # L_simple
    opt.zero_grad()
    loss.backward()
    opt.step()
    opt.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
    losses.append(loss.item())

smooth = torch.tensor(losses).reshape(-1, 50).mean(1)
plt.figure(figsize=(6, 2.4), layout="constrained")
plt.plot(range(0, steps, 50), smooth)
plt.title("The loss while training, means of 50 steps")
plt.xlabel("step")
plt.ylabel("loss")
print(f"loss, mean of the last 500 steps: {sum(losses[-500:]) / 500:.4f}")

# %% [markdown]
# ## 3. Is that a good loss?
# For real pictures nobody knows. Here we do: the best possible $\epsilon_\theta$ is $E[\epsilon \mid x_t]$, and
# `data.denoise` computes it exactly. Whatever loss *it* has is the floor.

# %%
exact = data.denoise(sch)
g = torch.Generator().manual_seed(1)
floor, ours = [], []
for t in range(1, sch.T + 1, 4):
    x, eps = data.sample(2000, seed=t), torch.randn(2000, 2, generator=g, dtype=torch.float64)
    x_t = q_sample(sch, x, t, eps)
    floor.append((exact(x_t, t, None) - eps).pow(2).mean().item())
    with torch.no_grad():
        ours.append((net(x_t.float(), torch.full((2000,), t)) - eps).pow(2).mean().item())
plt.figure(figsize=(6, 2.6), layout="constrained")
plt.plot(range(1, sch.T + 1, 4), floor, label="exact denoiser (the floor)")
plt.plot(range(1, sch.T + 1, 4), ours, "--", label="our network")
plt.title("The loss at each time")
plt.xlabel("t")
plt.ylabel("loss")
plt.legend()
print(f"floor {sum(floor) / len(floor):.4f}, ours {sum(ours) / len(ours):.4f}")
assert sum(ours) < 1.08 * sum(floor)

# %% [markdown]
# The loss is largest at small $t$: a little noise on a point inside a blob is impossible to tell from the blob's own
# width. A loss far from zero says nothing by itself.
#
# ## 4. From a noise guess to the point it implies
# The network says what the noise was; solving the forward equation for $x_0$ gives the clean point it has in mind:
#
# $$\hat x_0 = (x_t - \sigma_t\, \epsilon_\theta) / \alpha_t$$

# %% exercise="eps_to_x0"

# %% [markdown]
# What is such a guess like? For the exact denoiser it is the *average* of all data points that could have become $x_t$,
# and an average of blobs lies between them. As the noise falls, fewer blobs are possible, and the guesses come apart.

# %%
fig, ax = plt.subplots(1, 4, figsize=(10, 2.8), sharex=True, sharey=True, layout="constrained")
spread = {}
for a, t in zip(ax, (200, 100, 60, 20)):
    x_t = q_sample(sch, x0.double(), t, torch.randn(2000, 2, generator=g, dtype=torch.float64))
    guess = eps_to_x0(sch, x_t, exact(x_t, t, None), t)
    spread[t] = guess.norm(dim=1).mean().item()
    a.scatter(*guess.T, s=1)
    a.set_title(f"t = {t}", fontsize=9)
fig.suptitle("what the exact denoiser takes the points for", fontsize=10)
print(
    "mean distance of the guesses from the origin:",
    {t: round(v, 2) for t, v in spread.items()},
    f"and of the data: {x0.norm(dim=1).mean():.2f}",
)
assert spread[200] < spread[100] < spread[60] < spread[20]

# %% [markdown]
# **Stop and think.** Why is one step from noise to data, straight to the guess, no sampler? Which points would it draw?
#
# ## 5. Sampling
# So a guess is only good for a small step. Given $x_t$ and a guess $\hat x_0$, Bayes' rule gives the distribution of the
# less noisy point at $s = t - 1$. Two Gaussians know something of $x_s$: the way down from $\hat x_0$ says
# $x_s \sim N(\alpha_s \hat x_0,\ \sigma_s^2)$, and the way up to $x_t$ says $x_t \sim N(a\, x_s,\ \beta)$. Their product is
# a Gaussian whose precisions add and whose mean weighs both by them:
#
# $$\frac{1}{\tilde\beta_t} = \frac{1}{\sigma_s^2} + \frac{a^2}{\beta}, \qquad
# \tilde\mu_t = \tilde\beta_t \Big( \frac{\alpha_s \hat x_0}{\sigma_s^2} + \frac{a\, x_t}{\beta} \Big).$$
#
# With $\sigma_t^2 = a^2 \sigma_s^2 + \beta$ this is the paper's eq. 6-7, and Algorithm 2 draws from it, step by step:
#
# $$x_s \sim N\big(\tilde\mu_t(x_t, \hat x_0),\ \tilde\beta_t\big), \qquad
# \tilde\mu_t = \frac{a\,\sigma_s^2}{\sigma_t^2}\, x_t + \frac{\alpha_s\, \beta}{\sigma_t^2}\, \hat x_0, \qquad
# \tilde\beta_t = \beta\,\frac{\sigma_s^2}{\sigma_t^2},$$
#
# where $a = \alpha_t / \alpha_s$ is what the step from $s$ up to $t$ leaves of the signal, and
# $\beta = \sigma_t^2 - a^2 \sigma_s^2$ the noise it adds. `transition(sch, s, t, like)` returns the two.

# %% exercise="posterior"


# %%
@torch.no_grad()
def ancestral(eps_model, n=2000, seed=0):
    """All states on the way, x_T first."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=g)
    states = [x]
    for t in range(sch.T, 0, -1):
        x0_hat = eps_to_x0(sch, x, eps_model(x, t), t)
        mean, var = posterior(sch, x, x0_hat, t, t - 1)
        x = mean + var**0.5 * torch.randn(n, 2, generator=g)  # var is 0 at the last step
        states.append(x)
    return states


states = ancestral(lambda x, t: net(x, torch.full((len(x),), t)))
fig, ax = plt.subplots(1, 5, figsize=(11, 2.5), sharex=True, sharey=True, layout="constrained")
for a, t in zip(ax, (200, 120, 60, 20, 0)):
    a.scatter(*states[sch.T - t].T, s=1)
    a.plot(*torch.stack(states[: sch.T - t + 1])[:, :3].unbind(-1), lw=0.7)  # three points' ways
    a.set_title(f"t = {t}", fontsize=9)
fig.suptitle("the way back, with our network", fontsize=10)

# %%
learned = states[-1]
ideal = ancestral(lambda x, t: exact(x.double(), t, None).float())[-1]

fig, ax = plt.subplots(1, 3, figsize=(9, 3), sharex=True, sharey=True, layout="constrained")
for a, (name, x) in zip(
    ax, {"data": x0, "our samples": learned, "exact denoiser's samples": ideal}.items()
):
    a.scatter(*x.T, s=1)
    a.set_title(name)


def far(x):
    """Share of the points that are further than 3 standard deviations from every blob."""
    return ((x[:, None].double() - data.means).norm(dim=-1).amin(1) > 0.3).double().mean().item()


print(f"strays: ours {far(learned):.3f}, exact {far(ideal):.3f}, data {far(x0):.3f}")
print(
    f"energy distance to fresh data: ours {energy_distance(learned.double(), data.sample(2000, seed=9)):.4f}, "
    f"two sets of data {energy_distance(x0.double(), data.sample(2000, seed=9)):.4f}"
)
assert far(learned) < 0.1 and far(ideal) < 0.03

# %% [markdown]
# The few strays between the blobs are what an imperfect network costs. The sampler is not to blame, for with the exact
# denoiser they vanish.
#
# ## 6. The same thing with pictures
# `tiny` was trained with this loss on pictures of shapes. Its network is a small UNet that reads a caption, its points
# are latents of an autoencoder, and its target is `v` instead of `eps`: notebooks 02, 04 and 06 say why. The loop is that
# of section 5.

# %%
pipe = minidiff.load("tiny")
prompts = [
    "a red circle on a white background",
    "a blue square on a yellow background",
    "a green star on a striped grey background",
    "a purple ring on a green background",
    "a orange cross on a black background",
    "a yellow diamond above a pink triangle on a purple background",
]
images = pipe.generate(prompts, sampler="ddpm", seed=0)  # 6 3 64 64 in [-1, 1]
fig, ax = plt.subplots(1, 6, figsize=(11, 2.4), layout="constrained")
for a, im, name in zip(ax, images, prompts):
    a.imshow((im.permute(1, 2, 0) + 1) / 2)
    a.set_title("\n".join(textwrap.wrap(name, 20)), fontsize=8)
    a.axis("off")

# %% [markdown]
# ## Exercises
# 1. Replace `posterior(...)`'s variance by $\beta_t$ ("fixedlarge"). At 200 steps you will hardly see it; try every tenth
#    step only. Which one is too wide now?
# 2. Train with the target `x0` instead of `eps` (`minidiff.core.process.target`). Compare the loss curve over $t$ with
#    section 3: which times got harder?
# 3. Take the sines of the place away (`waves=0`). How many strays are there now, and how much larger is the loss? Then put
#    them back, and swap `schedule.linear` for `schedule.cosine`.
# 4. Feed the network $t - 1$ while sampling. This off-by-one shipped in more than one public repository. Can you see it
#    in the picture? In the number?
#
# Next: [the six words](../tutorials/00_the_six_words.md), which are all the vocabulary of this project, and
# `minidiff/foundations/ddpm.py`, the same loss for a UNet.
