# %% [markdown]
# # 08 · Inversion, and why it fails
#
# *Denoising Diffusion Implicit Models*, Song, Meng, Ermon 2020, [2010.02502](https://arxiv.org/abs/2010.02502). The
# cures: *Null-text Inversion*, Mokady et al. 2022, [2211.09794](https://arxiv.org/abs/2211.09794); *EDICT*, Wallace,
# Gokul, Naik 2022, [2211.12446](https://arxiv.org/abs/2211.12446); *Negative-prompt Inversion*, Miyake et al. 2023,
# [2305.16807](https://arxiv.org/abs/2305.16807); *Direct Inversion*, Ju et al. 2023,
# [2310.01506](https://arxiv.org/abs/2310.01506). About 25 minutes of reading, half a minute of running on one core, no
# network.
#
# **The problem.** Most editing methods start from the noise a picture was drawn from. A photograph was drawn from none.
# *Inversion* looks for a noise from which the model would have drawn it. It works well enough to be believed, and then
# fails as soon as one edits. There are two errors, and they are often mixed up: one of *numerics* (small, falls with
# the number of steps) and one of *guidance* (large, does not fall at all). This notebook measures both, the first
# against an exact answer, and compares four cures on one picture.

# %%
import warnings
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch

import minidiff
from minidiff.bench.cost import Cost
from minidiff.core.cfg import cfg_batched
from minidiff.core.process import ddim_step
from minidiff.data import shapes
from minidiff.data.toy2d import gauss_aniso, gaussian_flow_map
from minidiff.evaluate.metrics import masked_psnr, psnr

pipe = minidiff.load("tiny")
sch = pipe.schedule


def show(ax, picture, title=""):
    """A picture (3 H W) in [-1, 1]; in 32 shades a colour, which the eye does not see and which keeps this file small."""
    ax.imshow(
        ((picture.permute(1, 2, 0).clamp(-1, 1) + 1) * 15.5).round() / 31, interpolation="nearest"
    )
    ax.set_title(title, fontsize=8)
    ax.axis("off")


# %% [markdown]
# ## 1. A sampler run backwards
# With $\eta = 0$ a DDIM step from time $t$ down to $s$ is a straight line through the state and the noise guess,
#
# $$x_s = A\,x_t + B\,\epsilon(x_t, t), \qquad A = \alpha_s / \alpha_t, \quad B = \sigma_s - A\,\sigma_t.$$
#
# Solve it for $x_t$ and the unknown stands on both sides: $x_t = (x_s - B\,\epsilon(x_t, t)) / A$. The usual way out
# asks the network about the state one *has*, $x_s$, as if it were already at the time one goes *to*, $t$. (Which is the
# same as `ddim_step` from $s$ to $t$ with that noise.) Write it; your version needs no `fixed_point`.

# %% exercise="invert_step"


# %%
@torch.no_grad()
def climb(denoise, x, steps, cond=None, again=0):
    """All states from the clean x to noise. again: how often each step asks once more, about its own answer."""
    states = [x]
    for s, t in pairwise(sch.timesteps(steps, spacing="trailing")[::-1]):
        y = invert_step(denoise, sch, states[-1], s, t, cond)
        for _ in range(again):
            # x_t = (x_s - B eps(x_t, t)) / A, iterated
            y = ddim_step(sch, states[-1], denoise(y, t, cond), s, t)
        states.append(y)
    return states


@torch.no_grad()
def descend(denoise, x, steps, cond=None):
    """All states from noise x down to clean."""
    states = [x]
    for t, s in pairwise(sch.timesteps(steps, spacing="trailing")):
        states.append(ddim_step(sch, states[-1], denoise(states[-1], t, cond), t, s))
    return states


# %% [markdown]
# ## 2. The exact answer, in the plane
# In the limit of many steps DDIM follows an ordinary differential equation, and for data that are one Gaussian this
# equation is solved in closed form: `gaussian_flow_map` says where every point goes. So here we know the *true* noise
# of a point. Invert 500 points of a slanted Gaussian, with the exact denoiser, in 5 to 160 steps.

