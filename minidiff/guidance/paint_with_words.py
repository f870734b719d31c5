"""Paint-with-words: say where each thing goes, with a brush for each phrase.

eDiff-I: Text-to-Image Diffusion Models with an Ensemble of Expert Denoisers, Yogesh Balaji et al.,
2022, arXiv 2211.01324.

Cross-attention decides for every place which words it listens to. Inside the region that was
painted for a phrase, raise the scores of the phrase's tokens before the softmax. How much: in units
of the greatest score, so that it is felt in every layer, and more while there is noise, for that is
when the layout is decided.

    A = softmax((q k^T + w M) / sqrt(d)),    w = strength log(1 + sigma / alpha) max(q k^T)

M is 1 where a place lies in the region of a token's phrase, and 0 elsewhere. The answer without
words is asked as it is.

Try: strength .1 to 1; the colour word without its noun; two phrases whose regions overlap.

Weakness: it moves attention, not objects. Where the prompt itself says another place, the objects
stay there and only their colours follow the brush. Too much of it drowns the other words, and
attributes go wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.core.cfg import guide
from minidiff.core.denoise import Denoise, step_pairs
from minidiff.core.process import ddim_step
from minidiff.core.schedule import Schedule
from minidiff.core.taps import tap
from minidiff.models.bpe import clean
from minidiff.pipe.checks import check_strength, door
from minidiff.pipe.maps import map_size
from minidiff.pipe.pipe import Pipe

# (top, left, bottom, right) in shares of the picture
PLACES = {
    "left": (0, 0, 1, 0.5),
    "right": (0, 0.5, 1, 1),
    "top": (0, 0, 0.5, 1),
    "bottom": (0.5, 0, 1, 1),
    "top-left": (0, 0, 0.5, 0.5),
    "top-right": (0, 0.5, 0.5, 1),
    "bottom-left": (0.5, 0, 1, 0.5),
    "bottom-right": (0.5, 0.5, 1, 1),
    "center": (0.25, 0.25, 0.75, 0.75),
}


@dataclass(frozen=True)
class Painted:
    """Which tokens have which region: `tokens` (p, n) of 0 and 1, `regions` (p 1 h w) of 0 to 1,
    for p phrases of a prompt of n tokens.
    """

    tokens: Tensor
    regions: Tensor

    def at(self, h: int, w: int) -> Tensor:
        """(h w, n): how much each place of a map of that size belongs to each token's region. The
        means of what falls into a place, so no region is lost at a coarse size.
        """
        coarse = F.adaptive_avg_pool2d(self.regions, (h, w)).flatten(1)  # p hw
        return torch.einsum("pm,pn->mn", coarse, self.tokens).clamp(max=1)


def painted(
    denoise: Denoise, net: nn.Module, sch: Schedule, paint: Painted, strength: float
) -> Denoise:
    """The denoiser whose cross-attention listens to phrases inside their regions. It is for the
    answer with words; strength 0 leaves that as it is, to the bit.
    """
    check_strength("strength", strength)
    with tap(net, r"attn2\.logits$", lambda x, name: None):
        pass  # a network without cross-attention is refused now
    latent = paint.regions.shape[-2], paint.regions.shape[-1]

    def guided(x_t, t, cond):
        if strength == 0:
            return denoise(x_t, t, cond)
        alpha, sigma = sch.at(t)
        share = strength * torch.log1p(torch.tensor(sigma / alpha)).item()

        def listen(logits: Tensor, name: str) -> Tensor:
            belongs = paint.at(*map_size(logits.shape[2], latent)).to(logits)  # places tokens
            greatest = logits.amax((2, 3), keepdim=True).clamp(min=0)  # of each row and head
            return logits + share * greatest * belongs

        with tap(net, r"attn2\.logits$", listen):
            return denoise(x_t, t, cond)

    return guided


def regions_of(layout: str) -> dict[str, tuple[float, float, float, float]]:
    """ "red circle: left; blue star: right" -> {phrase: box in shares}. ValueError: no phrase, an
    unknown place, a phrase without one.
    """
    boxes = {}
    for part in filter(str.strip, layout.split(";")):
        phrase, colon, place = (word.strip() for word in part.rpartition(":"))
        if not colon or not phrase or place not in PLACES:
            raise ValueError(
                f"layout {part.strip()!r}: expected PHRASE: PLACE with a place of "
                f"{', '.join(PLACES)}; several are parted by semicolons"
            )
        boxes[phrase] = PLACES[place]
    if not boxes:
        raise ValueError('layout is empty; expected such as "red circle: left; blue star: right"')
    return boxes


def box_mask(box: tuple[float, float, float, float], size: tuple[int, int]) -> Tensor:
    """(1 h w) of 0 and 1 for a box in shares; ValueError if no place falls into it."""
    h, w = size
    top, left, bottom, right = box
    mask = torch.zeros(1, h, w)
    mask[:, round(top * h) : round(bottom * h), round(left * w) : round(right * w)] = 1
    if not mask.any():
        raise ValueError(f"the region {box} holds none of the {h} x {w} latents; make it larger")
    return mask


def paint(pipe: Pipe, prompt: str, regions: Mapping[str, Tensor]) -> Painted:
    """`Painted` of phrases of the prompt and their masks (1 h w) at the size of latents. A phrase
    that stands in the prompt twice means the first.

    ValueError: a phrase that the prompt does not hold word by word.
    """
    assert pipe.tokenizer is not None, "a model that reads words has a tokenizer"
    spans = pipe.tokenizer.token_spans(prompt)
    words = [word for word, _ in spans]
    n = pipe.embed(prompt).text.shape[1]
    tokens = torch.zeros(len(regions), n)
    for row, phrase in enumerate(regions):
        wanted = [clean(word) for word in phrase.split()]
        starts = [i for i in range(len(words)) if words[i : i + len(wanted)] == wanted]
        if not starts:
            raise ValueError(
                f"phrase {phrase!r} does not stand in the prompt {prompt!r}, word by word"
            )
        for word in range(starts[0], starts[0] + len(wanted)):
            tokens[row, list(spans[word][1])] = 1
    return Painted(tokens, torch.stack(list(regions.values())))


@door
@torch.no_grad()
def paint_with_words(
    pipe: Pipe,
    prompt: str,
    *,
    layout: str = "",
    strength: float = 0.4,
    steps: int = 50,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Pictures (b 3 H W), one for each prompt, with things where the layout says.

    layout    which phrase of the prompt goes where: "red circle: left; blue star: right"
    strength  of the pull on attention, in units of its greatest score; 0 is none
    scale     guidance; default: the model's own

    ValueError: a layout without phrases, a phrase that is not in the prompt, a place that does not
    exist; a model that reads no words.
    """
    if pipe.text is None:
        raise ValueError(f"{pipe.name or 'this model'} reads no words: there is nothing to paint")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    masks = {phrase: box_mask(box, pipe.shape[1:]) for phrase, box in regions_of(layout).items()}
    listeners = []
    for said in prompts:
        where = paint(pipe, said, masks)
        listeners.append(painted(pipe.eps, pipe.net, pipe.schedule, where, strength))
    pictures = []
    for i, (said, listening) in enumerate(zip(prompts, listeners)):
        x = pipe.start(1, seed + i)
        cond = pipe.embed(said)
        for t, s in step_pairs(pipe.timesteps(steps), progress):
            eps = guide(pipe.eps(x, t, pipe.null()), listening(x, t, cond), scale)
            x = ddim_step(pipe.schedule, x, eps, t, s)
        pictures.append(pipe.decode(x))
    return torch.cat(pictures)
