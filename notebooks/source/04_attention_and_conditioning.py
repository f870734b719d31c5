# %% [markdown]
# # 04 · Attention and conditioning
#
# Vaswani et al. 2017, [1706.03762](https://arxiv.org/abs/1706.03762); Radford et al. 2021, [2103.00020](https://arxiv.org/abs/2103.00020) (CLIP); Rombach et al. 2021, [2112.10752](https://arxiv.org/abs/2112.10752) (how its words came to steer a diffusion model); Hertz et al. 2022, [2208.01626](https://arxiv.org/abs/2208.01626) (what the maps are good for). About 20 minutes of reading, half a minute of running, no network.
#
# A denoiser is told a sentence. Where does the sentence go? Into one kind of layer, in which every place of the picture asks every word. This notebook builds that layer, puts it into the trained network in place of the network's own, looks at who asks whom, and then silences single words to see what is lost. Half of all editing techniques are nothing but this last move, done more cleverly.

# %%
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

import minidiff
from minidiff.core.process import q_sample
from minidiff.core.taps import tap, tap_names
from minidiff.data import shapes
from minidiff.evaluate.oracle import oracle
from minidiff.samplers.ddim import ddim

pipe = minidiff.load("tiny")

# %% [markdown]
# ## 1. A soft look-up
#
# A dictionary has keys and values; a query that equals a key gets its value. Attention is the soft version, so that it has a derivative: compare the query $q$ with all $m$ keys $k_j$ by scalar products, turn these into shares that sum to 1, and mix the values $v_j$ accordingly:
#
# $$\mathrm{out} = \sum_j p_j\, v_j, \qquad p_j = \frac{e^{q \cdot k_j / \sqrt d}}{\sum_i e^{q \cdot k_i / \sqrt d}} .$$
#
# $d$ is the length of $q$; without the root, products of long vectors would be so large that one share is 1 and all others 0. *Multi-head* attention cuts the channels into `heads` blocks and does this in each block apart, so that one place can ask several questions at once. In einops the cut is `"b n (h d) -> b h n d"`: b rows, n queries, h heads of d channels.

# %% exercise="attention"

# %% [markdown]
# Two facts that hold for any attention. A long query finds its key exactly, a short one gets the mean. And a *set* goes in: shuffle keys and values together, and nothing changes. Whatever depends on order (which word came first) must be in the vectors themselves.

# %%
g = torch.Generator().manual_seed(0)
keys, values = torch.eye(8)[None], torch.randn(1, 8, 8, generator=g)
for length in (0.0, 3.0, 100.0):
    out = attention(length * keys[:, 2:3], keys, values, 1)
    print(
        f"query {length:5g} times key 2: {(out - values[:, 2]).norm():.3f} from value 2, "
        f"{(out - values.mean(1)).norm():.3f} from the mean of all"
    )
q, order = torch.randn(1, 5, 8, generator=g), torch.randperm(8, generator=g)
shuffled = attention(q, keys[:, order], values[:, order], 2)
assert (shuffled - attention(q, keys, values, 2)).abs().max() < 1e-5
fused = F.scaled_dot_product_attention(
    *(rearrange(x, "b n (h d) -> b h n d", h=2) for x in (q, keys, values))
)
assert (attention(q, keys, values, 2) - rearrange(fused, "b h n d -> b n (h d)")).abs().max() < 1e-5

# %% [markdown]
# ## 2. From words to vectors
#
# A *tokenizer* turns the prompt into a row of 20 numbers: a start mark, the words, an end mark, padding. A small transformer, the *text tower*, turns each number into a vector of 128. (Stable Diffusion: 77 numbers, pieces of words, vectors of 768.)

# %%
prompt = "a large red star on a dotted green background"
print(pipe.tokenizer(prompt)[0].tolist())
print(pipe.tokenizer.token_spans(prompt))
print(tuple(pipe.embed(prompt).text.shape))

# %% [markdown]
# The tower is attention again, between words. CLIP's reads from left to right: token $i$ may look at tokens $0 \dots i$ only. This is done by adding $-\infty$ to the forbidden products before the softmax.

# %% exercise="causal_mask"


# %%
def readings(noun, n=12):
    """Random keys and queries of 12 words, of which the last is exchanged; which outputs notice?"""
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(1))
    x[-1] = noun
    return [
        ((x @ x.T) / 8**0.5 + mask).softmax(-1) @ x for mask in (torch.zeros(n, n), causal_mask(n))
    ]


free, causal = ((a - b).norm(dim=1) for a, b in zip(readings(1.0), readings(-1.0)))
print(
    "tokens that notice another last word: reading freely",
    (free > 1e-6).sum().item(),
    "of 12; causal",
    (causal > 1e-6).sum().item(),
)
assert (causal > 1e-6).sum() == 1


def state(prompt, word):
    return pipe.embed(prompt).text[0, dict(pipe.tokenizer.token_spans(prompt))[word][0]]


