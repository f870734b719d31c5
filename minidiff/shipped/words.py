"""Teaching a text tower what belongs together in a caption (after CLIP, before the denoiser).

CLIP's states say which word they stand for; that was enough for single objects. In "a cyan square
left of a red circle" the denoiser must also know that cyan belongs to the square and that the
square stands left, and from CLIP's states it did not find out in 100,000 pictures: it drew the
right shapes and colours as a bag of words. The toy world's grammar is known, so the tower is simply
told:

    loss = mean over attributes of CE(head_a h_i, a of what token i belongs to)  +  CE(word_i)  +
    lam |h_i - clip_i|^2

Every token of a noun phrase (the relation belongs to the noun before it) must give away the shape,
colour, size and place of its own object, as far as the caption says; every token of the background
phrase, colour and texture of the background. The tower reads both ways for that (CLIP's is causal,
so its first noun cannot know its place), the heads are thrown away, and the last term keeps the
states near CLIP's. (Feng et al. 2022, arXiv 2212.05032, show what a denoiser does with a tower that
was never told.)

Try: lam = 0; a causal tower; then `binding_gain` of a denoiser trained on it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.data import shapes
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer

PLACES, TURN = tuple(shapes.POSITIONS), {"above": "top", "below": "bottom"}
SAYS = {
    "shape": shapes.SHAPES,
    "color": tuple(shapes.COLORS),
    "size": tuple(shapes.SIZES),
    "place": PLACES,
    "background": tuple(shapes.BACKGROUNDS),
    "texture": shapes.TEXTURES,
}
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
UNSAID = -100  # cross_entropy's ignore_index


def belongings(caption: str) -> list[dict[str, str]]:
    """For every word of a toy caption, what is said anywhere in it of the thing that the word
    belongs to.

    "a red star above a ring on a blue background" -> four times {shape: star, color: red, place:
    top}, then ...
    """
    words = caption.split()
    nouns = [i for i, w in enumerate(words) if w in shapes.SHAPES]
    ground = max((i for i, w in enumerate(words) if w == "on"), default=0)
    second = max(i for i in range(nouns[1]) if words[i] == "a") if len(nouns) == 2 else ground
    spans = [(0, second), (second, ground)][: len(nouns)] + [(ground, len(words))]
    ways = [TURN.get(w, w) for w in words[:ground] if w in TURN or w in PLACES]
    out = []
    for k, (a, b) in enumerate(spans):
        kinds = ("background", "texture") if k == len(nouns) else ("shape", "color", "size")
        said = {kind: w for kind in kinds for w in words[a:b] if w in SAYS[kind]}
        if k < len(nouns) and ways:
            said["place"] = OPPOSITE[ways[0]] if k == 1 else ways[0]
        out += [said] * (b - a)
    return out


def word_batch(tokenizer: Tokenizer, size: int, seed: int, step: int) -> dict[str, Tensor]:
    """ids (b n), and for every attribute of SAYS the index that token i should give away (b n), or
    UNSAID.
    """
    rng = np.random.default_rng([seed, step])
    captions = [
        shapes.random_caption(shapes.scene(rng, pairs=0.65, split="train"), rng)
        for _ in range(size)
    ]
    ids = tokenizer(captions)
    out = {a: torch.full(ids.shape, UNSAID) for a in SAYS}
    for row, caption in enumerate(captions):
        for i, said in enumerate(belongings(caption)):
            for a, word in said.items():
                out[a][row, i + 1] = SAYS[a].index(word)
    return {"ids": ids} | out


class Taught(nn.Module):
    """A tower with the heads that question it."""

    def __init__(self, text: CLIPText, vocab: int):
        super().__init__()
        self.text = text
        self.heads = nn.ModuleDict({a: nn.Linear(text.width, len(v)) for a, v in SAYS.items()})
        self.word = nn.Linear(text.width, vocab)


def word_loss(net: Taught, batch: dict[str, Tensor], clip: CLIPText, lam: float = 1.0) -> Tensor:
    """The loss above; `clip` is the tower as it was."""
    ids = batch["ids"]
    h = net.text(ids)  # b n d
    told = [
        F.cross_entropy(head(h).flatten(0, 1), batch[a].flatten(), ignore_index=UNSAID)
        for a, head in net.heads.items()
    ]
    words = ids != 0
    with torch.no_grad():
        old = clip(ids)
    return (
        torch.stack(told).mean()
        + F.cross_entropy(net.word(h[words]), ids[words])
        + lam * (h - old).pow(2).mean()
    )


@torch.no_grad()
def told(net: Taught, batch: dict[str, Tensor]) -> dict[str, float]:
    """Share of the tokens that give each attribute away."""
    h = net.text(batch["ids"])
    return {
        a: (head(h).argmax(-1) == batch[a])[batch[a] != UNSAID].float().mean().item()
        for a, head in net.heads.items()
    }
