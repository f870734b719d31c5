"""MagicMix: the layout of a picture, the meaning of a prompt.

Jun Hao Liew, Hanshu Yan, Daquan Zhou, Jiashi Feng, 2022, arXiv 2210.16056.

Layout is settled at high noise, meaning later. So start from the picture noised to `kmax`; down to
`kmin` mix the noised picture into every state, while the prompt draws; below `kmin` let the model
finish undisturbed.

    x_s = nu x_s + (1 - nu) y_s       from kmax down to kmin
    y_s = alpha_s z + sigma_s n       with one noise n for all y

nu is the share of the prompt. Mixed is the state itself, so that both the network and the move see
the mixture.

Try: nu from .5 to 1; band="low" beside "full"; `choose`, which tries a grid and takes the best one
by itself.

Weakness: a convex mixture of two pictures is a double exposure, and what the model cannot resolve
below kmin stays as a ghost. `ghosting` measures it: pixel by pixel, is this part source, part what
the prompt draws without any mixing? Three mixtures are offered ("low" mixes blurred states only, so
no second contour is injected; "ramp" lets nu rise to 1 at kmin), and `choose` picks kmin, kmax and
nu without a judge: CLIP must find the prompt, the layout must be the picture's, and ghosts count
against.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import noise, step_pairs
from minidiff.core.process import ddim_step
from minidiff.pipe.checks import door
from minidiff.pipe.pipe import Pipe

# kmin, kmax, nu
GRID = (
    (0.1, 0.9, 0.6),
    (0.3, 0.9, 0.5),
    (0.1, 0.6, 0.8),
    (0.3, 0.6, 0.7),
    (0.2, 0.6, 0.85),
    (0.6, 0.6, 1.0),
)


def blur(x: Tensor, cells: int = 2) -> Tensor:
    """States (b c h w) without what is finer than `cells`: block means, smoothly enlarged again."""
    return F.interpolate(F.avg_pool2d(x, cells), x.shape[-2:], mode="bilinear")


@door
@torch.no_grad()
def magicmix(
    pipe: Pipe,
    image: Tensor,
    target: str,
    *,
    kmin: float = 0.2,
    kmax: float = 0.6,
    nu: float = 0.85,
    band: Literal["full", "low", "ramp"] = "full",
    steps: int = 50,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Draw what `target` says with the layout of pictures
    `image` (b 3 H W) in [-1, 1]; returns (b 3 H W).

    kmin  share of the schedule below which nothing is mixed any more; kmin = kmax is SDEdit of that
          strength
    kmax  share of the schedule at which it starts
    nu    share of the prompt's state in every mixture: 1 mixes nothing in, 0 keeps the picture's
    band  what is mixed: the state, its low frequencies, or the state by a share that fades out
          towards kmin

    ValueError: not 0 <= kmin <= kmax <= 1, nu outside 0..1, an unknown band.
    """
    if not 0 <= kmin <= kmax <= 1 or not 0 <= nu <= 1:
        raise ValueError(
            f"kmin={kmin}, kmax={kmax}, nu={nu}: expected 0 <= kmin <= kmax <= 1 and nu in 0..1"
        )
    if band not in ("full", "low", "ramp"):
        raise ValueError(f"band={band!r}: expected full, low or ramp")
    grid = pipe.timesteps(steps)
    ts = grid[steps - int(kmax * steps) :]
    stop = grid[steps - int(kmin * steps)]
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    cond = pipe.embed(target)
    sch = pipe.schedule
    z = pipe.encode(image)
    n = noise(z.shape, seed, z.device, z.dtype)
    if len(ts) == 1:  # kmax 0: nothing is drawn
        return pipe.decode(z)
    x = pipe.noised(z, ts[0], n)
    for t, s in step_pairs(ts, progress):
        x = ddim_step(sch, x, denoise(x, t, cond), t, s)
        if s >= stop:  # x is at s, and so is y
            y = pipe.noised(z, s, n)
            keep = (1 - nu) * ((s - stop) / (ts[0] - stop) if band == "ramp" else 1)
            x = x + keep * (blur(y - x) if band == "low" else y - x)
    return pipe.decode(x)


