"""DAAM: which word made this pixel?

What the DAAM: Interpreting Stable Diffusion Using Cross Attention, Raphael Tang et al., 2022,
arXiv 2210.04885.

Cross-attention says for every place how much it looks at every word. Add that up over heads, layers
and times, bring all to one size, and each word has a map of the picture.

    D_word = sum over times, layers, heads of  upsampled softmax(q k / sqrt(d))[:, word]

Above a share of its greatest value (.4) the map is a segmentation. Whether it is a good one needs
the true outline of the thing, for which the authors asked people. Here a render is noised, so that
the picture is known and so is its mask (`shapes.object_masks`).

Try: single layers and times instead of the sum; the noun against the colour word; a word that the
picture does not show.

Weakness: a place that looks at a word need not show it. A map tells where information was fetched,
and not what was done with it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.denoise import noise
from minidiff.core.process import q_sample
from minidiff.core.taps import tap, tap_names
from minidiff.pipe.maps import CROSS, map_size
from minidiff.pipe.pipe import Pipe

TIMES = (100, 300, 500, 700, 900)
THRESHOLD = 0.4  # of a map's greatest value, as in the paper

Maps = dict[tuple[str, int], Tensor]  # (layer, time): b tokens h w


@torch.no_grad()
def attention_maps(
    pipe: Pipe, image: Tensor, prompt: str | list[str], times: Sequence[int] = TIMES, seed: int = 0
) -> Maps:
    """Cross-attention of the pictures `image` (b 3 H W), noised to each of the times, to the tokens
    of their prompts: {(layer, time): (b, tokens, h, w)}, mean over heads, at the layer's own size.

    ValueError: a model without cross-attention, times outside 1..T.
    """
    if not tap_names(pipe.net, CROSS):
        raise ValueError(f"{pipe.name or 'this model'} has no cross-attention to words")
    T = pipe.schedule.T
    if not times or not all(1 <= t <= T for t in times):
        raise ValueError(f"times={list(times)}: expected times in 1..{T}")
    z = pipe.encode(image)
    cond = pipe.embed(prompt).expand(len(z))
    n = noise(z.shape, seed, z.device, z.dtype)
    found: Maps = {}
    for t in times:

        def look(probs: Tensor, name: str, t: int = t) -> None:
            found[name.removesuffix(".attn2.probs"), t] = as_pictures(probs, z.shape[2:])

        with tap(pipe.net, CROSS, look):
            pipe.eps(q_sample(pipe.schedule, z, t, n), t, cond)
    return found


def as_pictures(probs: Tensor, size: Sequence[int]) -> Tensor:
    """Attention maps (b heads places tokens) as (b tokens h w), mean over heads, of a network that
    was asked about latents of that size.
    """
    h, w = size
    return probs.mean(1).transpose(1, 2).unflatten(2, map_size(probs.shape[2], (h, w)))


def heat(maps: Maps, span: Sequence[int], size: tuple[int, int], among: str = "") -> Tensor:
    """(b H W) in [0, 1]: the map of a word whose tokens are `span`, summed over the layers whose
    names contain `among` and over all times, enlarged to `size`.
    """
    chosen = [m for (layer, _), m in maps.items() if among in layer]
    if not chosen:
        layers = sorted({layer for layer, _ in maps})
        raise ValueError(f"no layer's name contains {among!r}; there are: {', '.join(layers)}")
    total = torch.zeros(len(chosen[0]), 1, *size)
    for m in chosen:
        word = m[:, list(span)].mean(1, keepdim=True).float().cpu()
        total += F.interpolate(word, size, mode="bicubic", antialias=True).clamp(min=0)
    total = total[:, 0]
    return total / total.amax((1, 2), keepdim=True).clamp(min=1e-12)


def overlap(heats: Tensor, masks: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Intersection over union (b,) of maps (b H W) above the threshold with masks (b H W) of 0 and
    1.
    """
    here = heats > threshold
    there = masks > 0.5
    both = (here & there).flatten(1).sum(1)
    either = (here | there).flatten(1).sum(1)
    return both / either.clamp(min=1)
