# %% [markdown]
# # 13 · Real weights, without downloading any
#
# *Latent diffusion*, Rombach et al. 2021, [2112.10752](https://arxiv.org/abs/2112.10752). About 10 minutes of reading, a
# quarter of a minute of running, no network.
#
# A Stable Diffusion checkpoint is a table of names and numbers. In this notebook we make one with the block plan of SD 1
# at a tenth of its width, with random numbers, write it in three public layouts, get the same numbers back from each, and
# look at one attention map. With a real file only the path changes.
#
# (The pages in `tutorials/weights/` have the tables.)

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file, save_file

import minidiff
from minidiff.core.taps import tap, tap_names
from minidiff.data import shapes
from minidiff.formats import inspect as look
from minidiff.formats.convert import convert, report
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1. A model and a file
#
# The same classes as at full size; only the arguments are smaller. A file in our own layout is just the names of each
# part behind a prefix.

# %%
torch.manual_seed(0)
words = Tokenizer.words(shapes.VOCAB)  # so that no vocabulary has to be fetched
parts = {
    "unet": UNet(channels=(32, 64, 128, 128)),  # SD 1 has (320, 640, 1280, 1280)
    "vae": VAE(channels=(32, 32, 64, 64)),
    "text": CLIPText(len(words), 768, 1, 12, 20, mlp_ratio=1, eos_id=2),
}
for part, net in parts.items():
    print(
        f"{part:5}{sum(p.numel() for p in net.parameters()):>12,} parameters, {len(net.state_dict())} tensors"
    )
save_file(
    {f"{part}.{name}": x for part, net in parts.items() for name, x in net.state_dict().items()},
    folder / "ours.safetensors",
)

# %% [markdown]
# ## 2. What is it?
#
# `inspect` reads the header only. A UNet of this width was never released, so one thing stays open: into how many heads
# its attention is divided is written nowhere, and is not guessed.

# %%
print(look.table(look.inspect(folder / "ours.safetensors")).replace(f"{folder}/", ""))

# %% [markdown]
# ## 3. There and back
#
# From our names to the original single file, from there to a diffusers folder, and back. Every tensor must find its
# place; the report counts them.

# %%
heads = {"unet": 8}
done = convert(
    folder / "ours.safetensors", folder / "original.safetensors", to="original", heads=heads
)
print(report(done).replace(f"{folder}/", ""))
convert(folder / "original.safetensors", folder / "diffusers", to="diffusers", heads=heads)
convert(folder / "diffusers", folder / "back.safetensors", to="minidiff")
for path in sorted((folder / "diffusers").rglob("*.*")):
    print(path.relative_to(folder), path.stat().st_size, "bytes")

# %%
before, after = load_file(folder / "ours.safetensors"), load_file(folder / "back.safetensors")
equal = before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
print(len(before), "tensors; equal to the bit:", equal)
assert equal
original = load_file(folder / "original.safetensors")
for name in (
    "unet.up_blocks.0.upsamplers.0.conv.weight",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
):
    there = next(
        k
        for k, x in original.items()
        if x.shape == before[name].shape and torch.equal(x, before[name])
    )
    print(f"{name}\n    is {there}")

# %% [markdown]
# ## 4. Load it and run it
#
# The answer of `minidiff.load` is the bundle that `minidiff.load("tiny")` gives too, so every technique of this project
# takes it.

# %%
pipe = minidiff.load(folder / "diffusers", tokenizer=words)
print(pipe.prediction, pipe.spacing, "end", pipe.end, "guidance", pipe.scale, pipe.shape)
image = pipe.generate("a red circle on a blue background", steps=4, height=128, width=128)
other = minidiff.load(folder / "original.safetensors", tokenizer=words, heads=heads)
same = other.generate("a red circle on a blue background", steps=4, height=128, width=128)
print(tuple(image.shape), "the same picture from both layouts:", torch.equal(image, same))
assert torch.equal(image, same)

# %% [markdown]
# ## 5. What no name says
#
# A file holds names, shapes and numbers. That is not all one must know to use it. The feed-forward layer of every
# transformer block projects to twice its width and lets one half gate the other; *which* half is written nowhere. Take
# the wrong one, and every shape fits, nothing complains, and a loaded model draws noise.

# %% exercise="geglu"

# %% [markdown]
# Straight from the file, beside the network that was loaded from it, and with the halves exchanged:

# %%
name = "mid_block.attentions.0.transformer_blocks.0.ff.net.0"
weight, bias = (before[f"unet.{name}.proj.{what}"] for what in ("weight", "bias"))
x = torch.randn(1, 4, weight.shape[1], generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    theirs = pipe.net.get_submodule(name)(x)
h = torch.nn.functional.linear(x, weight, bias)
exchanged = h.roll(h.shape[-1] // 2, -1)
right = (geglu(h) - theirs).abs().max()
wrong = (geglu(exchanged) - theirs).abs().max()
print(
    f"your gate on the file's numbers against the loaded network: {right:.1e}; "
    f"with the halves exchanged: {wrong:.2f}"
)
assert right < 1e-5 and wrong > 0.01

# %% [markdown]
# ## 6. One attention map
#
# Every attention layer has a tap. Here we listen to the cross-attention on the way up while it looks at noise, and draw
# how much each place reads each word. With random weights there is nothing to see but the mechanism: every word gets
# about the same share.

# %%
prompt = "a red circle on a blue background"
seen = []
name = tap_names(pipe.net, "up_blocks.2.*attn2.probs")[0]
with torch.no_grad(), tap(pipe.net, name, lambda probs, _: seen.append(probs)):
    pipe.eps(
        torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)),
        500,
        pipe.embed(prompt),
    )
side = int(seen[0].shape[2] ** 0.5)
maps = seen[0].mean(1)[0].unflatten(0, (side, side))  # mean over heads
print(name, tuple(seen[0].shape), "(batch, heads, places, words)")
spans = words.token_spans(prompt)
figure, axes = plt.subplots(1, len(spans), figsize=(10, 1.9), layout="constrained")
for axis, (word, where) in zip(axes, spans):
    axis.imshow(maps[..., where].sum(-1), vmin=0, vmax=2 / words.context)
    axis.set(title=word, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Exercises
#
# 1. Rename one tensor in `original.safetensors` and load it. What does the line say? And if you add one?
# 2. Load the folder again after writing `"attention_head_dim": 4` into `unet/config.json`. Is the picture the same?
# 3. Write `{"a": torch.full((2,), float("nan"))}` into a file and inspect it; then put a NaN into the model and load it.
#
# Next: [from a file to a picture](../tutorials/weights/from_a_file_to_a_picture.md), and `minidiff/formats/keymaps.py`,
# where every name stands.
