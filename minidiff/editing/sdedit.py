"""SDEdit: guided image synthesis and editing with stochastic differential equations.

Chenlin Meng, Yutong He, Yang Song, Jiaming Song, Jiajun Wu, Jun-Yan Zhu, Stefano Ermon, 2021,
arXiv 2108.01073.

Noise destroys details first and layout last. So add noise to a guide (a photograph, a stroke
painting, a pasted object) up to a middle time t0 where its flaws are drowned but its layout is not,
and run the ordinary reverse process from there.

    x_t0 = alpha_t0 z + sigma_t0 n,    then sample from t0 down to 0

Try: `strength` from .2 (the guide comes back) to 1 (a fresh picture of the prompt), with one seed;
a guide that is only flat blobs (`strokes`); `mask` to repaint one region; `repeats=3` as the
authors' code does for crude strokes.

Weakness: one number trades realism against faithfulness, everywhere at once. A mask confines it;
outside, each state is blended with the source noised to the time the state is AT (the published
loop uses the time before, one step too noisy), and at the end the source's own pixels are put back,
so what should not change does not change at all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import noise, step_pairs
from minidiff.core.process import ddim_step
from minidiff.pipe.checks import door
from minidiff.pipe.masks import check_mask, paste, to_latent_mask
from minidiff.pipe.pipe import Pipe


@door
@torch.no_grad()
def sdedit(
    pipe: Pipe,
    image: Tensor,
    prompt: str,
    *,
    strength: float = 0.6,
    steps: int = 50,
    scale: float | None = None,
    mask: Tensor | None = None,
    outside: Tensor | None = None,
    repeats: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Edit pictures `image` (b 3 H W) in [-1, 1] towards `prompt`; returns (b 3 H W).

    strength  share of the model's steps that is run again: 0 returns the autoencoder's copy, 1
              starts from noise
    mask      (1 or b, 1, H, W), 1 where the edit happens
    outside   the picture beside the mask; default: `image`
    repeats   feed the result back as the guide so many times (1 to 3; the paper's K)

    ValueError: strength outside 0..1, sizes that do not fit.
    """
    ts = pipe.timesteps(steps, strength)
    mask = None if mask is None else check_mask(mask, image)
    outside = image if outside is None else outside
    sch = pipe.schedule
    z = pipe.encode(image)  # b c h w
    kept = pipe.encode(outside)
    m = to_latent_mask(mask, pipe) if mask is not None else None
    n = noise(z.shape, seed, z.device, z.dtype)  # one noise for all: no flicker
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    cond = pipe.embed(prompt)
    for _ in range(repeats if len(ts) > 1 else 0):
        x = pipe.noised(z, ts[0], n)
        for t, s in step_pairs(ts, progress):
            x = ddim_step(sch, x, denoise(x, t, cond), t, s)
            if m is not None:
                x = m * x + (1 - m) * pipe.noised(kept, s, n)
        z = x
    out = pipe.decode(z)
    return out if mask is None else paste(out, outside, mask)


def strokes(image: Tensor, colors: int = 4) -> Tensor:
    """A crude painting of pictures (b 3 H W): smoothed, then only the few most frequent colours. A
    guide to try out.
    """
    smooth = F.avg_pool2d(F.pad(image, (3,) * 4, mode="replicate"), 7, 1)
    out = []
    for x, s in zip(image, smooth):
        coarse = ((x + 1) * 3.999).long().flatten(1)  # 3 n, 8 levels a channel
        codes = coarse[0] * 64 + coarse[1] * 8 + coarse[2]
        top = codes.bincount(minlength=512).topk(colors).indices
        # k 3
        palette = torch.stack(
            [x.flatten(1)[:, codes == k].mean(1) for k in top if (codes == k).any()]
        )
        near = torch.cdist(s.flatten(1).T, palette).argmin(1)
        out.append(palette[near].T.view_as(x))
    return torch.stack(out)
