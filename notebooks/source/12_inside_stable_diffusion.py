# %% [markdown]
# # 12 · Inside Stable Diffusion
#
# *Latent diffusion*, Rombach et al. 2021, [2112.10752](https://arxiv.org/abs/2112.10752); *CLIP*, Radford et al. 2021,
# [2103.00020](https://arxiv.org/abs/2103.00020). About 20 minutes of reading, half a minute of running, no network; no weights are
# needed.
#
# **The problem.** Papers say "we inject the self-attention of the decoder at 16x16". Where is that, how large is it, and
# what would it cost to keep all of it? Stable Diffusion 1.5 has a billion parameters, but its *shapes* weigh
# nothing. On torch's "meta" device tensors have shapes and no memory, so the whole model can be built, run and counted on
# any laptop. At the end, if you have the weights, the same code runs with them.

# %%
import os
from collections import Counter, defaultdict

import matplotlib.pyplot as plt
import torch
from torch.utils.flop_counter import FlopCounterMode

import minidiff
from minidiff.analysis.trace import trace
from minidiff.core.cond import Cond
from minidiff.core.taps import tap
from minidiff.models.attention import TransformerBlock
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer

# or write the path of a checkpoint or a diffusers folder here
SD15 = os.environ.get("MINIDIFF_SD15", "")

pipe = minidiff.build("sd15", device="meta")
count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
sizes = {"UNet": count(pipe.net), "VAE": count(pipe.vae), "text tower": count(pipe.text)}
for name, n in sizes.items():
    print(
        f"{name:12}{n:>14,} parameters, {n * 4 / 2**30:.2f} GiB in float32, {n * 2 / 2**30:.2f} in float16"
    )
assert sizes["UNet"] == 859_520_964  # the number of the public checkpoint

# %% [markdown]
# A prompt becomes 77 vectors (text tower). The UNet turns noise of 4x64x64 numbers into latents of the same shape, asked
# 20 to 50 times, twice each for guidance. The VAE makes 3x512x512 pixels of them: 48 times as many numbers.
#
# ## 1. From words to 77 vectors
#
# CLIP spells: it starts from bytes and glues together the neighbouring pair that was learned earliest, again and again.
# The real list has 48,894 such merges, and is not shipped here; with a toy list of six one sees all that happens.

# %%
merges = [("s", "t"), ("a", "r</w>"), ("st", "ar</w>"), ("r", "e"), ("re", "d</w>"), ("st", "re")]
toy = Tokenizer.bpe(merges)
for word in ("star", "red", "stare", "tsar"):
    print(f"{word:6}", [toy.speller.names[i] for i in toy.ids(word)])
print("a row:", toy("a red star")[0, :10].tolist(), "... of", toy("a red star").shape[1])
vocabulary = 256 + 256 + 48_894 + 2  # bytes, bytes that end a word, merges, start and end
table = pipe.text.embeddings["token_embedding"].weight
print(
    f"256 + 256 + 48,894 + 2 = {vocabulary:,}; the tower's table has {table.shape[0]:,} rows of {table.shape[1]}"
)
assert vocabulary == table.shape[0] and toy("a red star").shape == (1, 77)

# %% [markdown]
# The tower is a transformer that reads from left to right: before the softmax, minus infinity is added wherever a token
# would look at a later one.

# %% exercise="causal_mask"

# %% [markdown]
# Is that mask the one in use? A small tower with random weights and a tap on its attention says. And it has a consequence
# that every user of prompts has met: what comes later in a prompt cannot change how an earlier word is read.

# %%
torch.manual_seed(0)
tower = CLIPText(99, 64, 2, 4, 12, eos_id=98).eval().requires_grad_(False)
a = torch.tensor([[1, 5, 6, 7, 8, 9, 98]])
b = torch.tensor([[1, 5, 6, 40, 41, 42, 98]])  # other words from the fourth token on
seen = {}
with tap(tower, r"layers.0.self_attn.probs$", lambda x, name: seen.update(probs=x)):
    states = tower(a)
