# %% [markdown]
# # 06 · Latent diffusion
#
# *High-Resolution Image Synthesis with Latent Diffusion Models*, Rombach, Blattmann, Lorenz, Esser, Ommer 2021,
# [2112.10752](https://arxiv.org/abs/2112.10752); the autoencoder: *Auto-Encoding Variational Bayes*, Kingma, Welling
# 2013, [1312.6114](https://arxiv.org/abs/1312.6114). About 20 minutes of reading, half a minute of running on one core,
# no network.
#
# **The problem.** A picture of 64 × 64 pixels is 12,288 numbers, and a denoiser must look at all of them, fifty or a
# hundred times per picture. Most of them say nothing new: inside a red circle every pixel is the same red. So two jobs
# are mixed up: *what* is in the picture (few numbers, hard) and *how it looks pixel by pixel* (many numbers, easy).
# Latent diffusion gives the second job to an autoencoder, once, and lets diffusion work on the few numbers that are
# left.
#
# Here you will measure what the autoencoder loses, why its numbers must have unit spread, what all of it saves, and
# then draw pictures from words in a loop that you can read.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import minidiff
from minidiff.core.cond import Cond
from minidiff.core.process import ddim_step, eps_to_x0, q_sample
from minidiff.core.taps import tap
from minidiff.data import shapes
from minidiff.evaluate.metrics import psnr

pipe = minidiff.load("tiny")  # UNet, autoencoder and text tower, trained
vae, sch = pipe.vae, pipe.schedule
rng = np.random.default_rng(0)
# combinations that training never saw
scenes = [shapes.scene(rng, split="test") for _ in range(64)]
images = shapes.render(scenes)  # 64 3 64 64 in [-1, 1]


def show(ax, picture, title=""):
    """A picture (3 H W) in [-1, 1]; in 32 shades a colour, which the eye does not see and which keeps this file small."""
    ax.imshow(
        ((picture.permute(1, 2, 0).clamp(-1, 1) + 1) * 15.5).round() / 31, interpolation="nearest"
    )
    ax.set_title(title, fontsize=8)
    ax.axis("off")


def row(pictures, titles, height=1.4):
    """One line of pictures (each 3 H W) with titles."""
    _, axes = plt.subplots(
        1, len(pictures), figsize=(1.1 * len(pictures), height), layout="constrained"
    )
    for ax, picture, title in zip(axes, pictures, titles):
        show(ax, picture, title)


# %% [markdown]
# ## 1. An encoder that answers with a distribution
# The encoder does not map a picture $x$ to a point $z$ but to a Gaussian, $q(z \mid x) = N(\mu(x), \sigma(x)^2)$, one
# mean and one deviation for each latent number. Training draws $z = \mu + \sigma\,\epsilon$ from it and asks the
# decoder for the picture:
#
# $$L = \text{reconstruction} + \beta\, \mathrm{KL}\big(N(\mu, \sigma^2)\,\|\,N(0, 1)\big), \qquad \mathrm{KL} = \tfrac12\big(\mu^2 + \sigma^2 - 1 - \log\sigma^2\big).$$
#
# Why the noise? Without it the encoder may put two different pictures a hair's breadth apart, and a diffusion model,
# whose answers are never exact to a hair, would land on the wrong one. Why the KL? Without it the encoder would escape
# the noise by making $\mu$ huge. A small $\beta$ (here $10^{-3}$, in Stable Diffusion $10^{-6}$) asks for no more than
# that.
#
# Write the KL. `logvar` is $\log\sigma^2$, which is what networks are made to say, since any real number is a valid
# answer.

# %% exercise="gaussian_kl"

# %% [markdown]
# A closed form can be checked without trusting it: KL is the average of $\log q(z) - \log p(z)$ over $z$ drawn from
# $q$. Take one Gaussian, draw, and compare.

