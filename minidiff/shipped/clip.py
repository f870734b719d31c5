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

# drawn evenly
TWINS = ("shape", "shape", "shape", "color", "size", "position", "background", "texture")


def twin(s: shapes.Scene, rng: np.random.Generator) -> tuple[shapes.Scene, str]:
    """(a copy with one attribute changed, which one): shapes most often."""
    what = TWINS[rng.integers(len(TWINS))]
    i = int(rng.integers(len(s.objects)))
    pool, now = {
        "shape": (shapes.SHAPES, s.objects[i].shape),
        "color": (tuple(shapes.COLORS), s.objects[i].color),
        "size": (tuple(shapes.SIZES), s.objects[i].size),
        "background": (tuple(shapes.BACKGROUNDS), s.background),
        "position": (tuple(shapes.PAIRS if len(s.objects) == 2 else shapes.POSITIONS), s.position),
        "texture": (shapes.TEXTURES, s.texture),
    }[what]
    value = [v for v in pool if v != now][rng.integers(len(pool) - 1)]
    return shapes.edit(s, what, value, index=i), what


def clip_batches(tokenizer, size: int, seed: int, split: str = "train"):
    """batch(step) -> {"image": b 3 64 64, "ids": b n}: rows 2i and 2i+1 are twins."""

    def batch(step: int) -> dict[str, Tensor]:
        rng, scenes, captions = np.random.default_rng([seed, step]), [], []
        for _ in range(size // 2):
            a = shapes.scene(rng, split=split)
            b, what = twin(a, rng)
            keep = {
                w: bool(rng.random() < 0.6) or w == what for w in ("size", "position", "texture")
            }
            scenes += [a, b]
            captions += [shapes.caption(a, **keep), shapes.caption(b, **keep)]
        return {"image": shapes.render(scenes), "ids": tokenizer(captions)}

    return batch


def clip_loss(clip: CLIP, batch: dict[str, Tensor], identity: float = 0.5) -> Tensor:
    """batch: {"image": b 3 64 64, "ids": b n}."""
    ids, text = batch["ids"], clip.text
    h = text(ids)  # b n d
    u, v = F.normalize(text.pooled(h, ids), dim=-1), clip.embed_image(batch["image"])  # b e
    words = (ids != 0) & (ids != text.eos_id)
    logits = h[words] @ text.embeddings["token_embedding"].weight.T  # words vocab
    scale = clip.logit_scale.exp().clamp(max=100.0)
    return contrastive_loss(scale * v @ u.T) + identity * F.cross_entropy(logits, ids[words])


@torch.no_grad()
def word_distances(
    text, tokenizer, words: tuple[str, ...], template: str = "a red {} on a white background"
) -> dict:
    """{(a, b): distance} between the states at the word slot, relative to the states' root mean
    square norm.
    """
    slot = template.split().index("{}") + 1
    h = text(tokenizer([template.format(w) for w in words]))[:, slot]  # w d
    unit = h.norm(dim=-1).pow(2).mean().sqrt()
    return {
        (words[i], words[j]): ((h[i] - h[j]).norm() / unit).item()
        for i, j in combinations(range(len(words)), 2)
    }


@torch.no_grad()
def retrieval(clip: CLIP, batch: dict[str, Tensor]) -> dict[str, float]:
    """Top-1 of a batch (caption from picture), and how often a picture prefers its caption to its
    twin's.
    """
    logits = clip(batch["image"], batch["ids"])  # b b
    me = torch.arange(len(logits))
    return {
        "top1": (logits.argmax(1) == me).float().mean().item(),
        "twin": (logits[me, me] > logits[me, me ^ 1]).float().mean().item(),
    }
