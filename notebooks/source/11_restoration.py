# %% [markdown]
# # 11 · Restoration
#
# *DDNM*, Wang, Yu, Zhang 2022, [2212.00490](https://arxiv.org/abs/2212.00490); *RePaint*, Lugmayr et al. 2022,
# [2201.09865](https://arxiv.org/abs/2201.09865); *DDRM*, Kawar et al. 2022,
# [2201.11793](https://arxiv.org/abs/2201.11793). About 25 minutes of reading, half a minute of running, no network.
#
# **The problem.** A picture was made smaller, grey or blurred, or has a hole. Many pictures would have left the same
# remains. We want one that did, to the last digit, and that looks like a picture; without training anything for this kind
# of damage. All three papers use a diffusion model as it is, and differ in how they keep what is known.
#
# The model is `tiny-pixel`: 32x32 pixels, no autoencoder in between, since "smaller" is a linear map of pixels and not of
# latents. It was trained on single coloured shapes, and we tell it nothing about the picture.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import minidiff
from minidiff.core.denoise import noise, noises
from minidiff.core.process import eps_to_x0, posterior, q_sample
from minidiff.data import shapes
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import oracle
from minidiff.proofs.claims import draw
from minidiff.proofs.repaint import half_holes
from minidiff.restoration.ddnm import ddnm_sample
from minidiff.restoration.ddrm import ddrm_sample
from minidiff.restoration.operators import blur, grey, hole, superres
from minidiff.restoration.repaint import repaint

pipe, judge = minidiff.load("tiny-pixel"), oracle()
sch, null = pipe.schedule, pipe.null()
scenes = draw(4, 0)  # four scenes whose shape, colour and ground training never combined
image = shapes.render(scenes, 32)  # 4 3 32 32 in [-1, 1]


def dB(x):
    """Mean likeness to the originals; x is cut to [-1, 1], as a file would."""
    return psnr(x.clamp(-1, 1), image).mean().item()


def right(x, what):
    """In how many pictures the oracle reads the true `what` (it wants 64 pixels a side)."""
    big = F.interpolate(x.clamp(-1, 1), (64, 64), mode="bicubic").clamp(-1, 1)
    return int(judge.judge(big, scenes, ())[what].sum())


def show(columns, size=1.2):
    """One column for each method, one row for each picture."""
    n = max(len(v) for v in columns.values())
    _, axes = plt.subplots(
        n,
        len(columns),
        figsize=(size * len(columns), size * n + 0.4),
        layout="constrained",
        squeeze=False,
    )
    for line, (title, pictures) in zip(axes.T, columns.items()):
        line[0].set_title(title, fontsize=8)
        for a, x in zip(line, pictures):
            a.imshow(((x.permute(1, 2, 0) + 1) / 2).clamp(0, 1), interpolation="nearest")
            a.set(xticks=[], yticks=[])


print(
    "original: right colour, shape:",
    right(image, "color"),
    right(image, "shape"),
    f"of {len(image)}",
)

# %% [markdown]
# ## 1. What is known, and what is free
#
# All these losses are linear, $y = A x$. The pseudo-inverse $A^+$ gives, of all pictures that explain $y$, the smallest;
# it is the one matrix with $A A^+ A = A$ (and three more properties). With it every picture splits into two parts:
#
#
# $$x = \underbrace{A^+ A\, x}_{\text{reaches } y} + \underbrace{(I - A^+ A)\, x}_{\text{the null space: leaves no trace in } y}$$
#
# So any picture can be made to explain $y$, by exchanging its first part and nothing else: $\hat x = x - A^+(A x - y)$.
# For "smaller", where $A$ takes means over blocks, that can be written without any matrix. Write it.

# %% exercise="project_average"