# %%
mean, logvar = torch.tensor([[[[1.5]]]]), torch.tensor([[[[-1.0]]]])  # N(1.5, e^-1), as (b c h w)
g = torch.Generator().manual_seed(0)
z = mean + (0.5 * logvar).exp() * torch.randn(200_000, 1, 1, 1, generator=g)
log_q = -0.5 * ((z - mean) ** 2 / logvar.exp() + logvar)  # both without the constant log sqrt(2 pi)
log_p = -0.5 * z**2
drawn, closed = (log_q - log_p).mean().item(), gaussian_kl(mean, logvar).item()
print(f"KL by 200,000 draws {drawn:.4f}, by your formula {closed:.4f} nats")
assert abs(drawn - closed) < 0.02

with torch.no_grad():
    q = vae.encode(images)  # .mean and .logvar: 64 4 16 16 each
print(
    f"{images[0].numel():,} numbers -> {q.mean[0].numel():,}: {images[0].numel() // q.mean[0].numel()} times fewer"
)
for c in range(4):
    kl = gaussian_kl(q.mean[:, c : c + 1], q.logvar[:, c : c + 1]).item()
    spread, doubt = q.mean[:, c].std().item(), (0.5 * q.logvar[:, c]).exp().mean().item()
    print(
        f"channel {c}: spread of the means {spread:.2f}, the encoder's own doubt {doubt:.3f}, KL {kl:.2f} nats, "
        f"room for {np.log2(1 + (spread / doubt) ** 2) / 2:.1f} bits a number"
    )

# %% [markdown]
# Three channels are known to less than a tenth of their spread. Channel 1 has as much doubt as spread, and the least
# KL: half a bit per number is all that could be told through it (a Gaussian signal of size $S$ under Gaussian noise of
# size $N$ has room for $\tfrac12 \log_2(1 + S^2/N^2)$ bits). That is the KL at work: a number that helps the
# reconstruction too little is not worth its nats, and the encoder gives it up. (Both columns are in units of each
# channel's own spread: section 3 says why.)
#
# **Stop and think.** If this channel carries so little, what should happen to the picture when it is set to 0? And what
# if one of the others is?

# %% [markdown]
# ## 2. The round trip, and what it loses
# Encode and decode 64 held-out pictures. PSNR, in dB, is $10 \log_{10}(2^2 / \text{mean squared error})$, as pictures
# lie in $[-1, 1]$: 20 dB is an error of a tenth of the range, every 6 dB halve it. Beside it three baselines: the same
# picture shrunk to 18 × 18 pixels (972 numbers, about as many as a latent has) and enlarged again; the latent with a
# draw of the encoder's doubt added; the latent with one channel set to 0.


# %%
@torch.no_grad()
def decode(z):
    return vae.decode(z).clamp(-1, 1)


copy = decode(q.mean)
shrunk = F.interpolate(
    F.interpolate(images, (18, 18), mode="area"), (64, 64), mode="bicubic"
).clamp(-1, 1)
noisy = decode(q.sample(torch.randn(q.mean.shape, generator=g)))
print(
    f"autoencoder   {psnr(copy, images).mean():.1f} dB (worst of 64: {psnr(copy, images).min():.1f})"
)
print(f"with its doubt {psnr(noisy, images).mean():.1f} dB")
print(f"18 x 18 pixels {psnr(shrunk, images).mean():.1f} dB")
lost = [decode(q.mean[:16] * (torch.arange(4) != c).float()[:, None, None]) for c in range(4)]
print(
    f"of the first 16 pictures: all channels {psnr(copy[:16], images[:16]).mean():.1f} dB; without channel "
    + ", ".join(f"{c}: {psnr(lost[c], images[:16]).mean():.1f}" for c in range(4))
)
assert psnr(copy, images).mean() > psnr(shrunk, images).mean() + 5

