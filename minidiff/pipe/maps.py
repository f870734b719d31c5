"""Attention maps: which word a pixel looks at, and where a word's tokens stand.

A network flattens the pixels of a map into one axis. How they were laid out follows from the latent
that the map was made from, never from the number of pixels alone: 256 may be 16 x 16 or 8 x 32.
"""

from torch import Tensor

from minidiff.models.bpe import clean
from minidiff.models.tokenizer import Tokenizer

CROSS = r"attn2\.probs$"  # the same names in UNet and DiT
SELF = r"(attn1|attn)\.probs$"


def map_size(pixels: int, latent: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of a map of so many pixels, made from a latent of size (H, W): both sides of it halved
    (rounding up) the same number of times. ValueError if no such size fits.
    """
    h, w = latent
    while h * w > pixels and h * w > 1:
        h = -(-h // 2)
        w = -(-w // 2)
    if h * w == pixels:
        return h, w
    raise ValueError(f"a map of {pixels} pixels was not made from a latent of {latent}")


def usual_side(latent: tuple[int, int]) -> int:
    """The shorter side of the maps that say most about objects: a quarter of the latent's, at least
    8. Stable Diffusion's are of 16 x 16 at its own size.
    """
    return max(min(latent) // 4, 8)


class Maps:
    """Cross-attention maps of one size, summed as they
    pass; averaged over heads, layers and looks when read.

    latent  (H, W) of the state the network is asked about
    side    shorter side of the maps that count; default `usual_side`
    """

    def __init__(self, latent: tuple[int, int], side: int | None = None):
        height, width = latent
        self.latent = (height, width)
        self.side = side or usual_side(self.latent)
        self.size: tuple[int, int] | None = None
        self.total: Tensor | None = None
        self.looks = 0

    def look(self, probs: Tensor, name: str = "") -> None:
        """fn for a tap `probs` (b heads pixels tokens): takes it in if it is of the size wanted."""
        size = map_size(probs.shape[-2], self.latent)
        if min(size) != self.side:
            return
        mean = probs.detach().mean(1)  # b n m
        self.total = mean if self.total is None else self.total + mean
        self.size = size
        self.looks += 1

    def read(self) -> Tensor:
        """(b tokens h w). ValueError if no map of that size has passed."""
        if self.total is None:
            raise ValueError(
                f"no cross-attention map with a shorter side of {self.side} pixels in this "
                "network: choose another side"
            )
        mean = self.total / self.looks  # b n m
        return mean.transpose(1, 2).unflatten(2, self.size)


def positions(tokenizer: Tokenizer, prompt: str, word: str) -> list[int]:
    """Token positions of a word of the prompt, by the tokenizer's own reading of both; ValueError
    names the words there are.
    """
    spans = tokenizer.token_spans(prompt)
    wanted = clean(word)
    found = [i for w, span in spans if w == wanted for i in span]
    if not found:
        raise ValueError(
            f"word {word!r} is not in {prompt!r}; its words are: {', '.join(w for w, _ in spans)}"
        )
    return found