# %%
data = gauss_aniso()
exact = data.denoise(sch)
points = data.sample(500, seed=0)
noise_of = gaussian_flow_map(data.means[0], data.covs[0], points, sch, 0, sch.T)  # the true answer
error = lambda a, b: (a - b).norm(dim=1).mean().item()  # noqa: E731
counts = [5, 10, 20, 40, 80, 160]
to_noise, there_and_back, implicit = [], [], []
for n in counts:
    up = climb(exact, points, n)
    to_noise.append(error(up[-1], noise_of))
    there_and_back.append(error(descend(exact, up[-1], n)[-1], points))
    if n <= 40:
        implicit.append(error(descend(exact, climb(exact, points, n, again=5)[-1], n)[-1], points))
slope = np.polyfit(np.log(counts[2:]), np.log(to_noise[2:]), 1)[0]
print("steps     error of the noise   round trip   round trip, 5 iterations")
for n, up, both, better in zip(counts, to_noise, there_and_back, [*implicit, None, None]):
    print(
        f"{n:5}     {up:18.4f}   {both:10.4f}   " + (f"{better:.7f}" if better is not None else "")
    )
print(f"twice as many steps: the error of the noise times {2**slope:.2f}")
assert -1.25 < slope < -0.75 and implicit[3] < there_and_back[3] / 10

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for n, mark in ((5, "o-"), (20, ".-")):
    path = torch.stack(climb(exact, points[:1], n))[:, 0]
    axes[0].plot(*path.T, mark, label=f"{n} steps")
true = torch.stack(
    [
        gaussian_flow_map(data.means[0], data.covs[0], points[:1], sch, 0, t)[0]
        for t in range(0, 1001, 10)
    ]
)
axes[0].plot(*true.T, "k--", lw=1, label="exact")
axes[0].set_title("one point's way from data to noise", fontsize=9)
axes[1].loglog(counts, to_noise, "o-", label="error of the noise")
axes[1].loglog(counts, there_and_back, "s-", label="round trip")
axes[1].loglog(
    counts, [to_noise[-1] * counts[-1] / n for n in counts], "k--", lw=1, label="1 / steps"
)
axes[1].set_xlabel("steps")
for ax in axes:
    ax.legend(fontsize=8)

# %% [markdown]
# So inversion is not wrong, it is *first order*: the error is proportional to the length of a step. And the round trip
# can be made exact without more steps: what is approximated is only "the noise at the state I am going to", and one can
# ask again, with the answer at hand. Each question costs one more evaluation.
#
# **Stop and think.** The round trip with iterations is nearly perfect already at 40 steps. Is the *noise* it found then
# the true one?

# %%
again = climb(exact, points, 40, again=5)[-1]
print(
    f"40 steps, 5 iterations: round trip {implicit[3]:.1e}, error of the noise {error(again, noise_of):.4f} "
    f"(without iterations {to_noise[3]:.4f})"
)

# %% [markdown]
# No. It is the noise from which *the 40-step sampler* draws this point. A perfect round trip proves that two errors
# cancel, not that the way was right.
#
# ## 3. A picture
# Now a scene that was held out of training, with `tiny`, a trained network. Everything is compared with the
# autoencoder's own copy of the picture: what it loses (notebook 06) is not the inversion's fault.

# %%
rng = np.random.default_rng([9, 1])
scene = shapes.scene(rng, objects=1, split="test")
source, target = (
    shapes.short_caption(scene),
    shapes.short_caption(shapes.edit(scene, "color", "green")),
)
image, truth = shapes.render(scene), shapes.render(shapes.edit(scene, "color", "green"))
z, words = pipe.encode(image), pipe.embed(source)
copy = pipe.decode(z)
print(
    f"“{source}” ({scene.texture}, which the words do not say); autoencoder {psnr(copy, image).item():.1f} dB"
)

plain, asked = {}, {}
for n in (10, 20, 40):
    up = climb(pipe.eps, z, n, words)
    plain[n] = psnr(pipe.decode(descend(pipe.eps, up[-1], n, words)[-1]), copy).item()
    if n == 20:
        states = up  # kept for the rest of the notebook
for k in (1, 2):
    up = climb(pipe.eps, z, 20, words, again=k)
    asked[k] = psnr(pipe.decode(descend(pipe.eps, up[-1], 20, words)[-1]), copy).item()
for n, v in plain.items():
    print(f"{n:3} steps, {n:3} evaluations up: {v:.1f} dB")