# %%
k = int(psnr(copy, images).argmin())  # the worst of them
row(
    [
        images[k],
        copy[k],
        5 * (copy[k] - images[k]),
        shrunk[k],
        lost[0][0],
        lost[1][0],
        lost[2][0],
        lost[3][0],
    ],
    [
        "picture",
        f"round trip\n{psnr(copy, images)[k]:.1f} dB",
        "error x 5",
        "18 x 18",
        "channel 0\nleft out",
        "channel 1\nleft out",
        "channel 2\nleft out",
        "channel 3\nleft out",
    ],
    1.6,
)

# %% [markdown]
# (The last four columns show another scene, the first of the 64.) Without channel 1 hardly anything is missing: this
# autoencoder really works with three channels. Each of the others holds colour *and* outlines; none of them means one
# thing.
#
# And the encoder's doubt costs nothing at all: the decoder has learned to forgive it. Where is the error that is left?
# Split the pixels into those within two pixels of an outline and the rest.

# %%
jump = lambda d: (images - images.roll(1, d)).abs().amax(1, keepdim=True) > 0.4  # noqa: E731 - textures jump by .3
# b 1 h w: within two pixels of a jump
edge = F.max_pool2d((jump(2) | jump(3)).float(), 5, 1, 2) > 0
square = ((copy - images) ** 2).mean(1, keepdim=True)
share = square[edge].sum() / square.sum()
print(
    f"{edge.float().mean():.0%} of the pixels lie at an outline, and {share:.0%} of the squared error"
)
print(
    f"mean error at outlines {square[edge].mean().sqrt():.3f}, elsewhere {square[~edge].mean().sqrt():.3f}; range 2"
)
assert share > 2 * edge.float().mean()

# %% [markdown]
# So the autoencoder loses the exact course of outlines, and keeps flat ground much better. **What it loses, no model
# behind it can restore, and no edit can keep**: the dB printed
# here are the ceiling of every edit of a given picture in this house, and are printed beside every such score.
#
# ## 3. Why latents should have unit spread
# A schedule mixes $x_t = \alpha_t z + \sigma_t \epsilon$ with noise of deviation 1. If $z$ has the deviation $s$,
# signal and noise are equal where $\alpha_t s = \sigma_t$, and at the end a signal of $\alpha_T s$ is left under the
# noise. So $s$ is a hidden knob of the schedule: the same table means another thing for other latents. The cure is one
# factor, `scale`, fixed once after the autoencoder's training. Write it.

# %% exercise="latent_scale"

# %%
print(f"tiny's own latents: {latent_scale(q.mean):.3f}, so they have unit spread already")
raw = 5.5 * q.mean  # about what Stable Diffusion's encoder gives
print(
    f"latents 5.5 times as large: {latent_scale(raw):.4f}  (Stable Diffusion's constant is 0.18215, which is 1 / 5.49)"
)
assert abs(latent_scale(q.mean) - 1) < 0.1 and abs(latent_scale(raw) - 0.18) < 0.02

ratio = sch.sigma / sch.alpha  # grows with t
print("\n spread s   signal = noise at t   signal left at T (noise 1)")
for s in (1 / 5.5, 1.0, 5.5):
    print(f"{s:9.2f}   {int((ratio < s).sum()):13} of {sch.T}   {s * sch.alpha[-1]:.3f}")
assert int((ratio < 5.5).sum()) > int((ratio < 1).sum()) + 200

# %% [markdown]
# With spread 5.5 the first half of the chain hardly hides anything, so most of training is spent on trivial questions,
# and at $T$ a third of the noise's size is still signal: sampling, which starts from pure noise, starts from a state
# that training never showed. With 1/5.5 everything is drowned at once.
#
# *tiny* was trained at $s = 1$ (its factor is folded into the two 1 × 1 convolutions around the latent, `standardise`
# in `minidiff/shipped/autoencoder.py`). What if somebody forgets the factor, which real pipelines are prone to? Noise 12
# latents to $t = 500$ with the wrong size, let the network guess, and divide by the size again.