# %%
half = half_holes(scenes, 32)  # 1 over the right half of the object
operators = {
    "half the size": superres(2),
    "a quarter the size": superres(4),
    "grey": grey(),
    "blurred": blur(32, 32, 1.5),
    "half of it gone": hole(half),
}
remains = {}
print(f"{'':20}numbers known   max |A A+ A x - A x|   A+ y, dB   right colour, shape")
for name, A in operators.items():
    y = A.A(image)
    x = remains[name] = A.pinv(y)
    known = (A.s > 0).double().mean().item()
    print(
        f"{name:20}{known:12.1%}{(A.A(x) - y).abs().max():19.1e}{dB(x):14.1f}{right(x, 'color'):12}{right(x, 'shape'):6}"
    )
    assert (A.A(x) - y).abs().max() < 1e-5
x, y = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), superres(4).A(image)
ours, theirs = project_average(x, y, 4), superres(4).project(x, y)
print(f"your projection of noise against the operator's: {(ours - theirs).abs().max():.1e}")
assert (ours - theirs).abs().max() < 1e-4
show({"original": image} | remains)

# %% [markdown]
# These are the baselines: $A^+ y$ is all that is known, and grey (zero) or flat where nothing is. Everything below has to
# beat it. (The blur repeats itself beyond the borders and drops what it passes by less than 2%; `operators.py` says why.)
#
# **Stop and think.** Is the bicubic enlargement of a small picture a picture with $Ax = y$? Which part of it is wrong?
#
# ## 2. DDNM: correct every guess
#
# A sampler guesses the clean picture at every step. Correct that guess in the known part, then go on as usual:
#
# $$\hat x_0 \leftarrow \hat x_0 - A^+(A \hat x_0 - y), \qquad
# x_s = \alpha_s \hat x_0 + \sigma_s\big(\sqrt{1 - \eta^2}\,\epsilon + \eta\, n\big)$$
#
# $\alpha_s, \sigma_s$: the schedule at the time $s$ the state goes to; $\epsilon$: the network's noise; $n$: fresh noise,
# its share $\eta = .85$. At the end $\sigma = 0$, so the result is a corrected guess, and $Ax = y$.


# %%
@torch.no_grad()
def restore(y, correct, steps=20, eta=0.85, seed=0):
    """DDNM: `correct(x0, y)` puts in what is known."""
    x = noise((len(y), 3, 32, 32), seed)
    zs = noises(x, seed)
    for t, s in pairwise(pipe.timesteps(steps)):
        eps = pipe.eps(x, t, null)
        x0 = correct(eps_to_x0(sch, x, eps, t).clamp(-1, 1), y)
        a, sigma = sch.at(s)
        x = a * x0 + sigma * ((1 - eta**2) ** 0.5 * eps + eta * next(zs))
    return x


sr, y = superres(4), superres(4).A(image)
same = (
    (
        restore(y, lambda x0, y: project_average(x0, y, 4), steps=4)
        - ddnm_sample(pipe, y, sr, steps=4, repeats=1)
    )
    .abs()
    .max()
)
print(f"largest difference to the project's ddnm: {same:.1e}")
results = {}
print(f"{'':32}dB   right colour, shape   max |A x - y|")
for factor in (2, 4):
    sr, y = superres(factor), superres(factor).A(image)
    side = 32 // factor
    rows = {
        "A+ y": sr.pinv(y),
        "bicubic": F.interpolate(y, (32, 32), mode="bicubic").clamp(-1, 1),
        "at every step": restore(y, lambda x0, y, f=factor: project_average(x0, y, f)),
    }
    if factor == 4:
        rows["once, at the end"] = project_average(restore(y, lambda x0, y: x0), y, factor)
    for name, v in rows.items():
        print(
            f"from {side:2}x{side:<3}{name:20}{dB(v):6.1f}{right(v, 'color'):9}{right(v, 'shape'):7}"
            f"{(sr.A(v) - y).abs().max():18.1e}"
        )
        results[f"{side}x{side}\n{name}"] = v
    assert (sr.A(rows["at every step"]) - y).abs().max() < 1e-5