def ghosting(out: Tensor, source: Tensor, free: Tensor, *, apart: float = 0.6) -> Tensor:
    """How much of pictures (b 3 H W) is a double exposure of `source` and `free`, (b,) in 0..1.

    Where the two differ by more than `apart`, out = source + a (free - source) + rest is solved
    pixel by pixel. A pixel taken from either (a = 0 or 1), or like neither (a large rest), is no
    ghost; halfway is: 4 a (1 - a) (1 - rest^2/d^2). A plain alpha blend by 1/2 reaches 1. `apart`
    is above the contrast of the toy textures, so objects count. nan where source and free are alike
    everywhere.
    """
    d = free - source
    d2 = d.square().sum(1)  # b h w
    a = ((out - source) * d).sum(1) / d2.clamp_min(1e-6)
    a_in = a.clamp(0, 1)
    rest = (out - source - a[:, None] * d).square().sum(1) / d2.clamp_min(1e-6)
    ghost = 4 * a_in * (1 - a_in) * (1 - rest).clamp(min=0)
    seen = (d2 > apart**2).float()
    return (ghost * seen).sum((1, 2)) / seen.sum((1, 2))


def layout_likeness(a: Tensor, b: Tensor) -> Tensor:
    """Do objects stand at the same pixels, whatever their
    colours? IoU (b,) of two pictures' figures, (b 3 H W) each.

    The figure: pixels far from the picture's border colour, half of the largest distance being far.
    """

    def figure(x):
        # textures blur into the ground
        x = F.avg_pool2d(F.pad(x, (2,) * 4, mode="replicate"), 5, 1)
        frame = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], dim=2)  # b 3 4n
        away = (x - frame.median(2).values[..., None, None]).square().sum(1).sqrt()  # b h w
        return away > 0.5 * away.amax((1, 2), keepdim=True)

    a = figure(a)
    b = figure(b)
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp_min(1)


def tiny_clip(pipe: Pipe, pictures: Tensor, prompts: str | list[str]) -> Tensor:
    """Cosine (b,) between pictures and prompts in the eyes
    of the shipped CLIP, which knows the toy world only.
    """
    from minidiff.weights.store import load_clip

    clip = load_clip().to(pictures)
    ids = pipe.tokenizer([prompts] if isinstance(prompts, str) else prompts).to(pictures.device)
    return (clip.embed_image(pictures) * clip.embed_text(ids)).sum(1)


@torch.no_grad()
def choose(
    pipe: Pipe,
    image: Tensor,
    target: str | list[str],
    *,
    score=tiny_clip,
    grid: tuple = GRID,
    band: str = "full",
    steps: int = 25,
    scale: float | None = None,
    seed: int = 0,
) -> tuple[list[tuple[float, float, float]], Tensor]:
    """The setting that suits each picture, found without
    a judge: ([(kmin, kmax, nu)] * b, pictures (b 3 H W)).

    Every setting of `grid` is drawn and the one with the largest  meaning x layout x (1 - ghosting)
    taken, per picture. Meaning is `score(pipe, pictures, target)`, counted from the given picture's
    (0) to that of a free drawing (1).
    """
    free = magicmix(pipe, image, target, kmax=1.0, nu=1.0, steps=steps, scale=scale, seed=seed)
    image = image.to(free)
    points = []
    drawn = []
    low, high = (score(pipe, x, target) for x in (image, free))
    for kmin, kmax, nu in grid:
        out = magicmix(
            pipe,
            image,
            target,
            kmin=kmin,
            kmax=kmax,
            nu=nu,
            band=band,
            steps=steps,
            scale=scale,
            seed=seed,
        )
        meaning = ((score(pipe, out, target) - low) / (high - low).clamp_min(1e-3)).clamp(0, 1)
        points.append(
            meaning * layout_likeness(out, image) * (1 - ghosting(out, image, free).nan_to_num(0.0))
        )
        drawn.append(out)
    best = torch.stack(points).argmax(0).tolist()
    return [grid[k] for k in best], torch.stack([drawn[k][i] for i, k in enumerate(best)])
