# %% [markdown]
# # 05 · Guidance
#
# Ho, Salimans 2022, [2207.12598](https://arxiv.org/abs/2207.12598) (classifier-free guidance); Dhariwal, Nichol 2021, [2105.05233](https://arxiv.org/abs/2105.05233) (with a classifier); Lin et al. 2023, [2305.08891](https://arxiv.org/abs/2305.08891) (rescaling); Kynkäänniemi et al. 2024, [2404.07724](https://arxiv.org/abs/2404.07724) (a limited interval). About 20 minutes of reading, half a minute of running, no network.
#
# Ask a text-to-image model plainly, and it half listens. Turn up one number, the guidance scale, and it obeys: that number is in every interface, usually at 7.5. What does it do? The usual answer, "it samples from a sharper conditional distribution", can be checked where everything is known. It is wrong, and by how much is a formula. Then we turn the knob on a real network, and look at what it costs.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import minidiff
from minidiff.core import schedule
from minidiff.core.cfg import cfg
from minidiff.core.cond import Cond
from minidiff.core.denoise import sample
from minidiff.data import shapes
from minidiff.data.toy2d import Mixture, gmm8
from minidiff.evaluate.oracle import FULL, oracle
from minidiff.guidance.classifier_guidance import classifier_guidance, pull
from minidiff.learn.twins import twins

D = torch.float64
sch = schedule.cosine()
ts = sch.timesteps(400, spacing="trailing")

# %% [markdown]
# ## 1. One line
#
# A model that was trained with and without its condition $c$ (dropped in a tenth of the rows) gives two guesses of the noise. Guidance walks from the one to the other, and on:
#
# $$\hat\epsilon = \epsilon_\varnothing + w\,(\epsilon_c - \epsilon_\varnothing) .$$
#
# $w = 0$ ignores the condition, $w = 1$ is the plain conditional model, $w > 1$ is guidance. (The paper counts from 0: its $w$ is ours minus 1.)

# %% exercise="guide"

# %% [markdown]
# ## 2. What does it sample from?
#
# Noise is $-\sigma$ times the gradient of $\log p_t(x_t)$. Put that in, and the guided guess is the gradient of $\log\big[p_t(x_t)\, p_t(c \mid x_t)^w\big]$. It is tempting to read: guidance samples from the sharpened $p(x)\, p(c \mid x)^w$. But the sharpened distribution *of the noisy states* is not the noised version *of the sharpened distribution*, and a sampler would need the latter.
#
# Take one dimension: all pictures are $N(0, C)$, those with $c$ are $N(m, v)$, $v < C$. Then both can be written down.
#
# * Sharpened: precisions add, $1/\text{variance} = w/v + (1 - w)/C$.
# * Guidance: the probability-flow equation is linear, its two parts scale a deviation by $\sqrt{v}^{\,w}$ and $\sqrt{C}^{\,1-w}$, and so $\text{variance} = v^w\, C^{1-w}$.
#
# A harmonic mean continued on one side, a geometric one on the other. We run the sampler with your `guide` and ask which it is.

# %%
C, v, m = 1.0, 0.25, 0.8
everything, wanted = (Mixture([[mu]], [[[var]]]).denoise(sch) for mu, var in ((0.0, C), (m, v)))
start = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=D)
start = (start - start.mean()) / start.std()  # so that the spread is exact, not estimated
print("  w   measured   v^w C^(1-w)   sharpened      mean  (sharpened)")
for w in (0.0, 1.0, 2.0, 4.0):

    def guided(x, t, cond, w=w):
        return guide(everything(x, t, None), wanted(x, t, None), w)

    out = sample(guided, sch, start, ts)
    geometric, harmonic = v**w * C ** (1 - w), 1 / (w / v + (1 - w) / C)
    print(
        f"{w:4}  {out.var():9.4f}   {geometric:11.4f}   {harmonic:9.4f}   {out.mean():7.3f}  ({harmonic * w * m / v:.3f})"
    )
    assert abs(out.var() / geometric - 1) < 0.1