first = tower.encoder.layers[0]
x = first.layer_norm1(tower.token_embeds(a) + tower.embeddings["position_embedding"].weight[:7])
q, k = (
    f(x).unflatten(-1, (4, 16)).transpose(1, 2)
    for f in (first.self_attn.q_proj, first.self_attn.k_proj)
)
ours = (q @ k.mT / 4 + causal_mask(7)).softmax(-1)
print(f"attention with your mask against the tower's: {(ours - seen['probs']).abs().max():.1e}")
same = (states - tower(b)).abs().amax((0, 2))
print("how much each state changes when words 4 to 6 change:", [f"{v:.2f}" for v in same])
assert (ours - seen["probs"]).abs().max() < 1e-5 and same[:3].max() < 1e-5 < 0.01 < same[3:].min()

# %% [markdown]
# **Stop and think.** "A red circle on a blue square": which of the states can know that the circle is red? Which that
# there is a square?
#
# ## 2. Where the parameters sit
#
# `trace` runs the network once on meta tensors and notes what each block returns. Four levels on the way down, from 64x64
# places to 8x8; a middle; four levels up, each fed with the *skips* of the way down.

# %%
rows = trace("sd15")
for r in rows[:6]:
    print(f"{r['name']:30}{r['kind']:20}{r['shape']!s:22}{r['parameters']:>12,}")
print("...", len(rows), "blocks")
kinds, levels = Counter(), defaultdict(Counter)
side = {
    "down_blocks.0": 64,
    "down_blocks.1": 32,
    "down_blocks.2": 16,
    "down_blocks.3": 8,
    "mid_block": 8,
    "up_blocks.0": 8,
    "up_blocks.1": 16,
    "up_blocks.2": 32,
    "up_blocks.3": 64,
}
for r in rows:
    kinds[r["kind"]] += r["parameters"]
    level = next((k for k in side if r["name"].startswith(k)), "rest")
    levels[level][r["kind"]] += r["parameters"]
print({k: f"{v / sizes['UNet']:.0%}" for k, v in kinds.most_common(3)})
assert sum(kinds.values()) == sizes["UNet"]

c, ct = 1280, 1280  # one ResBlock by hand: two 3x3 convolutions, the time, two norms
by_hand = (9 * c * c + c) * 2 + (ct * c + c) + 4 * c
print(f"a ResBlock of 1280 channels by hand: {by_hand:,}")
assert by_hand == next(r["parameters"] for r in rows if r["name"] == "mid_block.resnets.0")

# %% [markdown]
# How much is *computed* where is another question: a convolution's weights are used at every place. `FlopCounterMode`
# counts multiplications and additions; half of them are multiplications.

# %%
z, cond = (
    torch.zeros(1, 4, 64, 64, device="meta"),
    Cond(text=torch.zeros(1, 77, 768, device="meta")),
)
with FlopCounterMode(display=False) as counter:
    pipe.eps(z, 500, cond)
flops, work, area = counter.get_flop_counts(), defaultdict(Counter), {}
for r in rows:
    level = next((k for k in side if r["name"].startswith(k)), "rest")
    work[level][r["kind"]] += sum(flops.get(f"UNet.{r['name']}", {}).values()) / 2e9
total = counter.get_total_flops() / 2e9
print(f"one evaluation of the UNet on one latent: {total:.0f} billion multiplications")

names = [*side]
_, ax = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained", sharey=True)
for a, (what, table, unit) in zip(ax, (("parameters", levels, 1e6), ("multiplications", work, 1))):
    left = [0.0] * len(names)
    for kind, label in (
        ("ResBlock", "ResBlocks"),
        ("SpatialTransformer", "transformers"),
        (None, "up- and downsampling"),
    ):
        width = [
            sum(
                v
                for k, v in table[n].items()
                if k == kind or (kind is None and k not in ("ResBlock", "SpatialTransformer"))
            )
            / unit
            for n in names
        ]
        a.barh([f"{n} ({side[n]}x{side[n]})" for n in names], width, left=left, label=label)
        left = [x + w for x, w in zip(left, width)]
    a.set(title=f"{what}, in {'millions' if unit > 1 else 'billions'}")
ax[0].invert_yaxis()
ax[1].legend()


def share(t, places):
    return sum(sum(t[n].values()) for n in names if side[n] in places) / sum(
        sum(v.values()) for v in t.values()
    )


print(
    f"at 8x8 and 16x16: {share(levels, (8, 16)):.0%} of the parameters, {share(work, (8, 16)):.0%} of the work; "
    f"at 64x64: {share(levels, (64,)):.0%} and {share(work, (64,)):.0%}"
)
assert share(levels, (8, 16)) > 0.7 and share(work, (64,)) > 0.35