# %%
n, t = 12, 500
cond = pipe.embed([shapes.caption(s) for s in scenes[:n]])
e = pipe.noise(n, seed=3)
seen = {}
for s in (1 / 5.5, 0.5, 1.0, 2.0, 5.5):
    x_t = q_sample(sch, s * q.mean[:n], t, e)
    with torch.no_grad():
        guess = eps_to_x0(sch, x_t, pipe.eps(x_t, t, cond), t) / s
    seen[s] = decode(guess)
    ideal = ratio[t] / s  # noise in units of the signal
    print(
        f"latents x {s:4.2f}: noise / signal {ideal:5.2f}, guessed picture {psnr(seen[s], copy[:n]).mean():5.1f} dB"
    )
row([copy[0], *[seen[s][0] for s in seen]], ["target", *[f"latents x {s:.2g}" for s in seen]])
assert psnr(seen[1.0], copy[:n]).mean() > psnr(seen[5.5], copy[:n]).mean() + 3

# %% [markdown]
# (The prompt says what should be there, which is why even the first guess has ring, place and colours.) Left of 1 the
# question got harder (more noise per signal), so it is no surprise that the answer is worse. Right of 1 it got
# *easier*, and the answer is worse all the same: the network has learned how large a signal is, and takes what is too
# much for something else.
#
# **Stop and think.** Which of these would a variance-exploding schedule ($\alpha = 1$, $\sigma$ up to 50) suffer from?
#
# ## 4. What it saves
# The same UNet, once on latents (4 × 16 × 16) and once on the pixels themselves (3 × 64 × 64). PyTorch can count the
# multiplications of a network on the `meta` device, where tensors have a shape and no values; that count is the same on
# every machine. (A listener on the attention maps makes attention an explicit matrix product, which the counter knows.)

# %%
from minidiff.models.sizes import SIZES
from minidiff.models.unet import UNet


def multiplications(size, c, h, w):
    """{kind: 10^9 multiplications} of one evaluation of that model's UNet on a sample of (c h w)."""
    known = SIZES[size]
    with torch.device("meta"):
        net = UNet(**known["unet"] | dict(in_channels=c, out_channels=c)).requires_grad_(False)
        text = torch.zeros(1, known["text"]["context"], known["text"]["width"])
        with FlopCounterMode(display=False) as counter, tap(net, r"probs$", lambda x, name: None):
            net(torch.zeros(1, c, h, w), torch.zeros(1, dtype=torch.long), Cond(text=text))
    counts = {
        str(op).removeprefix("aten."): v / 2e9
        for op, v in counter.get_flop_counts()["Global"].items()
    }
    return {
        "convolutions": counts.get("convolution", 0),
        "linear layers": counts.get("mm", 0) + counts.get("addmm", 0),
        "attention maps": counts.get("bmm", 0),
    }


cases = {
    "tiny, latents\n4 x 16 x 16": ("tiny", 4, 16, 16),
    "tiny, pixels\n3 x 64 x 64": ("tiny", 3, 64, 64),
    "SD 1.5, latents\n4 x 64 x 64": ("sd15", 4, 64, 64),
    "SD 1.5, pixels\n3 x 512 x 512": ("sd15", 3, 512, 512),
}
cost = {name: multiplications(*case) for name, case in cases.items()}
total = [sum(c.values()) for c in cost.values()]
for name, c in cost.items():
    print(
        f"{name.replace(chr(10), ' '):32} {sum(c.values()):12,.2f} billion; "
        + ", ".join(f"{k} {v / sum(c.values()):.0%}" for k, v in c.items())
    )
print(
    f"pixels cost {total[1] / total[0]:.0f} times as much for tiny, {total[3] / total[2]:.0f} times for Stable Diffusion"
)
assert total[1] > 14 * total[0] and total[3] > 64 * total[2]

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 2.4), layout="constrained")
for ax, pair in zip(axes, (list(cases)[:2], list(cases)[2:])):
    left = np.zeros(2)
    for kind in ("convolutions", "linear layers", "attention maps"):
        width = np.array([cost[name][kind] for name in pair]) / sum(cost[pair[0]].values())
        ax.barh(pair, width, left=left, label=kind)
        left += width
    ax.invert_yaxis()
    ax.set_xlabel("multiplications of one evaluation, latents = 1")