for k, v in asked.items():
    print(f" 20 steps, {20 * (k + 1):3} evaluations up ({k} iteration{'s' * (k > 1)}): {v:.1f} dB")
assert plain[40] > plain[10] + 5 and asked[2] > plain[40]

# %% [markdown]
# Nearly the same law (an error that falls as 1/steps is 6 dB for twice the steps; here 4.5 and 5.0), and the same cure:
# of two ways to spend 40 evaluations on the way up, 20 steps with one iteration give 5.8 dB more than 40 plain steps.
# The project's `invert(..., fixed_point=2)` does this, and keeps an iterate only while the change shrinks, since
# nothing guarantees that it does.
#
# 20 plain steps are already invisible to the eye. If that were all, inversion would be solved. Look at the noise that
# was found:

# %%
x_T, fresh = states[-1], pipe.noise(1, seed=0)
print(f"spread: inverted {x_T.std():.2f}, real noise {fresh.std():.2f}")
print(
    f"upper half {x_T[..., :8, :].std():.2f}, lower half, where nothing is: {x_T[..., 8:, :].std():.2f}; real noise "
    f"{fresh[..., :8, :].std():.2f} and {fresh[..., 8:, :].std():.2f}"
)
_, axes = plt.subplots(1, 8, figsize=(9, 1.5), layout="constrained")
for c in range(4):
    for ax, x, name in ((axes[c], x_T, "inverted"), (axes[4 + c], fresh, "real noise")):
        ax.imshow(x[0, c], vmin=-2.5, vmax=2.5, cmap="gray")
        ax.set_title(f"{name}, {c}", fontsize=8)
        ax.axis("off")
assert x_T.std() < 0.9 * fresh.std()

# %% [markdown]
# It is too small, and large parts of it are flat: the picture still shows in it. So the sampler, which learned to start
# from unit noise, starts from something it never saw. It finds its way back all the same, as long as it is asked the
# very same questions.
#
# ## 4. What guidance does
# An edit is drawn with guidance $w > 1$. Take the noise found above, the *same* prompt, and change nothing but $w$.

# %%
scales = (1.0, 2.0, 3.0, 7.5)
replays = {w: descend(cfg_batched(pipe.eps, pipe.null(), w), x_T, 20, words) for w in scales}
_, axes = plt.subplots(1, 6, figsize=(8, 1.7), layout="constrained")
show(axes[0], image[0], "picture")
show(axes[1], copy[0], "autoencoder")
for ax, (w, xs) in zip(axes[2:], replays.items()):
    out = pipe.decode(xs[-1])
    show(ax, out[0], f"guidance {w:g}\n{psnr(out, copy).item():.1f} dB")

# %%
plt.figure(figsize=(6, 2.6), layout="constrained")
for w, xs in replays.items():
    off = [(a - b).pow(2).mean().sqrt().item() for a, b in zip(xs, states[::-1])]
    plt.plot(range(21), off, label=f"guidance {w:g}")
plt.xlabel("step (0: noise, 20: clean)")
plt.ylabel("distance to the\ninversion's path")
plt.legend(fontsize=8)
plt.show()
both = cfg_batched(pipe.eps, pipe.null(), 3.0)
guided = climb(both, z, 20, words)
lost = {w: psnr(pipe.decode(xs[-1]), copy).item() for w, xs in replays.items()}
print(
    f"inverted without guidance, replayed at 3: {lost[3.0]:.1f} dB; inverted at 3 too: "
    f"{psnr(pipe.decode(descend(both, guided[-1], 20, words)[-1]), copy).item():.1f} dB, "
    f"with noise of spread {guided[-1].std():.2f}"
)
assert lost[1.0] > lost[3.0] + 6

# %% [markdown]
# More steps cannot help here: guidance is *another* equation, with other paths. At $w = 1$ the replay stays near the
# inversion's path, at all others it leaves it. Inverting with guidance as well is no way out either, as the last line
# shows: the guided field is stiffer, so the explicit step errs more, and that its noise is nearer to the right spread
# does not mend it.
#
# ## 5. The cures
# What would a guided replay need in order to stay on the path $z^*_T \ldots z^*_0$? The noise that leads from one state
# to the next is known, $\epsilon^* = (z^*_s - A z^*_t)/B$. Guidance offers
# $\epsilon_\varnothing + w(\epsilon_c - \epsilon_\varnothing)$, with $\epsilon_c$ the guess with the prompt and
# $\epsilon_\varnothing$ the guess with the empty one. So make the second one give way. *Null-text inversion* learns an
# embedding in place of the empty prompt, by gradient descent, anew at each step. But which $\epsilon_\varnothing$ it is
# looking for can be solved for. Do it.

