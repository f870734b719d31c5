"""Normalise, then scale and shift as a condition says: seven papers, one line.

FiLM: Ethan Perez, Florian Strub, Harm de Vries, Vincent Dumoulin, Aaron Courville, 2017,
arXiv 1709.07871. AdaIN: Xun Huang, Serge Belongie, 2017, 1703.06868. Conditional instance norm:
Vincent Dumoulin, Jonathon Shlens, Manjunath Kudlur, 2016, 1610.07629. AdaGN: Prafulla Dhariwal,
Alex Nichol, 2021, 2105.05233. adaLN and adaLN-Zero: William Peebles, Saining Xie, 2022,
2212.09748.

A condition can be added to features, or it can say for each channel how loud that channel is. The
second is what all of these do. They differ in the norm in front, and in where gamma and beta come
from: a layer that reads c, a row of a table, or the statistics of another picture.

    out = norm(x) (1 + gamma(c)) + beta(c)
    AdaIN: norm over the pixels of a channel, 1 + gamma = sigma(y), beta = mu(y)

`FAMILY` is the table. Without the 1 a layer that starts at zero would start by silencing every
channel.

Try: other norms under the same gamma and beta; `adain` between latents of two pictures; half of a
style by `torch.lerp(x, adain(x, y), 0.5)`.

Weakness: one number for each channel says nothing about places: "red on the left" cannot be said.
And a norm over the pixels of one picture throws away that picture's own mean colour and contrast,
which a condition must put back.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


def channelwise(c: Tensor, x: Tensor) -> Tensor:
    """Numbers c (b c), shaped to meet tokens x (b n c) or a map x (b c h w)."""
    if x.ndim not in (3, 4):
        raise ValueError(
            f"features of shape {tuple(x.shape)}: expected tokens (b n c) or a map (b c h w)"
        )
    return c[:, None] if x.ndim == 3 else c[:, :, None, None]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Tokens x (b n c) or a map (b c h w), scaled and shifted alike within each picture; shift and
    scale (b c).
    """
    return x * (1 + channelwise(scale, x)) + channelwise(shift, x)


# ---- norms without numbers of their own ----------------------------------------------------------


def statistics(x: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the pixels of each channel of a map: (b c) each."""
    var, mean = torch.var_mean(x, dim=(2, 3), correction=0)
    return mean, (var + eps).sqrt()


def keep(x: Tensor, groups: int = 1) -> Tensor:
    """No norm."""
    return x


def instance_norm(x: Tensor, groups: int = 1) -> Tensor:
    """Over the pixels of each channel."""
    mean, std = statistics(x, EPS)
    return (x - channelwise(mean, x)) / channelwise(std, x)


def group_norm(x: Tensor, groups: int = 1) -> Tensor:
    """Over the pixels of each group of channels."""
    return F.group_norm(x, groups, eps=EPS)


def layer_norm(x: Tensor, groups: int = 1) -> Tensor:
    """Over the channels of each token."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def adain(x: Tensor, y: Tensor) -> Tensor:
    """Features x (b c h w) with the mean and the contrast of each channel of y (b c h' w')."""
    mean, std = statistics(y)
    return modulate(instance_norm(x), shift=mean, scale=std - 1)


# ---- the family ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Modulation:
    """One paper's choice.

    norm    what comes in front
    source  where gamma and beta come from: "layer" (of a vector c), "table" (a row for each style),
            "picture" (the statistics of another one)
    zero    gamma and beta start at zero, and a gate that starts shut follows
    """

    norm: Callable[..., Tensor]
    source: str
    paper: str
    zero: bool = False


FAMILY = {
    "film": Modulation(keep, "layer", "Perez et al. 2017, 1709.07871, FiLM"),
    "cin": Modulation(
        instance_norm, "table", "Dumoulin et al. 2016, 1610.07629, conditional instance norm"
    ),
    "adain": Modulation(instance_norm, "picture", "Huang, Belongie 2017, 1703.06868, AdaIN"),
    "adagn": Modulation(group_norm, "layer", "Dhariwal, Nichol 2021, 2105.05233, AdaGN"),
    "adaln": Modulation(layer_norm, "layer", "Peebles, Xie 2022, 2212.09748, adaLN"),
    "adaln_zero": Modulation(
        layer_norm, "layer", "Peebles, Xie 2022, 2212.09748, adaLN-Zero", zero=True
    ),
}


class Modulate(nn.Module):
    """One row of `FAMILY` as a module: `(x, c) -> x` modulated.

    channels  of x; groups: of its norm, if that has groups
    width     of c (b width), where a layer reads it: in the order shift, scale
    styles    number of rows, where c (b,) is a row's number, or (b styles) their weights, which
              blends them
    With source "picture" c is that picture's features (b channels h w). The gate of a row with
    `zero` belongs behind the branch: `gate(c)` (b channels) gives it.
    """

    def __init__(
        self,
        name: str,
        channels: int,
        width: int | None = None,
        styles: int | None = None,
        groups: int = 1,
    ):
        super().__init__()
        if name not in FAMILY:
            raise ValueError(f"{name!r} is not one of {', '.join(FAMILY)}")
        self.row, self.groups = FAMILY[name], groups
        need = {"layer": ("width", width), "table": ("styles", styles)}.get(self.row.source)
        if need and not need[1]:
            raise ValueError(f"{name} makes gamma and beta of c: give {need[0]}=")
        if self.row.source == "layer":
            self.to_affine = nn.Linear(width, (3 if self.row.zero else 2) * channels)
            if self.row.zero:
                nn.init.zeros_(self.to_affine.weight)
                nn.init.zeros_(self.to_affine.bias)
        if self.row.source == "table":
            self.to_affine = nn.Linear(styles, 2 * channels, bias=False)
            nn.init.zeros_(self.to_affine.weight)  # every style begins as the plain norm
            self.styles = styles

    def numbers(self, c: Tensor) -> tuple[Tensor, ...]:
        """shift, scale and maybe gate, (b channels) each."""
        if self.row.source == "picture":
            mean, std = statistics(c)
            return mean, std - 1
        if self.row.source == "table" and c.ndim == 1:
            c = F.one_hot(c, self.styles).to(self.to_affine.weight.dtype)
        return self.to_affine(c).chunk(3 if self.row.zero else 2, dim=1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.numbers(c)[:2]
        return modulate(self.row.norm(x, self.groups), shift, scale)

    def gate(self, c: Tensor) -> Tensor:
        """How much of a branch is added to its input: zero at the start."""
        if not self.row.zero:
            raise ValueError(f"{self.row.paper} has no gate")
        return self.numbers(c)[2]