axes[0].legend(fontsize=8)
axes[0].set_title("tiny")
axes[1].set_title("Stable Diffusion 1.5")
plt.show()

# %% [markdown]
# Convolutions and linear layers grow with the number of places: 16 times here, 64 there. Attention maps compare every
# place with every other, and grow with its *square*: 256 and 4096 times. At 512 × 512 they are nearly everything, which
# is why nobody puts this network on pixels.
#
# The count is one thing, the clock another: measure one evaluation of each. And the autoencoder is not free, but runs
# once.

# %%
import time


def seconds(fn, times):
    fn()  # the first call also allocates
    best = []
    for _ in range(times):
        start = time.perf_counter()
        fn()
        best.append(time.perf_counter() - start)
    return min(best)  # whatever disturbs makes it longer


with torch.no_grad():
    one, small, large = pipe.embed("a red circle"), pipe.noise(1), torch.zeros(1, 3, 64, 64)
    on_pixels = UNet(**SIZES["tiny"]["unet"] | dict(in_channels=3, out_channels=3)).eval()
    # (its weights are random, which costs the same)
    a = seconds(lambda: pipe.eps(small, 500, one), 8)
    b = seconds(lambda: on_pixels(large, torch.tensor([499]), one), 2)
    d = seconds(lambda: decode(small), 3)
print(
    f"one evaluation on pixels takes {b / a:.0f} times one on latents; one decoding takes {d / a:.1f} evaluations"
)
assert b > 5 * a

# %% [markdown]
# A guided picture of 25 steps takes 50 evaluations and one decoding.
#
# ## 5. From words to a picture, step by step
# Nothing about diffusion changes: the loop below is that of notebook 01, with $z$ for $x$. Words enter as the text
# tower's states, which the UNet's cross-attention reads; guidance compares them with those of the empty prompt,
#
# $$\hat\epsilon = \epsilon_\varnothing + w\,(\epsilon_c - \epsilon_\varnothing), \qquad w = 3,$$
#
# with $\epsilon_c$ the network's guess of the noise with the prompt and $\epsilon_\varnothing$ the one without. Write
# that line.

# %% exercise="guide"

# %%
wanted = scenes[:8]
prompts = [shapes.caption(s) for s in wanted]
cond, null = pipe.embed(prompts), pipe.null(len(prompts))
z = pipe.noise(len(prompts), seed=1)  # 8 4 16 16, pure noise
film = []
with torch.no_grad():
    for t, s in pairwise(sch.timesteps(25, spacing="trailing")):
        eps = guide(pipe.eps(z, t, null), pipe.eps(z, t, cond), pipe.scale)
        film.append((t, decode(z[:1])[0], decode(eps_to_x0(sch, z[:1], eps[:1], t))[0]))
        z = ddim_step(sch, z, eps, t, s)
drawn = decode(z)  # the only use of the decoder that is needed
print(
    f"z at the end: spread {z.std():.2f}; latents of renders of the same 8 scenes: {q.mean[:8].std():.2f}"
)

# %%
fig, axes = plt.subplots(2, 6, figsize=(6.6, 2.6), layout="constrained")
for i, ax in zip((0, 5, 10, 14, 19, 24), axes.T):
    show(ax[0], film[i][1], f"t = {film[i][0]}")
    show(ax[1], film[i][2])
fig.suptitle(
    f"above: the state, decoded; below: the clean picture it implies.\n“{prompts[0]}”", fontsize=9
)
plt.show()

# %% [markdown]
# The state looks like noise for half of the way, while the implied picture has its place and colours at once, since the
# words say them, and its outline late: coarse first, fine last. (The spread at the end is larger than that of real
# latents: guidance exaggerates, and notebook 05 is about that.)
#
# Did it draw what was asked? A classifier that has nothing to do with the generator, the *oracle*, reads the pictures.
# These eight combinations of shape, colour and background were held out of training.