# %% exercise="landing_null"

# %% [markdown]
# With this one in place of the empty prompt's guess, the guided replay must come home, at any scale and without any
# learning.

# %%
x, gap = x_T, []
with torch.no_grad():
    for i, (t, s) in enumerate(pairwise(sch.timesteps(20, spacing="trailing"))):
        e_cond, e_null = pipe.eps(x, t, words), pipe.eps(x, t, pipe.null())
        wanted = landing_null(sch, x, states[-2 - i], e_cond, t, s, 7.5)
        gap.append(
            ((wanted - e_null).pow(2).mean() / (e_cond - e_null).pow(2).mean()).sqrt().item()
        )
        x = ddim_step(sch, x, wanted + 7.5 * (e_cond - wanted), t, s)
print(
    f"guidance 7.5: plain replay {lost[7.5]:.1f} dB, with the solved null {psnr(pipe.decode(x), copy).item():.1f} dB"
)
print(
    "|wanted null - empty prompt| / |prompt - empty prompt|: "
    + " ".join(f"{v:.2f}" for v in gap[::4])
)
assert psnr(pipe.decode(x), copy).item() > 60

# %% [markdown]
# The last line tells what the answer *is*: the wanted null is as far from the empty prompt's guess as the prompt's own
# guess is. It nearly *is* the prompt's own guess, for then guidance cancels. Taking the source prompt itself as the
# null is *negative-prompt inversion*; solving exactly, as you did, is what *direct inversion* comes to.
#
# Now an edit runs two rows side by side, [source, edit], and the edit borrows attention from the source. Direct
# inversion simply puts the source row back on its path after every step. The edit row may get a share of the same
# correction: 0 as published, 1 for the same null in both rows.

# %% exercise="follow"

# %% [markdown]
# Ask for *no* change (the same prompt in both rows) and look at the edit row. The source row is perfect by
# construction, so it is no evidence of anything.

# %%
for share in (0.0, 1.0):
    x, both_words = torch.cat([x_T, x_T]), pipe.embed([source, source])  # rows: [source, edit]
    with torch.no_grad():
        for i, (t, s) in enumerate(pairwise(sch.timesteps(20, spacing="trailing"))):
            e_null, e_cond = pipe.eps(x, t, pipe.null(2)), pipe.eps(x, t, both_words)
            x = follow(
                ddim_step(sch, x, e_null + 3.0 * (e_cond - e_null), t, s), states[-2 - i], share
            )
    one, two = psnr(pipe.decode(x), copy.expand(2, -1, -1, -1)).tolist()
    print(
        f"share {share:3.1f}: source row {one:5.1f} dB, edit row {two:5.1f} dB to the autoencoder's copy"
    )
assert two > 60

# %% [markdown]
# ## 6. All of them on one picture
# The edit: make the cross green. Each method inverts in 20 steps and then runs prompt-to-prompt (notebook 09) at
# guidance 3, twice: once with the same prompt (what is lost when nothing should change?) and once with the new colour.
# EDICT is another kind of cure: it couples two states such that every step can be undone exactly, with guidance or
# without, at twice the evaluations.
#
# The mask of what may change is known, as the true answer can be rendered. *Kept* is the likeness to the truth outside
# of it; the autoencoder's copy is the ceiling.

# %%
from minidiff.editing.real_pictures import edit_each
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.inversion.ddim import Inverted
from minidiff.inversion.edict import edict
from minidiff.inversion.null_text import learn_nulls

