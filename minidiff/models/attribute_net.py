"""A small convolutional network that says what is in
a picture of the toy world: the learned oracle's body.

Ten forced choices (`data/attributes.py`) share one trunk. It keeps where things are: its last map
is flattened, not pooled, because the slots are defined by place.

Weakness: a forced choice sees neither wavy edges nor a filled ring (`evaluate/synthesis.py`
measures those). Try changing: pool the last map instead of flattening it, and watch the place and
slot B fail.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.data.attributes import HEADS


class Stage(nn.Module):
    """Halve the map, then one residual block."""

    def __init__(self, c_in: int, c_out: int, groups: int):
        super().__init__()
        self.down = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)
        self.norm1 = nn.GroupNorm(groups, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out)
        self.conv = nn.Conv2d(c_out, c_out, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.down(h)))
        return h + F.relu(self.norm2(self.conv(h)))


class AttributeNet(nn.Module):
    """64x64 pictures -> logits of `HEADS`. `width` numbers are the penultimate layer, the features
    of the Frechet distance; `channels` one per stage.
    """

    def __init__(
        self, channels: tuple[int, ...] = (24, 48, 96, 128), width: int = 96, groups: int = 8
    ):
        super().__init__()
        c = channels
        self.conv_in = nn.Conv2d(3, c[0], 5, stride=2, padding=2)  # 64 -> 32
        # -> 16 -> 8 -> 4
        self.stages = nn.ModuleList([Stage(a, b, groups) for a, b in pairwise(c)])
        self.fc = nn.Linear(c[-1] * (64 // 2 ** len(c)) ** 2, width)
        self.final_layer = nn.Linear(width, sum(map(len, HEADS.values())))

    def features(self, x: Tensor) -> Tensor:
        """Pictures (b 3 64 64) in [-1, 1] -> (b, width), not negative."""
        if x.shape[1:] != (3, 64, 64):
            raise ValueError(
                f"pictures of shape {tuple(x.shape)}: expected (b, 3, 64, 64) in [-1, 1]; resize "
                "them first"
            )
        h = F.relu(self.conv_in(x))
        for stage in self.stages:
            h = stage(h)
        return F.relu(self.fc(h.flatten(1)))  # b c h w -> b d

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """{head: logits (b, choices)}."""
        logits = self.final_layer(self.features(x)).split([len(v) for v in HEADS.values()], dim=1)
        return dict(zip(HEADS, logits))
