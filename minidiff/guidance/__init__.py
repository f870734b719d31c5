"""The guidances that are functions from Denoise to Denoise: one record each, and the only list of
them. `make(pipe, scale)` gives the guided denoiser of a pipe, for `pipe.generate(denoise=...,
scale=1)`; `minidiff guides` compares them.

The records import nothing of the papers' files until one is made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minidiff.core.denoise import Denoise

if TYPE_CHECKING:
    from minidiff.pipe.pipe import Pipe

__all__ = ["GUIDES", "Guide"]


@dataclass(frozen=True)
class Guide:
    """One guidance.

    make     (pipe, scale) -> Denoise; at `off` it is the conditional answer alone
    off      the scale that does nothing
    scales   those that are compared
    paper    authors, year, arXiv number, name
    about    one sentence: what one wants it for
    """

    name: str
    make: Callable[["Pipe", float], Denoise]
    off: float
    scales: tuple[float, ...]
    paper: str
    about: str


def _cfg(pipe, scale):
    from minidiff.core.cfg import cfg_batched

    return cfg_batched(pipe.eps, pipe.null(), scale)


def _interval(pipe, scale):
    from minidiff.core.cfg import cfg_batched

    T = pipe.schedule.T
    return cfg_batched(pipe.eps, pipe.null(), scale, interval=(0.4 * T, T))


def _rescaled(pipe, scale):
    from minidiff.core.cfg import cfg_batched

    return cfg_batched(pipe.eps, pipe.null(), scale, rescale=0.7)


def _auto(pipe, scale):
    from minidiff.guidance.autoguidance import autoguidance, early

    return autoguidance(pipe.eps, early(pipe).eps, scale)


ALL_LAYERS = ""  # the middle block of "tiny" alone changes next to nothing


def _perturbed(pipe, scale):
    from minidiff.guidance.perturbed_attention import perturbed_attention

    return perturbed_attention(pipe.eps, pipe.net, scale, layers=ALL_LAYERS)


def _smoothed(pipe, scale):
    from minidiff.guidance.perturbed_attention import perturbed_attention

    return perturbed_attention(pipe.eps, pipe.net, scale, layers=ALL_LAYERS, how="alike")


def _projected(pipe, scale):
    from minidiff.guidance.projected import projected

    return projected(pipe.eps, pipe.null(), pipe.schedule, scale)


def _zero(pipe, scale):
    from minidiff.guidance.cfg_zero import cfg_zero

    return cfg_zero(pipe.eps, pipe.null(), pipe.schedule, scale)


ALL = (
    Guide(
        "cfg",
        _cfg,
        1.0,
        (1.0, 1.5, 2.0, 3.0, 5.0, 8.0),
        "Ho, Salimans 2022, 2207.12598, classifier-free guidance",
        "Walk away from what the model would draw unasked",
    ),
    Guide(
        "interval",
        _interval,
        1.0,
        (1.5, 2.0, 3.0, 5.0, 8.0),
        "Kynkaanniemi et al. 2024, 2404.07724, guidance in a limited interval",
        "The same, at the noisy times alone",
    ),
    Guide(
        "rescaled",
        _rescaled,
        1.0,
        (1.5, 2.0, 3.0, 5.0, 8.0),
        "Lin et al. 2023, 2305.08891, rescaled guidance",
        "The same, with the spread of the conditional answer",
    ),
    Guide(
        "projected",
        _projected,
        1.0,
        (1.5, 2.0, 3.0, 5.0, 8.0),
        "Sadat, Hilliges, Weber 2024, 2410.02416, adaptive projected guidance",
        "The same, without what only makes the picture louder",
    ),
    Guide(
        "cfg-zero",
        _zero,
        1.0,
        (1.5, 2.0, 3.0, 5.0, 8.0),
        "Fan et al. 2025, 2503.18886, CFG-Zero*",
        "The same, from the best multiple of the unconditional velocity",
    ),
    Guide(
        "autoguidance",
        _auto,
        1.0,
        (1.5, 2.0, 3.0, 5.0),
        "Karras et al. 2024, 2406.02507, autoguidance",
        "Walk away from a worse version of the model that is told the same",
    ),
    Guide(
        "perturbed",
        _perturbed,
        0.0,
        (0.1, 0.25, 0.5, 1.0),
        "Ahn et al. 2024, 2403.17377, perturbed-attention guidance",
        "Walk away from what the model draws when places may not look around",
    ),
    Guide(
        "smoothed",
        _smoothed,
        0.0,
        (0.1, 0.25, 0.5, 1.0),
        "Hong 2024, 2408.00760, smoothed energy guidance, in the limit of infinite blur",
        "Walk away from what the model draws when all places ask the same",
    ),
)
GUIDES: dict[str, Guide] = {guide.name: guide for guide in ALL}
