"""DiffEdit: the network itself says where the edit belongs.

Guillaume Couairon, Jakob Verbeek, Holger Schwenk, Matthieu Cord, 2022, arXiv 2210.11427.

Noise a picture half way and ask twice what the noise is, once told the source prompt and once the
target prompt. The two answers differ where the prompts disagree about the picture: that is the
mask. Then invert the picture, so that its details are kept in the noise, and redraw with the target
prompt; outside the mask every state is the inversion's own.

    D   = mean over n noises and channels of | eps(z_t, t, target) - eps(z_t, t, source) |
    M   = D cut at 3 mean(D), divided by that, > threshold
    z_s = M z_s + (1 - M) z_s^inverted    after every move, at the time the state is AT

Guidance would multiply D by a constant, which the division takes out again: so the mask needs the
two conditional answers only. For the same reason the cut decides nothing at thresholds below 1: M
is D > 3 threshold mean(D).

Try: `threshold` from .2 to .9; samples=1, to see why noises are averaged; strength .5 and 1; your
own `mask`.

Weakness: the mask is as blunt as the latents, and is a mask of what the words disagree about: for
"add an object" that is anywhere it might go. So a mask can be given, `grow` widens a tight one, and
the picture's own pixels are pasted back outside, so that an edit in the wrong place does not also
cost the right ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import noises, step_pairs
from minidiff.core.process import ddim_step, q_sample
from minidiff.inversion.ddim import invert_step
from minidiff.pipe.checks import door
from minidiff.pipe.masks import check_mask, paste, to_latent_mask
from minidiff.pipe.pipe import Pipe

RATIO = 3  # of the mean, where D is cut


@torch.no_grad()
def difference(
    pipe: Pipe,
    z: Tensor,
    source: str | list[str],
    target: str | list[str],
    *,
    level: float = 0.5,
    samples: int = 10,
    seed: int = 0,
) -> Tensor:
    """How much the two prompts disagree about latents z (b c h w), cell by cell: (b 1 h w), at
    least 0.

    level: share of the noise, in (0, 1]. samples: noises that are averaged. Both prompts see the
    same noise.
    """
    if not 0 < level <= 1 or samples < 1:
        raise ValueError(
            f"level={level}, samples={samples}: expected a noise level in (0, 1], .5 is usual, "
            "and at least "
            "1 sample"
        )
    b, t = len(z), max(round(level * pipe.schedule.T), 1)
    cond = Cond.cat([pipe.embed(p).expand(b) for p in (source, target)])  # rows: [source, target]
    total = torch.zeros_like(z[:, :1])
    for _, n in zip(range(samples), noises(z, seed)):
        z_t = q_sample(pipe.schedule, z, t, n)
        e_source, e_target = pipe.eps(torch.cat([z_t, z_t]), t, cond).chunk(2)
        total += (e_target - e_source).abs().mean(1, keepdim=True)
    return total / samples


def threshold_mask(d: Tensor, threshold: float = 0.5, grow: int = 0) -> Tensor:
    """Differences (b 1 h w) -> masks of 0 and 1: what exceeds `threshold` of each picture's cut,
    grown by `grow` cells.
    """
    cut = RATIO * d.mean((1, 2, 3), keepdim=True)  # per row: a mask depends on its picture only
    m = (d.clamp(max=cut) > threshold * cut).to(d)
    return F.max_pool2d(m, 2 * grow + 1, 1, grow)


@door
@torch.no_grad()
def diffedit(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    mask: Tensor | None = None,
    strength: float = 0.8,
    threshold: float = 0.5,
    grow: int = 0,
    level: float = 0.5,
    samples: int = 10,
    steps: int = 50,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Edit pictures `image` (b 3 H W) in [-1, 1] from what `source` says to what `target` says;
    returns (b 3 H W).

    mask       (1 or b, 1, H, W), 1 where the edit happens; default: found from the two prompts
    strength   how far the picture is inverted, as a share of the steps; less keeps more of what the
               mask covers
    threshold  of the mask that is found, in (0, 1): less makes it larger
    grow       widen the mask that is found by so many latent cells
    level      share of noise at which the prompts are compared
    samples    noises over which they are compared
    scale      guidance of the redrawing, by default the model's own; the inversion has none

    Equal prompts disagree nowhere: the mask is empty and the picture comes back as it was.
    ValueError: strength outside 0..1, threshold outside (0, 1), a negative `grow`, sizes that do
    not fit.
    """
    ts = pipe.timesteps(steps, strength)
    if not 0 < threshold < 1 or grow < 0:
        raise ValueError(
            f"threshold={threshold}, grow={grow}: expected a threshold between 0 and 1 and 0 "
            "or more cells"
        )
    mask = None if mask is None else check_mask(mask, image)
    guided = cfg_batched(pipe.eps, pipe.null(), scale)
    # z: b c h w
    z, sch, given, wanted = (
        pipe.encode(image),
        pipe.schedule,
        pipe.embed(source),
        pipe.embed(target),
    )
    if mask is None:
        m = threshold_mask(
            difference(pipe, z, source, target, level=level, samples=samples, seed=seed),
            threshold,
            grow,
        )
        mask = F.interpolate(m, image.shape[-2:], mode="nearest").to(image)
    else:
        m = to_latent_mask(mask, pipe)
    xs = [z]
    for s, t in step_pairs(ts[::-1], progress):
        xs.append(invert_step(pipe.eps, sch, xs[-1], s, t, given))
    x = xs.pop()
    for t, s in step_pairs(ts, progress):
        x = ddim_step(sch, x, guided(x, t, wanted), t, s)
        x = m * x + (1 - m) * xs.pop()  # both are at time s
    return paste(pipe.decode(x), image, mask)