# %% [markdown]
# The model *knows* at the bottom and *works* at the top. A block at 8x8 is large and nearly free; one at 64x64 is small
# and dear. Leave out a block at 8x8, and the file is smaller and a step hardly faster; thin out the places at 64x64, and
# it is the other way round.
#
# ## 3. Attention, and all of its maps
#
# Every transformer has two attentions: `attn1`, places looking at places, and `attn2`, places looking at the 77 tokens.
# Both are the same function. Cut the channels into 8 heads, and in each form $\mathrm{softmax}(q k^T / \sqrt d)\, v$.

# %% exercise="attention"

# %% [markdown]
# Against the real thing: one transformer block of Stable Diffusion's first level, at its true width, with random weights.

# %%
torch.manual_seed(0)
block = TransformerBlock(320, 8, 768).eval().requires_grad_(False)
x, text, got = torch.randn(1, 256, 320), torch.randn(1, 77, 768), {}
for name in ("attn1", "attn2"):
    module = getattr(block, name)
    context = x if name == "attn1" else text
    ours = module.to_out[0](
        attention(module.to_q(x), module.to_k(context), module.to_v(context), module.heads)
    )
    error = (ours - module(x, context)).abs().max()
    print(
        f"{name}: queries {tuple(x.shape)}, keys and values from {tuple(context.shape)}, difference {error:.1e}"
    )
    assert error < 1e-5

# %% [markdown]
# Now the maps themselves. A tap on every `probs` of the whole network, on the meta device, so that even the 64x64 ones
# cost nothing:

# %%
maps = {}
with tap(pipe.net, r"attn[12]\.probs$", lambda x, name: maps.update({name: tuple(x.shape)})):
    pipe.eps(z, 500, cond)
size = lambda s: s[0] * s[1] * s[2] * s[3] * 4 / 2**20  # noqa: E731 - MiB in float32
by_shape = Counter((n.split(".")[-2], s) for n, s in maps.items())
print("kind    (rows, heads, queries, keys)   how many   MiB each   MiB together")
for (kind, s), n in sorted(by_shape.items(), key=lambda v: -size(v[0][1])):
    print(f"{kind:8}{s!s:30}{n:6}{size(s):14.2f}{n * size(s):13.1f}")
both = {
    kind: sum(size(s) for n, s in maps.items() if f".{kind}." in n) for kind in ("attn1", "attn2")
}
print(
    f"{len(maps)} maps: all self-attention {both['attn1'] / 1024:.2f} GiB, all cross-attention {both['attn2']:.0f} MiB"
)
at16 = [n for n, s in maps.items() if ".attn2." in n and s[2] == 256]
print(
    "cross-attention at 16x16:",
    Counter(n.split(".")[0] for n in at16),
    "as many as prompt-to-prompt averages",
)
assert len(maps) == 32 and len(at16) == 5 and by_shape["attn1", (1, 8, 4096, 4096)] == 5

# %% [markdown]
# That table explains half of the engineering in editing papers. The five self-attention maps at 64x64 weigh half a GiB
# each, for one picture and one step. Cross-attention is forty times smaller, so Prompt-to-Prompt can keep all of
# it; MasaCtrl keeps keys and values instead of maps; and whoever draws "where the word was looked at" averages the five
# maps of 16x16. Plug-and-Play keeps queries and keys, for the same reason.
#
# **Stop and think.** Attention maps are only formed while somebody looks (`attend` in `minidiff/models/attention.py`);
# otherwise a fused kernel gives the result without them. What does a tap on `attn1` at 64x64 cost, then?
#
# ## 4. What a step costs
#
# The skips are the other thing that must wait in memory: what the way down hands to the way up.

# %%
skips = {}
with tap(pipe.net, r"^skip\.", lambda x, name: skips.update({name: tuple(x.shape)})):
    pipe.eps(z, 500, cond)
held = sum(torch.Size(s).numel() for s in skips.values()) * 4 / 2**20
with FlopCounterMode(display=False) as decoder:
    pipe.vae.decode(z)
with FlopCounterMode(display=False) as reading:
    pipe.text(torch.zeros(1, 77, dtype=torch.long, device="meta"))
