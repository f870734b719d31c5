"""ZeCon: another style, the same content, by contrast between patches and without training.

Serin Yang, Hyunmin Hwang, Jong Chul Ye, "Zero-Shot Contrastive Loss for Text-Guided Diffusion Image
Style Transfer", 2023, arXiv 2303.08622.

CLIP can push a picture towards "striped" while it is denoised, but CLIP does not care what is lost
on the way. The denoiser itself knows what the picture holds: its encoder, asked about an almost
clean picture, gives every place a vector. So each place of the new picture must resemble the same
place of the source more than it resembles the source's other places.

    L_nce   = - mean_p log( exp(q_p . k_p / tau) / sum_r exp(q_p . k_r / tau) )
              q: new, k: source; unit vectors at places p
    L_style = crops of the picture move as the words do (CLIP's direction, `clip_loss` of
              diffusion_clip.py)
    g       = grad_x (L_style + content L_nce + mse |x0 - z|^2)
    x_s    <- x_s - style std g / rms(g)

The contrast forbids that places change places or blur into each other. It allows that all of them
change alike: a style.

Try: `content` 0, and watch what goes lost; `style` 0 (the picture comes back) to 6; one crop, which
invites tricks.

Weakness: balanced by loss values, as published (10000, 20000, 500, 5000, 100), weights mean
something for one CLIP and one denoiser only. Here the whole gradient is brought to the size of the
noise that the step would draw, picture by picture, and two weights against CLIP's loss remain. Of
the paper's terms the one of VGG features and CLIP's plain distance to the target are left out: the
first needs another network, the second also pulls at the content. And the tiny CLIP has seen whole
scenes only, so crops are large.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.denoise import noises, step_pairs
from minidiff.core.process import ddim_step, eps_to_x0, posterior
from minidiff.core.taps import tap, tap_names
from minidiff.editing.blended_diffusion import clip_of
from minidiff.editing.diffusion_clip import clip_loss, direction, invert_to
from minidiff.pipe.checks import door
from minidiff.pipe.pipe import Pipe

LEVELS = r"^level\.\d+$"  # the end of each level of a UNet's encoder


def patch_nce(q: Tensor, k: Tensor, tau: float = 0.07) -> Tensor:
    """(b,) contrast of features q with features k at the same
    p places (b p c each): the mean over places of L_nce above.
    """
    # b p p; the partner is in its row
    logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT / tau
    here = torch.arange(q.shape[1], device=q.device).expand(len(q), -1)
    # (b places_k p): classes second
    return F.cross_entropy(logits.mT, here, reduction="none").mean(1)


def features(pipe: Pipe, z: Tensor, places: list[Tensor]) -> list[Tensor]:
    """What the encoder sees in latents z (b c h w) taken for
    clean: for each level, vectors (b p c) at places (b p).
    """
    seen = []
    with tap(pipe.net, LEVELS, lambda h, name: seen.append(h)):
        pipe.eps(z, 1, pipe.null(len(z)))  # 1: the least noise it knows
    return [
        h.flatten(2).mT.gather(1, p[:, :, None].expand(-1, -1, h.shape[1]))
        for h, p in zip(seen, places)
    ]


def some_places(sizes: list[int], n: int, streams: list[torch.Generator]) -> list[Tensor]:
    """For each map of so many pixels (b p) random different
    places, at most n of them; row i draws from streams[i].
    """
    return [torch.stack([torch.randperm(size, generator=g)[:n] for g in streams]) for size in sizes]


def crops(images: Tensor, k: int, streams: list[torch.Generator], least: float = 0.5) -> Tensor:
    """k random squares of each batch (b 3 H W) in a list
    of pictures alike, at full size: list of (b k) 3 H W.

    `least`: smallest side, as a share of the picture's. All pictures of the list are cut at the
    same places.
    """
    # bk 3
    u = torch.stack([torch.rand(k, 3, generator=g) for g in streams]).flatten(0, 1).to(images[0])
    side = least + (1 - least) * u[:, 2]
    zero = torch.zeros_like(side)
    shift = (1 - side)[:, None] * (2 * u[:, :2] - 1)
    theta = torch.stack([side, zero, shift[:, 0], zero, side, shift[:, 1]], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(theta), *images[0].shape[1:]], align_corners=False)
    return [
        F.grid_sample(x.repeat_interleave(k, 0), grid, padding_mode="border", align_corners=False)
        for x in images
    ]


@door
def zecon(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    strength: float = 0.8,
    style: float = 3.0,
    content: float = 0.4,
    mse: float = 0.1,
    crops_: int = 4,
    places: int = 64,
    eta: float = 0.0,
    steps: int = 25,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Give pictures `image` (b 3 H W) in [-1, 1] the style
    that `target` has and `source` has not; returns (b 3 H W).

    strength  share of the steps that is run; 0 returns the autoencoder's copy
    style     the pull in every step, in units of the noise that the step would draw; 0: none
    content   weight of the contrast between places, beside CLIP's loss of weight 1
    mse       weight of the squared distance of the latents
    crops_    random crops that CLIP judges in every step
    places    of each encoder level, compared in every step
    eta       1 draws fresh noise on the way, as the paper does; 0 none

    The network is told nothing (the empty prompt): CLIP alone knows the words. Identical prompts
    name no direction: the picture is rebuilt. ValueError: options out of range, a network whose
    encoder has no levels.
    """
    ts = pipe.timesteps(steps, strength)
    if min(style, content, mse) < 0 or min(crops_, places) < 1 or not 0 <= eta <= 1:
        raise ValueError(
            f"style={style}, content={content}, mse={mse}, crops_={crops_}, places={places}, "
            f"eta={eta}: expected weights of 0 or more, counts of 1 or more, and eta in 0..1"
        )
    if not tap_names(pipe.net, LEVELS):
        raise ValueError(
            f"{pipe.name or 'this model'} is no UNet: the contrast reads the levels of its encoder"
        )
    z = pipe.encode(image)
    model, tokenize = clip_of(pipe)
    with torch.no_grad():
        way = direction(model, tokenize, source, target).expand(len(z), -1)
        null = pipe.null(len(z))
        x = invert_to(pipe, image, null, ts)
    fresh = noises(x, seed)
    streams = [torch.Generator().manual_seed(seed + i) for i in range(len(z))]
    sch = pipe.schedule
    pulled = style > 0 and source != target
    for t, s in step_pairs(ts, progress):
        with torch.set_grad_enabled(pulled):
            x = x.detach().requires_grad_(pulled)
            eps = pipe.eps(x, t, null)
            x0 = eps_to_x0(sch, x, eps, t)
            pull = (
                guidance(
                    pipe, x, x0, z, image.to(z), model, way, content, mse, crops_, places, streams
                )
                if pulled
                else 0
            )
        with torch.no_grad():
            std = posterior(sch, x, x0, t, s)[1] ** 0.5  # 0 in the last step
            x = ddim_step(sch, x, eps, t, s, eta, next(fresh) if eta else None) - style * std * pull
    return pipe.decode(x.detach())


def guidance(pipe, x, x0, z, image, model, way, content, mse, crops_, places, streams) -> Tensor:
    """(b c h w): the gradient at x of all terms, with a root mean square of 1 in each row."""
    # not clamped: gradients go on
    picture = pipe.vae.decode(x0 / pipe.vae.scale) if pipe.vae else x0
    now, then = crops([picture, image], crops_, streams)
    with torch.no_grad():
        before = model.embed_image(then)
    # CLIP's direction, crop by crop
    loss = clip_loss(model, now, before, way.repeat_interleave(crops_, 0)).view(len(x), -1).mean(1)
    if content or mse:
        sizes = [
            (x.shape[2] >> i) * (x.shape[3] >> i) for i in range(len(tap_names(pipe.net, LEVELS)))
        ]
        where = [p.to(x.device) for p in some_places(sizes, places, streams)]
        with torch.no_grad():
            keys = features(pipe, z, where)
        nce = sum(patch_nce(q, k) for q, k in zip(features(pipe, x0, where), keys)) / len(keys)
        loss = loss + content * nce + mse * (x0 - z).square().mean((1, 2, 3))
    (pull,) = torch.autograd.grad(loss.sum(), x)  # a row's gradient is its own
    return pull / pull.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