pairs = [
    ("a cyan square left of a red circle", "a cyan square left of a blue star", "square"),
    ("a cyan square left of a red circle", "a red square left of a cyan circle", "square"),
    (
        "a small red circle on a white background",
        "a large red circle on a white background",
        "circle",
    ),
]
for a, b, word in pairs:
    print(
        f"likeness of '{word}' in '{a}' and '{b}': {F.cosine_similarity(state(a, word), state(b, word), dim=0):.3f}"
    )

# %% [markdown]
# A causal "square" cannot know what stands to its right. `tiny`'s tower is not causal: its words are about each other. The vector of a noun turns with the noun's own colour (.94) and size (.84), and hardly with the shape of its neighbour (.999). Remember this for section 5.
#
# ## 3. Cross-attention: places ask words
#
# In the network the queries come from the picture's places (16 x 16 of them, or 8 x 8), keys and values from the words. To look inside, and to reach in, every tensor of interest passes through a `Tap`: an identity with a name. `tap(net, pattern, fn)` calls `fn(x, name)` there while the block lasts; what it returns replaces the tensor, `None` only looks. Write the function that all attention of this project runs through, with its taps. (`module.logits.fns or module.probs.fns` says whether somebody listens; if nobody does, maps need not be formed.)

# %% exercise="attend"

# %% [markdown]
# Now the test that counts: put *your* function into the trained network and ask it about a noisy picture. First alone, then with listeners at every map, who change nothing.

# %%
rng, scenes = np.random.default_rng(3), []
while len(scenes) < 6:
    s = shapes.scene(rng, objects=1)
    scenes += [s] * (s.texture != "plain")
captions = [shapes.caption(s) for s in scenes]
z, cond = pipe.encode(shapes.render(scenes)), pipe.embed(captions)
x_t, t = q_sample(pipe.schedule, z, 600, pipe.noise(6, seed=7)), 600
CROSS = r"attn2\.probs$"

with torch.no_grad():
    own = pipe.eps(x_t, t, cond)
    with patch("minidiff.models.attention.attend", attend):
        yours = pipe.eps(x_t, t, cond)
        with tap(pipe.net, r"probs$", lambda p, name: p.clone()) as names:
            listened = pipe.eps(x_t, t, cond)
print(
    f"your attention in all {len(names)} layers: largest difference {(yours - own).abs().max():.0e}, "
    f"with identity taps {(listened - own).abs().max():.0e}"
)
assert (yours - own).abs().max() < 1e-4 and (listened - own).abs().max() < 1e-4
print(*tap_names(pipe.net, CROSS), sep="\n")

# %% [markdown]
# ## 4. What does each word see?
#
# A cross-attention map is a picture: how much of its attention each place gives to one word. We record the maps of the finest layers (16 x 16 places), while the network looks at a noisy *render*. So we know where things are, and need not judge by eye.


# %%
def maps_of(x_t, t, cond):
    """Maps (b words 16 16), averaged over heads and the three fine layers."""
    seen = []
    with (
        torch.no_grad(),
        tap(pipe.net, CROSS, lambda p, name: seen.append(p.mean(1)) if p.shape[2] == 256 else None),
    ):
        pipe.eps(x_t, t, cond)
    return rearrange(torch.stack(seen).mean(0), "b (h w) m -> b m h w", h=16)


maps = maps_of(x_t, t, cond)
# share of the object
inside = F.interpolate(shapes.object_masks(scenes)[:, :1], (16, 16), mode="area")[:, 0]
on_object = {}
for i, (s, caption) in enumerate(zip(scenes, captions)):
    spans, o = pipe.tokenizer.token_spans(caption), s.objects[0]
    for role, word in (("shape", o.shape), ("colour", o.color), ("texture", s.texture)):
        m = maps[i, dict(reversed(spans))[word]].sum(0)
        on_object.setdefault(role, []).append(
            ((m * inside[i]).sum() / m.sum() / inside[i].mean()).item()
        )
for role, ratio in on_object.items():
    print(
        f"{role:8} word: {np.mean(ratio):5.2f} times as much on the object as evenly spread attention would have "
        f"(six scenes: {min(ratio):.2f} to {max(ratio):.2f})"
    )
assert np.mean(on_object["shape"]) > 3 and np.mean(on_object["texture"]) < 1