# %%
from minidiff.evaluate.oracle import oracle

verdict = oracle().judge(drawn, wanted)
for name in ("shape", "color", "background", "position", "size", "texture", "joint"):
    print(
        f"{name if name != 'joint' else 'everything':11} right in {int(verdict[name].sum())} of {len(wanted)}"
    )
names = [
    "\n".join(f"{o.color} {o.shape}" for o in s.objects) + f"\n{s.position}, {s.background}"
    for s in wanted
]
row(list(drawn), names, 1.8)
assert verdict["joint"].sum() >= 5 and verdict["color"].sum() >= 6

# %%
same = pipe.generate(prompts[0], steps=25, seed=1)
print(f"largest difference to pipe.generate: {(same - drawn[:1]).abs().max():.1e}")
assert (same - drawn[:1]).abs().max() < 1e-2

# %% [markdown]
# Eight pictures are few: `minidiff evaluate tiny --n 128` does the same for 128 and prints intervals.
#
# ## 6. Where the parameters are
# `minidiff trace tiny` lists every block of the UNet in the order in which it runs, with the shape that leaves it;
# `--part vae` and `--part text` the others. Here as sums, beside the multiplications of one picture (25 guided steps).

# %%
from minidiff.analysis.trace import table, trace

rows = trace("tiny")
print("\n".join(table(rows).splitlines()[:9]), "\n...")
kinds = {}
for r in rows:
    kinds[r["kind"]] = kinds.get(r["kind"], 0) + r["parameters"]
everything = sum(kinds.values())
most = sorted(kinds.items(), key=lambda i: -i[1])[:4]
print("\nUNet by kind of block: " + ", ".join(f"{k} {v / everything:.0%}" for k, v in most))
for part in ("net", "vae", "text"):
    print(
        f"{part:5} {sum(r['parameters'] for r in trace('tiny', part)):10,} parameters in tiny, "
        f"{sum(r['parameters'] for r in trace('sd15', part)):12,} in Stable Diffusion 1.5"
    )
look = lambda x, name: None  # noqa: E731
with torch.no_grad(), FlopCounterMode(display=False) as counter, tap(vae, r"probs$", look):
    decode(small)
with torch.no_grad(), FlopCounterMode(display=False) as words, tap(pipe.text, r"probs$", look):
    pipe.embed("a red circle")
parts = {
    "UNet, 50 evaluations": 50 * total[0],
    "decoder, once": counter.get_total_flops() / 2e9,
    "text tower, twice": words.get_total_flops() / 1e9,
}
for name, v in parts.items():
    print(f"{name:22} {v:6.2f} billion multiplications, {v / sum(parts.values()):.1%}")
assert everything == sum(p.numel() for p in pipe.net.parameters())

# %% [markdown]
# Nearly all of the work is the UNet's, step after step: whoever wants pictures faster takes fewer steps (notebook 03),
# or reuses parts of a step (`tutorials/editing/sige.md`).
#
# ## Exercises
# 1. Section 2 with `q.sample` at 0, 1, 2 and 4 times the encoder's doubt (`q.mean + k * ...`). How much noise does the
#    decoder forgive? That is how wrong a diffusion model may be without anyone seeing it.
# 2. Walk in a straight line between the latents of two scenes and decode. Then between their pixels. Which of the two
#    walks shows pictures of the toy world on the way?
# 3. Section 3 at $t = 100$ and $t = 900$. At which of them does the wrong size hurt most, and why?
# 4. Give section 5 the prompts in another order of words. Which words may be exchanged?
#    (`tutorials/00_the_six_words.md`, "How the tiny model learned", says what had to be done for this.)
# 5. Generate at 32 × 96 pixels: `pipe.generate(..., height=32, width=96)`. The network is convolutional and has never
#    seen that size.
#
# Read next: `minidiff/models/vae.py`, `minidiff/shipped/autoencoder.py`, then notebook 07, which replaces the UNet by a
# transformer.
