"""Training the tiny CLIP, whose text tower conditions the tiny models.

After Alec Radford et al., 2021, arXiv 2103.00020.

Half of every batch are twins: the same scene with one attribute changed, and its caption. Without
them colour alone tells the pairs of a batch apart, and "circle" and "square" end up as nearly one
vector. Each twin pair also shares its caption's form (short, or with the same groups left out), so
only the changed word can decide.

A contrastive loss alone lets words that the image tower cannot yet tell apart fall together (star
and cross came within a tenth of the usual distance). So every state must also say which word it
stands for:

    loss = contrastive + .5 CE(E^T h_i, word_i),     E: token embeddings (tied)

`word_distances` is the gate: the state at the shape word, for all pairs of shapes; what lies too
close in the frozen states, the denoiser learns late or never.
"""

from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data import shapes
from minidiff.models.clip import CLIP, contrastive_loss
from minidiff.train.processes import gathered

# drawn evenly
TWINS = ("shape", "shape", "shape", "color", "size", "position", "background", "texture")
MAY_BE_LEFT_OUT = ("size", "position", "texture")  # of a caption


def twin(scene: shapes.Scene, rng: np.random.Generator) -> tuple[shapes.Scene, str]:
    """(a copy with one attribute changed, which one): shapes most often."""
    what = TWINS[rng.integers(len(TWINS))]
    index = int(rng.integers(len(scene.objects)))
    changed = scene.objects[index]
    places = shapes.PAIRS if len(scene.objects) == 2 else shapes.POSITIONS
    choices, now = {
        "shape": (shapes.SHAPES, changed.shape),
        "color": (shapes.COLORS, changed.color),
        "size": (shapes.SIZES, changed.size),
        "background": (shapes.BACKGROUNDS, scene.background),
        "position": (places, scene.position),
        "texture": (shapes.TEXTURES, scene.texture),
    }[what]
    others = [value for value in choices if value != now]
    value = others[rng.integers(len(others))]
    return shapes.edit(scene, what, value, index=index), what


def described_twins(
    rng: np.random.Generator, size: int, split: str
) -> tuple[list[shapes.Scene], list[str]]:
    """Scenes and their captions; rows 2i and 2i+1 are twins, described alike."""
    scenes = []
    captions = []
    for _ in range(size // 2):
        one = shapes.scene(rng, split=split)
        other, changed = twin(one, rng)
        said = {}
        for word in MAY_BE_LEFT_OUT:
            drawn = bool(rng.random() < 0.6)
            said[word] = drawn or word == changed
        for scene in (one, other):
            scenes.append(scene)
            captions.append(shapes.caption(scene, **said))
    return scenes, captions


def clip_batches(tokenizer, size: int, seed: int, split: str = "train"):
    """batch(step) -> {"image": b 3 64 64, "ids": b n}: rows 2i and 2i+1 are twins."""

    def batch(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        scenes, captions = described_twins(rng, size, split)
        return {"image": shapes.render(scenes), "ids": tokenizer(captions)}

    return batch


def clip_loss(clip: CLIP, batch: dict[str, Tensor], identity: float = 0.5) -> Tensor:
    """batch: {"image": b 3 64 64, "ids": b n}. Every row is compared with every other, so rows of
    other processes are gathered.
    """
    text = clip.text
    ids = gathered(batch["ids"])
    states = gathered(text(batch["ids"]))  # b n d
    pictures = gathered(clip.embed_image(batch["image"]))  # b e
    captions = F.normalize(text.pooled(states, ids), dim=-1)  # b e
    scale = clip.logit_scale.exp().clamp(max=100.0)
    matching = contrastive_loss(scale * pictures @ captions.T)
    words = (ids != 0) & (ids != text.eos_id)
    table = text.embeddings["token_embedding"].weight  # vocab d
    naming = F.cross_entropy(states[words] @ table.T, ids[words])
    return matching + identity * naming


@torch.no_grad()
def word_distances(
    text, tokenizer, words: tuple[str, ...], template: str = "a red {} on a white background"
) -> dict:
    """{(a, b): distance} between the states at the word
    slot, relative to the states' root mean square norm.
    """
    slot = template.split().index("{}") + 1
    captions = [template.format(word) for word in words]
    states = text(tokenizer(captions))[:, slot]  # w d
    unit = states.norm(dim=-1).pow(2).mean().sqrt()
    distances = {}
    for i, j in combinations(range(len(words)), 2):
        apart = (states[i] - states[j]).norm()
        distances[words[i], words[j]] = (apart / unit).item()
    return distances


@torch.no_grad()
def retrieval(clip: CLIP, batch: dict[str, Tensor]) -> dict[str, float]:
    """Top-1 of a batch (caption from picture), and how
    often a picture prefers its caption to its twin's.
    """
    logits = clip(batch["image"], batch["ids"])  # b b
    own = torch.arange(len(logits))
    twins = own ^ 1
    first = logits.argmax(1) == own
    preferred = logits[own, own] > logits[own, twins]
    return {"top1": first.float().mean().item(), "twin": preferred.float().mean().item()}