knobs = dict(steps=20, scale=3.0, cross=0.3, self_=0.9)
# the picture twice: for no edit, and for the edit
pair = [state.expand(2, -1, -1, -1) for state in states]
methods = {
    "guided replay": lambda: Inverted(pair),
    "null-text, 3 updates": lambda: Inverted(
        pair, learn_nulls(pipe, states, source, scale=3.0, inner=3).nulls
    ),
    "negative-prompt": lambda: Inverted(pair, [words] * 20),
    "direct": lambda: Inverted(pair, share=0.0),
    "closed form (share 1)": lambda: Inverted(pair, share=1.0),
}
kept = 1 - shapes.edit_mask(scene, shapes.edit(scene, "color", "green"))
results = {}
for name, make in methods.items():
    with Cost(pipe) as learning:
        inverted = make()
    with Cost(pipe) as edits:
        out = edit_each(pipe, inverted, [source, source], [source, target], **knobs)
    # up, learning, and one of the two edits
    results[name] = out, 20 + learning.nfe + edits.nfe // 2
with warnings.catch_warnings(), Cost(pipe) as edits:
    warnings.simplefilter("ignore")
    out = edict(
        pipe, image.expand(2, -1, -1, -1), [source, source], [source, target], steps=20, scale=3.0
    )
results["EDICT, strength .7"] = out, edits.nfe // 2

print(f"{'':24}same prompt: dB to copy   edit: kept   green?   everything?   evaluations")
for name, (out, nfe) in results.items():
    same, edited = out[:1], out[1:]
    verdict = oracle().judge(edited, [shapes.edit(scene, "color", "green")], SHORT)
    print(
        f"{name:24}{psnr(same, copy).item():23.1f}   {masked_psnr(edited, truth, kept).item():7.1f} dB   "
        f"{'yes' if verdict['color'][0] else 'no':6}   {'yes' if verdict['joint'][0] else 'no':11}   {nfe:11}"
    )
print(f"{'the autoencoder alone':24}{'':23}   {masked_psnr(copy, truth, kept).item():7.1f} dB")
back = {name: psnr(out[:1], copy).item() for name, (out, _) in results.items()}
assert back["closed form (share 1)"] > 60 and back["EDICT, strength .7"] > 60
assert min(back["negative-prompt"], back["null-text, 3 updates"]) > back["guided replay"]

# %%
_, axes = plt.subplots(2, 7, figsize=(9, 3.2), layout="constrained")
show(axes[0, 0], image[0], "picture")
show(axes[1, 0], truth[0], "true answer")
for column, (name, (out, _)) in zip(axes.T[1:], results.items()):
    show(column[0], out[0], f"{name.split(',')[0].split(' (')[0]}\nsame prompt")
    show(column[1], out[1], "green")

# %% [markdown]
# Read the two columns of dB against each other.
#
# * *Nothing should change.* The closed form and EDICT return the copy exactly, negative-prompt inversion returns the
#   unguided round trip of section 3, and the others lose what guidance takes. (Null-text inversion has only three
#   updates per step here; its page has figures for ten.)
# * *The colour should change.* The order is another one. Null-text inversion and the closed form keep most.
#   Negative-prompt inversion and EDICT, so good above, keep no more than the plain guided replay: the one draws a
#   larger, louder cross and dims the ground, the other leaves a shadow below. So **a perfect round trip is not yet a
#   good edit**: it says that the noise leads back under the old questions, not where it leads under new ones.
# * *What it costs.* The closed form comes close to what null-text inversion learns, at a third of the evaluations.
#
# One picture gives directions, no ranking: `tutorials/editing/leaderboard.md` has every method on many scenes.
#
# ## Exercises
# 1. Ask for the noise at the *lower* time in `invert_step` (a widely copied mistake; `check` names it). How much worse
#    is the round trip of section 2, and what happens at $t = 0$ with a network?
# 2. Section 3 with the empty prompt, in both directions. Better or worse than with the right words? And with wrong
#    words?
# 3. Replace the share in section 5 by one that falls from 1 to 0 over the steps, and by one that grows. Which end holds
#    the layout?
# 4. `null_text(..., inner=10)` at guidance 7.5: does it reach negative-prompt inversion, and at what cost?
#    (`tutorials/inversion/null_text.md` has the figures of ours.)
# 5. Invert a picture that the model has *not* learned: mirror the scene, or draw a shape of your own. Does the round
#    trip notice?
#
# Read next: `minidiff/inversion/ddim.py`, `real_pictures.py`, `edict.py`, and their pages in `tutorials/inversion/`; then
# notebook 09.
