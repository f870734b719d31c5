"""A classifier of noisy latents: what is in x_t, asked at every time t, for classifier guidance.

Prafulla Dhariwal, Alex Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv
2105.05233. Ten heads (`data/attributes.py`: count, place, ground, and what lies in slots A and
B) share a small trunk. The last map is flattened, not pooled, for the slots are defined by place:
of two objects the left or upper one is A. shipped/noisy_classifier.py trains it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.data.attributes import COUNTS, HEADS, PLACES
from minidiff.data.shapes import BACKGROUNDS, COLORS, PAIRS, POSITIONS, SHAPES, SIZES, TEXTURES
from minidiff.models.blocks import timestep_embedding

SIDE = 4  # of the last map
OF_AN_OBJECT = {"shape": SHAPES, "color": tuple(COLORS), "size": tuple(SIZES)}


class NoisyClassifier(nn.Module):
    """Noisy latents (b c 16 16) at schedule index t (b,) -> {head: logits (b, choices)}."""

    def __init__(
        self,
        channels: int = 4,
        width: tuple[int, int, int] = (32, 48, 64),
        time: int = 16,
        groups: int = 8,
    ):
        super().__init__()
        self.time = time
        a, b, c = width
        sizes = ((channels, a, 1), (a, b, 2), (b, b, 1), (b, c, 2))  # 16 -> 16 -> 8 -> 8 -> 4
        self.convs = nn.ModuleList([nn.Conv2d(i, o, 3, stride=s, padding=1) for i, o, s in sizes])
        self.norms = nn.ModuleList([nn.GroupNorm(groups, o) for _, o, _ in sizes])
        self.times = nn.ModuleList([nn.Linear(time, o) for _, o, _ in sizes])
        self.final_layer = nn.Linear(c * SIDE**2, sum(map(len, HEADS.values())))

    def features(self, x: Tensor, t: int | Tensor) -> Tensor:
        """What is where in x at time t: (b, 16 c)."""
        times = torch.as_tensor(t, device=x.device).expand(len(x))
        embedded = timestep_embedding(times, self.time).to(x)
        for conv, norm, time in zip(self.convs, self.norms, self.times):
            when = time(embedded)[:, :, None, None]
            x = F.silu(norm(conv(x)) + when)  # b c h w
        return x.flatten(1)

    def forward(self, x: Tensor, t: int | Tensor) -> dict[str, Tensor]:
        logits = self.final_layer(self.features(x, t))
        sizes = [len(choices) for choices in HEADS.values()]
        return dict(zip(HEADS, logits.split(sizes, dim=1)))


# ---- from words to classes -----------------------------------------------------------------------


def named(text: str) -> dict[str, int]:
    """{head: index}: the classes that a caption, or a part of one, names: "red star", "black
    background", "a red star above a blue ring on a plain grey background".

    ValueError if there are none, or two of one head.
    """
    words = text.lower().split()
    found: dict[str, int] = {}
    relation = _relation(words)
    if relation is None:
        _read_object(text, words, "a", found)
        place = next((word for word in words if word in POSITIONS), None)
        if place:
            found["place"] = PLACES.index(("one", place))
        if place or any(head.startswith("a_") for head in found):
            found["count"] = COUNTS.index(1)
    else:
        word = words[relation]
        first = words[:relation]
        second = words[relation + 1 :]
        swapped = word in ("right", "below")  # slot A holds the left or the upper one
        _read_object(text, second if swapped else first, "a", found)
        _read_object(text, first if swapped else second, "b", found)
        place = {"right": "left", "below": "above"}.get(word, word)
        found["place"] = PLACES.index(("two", place))
        found["count"] = COUNTS.index(2)
    _read_ground(text, words, found)
    if not found:
        choices = {"background": tuple(BACKGROUNDS), "texture": TEXTURES} | OF_AN_OBJECT
        known = "; ".join(f"{head}: {', '.join(v)}" for head, v in choices.items())
        raise ValueError(
            f"{text!r} names no class. Colours of the ground are said as 'red background'. There "
            f"are {known}"
        )
    return found


def _relation(words: list[str]) -> int | None:
    """Where the word stands that relates two objects: above, below, left of, right of."""
    for i, word in enumerate(words):
        follows = words[i + 1 : i + 2]
        if word in PAIRS and (word in ("above", "below") or follows == ["of"]):
            return i
    return None


def _read_object(text: str, words: list[str], slot: str, found: dict[str, int]) -> None:
    """Put into `found` what these words say of one object."""
    for i, word in enumerate(words):
        if words[i + 1 : i + 2] == ["background"]:
            continue
        for what, choices in OF_AN_OBJECT.items():
            if word in choices:
                _put(text, f"{slot}_{what}", word, found)


def _read_ground(text: str, words: list[str], found: dict[str, int]) -> None:
    """Put into `found` what the words say of the ground."""
    for i, word in enumerate(words):
        if word in BACKGROUNDS and words[i + 1 : i + 2] == ["background"]:
            _put(text, "background", word, found)
        if word in TEXTURES:
            _put(text, "texture", word, found)


def _put(text: str, head: str, word: str, found: dict[str, int]) -> None:
    if head in found:
        before = HEADS[head][found[head]]
        what = head.split("_")[-1]
        raise ValueError(f"{text!r} names {before} and {word}: give one {what} at most")
    found[head] = HEADS[head].index(word)
