"""Blended Latent Diffusion: draw inside a mask, and blend with the noised picture at every step.

Omri Avrahami, Ohad Fried, Dani Lischinski, 2022, arXiv 2206.02779; after "Blended Diffusion",
arXiv 2111.14818.

A prompt draws the whole picture; after every move all that lies outside the mask is put back from
the picture, noised to the time the state is at. No gradient is needed, and the model keeps fitting
the inside to the outside.

    z_s = m_s z_s + (1 - m_s) (alpha_s z + sigma_s n)                       m_s: the mask at time s

That blend alone is what `inpaint.py` does for models that cannot see a mask. What this paper adds
are two repairs. Thin masks: one latent cell wide, they leave the prompt no room; so the mask starts
grown, and shrinks to its size (`grow`). The background: latents outside are exact, their decoded
pixels are not; so the decoder is tuned for this one picture, or the pixels are pasted.

    decoder:  min over its weights of  |D(z) - D0(z)|^2 inside  +  100 |D(z) - picture|^2 outside

Try: a ring or a line as mask with grow 0 and 3; background "none", "paste", "decoder"; strength .5,
which keeps traces.

Weakness: where the paste is exact it may leave a seam, where the tuned decoder leaves none it costs
seconds a picture and is never exact. So the default pastes, and the proof measures the seam. The
2022 code noises the background to the time before the move and starts from pure noise after
skipping a quarter of the steps; here both belong to the state's own time.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import noise, step_pairs
from minidiff.core.process import ddim_step
from minidiff.pipe.checks import door
from minidiff.pipe.masks import check_mask, paste, to_latent_mask
from minidiff.pipe.pipe import Pipe
from minidiff.train.finetune import in_float32, tuned


def shrinking(m: Tensor, grow: int, n: int) -> list[Tensor]:
    """Masks (b 1 h w) for n moves: grown by `grow` cells at
    first, then by less and less; as given in the last quarter.
    """
    sizes = [round(grow * max(0.0, 1 - i / (0.75 * n))) for i in range(n)]
    return [F.max_pool2d(m, 2 * k + 1, 1, k) for k in sizes]


def tune_decoder(
    pipe: Pipe,
    z: Tensor,
    image: Tensor,
    mask: Tensor,
    *,
    iterations: int = 75,
    lr: float = 1e-3,
    weight: float = 100.0,
) -> Tensor:
    """Latents z (b c h w) decoded so that outside the mask
    `image` (b 3 H W) comes back; one picture at a time.

    The weights are those of the pipe again afterwards.
    """
    out = []
    with in_float32(pipe):
        for i in range(len(z)):
            zi = z[i : i + 1].to(pipe.dtype) / pipe.vae.scale
            x = image[i : i + 1].to(zi)
            m = mask[i % len(mask)][None].to(zi)
            with torch.no_grad():
                first = pipe.vae.decode(zi)
            with tuned(pipe.vae, r"^(post_quant_conv|decoder)\.") as weights, torch.enable_grad():
                optimizer = torch.optim.Adam(weights, lr=lr)
                for _ in range(iterations):
                    y = pipe.vae.decode(zi)
                    loss = (m * (y - first)).square().mean() + weight * (
                        (1 - m) * (y - x)
                    ).square().mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                with torch.no_grad():
                    out.append(pipe.vae.decode(zi).clamp(-1, 1))
    return torch.cat(out).to(pipe.dtype)


@door
@torch.no_grad()
def blended_latent(
    pipe: Pipe,
    image: Tensor,
    prompt: str,
    *,
    mask: Tensor,
    strength: float = 0.9,
    grow: int = 0,
    background: Literal["paste", "decoder", "none"] = "paste",
    steps: int = 40,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Draw `prompt` into pictures `image` (b 3 H W) in [-1, 1] inside `mask`; returns (b 3 H W).

    mask        (1 or b, 1, H, W), 1 where to draw
    strength    share of the steps that is run; the picture is noised as much, so less keeps traces
                of what was there
    grow        latent cells by which the mask is wider at first: 2 or 3 for thin masks
    background  outside the mask: the picture's pixels, a decoder tuned to give them, or what the
                decoder gives

    An empty mask returns the picture. ValueError: strength outside 0..1, a negative `grow`, sizes
    that do not fit.
    """
    ts = pipe.timesteps(steps, strength)
    mask = check_mask(mask, image)
    if grow < 0 or background not in ("paste", "decoder", "none"):
        raise ValueError(
            f"grow={grow}, background={background!r}: expected 0 or more cells, and paste, decoder "
            "or none"
        )
    if background == "decoder" and pipe.vae is None:
        raise ValueError(
            f"{pipe.name or 'this model'} works on pixels: it has no decoder to tune; use "
            "background='paste'"
        )
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    cond = pipe.embed(prompt)
    if not mask.any():
        return image.clone()
    z = pipe.encode(image)  # b c h w
    sch = pipe.schedule
    n = noise(z.shape, seed, z.device, z.dtype)
    x = pipe.noised(z, ts[0], n) if len(ts) > 1 else z
    masks = shrinking(to_latent_mask(mask, pipe), grow, len(ts) - 1)
    for (t, s), m in zip(step_pairs(ts, progress), masks):
        x = ddim_step(sch, x, denoise(x, t, cond), t, s)
        # outside the mask: the picture, noised as much
        x = m * x + (1 - m) * pipe.noised(z, s, n)
    if background == "decoder":
        return tune_decoder(pipe, x, image, mask)
    return pipe.decode(x) if background == "none" else paste(pipe.decode(x), image, mask)