# %% [markdown]
# The geometric one, to three digits. At $w = 4$ the variance is a twentieth of what sharpening would give, and the mean is pushed further out. At $w = 0$ and $1$, and nowhere else, the two agree. The same in the plane: eight overlapping blobs, of which one is wanted. Contours: the sharpened density. Dots: what guidance draws.

# %%
mix = gmm8(1.0, 0.35)
exact, label = mix.denoise(sch), Cond(label=torch.zeros(1, dtype=torch.long))
start = torch.randn(600, 2, generator=torch.Generator().manual_seed(1), dtype=D)
side = torch.linspace(-1, 3, 81, dtype=D)
grid = torch.stack(torch.meshgrid(side, side - 1, indexing="xy"), -1)  # points of the plane, y x 2
fig, ax = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained", sharex=True, sharey=True)
moments = {}
for a, w in zip(ax, (1.0, 2.0, 4.0, 8.0)):
    out = sample(
        cfg(exact, Cond(label=torch.tensor([-1])), w), sch, start, ts[::4], label.expand(600)
    )
    log = w * mix.log_prob(grid, label=0) + (1 - w) * mix.log_prob(grid)
    p = (log - log.max()).exp() / (log - log.max()).exp().sum()
    centre = (p[..., None] * grid).sum((0, 1))
    spread = ((p[..., None] * (grid - centre) ** 2).sum((0, 1)).mean()) ** 0.5
    moments[w] = (
        out.var(0).mean().sqrt().item(),
        spread.item(),
        out[:, 0].mean().item(),
        centre[0].item(),
    )
    a.contour(grid[..., 0], grid[..., 1], p, 6, cmap="Greys", linewidths=0.8)
    a.plot(*out.T, ".", ms=2, color="tab:red")
    a.plot(*mix.means.T, "k+", ms=5)
    a.set_title(
        f"w = {w:g}: spread {moments[w][0]:.2f} (contours {moments[w][1]:.2f})\nmean {moments[w][2]:.2f} "
        f"({moments[w][3]:.2f})",
        fontsize=8,
    )
    a.set(xlim=(-1, 3), ylim=(-2, 2))
assert abs(moments[1.0][0] / moments[1.0][1] - 1) < 0.1 and moments[8.0][0] < 0.8 * moments[8.0][1]

# %% [markdown]
# At $w = 1$ the dots fill the contours, so the sampler is right. With more guidance they leave the wanted blob (the cross at 1), run out to where no data is, and huddle: at $w = 8$ not one dot lies on the contours, and their mean is 2.36, where the sharpened density has 1.29 and the blob 1. Pictures that are *more* typical than any real one, too far out, and all alike: that is what over-guidance looks like.
#
# **Stop and think.** The dots fan out towards the right, into a wedge. Which direction separates the wanted blob from its neighbours, and in which direction does the difference $\epsilon_c - \epsilon_\varnothing$ push?
#
# ## 3. On a network
#
# `tiny`, six prompts that state everything, one noise each. The oracle, a classifier trained apart, counts how many of the stated attributes are there. The costs: the spread of the latents, and the colour saturation of the pictures (largest minus smallest of R, G, B). For both the truth can be *rendered*: that is the last line.

# %%
pipe, rng = minidiff.load("tiny"), np.random.default_rng(11)
scenes = [shapes.scene(rng, objects=1, split="test") for _ in range(6)]
cond, x_T, times = (
    pipe.embed([shapes.caption(s) for s in scenes]),
    pipe.noise(6, seed=3),
    pipe.timesteps(8),
)


def colour(images):
    return (images.amax(1) - images.amin(1)).mean().item() / 2


def report(name, z):
    images = pipe.decode(z)
    right = oracle().judge(images, scenes, FULL)
    share = (
        torch.stack(
            [right[a] for a in ("shape", "color", "size", "position", "background", "texture")]
        )
        .float()
        .mean()
        .item()
    )
    print(
        f"{name:22} right {100 * share:4.0f}%   spread of latents {z.std():.3f}   saturation {colour(images):.3f}"
    )
    return share, z.std().item(), images


def draw(combine):
    """Six latents; `combine(e_null, e_cond, t)` is the guidance."""

    def denoise(x, t, cond):
        return combine(pipe.eps(x, t, pipe.null(len(x))), pipe.eps(x, t, cond), t)

    return sample(denoise, pipe.schedule, x_T, times, cond)