show({k: v for k, v in results.items() if "bicubic" not in k} | {"original": image})
assert same < 1e-3 and dB(results["16x16\nat every step"]) > dB(results["16x16\nbicubic"]) + 3

# %% [markdown]
# From 16x16 this is a repair: 12 dB above $A^+ y$, 9 above bicubic, and every texture is in its place. From 8x8 it is an
# invention. The result explains $y$ to the last digit and looks like a picture, but stripes where there were none and a
# drop for a square cost as many dB as bicubic's blur does. Corrected only once, at the end, a picture explains $y$ just as
# well, and is none: somebody else's shape is moved to the right averages.
#
# What is drawn in the null space is drawn freely. Nothing shows that better than grey, where two thirds of all numbers
# are free:

# %%
A = grey()
y2 = A.A(image[:1]).repeat(4, 1, 1, 1)  # one picture four times: row i has seed i
colours = ddnm_sample(pipe, y2, A, repeats=1, steps=20)
print(
    "one grey picture, four seeds; largest difference in grey:",
    f"{(A.A(colours) - y2).abs().max():.1e}",
)
print(
    "colours the oracle reads:",
    [
        r["objects"][0]["color"] if r["objects"] else "-"
        for r in judge.read(
            F.interpolate(colours.clamp(-1, 1), (64, 64), mode="bicubic").clamp(-1, 1)
        )
    ],
    "and the true one:",
    scenes[0].objects[0].color,
)
show(
    {
        "measured": y2.expand(-1, 3, -1, -1),
        "four seeds": colours,
        "their grey": A.A(colours).expand(-1, 3, -1, -1),
    }
)
assert (A.A(colours) - y2).abs().max() < 1e-5 and (colours[0] - colours[1]).abs().mean() > 0.05

# %% [markdown]
# **Stop and think.** Which of the four is "right"? What would you have to tell the model, and where would it enter the
# loop?
#
# ## 3. RePaint: go back up
#
# A hole is the simplest $A$: a mask. RePaint's loop for it is the blend of notebook 10 with steps of DDPM, and it has a
# flaw that DDNM shares. What is drawn at a step was guessed in surroundings of one step ago, and once the noise is gone
# it cannot be taken back. So RePaint adds noise again, `length` steps' worth, and comes down once more, several times.
# The way is a list of times, made before anything is drawn.

# %% exercise="jumps"

# %% [markdown]
# Going up is the forward process from $s$ to $t > s$: scale the signal down by $a = \alpha_t / \alpha_s$, add the noise
# that is missing:
#
# $$x_t = a\, x_s + \sqrt{\sigma_t^2 - a^2 \sigma_s^2}\; n$$

# %% exercise="renoise"

# %%
ts = pipe.timesteps(20)
_, ax = plt.subplots(figsize=(8.5, 2.4), layout="constrained")
for repeats in (1, 2, 4):
    path = jumps(ts, 5, repeats)
    ax.plot(path, label=f"{repeats}: {sum(s < t for t, s in pairwise(path))} evaluations")
