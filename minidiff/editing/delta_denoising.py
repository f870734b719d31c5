"""Delta Denoising Score: walk by the difference of two opinions.

Amir Hertz, Kfir Aberman, Daniel Cohen-Or, 2023, arXiv 2304.07090; score distillation: Ben Poole,
Ajay Jain, Jonathan T. Barron, Ben Mildenhall, 2022, arXiv 2209.14988.

Score distillation noises a picture, asks the model what the noise is, and subtracts the noise that
was added. The rest is what the model would change, and the picture moves by it. But even for a
perfect picture of the prompt this rest is not zero. It drags the picture towards the mean of all
pictures of the prompt, so the picture blurs. The model makes the same error on the given picture
with the prompt that describes it. So this paper takes the difference: the error cancels, and what
the two prompts disagree about stays.

    SDS:  grad = w(t) (eps(z_t, t, target) - n)
    DDS:  grad = w(t) (eps(z_t, t, target) - eps(z0_t, t, source)),    z_t, z0_t noised by one n
    z <- z - rate grad,    t uniform in `times`,    w(t) = alpha_t sigma_t (the authors' code: 1)

No state is ever inverted or sampled: the picture itself walks, from where it is, and stays where
nothing pulls.

Try: kind="sds", which blurs; iterations from 10 to 400; times=(.02, .5) for details only; scale 1
to 10.

Weakness: four evaluations an iteration. And guidance makes the two opinions differ even where the
edit is done, so that the walk does not stop by itself: colours saturate, shapes swell. So the rate
is small and the walk short; `mask` confines it and pastes the rest back.
"""

from typing import Literal

import torch
from torch import Tensor
from tqdm import trange

from minidiff.core.cfg import cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import noises
from minidiff.core.process import q_sample
from minidiff.pipe.checks import door
from minidiff.pipe.masks import check_mask, paste, to_latent_mask
from minidiff.pipe.pipe import Pipe


def score_gradient(
    denoise,
    pipe: Pipe,
    z: Tensor,
    z0: Tensor,
    target: Cond,
    source: Cond | None,
    t: Tensor,
    n: Tensor,
) -> Tensor:
    """The direction (b c h w) in which z must not go, at times
    t (b,) and noise n; `source` None is plain distillation.

    w(t) = alpha_t sigma_t: small where the answer is settled (no noise) or empty (all noise). The
    authors' code weighs all times alike, w = 1.
    """
    sch = pipe.schedule
    z_t = q_sample(sch, z, t, n)
    if source is None:
        wrong = denoise(z_t, t, target) - n  # without the network's Jacobian
    else:
        rows = torch.cat([z_t, q_sample(sch, z0, t, n)])  # rows: [edit, source]
        e = denoise(rows, torch.cat([t, t]), Cond.cat([target, source]))
        wrong = e[: len(z)] - e[len(z) :]
    a, s = sch.at(t, z)
    return a * s * wrong


@door
@torch.no_grad()
def delta_denoising(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    kind: Literal["dds", "sds"] = "dds",
    iterations: int = 50,
    rate: float = 0.1,
    times: tuple[float, float] = (0.05, 0.95),
    mask: Tensor | None = None,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Walk pictures `image` (b 3 H W) in [-1, 1] from what
    `source` says to what `target` says; returns (b 3 H W).

    kind        dds, or sds: without the source's opinion (the baseline that blurs)
    iterations  of gradient descent; each is one time and one noise
    rate        step size
    times       shares of the schedule between which t is drawn
    mask        (1 or b, 1, H, W), 1 where the picture may change
    scale       guidance of both opinions (default: the model's own)

    With equal prompts and kind "dds" both opinions are one: the autoencoder's copy comes back.
    ValueError: iterations below 0, a rate that is not positive, times not in 0 < lo <= hi <= 1,
    sizes that do not fit.
    """
    lo, hi = times
    if kind not in ("dds", "sds") or iterations < 0 or rate <= 0 or not 0 < lo <= hi <= 1:
        raise ValueError(
            f"kind={kind!r}, iterations={iterations}, rate={rate}, times={times}: expected dds or "
            "sds, 0 or more iterations, a positive rate and 0 < lo <= hi <= 1"
        )
    mask = None if mask is None else check_mask(mask, image)
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    T = pipe.schedule.T
    b = len(image)
    z0 = pipe.encode(image)
    m = 1 if mask is None else to_latent_mask(mask, pipe)
    wanted = pipe.embed(target).expand(b)
    given = None if kind == "sds" else pipe.embed(source).expand(b)
    # of the times; noises has its own
    streams = [torch.Generator().manual_seed(seed + i) for i in range(b)]
    z = z0.to(torch.promote_types(z0.dtype, torch.float32))  # float16 would lose small steps
    for _, n in zip(trange(iterations, disable=not progress, leave=False), noises(z0, seed)):
        u = torch.cat([torch.rand(1, generator=g) for g in streams])
        t = ((lo + (hi - lo) * u) * T).round().long().clamp(1, T).to(z.device)
        z = z - rate * m * score_gradient(denoise, pipe, z.to(z0), z0, wanted, given, t, n)
    out = pipe.decode(z.to(z0))
    return out if mask is None else paste(out, image, mask)