truth = shapes.render(scenes)

runs = {w: report(f"w = {w}", draw(lambda n, c, t, w=w: guide(n, c, w))) for w in (1, 3, 8, 16)}
goal = report("rendered", pipe.encode(truth))
assert runs[16][1] > 1.5 * runs[3][1] and runs[3][0] > 0.85

# %% [markdown]
# Most prompts need no guidance here: `tiny` has 97% at $w = 1$, and all of it at 3. The price is in the latents: their spread grows from that of real pictures to more than twice it. The mean saturation hardly moves, since most of a picture is ground; look at the pictures below instead, at the mottled grounds and the thinning star.
#
# What would have happened without guidance? Left of the line it is off, right of it $w = 8$; noise, words and steps are the same, so whatever moves under the line is guidance. (Move the slider below the pictures.)

# %%
few = [1, 3, 4, 5]
twins(
    runs[1][2][few],
    runs[8][2][few],
    ("w = 1, no guidance", "w = 8"),
    [shapes.caption(scenes[i]) for i in few],
    side=160,
)

# %% [markdown]
# ## 4. Two repairs
#
# *Rescaling*: guidance makes the noise guess too large; bring the spread of each row back towards that of the conditional guess.

# %% exercise="rescale"

# %% [markdown]
# *A limited interval*: guide only where it helps, and save the second evaluation elsewhere. Where is that? The paper's answer leaves out both ends: near $T$ nothing can be seen yet, near 0 all is decided. We try that, and the opposite.

# %% exercise="guide_within"

# %%
w = 16
repaired = {
    "rescale .7": report(
        "w = 16, rescale .7", draw(lambda n, c, t: rescale(guide(n, c, w), c, 0.7))
    )
}
for lo, hi in ((100, 700), (500, 1000)):
    repaired[f"in {lo}..{hi}"] = report(
        f"w = 16, in {lo}..{hi}",
        draw(lambda n, c, t, lo=lo, hi=hi: guide_within(n, c, w, torch.full((len(c),), t), lo, hi)),
    )
columns = {
    "scene": truth,
    **{f"w = {k}": r[2] for k, r in runs.items()},
    **{f"w = 16\n{k}": r[2] for k, r in repaired.items()},
}
assert repaired["in 500..1000"][1] < runs[16][1]
shown = (0, 1, 4, 5)
fig, ax = plt.subplots(len(shown), len(columns), figsize=(8, 4.5), layout="constrained")
for column, (name, images) in zip(ax.T, columns.items()):
    for a, i in zip(column, shown):
        a.imshow((images[i].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1), interpolation="nearest")
        a.axis("off")
    column[0].set_title(name, fontsize=8)

# %% [markdown]
# Rescaling takes away a tenth of the excess spread here, and the mottle stays: $w = 16$ is far outside what it was made for. The interval (100, 700] is worse than no repair: a ground grows stripes, an orange square turns red. The opposite one, (500, 1000], is the cleanest of the four at $w = 16$, though the grey ground is tinted and the square grows horns: 97% is right, for half of the second evaluations. So on this model colour and layout are decided early, where guidance serves, and late guidance only mottles. The paper, on ImageNet models, found its harm at the *noisy* end; an interval has to be measured for each model, and the picture above is how.
#
# ## 5. A negative prompt is another null
#
# Nothing says that $\epsilon_\varnothing$ must be the empty prompt. Put there what is *not* wanted, and guidance walks away from it. The prompt leaves the texture open; we ask for no stripes.

# %%
prompt, avoid = "a red star on a green background", "a red star on a striped green background"
six, kinds = pipe.noise(6, seed=20), {}
for name, null in (("empty prompt", ""), ("not striped", avoid)):
    z = sample(
        cfg(pipe.eps, pipe.embed(null), 3.0), pipe.schedule, six, times, pipe.embed([prompt] * 6)
    )
    read = oracle().read(pipe.decode(z))
    kinds[name] = [r["texture"] for r in read]
    kept = sum(
        r["background"] == "green"
        and {"color": "red", "shape": "star"}.items() <= r["objects"][0].items()
        for r in read
    )
    print(f"{name:14} a red star on green in {kept} of 6; texture:", *kinds[name])