ax.set(
    title="the way down, by how often a stretch of 5 steps is walked", xlabel="move", ylabel="time"
)
ax.legend()
# n + k (repeats - 1) length, k places to jump from
for n, length, repeats in ((20, 5, 2), (30, 5, 3), (250, 10, 10)):
    path = jumps(list(range(n, -1, -1)), length, repeats)
    counted, formula = (
        sum(s < t for t, s in pairwise(path)),
        n + -(-(n - length) // length) * (repeats - 1) * length,
    )
    print(
        f"{n} steps, length {length}, {repeats} walks: {counted} evaluations, by formula {formula}"
    )
    assert counted == formula
v = renoise(
    sch,
    q_sample(sch, torch.zeros(1, 1, 400, 400), 300, noise((1, 1, 400, 400))),
    300,
    600,
    noise((1, 1, 400, 400), 1),
)
print(f"noise after a jump from 300 to 600: {v.std():.4f}; the schedule says {sch.sigma[600]:.4f}")
assert abs(v.std().item() - sch.sigma[600].item()) < 0.01

# %% [markdown]
# The paper's own numbers are the last line: 2,410 evaluations a picture. A jump counts by how far it goes in noise, not
# in steps, so on a grid of 20 we jump 5, a quarter of the way, and walk twice.


# %%
@torch.no_grad()
def fill(repeats, steps=20, seed=0):
    x = noise(image.shape, seed)
    zs, outside = noises(x, seed), noises(x, seed + 2**31)
    for t, s in pairwise(jumps(pipe.timesteps(steps), 5, repeats)):
        if s > t:
            x = renoise(sch, x, t, s, next(zs))
            continue
        x0 = eps_to_x0(sch, x, pipe.eps(x, t, null), t).clamp(-1, 1)
        mean, var = posterior(sch, x, x0, t, s)
        x = half * (mean + var**0.5 * next(zs)) + (1 - half) * q_sample(
            sch, image, s, next(outside)
        )
    return half * x.clamp(-1, 1) + (1 - half) * image


def seam(x):
    """Squared error of the differences between neighbours, one in the hole, one outside."""
    total = count = 0.0
    for dim in (2, 3):
        crossing = (half.diff(dim=dim) != 0).float()
        total, count = (
            total + (crossing * (x - image).diff(dim=dim) ** 2).sum(),
            count + 3 * crossing.sum(),
        )
    return (total / count).item()


same = (fill(1, steps=4) - repaint(pipe, image, mask=half, steps=4, repeats=1)).abs().max()
filled = {
    "A+ y": remains["half of it gone"],
    "RePaint, 1 walk": fill(1),
    "RePaint, 2 walks": fill(2),
    "DDNM": half
    * ddnm_sample(pipe, image * (1 - half), hole(half), repeats=1, steps=20).clamp(-1, 1)
    + (1 - half) * image,
}
print(f"largest difference to the project's repaint: {same:.1e}")
print(f"{'':20}evaluations     dB     seam   right colour, shape")
for (name, v), cost in zip(filled.items(), (0, 20, 35, 20)):
    print(f"{name:20}{cost:8}{dB(v):11.1f}{seam(v):9.3f}{right(v, 'color'):9}{right(v, 'shape'):7}")
show(filled | {"original": image})
assert same < 1e-3 and all(dB(v) > dB(filled["A+ y"]) + 2 for v in list(filled.values())[1:])

# %% [markdown]
# With one walk the square has a bite, and the diamond goes on in another purple; a second walk mends both, for 15
# evaluations more. DDNM, which here never goes back, draws most of the noise anew at every step and meets the surroundings
# about as well. Four pictures do not decide between the two; [the page](../tutorials/restoration/repaint.md) has more of
# them, and claims that fail.

# %% [markdown]
# ## 4. DDRM: noise, one coefficient at a time
#
# Now $y = A x + \sigma_y n$ has noise of its own. Written in the singular vectors, $A = U\, \mathrm{diag}(s)\, V^T$, the
# problem falls apart into numbers: coefficient $i$ of the picture is measured with an error of $\sigma_y / s_i$, or not
# at all ($s_i = 0$). So $A^+$ makes large what $A$ made small. How large can be said without looking at a picture: the
# mean squared error is what the null space loses plus $\sigma_y^2$ times the mean of $1/s_i^2$ over all coefficients.

# %%
sigma_y, A = 0.1, blur(32, 32, 1.5)
clean = A.A(image)
y = clean + sigma_y * noise(clean.shape, 7)
kept = A.s[A.s > 0]
predicted = (A.pinv(clean) - image).square().mean() + sigma_y**2 * (1 / kept**2).sum() / A.s.numel()
measured = (A.pinv(y) - image).square().mean()
print(f"mean squared error of A+ y: predicted {predicted:.3f}, measured {measured:.3f}")
assert abs(measured / predicted - 1) < 0.1
_, ax = plt.subplots(figsize=(8.5, 2.5), layout="constrained")
error = sigma_y / kept.sort(descending=True).values
ax.semilogy(error, label="error of the measured coefficient, sigma_y / s")
for t in (100, 400, 700):
    ax.axhline(sch.sigma[t] / sch.alpha[t], ls=":", c="grey")
    ax.text(
        0,
        1.05 * sch.sigma[t] / sch.alpha[t],
        f"error of the state at t = {t}",
        fontsize=8,
        va="bottom",
    )
ax.set(
    title="blur: what y knows of each coefficient, and what a state knows",
    xlabel="coefficient, by singular value",
)
ax.legend(loc="lower right")
plt.show()

# %% [markdown]
# A state of the diffusion knows every coefficient with the error $\sigma_t / \alpha_t$. DDRM compares: where $y$ is more
# exact than the state, it takes $y$ and adds the noise that is missing; where it is less exact, it takes the network's
# guess and lets $y$'s error stand for a share of the noise; where nothing is measured, it samples as usual. As the noise
# falls (the dotted lines go down), fewer and fewer coefficients are taken from $y$. The three lines are on
# [the page](../tutorials/restoration/ddrm.md). DDNM has a form for noise, too (`sigma_y`).

# %%
cleaned = {
    "A+ y": A.pinv(y),
    "y itself": y,
    "DDNM, not told of noise": ddnm_sample(pipe, y, A, repeats=1, steps=20),
    "DDNM, told": ddnm_sample(pipe, y, A, sigma_y=sigma_y, repeats=1, steps=20),
    "DDRM": ddrm_sample(pipe, y, A, sigma_y=sigma_y),
}
print(f"{'':26}dB   right colour, shape")
for name, v in cleaned.items():
    print(f"{name:24}{dB(v):5.1f}{right(v, 'color'):9}{right(v, 'shape'):7}")
show({k: v[1:3] for k, v in (cleaned | {"original": image}).items()})  # two of the four
assert dB(cleaned["DDRM"]) > dB(cleaned["A+ y"]) + 8 and dB(cleaned["DDNM, told"]) > dB(
    cleaned["DDNM, not told of noise"]
)

# %% [markdown]
# Not told of the noise, DDNM restores it as faithfully as everything else, and the result is as bad as $A^+ y$. Told, it
# is better than the measurement but leaves grain. DDRM, which lets coefficients wait until the state is as exact as they
# are, is cleaner here than even $A^+$ of a measurement without noise was (first table).
#
# **Stop and think.** At the last step the state has no error at all. What do both methods do with $y$ then, and is it a
# mistake that $Ax \ne y$ at the end?
#
# ## Exercises
#
# 1. Give `restore` the class, `pipe.embed([f"{s.objects[0].color} {s.objects[0].shape}" for s in scenes])`, in place of
#    `null`. What do five right names gain in dB, and what do five wrong ones do?
# 2. Average first and cut a hole afterwards, or the other way round? Write both as one `correct` for `restore` out of two
#    pseudo-inverses in turn, and look at $|Ax - y|$: one of them is no pseudo-inverse (`operators.py` says which).
# 3. `restore` with `eta=0`: why does it never recover from the first guess?
# 4. `fill` with length 1 and 10 at about 35 evaluations. Which way is best for the seam, which for the shape?
# 5. Where does the grain of DDNM come from? `trust(A, sigma_y, a, eta * sigma, x)` of `minidiff/restoration/ddnm.py` says
#    how
#    far each coefficient follows $y$; print its mean over the steps.
# 6. For a Gaussian prior $N(\mu, \tau^2)$ on each coefficient the best answer is the Wiener filter. Fit $\mu, \tau$ to
#    500 renders in the basis of `blur` and beat DDRM, if you can.
#
# Next: [DDNM](../tutorials/restoration/ddnm.md), [RePaint](../tutorials/restoration/repaint.md),
# [DDRM](../tutorials/restoration/ddrm.md), and `minidiff/restoration/operators.py`, where no matrix is ever formed.
