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
from minidiff.train.processes import gathered

PLACES = tuple(shapes.POSITIONS)
TURN = {"above": "top", "below": "bottom"}
SAYS = {
    "shape": shapes.SHAPES,
    "color": tuple(shapes.COLORS),
    "size": tuple(shapes.SIZES),
    "place": PLACES,
    "background": tuple(shapes.BACKGROUNDS),
    "texture": shapes.TEXTURES,
}
OF_AN_OBJECT = ("shape", "color", "size")
OF_THE_GROUND = ("background", "texture")
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
UNSAID = -100  # cross_entropy's ignore_index


def belongings(caption: str) -> list[dict[str, str]]:
    """For every word of a toy caption, what is said
    anywhere in it of the thing that the word belongs to.

    "a red star above a ring on a blue background" -> four times {shape: star, color: red, place:
    top}, then ...
    """
    words = caption.split()
    phrases = _phrases(words)
    sides = [TURN.get(word, word) for word in words[: phrases[-1][0]]]
    place = next((side for side in sides if side in PLACES), None)
    things = []
    for number, (first, end) in enumerate(phrases):
        ground = number == len(phrases) - 1
        said = _said(words[first:end], OF_THE_GROUND if ground else OF_AN_OBJECT)
        if place and not ground:
            said["place"] = OPPOSITE[place] if number == 1 else place
        things += [said] * (end - first)
    return things


def _phrases(words: list[str]) -> list[tuple[int, int]]:
    """Where each thing's words begin and end: those of the objects, then those of the ground."""
    nouns = [i for i, word in enumerate(words) if word in shapes.SHAPES]
    ons = [i for i, word in enumerate(words) if word == "on"]
    ground = max(ons, default=0)
    if len(nouns) < 2:
        objects = [(0, ground)] * len(nouns)
        return [*objects, (ground, len(words))]
    second = max(i for i in range(nouns[1]) if words[i] == "a")
    return [(0, second), (second, ground), (ground, len(words))]


def _said(words: list[str], kinds: tuple[str, ...]) -> dict[str, str]:
    """Those of the words that name an attribute of these kinds."""
    said = {}
    for kind in kinds:
        for word in words:
            if word in SAYS[kind]:
                said[kind] = word
    return said


def word_batch(tokenizer: Tokenizer, size: int, seed: int, step: int) -> dict[str, Tensor]:
    """ids (b n), and for every attribute of SAYS the
    index that token i should give away (b n), or UNSAID.
    """
    rng = np.random.default_rng([seed, step])
    captions = []
    for _ in range(size):
        scene = shapes.scene(rng, pairs=0.65, split="train")
        captions.append(shapes.random_caption(scene, rng))
    ids = tokenizer(captions)
    answers = {kind: torch.full(ids.shape, UNSAID) for kind in SAYS}
    for row, caption in enumerate(captions):
        for i, said in enumerate(belongings(caption)):
            for kind, word in said.items():
                answers[kind][row, i + 1] = SAYS[kind].index(word)  # token 0 begins the text
    return {"ids": ids} | answers


class Taught(nn.Module):
    """A tower with the heads that question it."""

    def __init__(self, text: CLIPText, vocab: int):
        super().__init__()
        self.text = text
        self.heads = nn.ModuleDict({a: nn.Linear(text.width, len(v)) for a, v in SAYS.items()})
        self.word = nn.Linear(text.width, vocab)


def word_loss(net: Taught, batch: dict[str, Tensor], clip: CLIPText, lam: float = 1.0) -> Tensor:
    """The loss above; `clip` is the tower as it was. Its means are over words, of which rows hold
    unequal numbers, so rows of other processes are gathered.
    """
    ids = gathered(batch["ids"])
    states = gathered(net.text(batch["ids"]))  # b n d
    with torch.no_grad():
        old = clip(ids)
    losses = []
    for kind, head in net.heads.items():
        guesses = head(states).flatten(0, 1)  # b*n choices
        answers = gathered(batch[kind]).flatten()
        losses.append(F.cross_entropy(guesses, answers, ignore_index=UNSAID))
    belonging = torch.stack(losses).mean()
    words = ids != 0
    naming = F.cross_entropy(net.word(states[words]), ids[words])
    staying = (states - old).pow(2).mean()
    return belonging + naming + lam * staying


@torch.no_grad()
def told(net: Taught, batch: dict[str, Tensor]) -> dict[str, float]:
    """Share of the tokens that give each attribute away."""
    states = net.text(batch["ids"])
    shares = {}
    for kind, head in net.heads.items():
        right = head(states).argmax(-1) == batch[kind]
        asked = batch[kind] != UNSAID
        shares[kind] = right[asked].float().mean().item()
    return shares