k = 1
shown = [
    (w, m)
    for w, m in pipe.tokenizer.token_spans(captions[k])
    if w not in ("a", "on", "in", "the", "at")
]
fig, ax = plt.subplots(1, 2 + len(shown), figsize=(11, 1.8), layout="constrained")
ax[0].imshow(shapes.render(scenes[k])[0].permute(1, 2, 0) / 2 + 0.5)
ax[1].imshow((pipe.decode(x_t[k : k + 1])[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1))
for a, (word, m) in zip(ax[2:], shown):
    a.imshow(maps[k, m].sum(0), cmap="magma")
    a.set_title(f"{word}\n{maps[k, m].sum(0).mean():.2f}", fontsize=8)
ax[0].set_title("the scene", fontsize=8)
ax[1].set_title("t = 600, decoded", fontsize=8)
for a in ax:
    a.axis("off")

# %% [markdown]
# At $t = 600$ hardly anything can be seen, and yet the shape and colour words are looked at from where the object is, the texture word from everywhere else. In this scene the size word is even looked at from the rim, where size is decided. (Below the words: the share of all attention that each gets. Each map is drawn on its own scale.)
#
# ## 5. Silence one word
#
# A tap may also replace. We draw the same noise several times and, in each row of the batch, set the map of one word to zero in *all* cross-attention layers: no place can hear it. Beside it, the prompt without that word. What is missing then? The oracle, a classifier trained apart, reads the pictures.

# %%
words = dict(pipe.tokenizer.token_spans(prompt))
silent = {
    "nothing": [],
    "red": ["red"],
    "star": ["star"],
    "dotted": ["dotted"],
    "green": ["green"],
    "dotted, green, background": ["dotted", "green", "background"],
}
left_out = {w: prompt.replace(w + " ", "") for w in ("red", "dotted", "green")} | {
    "star": prompt.replace(" star", "")
}
seeds, keep = 2, torch.ones(len(silent) + len(left_out), 20)
for row, group in enumerate(silent.values()):
    keep[row, [i for w in group for i in words[w]]] = 0.0
keep = keep.repeat_interleave(seeds, 0)  # rows: case 0 seed 0, case 0 seed 1, case 1 ...
prompts = [p for p in [prompt] * len(silent) + list(left_out.values()) for _ in range(seeds)]


def guided(x, t, cond):
    e_null = pipe.eps(x, t, pipe.null(len(x)))
    # b h places words
    with tap(pipe.net, CROSS, lambda probs, name: probs * keep[:, None, None, :]):
        e_cond = pipe.eps(x, t, cond)
    return e_null + 3 * (e_cond - e_null)


start = pipe.noise(seeds, seed=1).repeat(len(keep) // seeds, 1, 1, 1)
images = pipe.decode(
    ddim(guided, pipe.schedule, start, pipe.embed(prompts), steps=8, spacing="trailing")
)
titles = [f"silenced: {k}" for k in silent] + [f"left out: {k}" for k in left_out]
fig, ax = plt.subplots(2, 5, figsize=(8.5, 4), layout="constrained")
for i, (a, title) in enumerate(zip(ax.flat, titles)):
    a.imshow((images[seeds * i].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1), interpolation="nearest")
    a.set_title(title.replace(": dotted, green, ", ":\ndotted, green, "), fontsize=8)
    a.axis("off")
read = oracle().read(images)
for i, title in enumerate(titles):
    print(
        f"{title:38}",
        "; ".join(
            " ".join(
                [
                    r["texture"],
                    r["background"],
                    "/",
                    *(f"{o['size']} {o['color']} {o['shape']}" for o in r["objects"]),
                ]
            )
            for r in read[seeds * i : seeds * (i + 1)]
        ),
    )
background = [r["background"] for r in read[::seeds]]
assert background[4] == "green" != background[8] and read[0]["objects"][0]["shape"] == "star"

# %% [markdown]
# * **star, dotted:** silenced or left out, much the same happens: some other shape, and stripes in place of dots. What the network draws unasked is not nothing, it is its own favourite.
# * **red:** silenced, the star turns pale in one picture and stays red in the other. *Left out*, the object itself breaks: every caption of the training names a colour, and "a large star" is a sentence the network has never seen.
# * **green:** left out, the ground turns purple. Silenced, it stays green, even when "dotted" and "background" are silenced with it. The places cannot hear the word, and know it all the same: the text tower has told other tokens (section 2).
#
# So a map shows where a word is *looked at*, and not all that the word *does*. Attention is one road of two, and techniques that edit maps alone inherit that limit.
#
# **Stop and think.** Where can "green" have gone? How would you find the tokens that carry it, with the tools of this notebook?
#
# ## Exercises
#
# 1. In section 4, $t = 900$ and $t = 100$. When does the colour word find its object?
# 2. Silence a word in the first half of the steps only, then in the second only. When is the shape decided, when the colour? (Prompt-to-prompt's `cross` is that number.)
# 3. After zeroing, divide each map by its sum, so that the other words get the silenced one's share. Which attribute survives now, and why?
# 4. Zero the end mark and the padding (tokens 10 to 19). Do they matter?
# 5. Multiply the map of "large" by 3 in place of 0. That is "reweight" of prompt-to-prompt.
#
# Next: [05, guidance](05_guidance.ipynb). The layer is `minidiff/models/attention.py`, taps are `minidiff/core/taps.py`, the editing that grows out of section 5 is `tutorials/editing/prompt_to_prompt.md`.
