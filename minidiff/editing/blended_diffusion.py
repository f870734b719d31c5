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

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

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
    # bk 3
    u = (
        torch.stack([torch.rand(k, 3, generator=g) for g in streams]).flatten(0, 1).to(pictures) * 2
        - 1
    )
    zoom, zero = 1 + reach * u[:, 2], torch.zeros_like(u[:, 0])
    theta = torch.stack([zoom, zero, reach * u[:, 0], zero, zoom, reach * u[:, 1]], 1).view(
        -1, 2, 3
    )
    x = pictures.repeat_interleave(k, 0)
    return F.grid_sample(
        x,
        F.affine_grid(theta, x.shape, align_corners=False),
        padding_mode="border",
        align_corners=False,
    )


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
    ts, mask = pipe.timesteps(steps, strength), check_mask(mask, image)
    if min(weight, limit) < 0 or min(views_, every, runs) < 1 or see not in ("picture", "black"):
        raise ValueError(
            f"weight={weight}, limit={limit}, views_={views_}, every={every}, runs={runs}, "
            f"see={see!r}: "
            "expected weights of 0 or more, counts of 1 or more, and picture or black"
        )
    if not mask.any():
        return image.clone()
    model, tokenize = clip or clip_of(pipe)
    b, prompts = len(image), [prompt] * len(image) if isinstance(prompt, str) else prompt
    with torch.no_grad():
        words = model.embed_text(tokenize(list(prompts)).to(pipe.device))  # b e
    painted = []
    for k in range(runs):  # run k of picture i has the seed of its own
        one = _paint(
            pipe,
            image,
            mask,
            words,
            ts,
            weight,
            limit,
            views_,
            every,
            see,
            seed + k * 10**6,
            model,
            progress,
        )
        painted.append(paste(one, image, mask))
    with torch.no_grad():
        # runs b
        liked = torch.stack([(model.embed_image(p.to(words)) * words).sum(-1) for p in painted])
    return (
        torch.stack([painted[k][i] for i, k in enumerate(liked.argmax(0).tolist())]) if b else image
    )


def _paint(
    pipe, image, mask, words, ts, weight, limit, k, every, see, seed, model, progress
) -> Tensor:
    """One run: pictures (b 3 H W), not yet pasted."""
    sch, z, m, null = pipe.schedule, pipe.encode(image), to_latent_mask(mask, pipe), pipe.null()
    n, fresh = noise(z.shape, seed, z.device, z.dtype), noises(z, seed)
    streams = [torch.Generator().manual_seed(seed + i) for i in range(len(z))]
    around, window = image.to(z) if see == "picture" else -torch.ones_like(image).to(z), mask.to(z)
    x = pipe.noised(z, ts[0], n) if len(ts) > 1 else z
    for i, (t, s) in enumerate(step_pairs(ts, progress)):
        asked, pull = weight > 0 and i % every == 0, 0.0
        with torch.set_grad_enabled(asked):
            x = x.detach().requires_grad_(asked)
            x0 = eps_to_x0(sch, x, pipe.eps(x, t, null), t)
            if asked:
                f = float(sch.sigma[t])
                seen = f * x0 + (1 - f) * x
                seen = pipe.vae.decode(seen / pipe.vae.scale) if pipe.vae else seen
                shown = views(window * seen + (1 - window) * around, k, streams)
                # b
                away = (
                    spherical(model.embed_image(shown), words.repeat_interleave(k, 0))
                    .view(-1, k)
                    .mean(1)
                )
                out = (seen - seen.clamp(-1, 1)).square().mean((1, 2, 3))
                # a row's gradient is its own
                (pull,) = torch.autograd.grad((weight * away + limit * out).sum(), x)
        with torch.no_grad():
            mean, var = posterior(sch, x, x0, t, s)
            x = mean - var * pull + var**0.5 * next(fresh)  # CLIP's pull on the mean
            # outside the mask: the picture, noised as much
            x = m * x + (1 - m) * pipe.noised(z, s, n)
    return pipe.decode(x.detach())