steps, rows_a_step = 50, 2  # guidance asks twice
print(
    f"{len(skips)} skips, {held:.0f} MiB for one row; the weights: {sizes['UNet'] * 4 / 2**20:,.0f} MiB"
)
costs = {
    "text tower, once": reading.get_total_flops() / 2e12,
    "UNet, 50 steps of 2 rows": steps * rows_a_step * total / 1e3,
    "decoder, once": decoder.get_total_flops() / 2e12,
}
for name, n in costs.items():
    print(f"{name:26}{n:8.2f} million million multiplications")
print(
    f"a processor that does 100 billion a second needs {sum(costs.values()) * 10 / 60:.0f} minutes for one picture"
)
assert len(skips) == 12 and costs["UNet, 50 steps of 2 rows"] > 20 * costs["decoder, once"]

# %% [markdown]
# The time enters every ResBlock, as a vector. It begins as 320 cosines and sines of the network's time, of frequencies
# from 1 down to 1/10000, which two linear layers turn into 1280 numbers:

# %% exercise="timestep_embedding"

# %%
t = torch.arange(0, 1000, 10)
waves = timestep_embedding(t, 320)
near = torch.cdist(waves, waves)
_, ax = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
ax[0].imshow(waves.T, aspect="auto", extent=(0, 1000, 320, 0), cmap="coolwarm")
ax[0].set(title="the embedding: cosines, then sines", xlabel="network time", ylabel="entry")
ax[1].plot(t, near[[0, 50]].T, label=["from t = 0", "from t = 500"])
ax[1].set(title="distance between embeddings", xlabel="network time")
ax[1].legend()
print(
    "length of every embedding:",
    waves.norm(dim=1).unique().round(decimals=3).unique().tolist(),
    "= sqrt(160)",
)
assert (waves.norm(dim=1) - 160**0.5).abs().max() < 1e-3 and near[50].argmin() == 50

# %% [markdown]
# ## 5. With real weights
#
# Set the environment variable `MINIDIFF_SD15` (or `SD15` in the first cell) to a checkpoint file or a diffusers folder of
# Stable Diffusion 1.5, and run the next cell again. It draws eight steps of a picture, a few minutes on two cores and
# about 5 GB of memory, and averages the five maps of 16x16 you found above.

# %%
if not SD15:
    print(
        "no path is given: skipped. Everything above is about shapes, and is the same with weights."
    )
else:
    real = minidiff.load(SD15)
    assert count(real.net) == sizes["UNet"], (
        f"{count(real.net):,} parameters: not the UNet of Stable Diffusion 1"
    )
    prompt, looks = "a photo of a red apple on a wooden table", defaultdict(list)
    with tap(
        real.net,
        "|".join(n.replace(".", r"\.") + "$" for n in at16),
        lambda x, name: looks[name].append(x[-1].mean(0)),
    ):
        # rows are [null, cond]: x[-1] is cond
        picture = real.generate(prompt, steps=8, sampler="dpm++", seed=0)
    heat = torch.stack([m for layer in looks.values() for m in layer]).mean(0)  # 256 77
    spans = real.tokenizer.token_spans(prompt)
    _, ax = plt.subplots(1, len(spans) + 1, figsize=(11, 1.6), layout="constrained")
    ax[0].imshow(((picture[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).float())
    for a, (word, places) in zip(ax[1:], spans):
        a.imshow(heat[:, places].sum(1).unflatten(0, (16, 16)).float())
        a.set_title(word, fontsize=8)
    for a in ax:
        a.set(xticks=[], yticks=[])

# %% [markdown]
# ## Exercises
#
# 1. Build `sd21` and compare: heads, width of the text, vocabulary, where the parameters went.
# 2. `z` of 96x96 instead of 64x64 (768 pixels). Predict the size of the largest map before you run it.
# 3. The first level at half the channels: `UNet(channels=(160, 640, 1280, 1280))` on meta. How many parameters go, how
#    much work?
# 4. `trace("sd15", part="vae")`: which block of the decoder needs most, and why does decoding need more memory than a step?
# 5. `trace("dit-xl-2")`: where are levels and skips in a transformer?
#
# Next: [from a file to a picture](../tutorials/weights/from_a_file_to_a_picture.md),
# [the text tower](../tutorials/weights/text.md), and notebook 13, which writes and reads checkpoints.
