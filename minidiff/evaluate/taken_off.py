"""What a picture of the hard split is known to carry, taken off before an oracle reads it.

The oracles read words: shapes, colours, places. Pictures of the hard split carry what has no word
(`data/unseen.py`), but for each of them it is known what. So a reader is told, and takes it off:

    light               divided out, if it is still there
    hue of the ground   subtracted from the ground
    mark, thing, frame  filled with the ground, but for pixels that have a colour of the palette:
                        something has come to lie there
    stripes, outline    their share of a pixel becomes the colour that most pixels around it have;
                        a pixel that their ink does not explain is left alone
    grain               stays

An edit that lost such a detail is read as one that kept it: whether it was kept is asked by other
scores. Where nothing of it is found, little changes.

Weakness: an object that an edit moved onto a mark loses what it shares with the mark's ink.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data import unseen
from minidiff.data.unseen import Unseen
from minidiff.evaluate.synthesis import GROUND_TOLERANCE, INK, PALETTE, fit_ground, to_unit

LOOSE = 0.3  # RGB distance at which a pixel has a palette colour, hues and grain and all
AROUND = 7  # pixels whose colours vote
SHARE = 0.1  # of a pixel, below which an ink is not there
EXPLAINED = 0.2  # RGB distance from a mixture with an ink


def taken_off(images: Tensor, nuisances: Sequence[Unseen | None]) -> Tensor:
    """Pictures (b 3 64 64) in [-1, 1] without what they are known to carry; those that carry
    nothing (None) are returned as they are.
    """
    if len(images) != len(nuisances):
        raise ValueError(
            f"{len(images)} pictures, but {len(nuisances)} nuisances: one each, or None"
        )
    out = images.clone()
    for k, nuisance in enumerate(nuisances):
        if nuisance is not None:
            out[k] = _without(to_unit(images[k]), nuisance) * 2 - 1
    return out


def _without(x: Tensor, nuisance: Unseen) -> Tensor:
    """One picture (3 64 64) in 0..1."""
    hidden = _hidden(nuisance)
    hue = torch.tensor(nuisance.hues[2])
    readings = []
    for light in (unseen.light(nuisance), torch.ones(64, 64)):
        lit = (x / light).clamp(0, 1)
        ground = fit_ground(lit, 1 - hidden, nuisance.hues[2]).image
        miss = (lit - ground) * light  # in the light of the picture: dividing makes grain coarser
        unexplained = miss.norm(dim=0)[hidden == 0].median().item()
        readings.append((unexplained, lit, ground))
    _, x, ground = min(readings, key=lambda reading: reading[0])
    shows = _opened((_from_palette(x).amin(0) <= INK).float())
    x = torch.where((hidden > 0) & (shows == 0), ground, x)
    off_ground = (x - ground).norm(dim=0) > GROUND_TOLERANCE
    ink = nuisance.stripes[0] if nuisance.stripes else nuisance.outline
    if ink is not None:
        x = _without_ink(x, ground, off_ground, torch.tensor(ink))
    on_ground = (~off_ground).float()
    return (x - on_ground * hue[:, None, None]).clamp(0, 1)


def _hidden(nuisance: Unseen) -> Tensor:
    """(64 64): 1 where mark, thing or frame lie, and a pixel around."""
    covers = [cover for _, cover in unseen.on_ground(nuisance)]
    if nuisance.frame:
        covers.append(unseen.edge())
    hidden = torch.zeros(64, 64)
    for cover in covers:
        hidden = torch.maximum(hidden, (cover > 0).float())
    return F.max_pool2d(hidden[None], 3, 1, 1)[0]


def _opened(mask: Tensor) -> Tensor:
    """A mask (64 64) of 0 and 1 without what is less than three pixels wide: the edge of a mark has
    mixed colours, too.
    """
    inner = -F.max_pool2d(-mask[None], 3, 1, 1)
    return F.max_pool2d(inner, 3, 1, 1)[0]


def _from_palette(x: Tensor) -> Tensor:
    """(8 64 64): how far each pixel is from each colour of the palette."""
    return (x[None] - PALETTE[:, :, None, None]).norm(dim=1)


def _without_ink(x: Tensor, ground: Tensor, off_ground: Tensor, ink: Tensor) -> Tensor:
    """The ink's share of every pixel near an object becomes that object's own colour."""
    distance = _from_palette(x)
    from_ink = (x - ink[:, None, None]).norm(dim=0)  # teal is near to green
    own = (distance == distance.amin(0)) & (distance < LOOSE) & off_ground  # 8 64 64
    own = own & (distance < from_ink)
    # the nearer the more: a mixture with the ink may lie beside a third colour (pink, navy: purple)
    weight = (own * (1 - distance / LOOSE))[:, None]  # 8 1 64 64
    votes = F.avg_pool2d(weight, AROUND, 1, AROUND // 2)
    colors = F.avg_pool2d(weight * x[None], AROUND, 1, AROUND // 2) / votes.clamp_min(1e-6)
    winner = votes.argmax(0, keepdim=True)  # 1 1 64 64
    color = colors.gather(0, winner.expand(1, 3, 64, 64))[0]  # 3 64 64
    ink = ink[:, None, None].expand_as(x)
    share_on_object, miss_on_object = _mixture(x, color, ink)
    share_on_ground, miss_on_ground = _mixture(x, ground, ink)
    on_object = miss_on_object <= miss_on_ground
    share = torch.where(on_object, share_on_object, share_on_ground)
    miss = torch.minimum(miss_on_object, miss_on_ground)
    there = (votes.amax(0)[0] > 0) & (share > SHARE) & (miss < EXPLAINED)
    return torch.where(there, x + share * (color - ink), x)


def _mixture(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(share of b, RGB distance) of the mixture of two colours that is nearest to each pixel; all
    (3 64 64), the results (64 64).
    """
    along = ((x - a) * (b - a)).sum(0) / ((b - a) ** 2).sum(0).clamp_min(1e-3)
    share = along.clamp(0, 1)
    return share, (x - a - share * (b - a)).norm(dim=0)
