"""Blended Diffusion: CLIP pulls, the mask holds, and a model without words paints.

Omri Avrahami, Dani Lischinski, Ohad Fried, 2021, arXiv 2111.14818.

An unconditional model knows pictures, and CLIP knows words. At every step CLIP sees the clean
picture that the state implies. The gradient of CLIP's distance to the prompt is taken through the
network and shifts the mean of the next state. Outside the mask each state is the given picture,
noised to the same level.

    seen = f x0_hat + (1 - f) x_t,    f = sigma_t
    loss = weight * mean over views of d(CLIP(seen), CLIP(prompt))
    d    = 2 arcsin(|a - b| / 2)^2    for unit vectors a, b: half the squared angle
    x_s  = m (mu(x_t, x0_hat) - var grad loss + std noise) + (1 - m) (alpha_s z + sigma_s n)

`loss` also punishes pixels outside [-1, 1]. Several runs are drawn and the one that CLIP likes best
is kept.

Try: weight 0, which draws whatever the model likes; views=1, and look at the noise that also
pleases CLIP; see="black", the published way, which shows CLIP the inside of the mask on black.

Weakness: a backward pass through the network in every step and many runs to choose from: in the
paper over half an hour a picture. `every=2` asks CLIP in every second step only;
`blended_latent.py`, with a model that knows the words itself, needs no gradient at all. And what is
optimised is CLIP's opinion: the score must come from somebody else.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.core.denoise import noise, noises, step_pairs
from minidiff.core.process import eps_to_x0, posterior
from minidiff.pipe.checks import door
from minidiff.pipe.masks import check_mask, paste, to_latent_mask
from minidiff.pipe.pipe import Pipe


def spherical(a: Tensor, b: Tensor) -> Tensor:
    """Half the squared angle between unit vectors (.. e). Gradients are finite everywhere: 0 at a =
    b, cut at a = -b.
    """
    chord = ((a - b).square().sum(-1) + 1e-12).sqrt() / 2  # the root of 0 has no gradient
    return 2 * chord.clamp(max=1 - 1e-6).asin() ** 2  # nor has arcsin at 1


def views(pictures: Tensor, k: int, streams: list[torch.Generator], reach: float = 0.1) -> Tensor:
    """k slightly shifted and scaled copies of each picture (b c h w): (b k) c h w. Row i draws from
    streams[i] alone.
    """
    drawn = torch.stack([torch.rand(k, 3, generator=g) for g in streams])  # b k 3
    dx, dy, dzoom = (drawn.flatten(0, 1).to(pictures) * 2 - 1).unbind(1)  # bk each, -1..1
    zoom = 1 + reach * dzoom
    zero = torch.zeros_like(zoom)
    rows = [zoom, zero, reach * dx, zero, zoom, reach * dy]
    theta = torch.stack(rows, 1).view(-1, 2, 3)
    x = pictures.repeat_interleave(k, 0)
    places = F.affine_grid(theta, x.shape, align_corners=False)
    return F.grid_sample(x, places, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Wish:
    """What pulls: CLIP's distance to the prompts, and the punishment of pixels out of range.

    clip    the model whose opinion is asked
    words   its embeddings of the prompts, (b e)
    window  (b 1 H W): 1 where CLIP sees the state
    around  (b 3 H W): what it sees elsewhere
    weight  of CLIP's distance
    limit   of what leaves [-1, 1]
    views   shifted and scaled copies that CLIP judges
    """

    clip: nn.Module
    words: Tensor
    window: Tensor
    around: Tensor
    weight: float
    limit: float
    views: int

    def loss(self, seen: Tensor, streams: list[torch.Generator]) -> Tensor:
        """(b,) of pictures (b 3 H W)."""
        shown = views(self.window * seen + (1 - self.window) * self.around, self.views, streams)
        words = self.words.repeat_interleave(self.views, 0)
        away = spherical(self.clip.embed_image(shown), words).view(-1, self.views).mean(1)
        outside = (seen - seen.clamp(-1, 1)).square().mean((1, 2, 3))
        return self.weight * away + self.limit * outside


def clip_of(pipe: Pipe):
    """(CLIP, text to token ids): the shipped pair, which knows the toy world only."""
    from minidiff.data.shapes import VOCAB
    from minidiff.models.tokenizer import Tokenizer
    from minidiff.weights.store import load_clip

    return load_clip().to(pipe.device, pipe.dtype), Tokenizer.words(VOCAB)


@door
def blended_diffusion(
    pipe: Pipe,
    image: Tensor,
    prompt: str,
    *,
    mask: Tensor,
    strength: float = 0.75,
    weight: float = 500.0,
    limit: float = 50.0,
    views_: int = 4,
    every: int = 1,
    runs: int = 4,
    see: Literal["picture", "black"] = "picture",
    steps: int = 50,
    seed: int = 0,
    clip=None,
    progress: bool = False,
) -> Tensor:
    """Paint what CLIP takes for `prompt` into pictures `image` (b 3 H W) in [-1, 1] inside `mask`;
    returns (b 3 H W).

    mask      (1 or b, 1, H, W), 1 where to paint
    strength  share of the steps that is run
    weight    of CLIP's distance; 0 draws without words
    limit     weight of what leaves the range of pixels
    views_    shifted and scaled copies that CLIP judges in every step
    every     CLIP is asked in every so many steps
    runs      pictures drawn per given one, of which CLIP keeps its favourite
    see       what CLIP sees outside the mask: the given picture, or black

    `clip`: (model, tokenizer), default the shipped one, which knows the toy world only. The network
    is told nothing (the empty prompt). An empty mask returns the picture. ValueError: strength
    outside 0..1, negative weights, counts below 1, sizes that do not fit.
    """
    ts = pipe.timesteps(steps, strength)
    mask = check_mask(mask, image)
    if min(weight, limit) < 0 or min(views_, every, runs) < 1 or see not in ("picture", "black"):
        raise ValueError(
            f"weight={weight}, limit={limit}, views_={views_}, every={every}, runs={runs}, "
            f"see={see!r}: expected weights of 0 or more, counts of 1 or more, "
            "and picture or black"
        )
    if not mask.any():
        return image.clone()
    model, tokenize = clip or clip_of(pipe)
    prompts = [prompt] * len(image) if isinstance(prompt, str) else list(prompt)
    with torch.no_grad():
        words = model.embed_text(tokenize(prompts).to(pipe.device))  # b e
    z = pipe.encode(image)
    wish = Wish(
        clip=model,
        words=words,
        window=mask.to(z),
        around=image.to(z) if see == "picture" else -torch.ones_like(image).to(z),
        weight=weight,
        limit=limit,
        views=views_,
    )
    painted = []
    for k in range(runs):  # run k of picture i has a seed of its own
        run = _paint(
            pipe, z, to_latent_mask(mask, pipe), ts, wish, every, seed + k * 10**6, progress
        )
        painted.append(paste(run, image, mask))
    with torch.no_grad():
        likings = [(model.embed_image(run.to(words)) * words).sum(-1) for run in painted]  # b each
    favourite = torch.stack(likings).argmax(0).tolist()
    return torch.stack([painted[k][i] for i, k in enumerate(favourite)])


def _paint(
    pipe: Pipe,
    z: Tensor,
    m: Tensor,
    ts: list[int],
    wish: Wish,
    every: int,
    seed: int,
    progress: bool,
) -> Tensor:
    """One run over latents z (b c h w), to be painted where m (b 1 h w) is 1: pictures (b 3 H W)
    that are not yet pasted.
    """
    sch = pipe.schedule
    null = pipe.null()
    n = noise(z.shape, seed, z.device, z.dtype)
    fresh = noises(z, seed)
    streams = [torch.Generator().manual_seed(seed + i) for i in range(len(z))]
    x = pipe.noised(z, ts[0], n) if len(ts) > 1 else z
    for i, (t, s) in enumerate(step_pairs(ts, progress)):
        asked = wish.weight > 0 and i % every == 0
        pull = 0.0
        with torch.set_grad_enabled(asked):
            x = x.detach().requires_grad_(asked)
            x0 = eps_to_x0(sch, x, pipe.eps(x, t, null), t)
            if asked:
                f = float(sch.sigma[t])
                seen = f * x0 + (1 - f) * x
                if pipe.vae:
                    seen = pipe.vae.decode(seen / pipe.vae.scale)
                loss = wish.loss(seen, streams)
                (pull,) = torch.autograd.grad(loss.sum(), x)  # a row's gradient is its own
        with torch.no_grad():
            mean, var = posterior(sch, x, x0, t, s)
            inside = mean - var * pull + var**0.5 * next(fresh)  # CLIP's pull on the mean
            outside = pipe.noised(z, s, n)  # the picture, noised as much
            x = m * inside + (1 - m) * outside
    return pipe.decode(x.detach())