assert kinds["not striped"].count("striped") < kinds["empty prompt"].count("striped")

# %% [markdown]
# No stripes are left. This is no filter: it is the same push as before, away from another point. And it has a price: red star and green ground, 6 of 6 before, are 4 of 6 now. What both prompts say cancels in their difference, so it is no longer guided at all.
#
# ## 6. Guidance by a classifier
#
# The difference $\epsilon_c - \epsilon_\varnothing$ is $-\sigma$ times the gradient of $\log p_t(c \mid x_t)$. So a *classifier* of noisy states can stand in for it, on a model that was never told about classes:
#
# $$\hat\epsilon = \epsilon(x_t) - w\,\sigma_t\, \nabla_{x_t} \log p(c \mid x_t, t) .$$
#
# With the exact classifier of the mixture the two guidances must be one and the same.

# %%
x, t, w = start, 400, 3.0


def log_p(x, t):
    a, s = sch.at(t)
    # log p(c | x_t), up to a constant
    return mix.log_prob(x, a, s, label=0) - mix.log_prob(x, a, s)


by_classifier = pull(exact, sch, log_p, w)(x, t, None)
by_difference = guide(exact(x, t, None), exact(x, t, label.expand(600)), w)
print(f"largest difference: {(by_classifier - by_difference).abs().max():.0e}")
assert (by_classifier - by_difference).abs().max() < 1e-9

# %% [markdown]
# A trained classifier is another matter. The project ships one of 127,000 weights that has seen noisy latents. It leads `tiny`, which is told *nothing* here (the empty prompt), to red stars:

# %%
blank = torch.full((4, 3, 64, 64), -1.0)  # only its size counts
wish = "red star on a white background"
fig, ax = plt.subplots(1, 8, figsize=(10, 1.6), layout="constrained")
hits = {}
for k, scale in enumerate((0.0, 6.0)):
    images = classifier_guidance(pipe, blank, wish, steps=20, scale=scale, seed=1)
    read = [
        (r["objects"][0] if r["objects"] else {}, r["background"]) for r in oracle().read(images)
    ]
    hits[scale] = [
        sum(o.get("color") == "red" for o, _ in read),
        sum(o.get("shape") == "star" for o, _ in read),
        sum(b == "white" for _, b in read),
    ]
    print(
        f"scale {scale}: of 4 pictures red {hits[scale][0]}, star {hits[scale][1]}, on white {hits[scale][2]}"
    )
    for a, image in zip(ax[4 * k :], images):
        a.imshow((image.permute(1, 2, 0) / 2 + 0.5).clamp(0, 1), interpolation="nearest")
        a.set_title(f"scale {scale:g}", fontsize=8)
        a.axis("off")
assert sum(hits[6.0]) > sum(hits[0.0])

# %% [markdown]
# The ground turns white and something turns red, with no word said. The star is found less well: colours are read early and from a few numbers, outlines late and from many, and this classifier is small. And the last picture holds a fragment that pleases the classifier and is no star. That is the weakness of the method: whatever pleases the classifier counts as success, so the judge must be another network.
#
# ## Exercises
#
# 1. Section 2 with $v > C$: a condition that makes pictures *more* diverse. What does guidance do to the spread now?
# 2. Section 2 with `eta=1` (`minidiff/samplers/ddim.py`). Does noise on the way bring guidance nearer to the sharpened density?
# 3. Section 3 at $w = 0$ and $w = -1$. What does a network draw when it walks away from what it is asked for?
# 4. Section 4 at $w = 8$, with `(700, 1000]`, `(300, 700]` and `(0, 300]`: which third makes the pictures right?
# 5. Put another prompt's *conditional* guess in place of the null, and let the sign of $w - 1$ change half-way.
#
# Next: [06](06_latent_diffusion.ipynb). Code: `minidiff/core/cfg.py` and `classifier_guidance.py`; pages: `tutorials/guidance/classifier_guidance.md`, section 6 of `tutorials/unified_perspective.md`.
