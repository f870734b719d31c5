"""The control rows of ShapesEditBench: what scores mean, shown on outputs whose worth is known.

    copy           the source itself. T is 0, everything is kept: score 0
    vae-copy       decode(encode(source)). The same, less what the autoencoder loses
    truth          the true picture. T and K are 1, B and C at the cap: score 1
    vae-truth      decode(encode(truth)). What a latent model can reach: score near 1
    resample       the target prompt from new noise. T is high, nothing is kept: score near 0
    inverted       the target prompt from the source's noise (DDIM inversion with the source
                   prompt); what DDIB is here, and what every method must beat at its best guidance
    wrong-inpaint  another item's prompt, painted into the mask: a mask alone is no edit
    hacker         gradient ascent on the tiny CLIP. Q1 rises, T must not: why Q is for information
                   only

The SDEdit rows are the technique itself, `sdedit@strength=0.4` and so on. A control has a
technique's argument names, but `truth` and `wrong`, another item's prompt, are known to controls
alone.
"""

import torch
from torch import Tensor

from minidiff.bench.scores import likeness
from minidiff.editing.inpaint import inpaint
from minidiff.inversion.ddim import invert, replay
from minidiff.pipe.pipe import Pipe


def copy(pipe: Pipe, image: Tensor) -> Tensor:
    return image


def vae_copy(pipe: Pipe, image: Tensor) -> Tensor:
    return pipe.decode(pipe.encode(image))


def answer(pipe: Pipe, truth: Tensor) -> Tensor:
    return truth


def vae_truth(pipe: Pipe, truth: Tensor) -> Tensor:
    return pipe.decode(pipe.encode(truth))


def resample(
    pipe: Pipe, target: str, *, steps: int = 50, scale: float | None = None, seed: int = 0
) -> Tensor:
    return pipe.generate(target, steps=steps, scale=scale, seed=seed)


def inverted(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    steps: int = 50,
    scale: float | None = None,
) -> Tensor:
    noise = invert(pipe, image, source, steps=steps)[-1]
    scale = pipe.scale if scale is None else scale
    return replay(pipe, noise, target, steps=steps, scale=scale)


def wrong_inpaint(
    pipe: Pipe,
    image: Tensor,
    wrong: str,
    mask: Tensor,
    *,
    steps: int = 50,
    scale: float | None = None,
    seed: int = 0,
) -> Tensor:
    return inpaint(pipe, image, wrong, mask=mask, steps=steps, scale=scale, seed=seed)


def hacker(
    pipe: Pipe, image: Tensor, target: str | list[str], *, updates: int = 200, lr: float = 0.01
) -> Tensor:
    """Climb the tiny CLIP's likeness to the target prompt, in pixels: Adam, `updates` of them. No
    diffusion model.
    """
    x = image.detach().cpu().clone().requires_grad_()
    targets = [target] * len(x) if isinstance(target, str) else target
    optimizer = torch.optim.Adam([x], lr=lr)
    for _ in range(updates):
        optimizer.zero_grad()
        with torch.enable_grad():
            (-likeness(x, targets).sum()).backward()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(-1, 1)
    return x.detach()


CONTROLS = {
    "copy": copy,
    "vae-copy": vae_copy,
    "truth": answer,
    "vae-truth": vae_truth,
    "resample": resample,
    "inverted": inverted,
    "wrong-inpaint": wrong_inpaint,
    "hacker": hacker,
}
