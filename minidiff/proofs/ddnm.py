"""Is what was measured kept to the last digit, and is the rest what was lost?"""

from collections.abc import Callable
from math import log10

import torch
import torch.nn.functional as F
from torch import Tensor

import minidiff
from minidiff.data import shapes
from minidiff.evaluate.metrics import psnr
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, draw, gained
from minidiff.proofs.repaint import half_holes
from minidiff.restoration.ddnm import ddnm_sample
from minidiff.restoration.ddrm import ddrm_sample
from minidiff.restoration.operators import superres, task_operator

SEEDS = 8  # one noise moves the mean of a dozen pictures by dB
# Table 1 of the paper, four times super-resolution of ImageNet, PSNR of A^+ y and of DDNM; written
# down from memory, not read again
PAPER_GAIN = 27.46 - 24.26


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """32x32 scenes, nothing told, 8 noises each: every operator; four times fewer pixels, with
    noise of .2 and without.
    """
    pipe = pixels(pipe)
    scenes = draw(n, seed)
    image = shapes.render(scenes, 32)
    mask = half_holes(scenes, 32)

    worst = 0.0
    for task in ("inpaint", "sr2", "sr4", "grey", "blur"):
        op = task_operator(task, (32, 32), mask[:2] if task == "inpaint" else None)
        y = op.A(image[:2])
        restored = ddnm_sample(pipe, y, op, seed=seed, steps=5, repeats=1).cpu()
        worst = max(worst, (op.A(restored) - y).abs().max().item())

    sr = superres(4)
    small = sr.A(image)
    generator = torch.Generator().manual_seed(seed)
    noisy = small + 0.2 * torch.randn(small.shape, generator=generator)

    def restored(y: Tensor, **knobs) -> Tensor:
        """Likeness (n,) in dB, the mean over the noises."""
        return over_noises(lambda s: ddnm_sample(pipe, y, sr, seed=s, **knobs), image, seed)

    ours = restored(small)
    rival = over_noises(lambda s: ddrm_sample(pipe, small, sr, seed=s), image, seed)
    run = dict(seeds=SEEDS)
    return [
        Row(
            "worst |A x - y| over five operators: digits right",
            -log10(max(worst, 1e-12)),
            5.0,
            source="identity",
            n=2,
        ),
        gained(
            "four times super-resolution, dB: gain over A^+ y",
            ours,
            likenesses(sr.pinv(small), image),
            PAPER_GAIN,
            source="paper",
            **run,
        ),
        gained("the same: gain over DDRM, dB", ours, rival, **run),
        gained(
            "the same: gain of time travel (3 walks, not 1), dB",
            ours,
            restored(small, repeats=1),
            **run,
        ),
        gained(
            "y with noise of .2: gain of DDNM+ over DDNM, dB",
            restored(noisy, sigma_y=0.2),
            restored(noisy, sigma_y=0.0),
            **run,
        ),
    ]


def over_noises(restore: Callable[[int], Tensor], image: Tensor, seed: int) -> Tensor:
    """Likeness (n,) of what `restore` makes of each noise seed to the pictures, averaged."""
    found = [likenesses(restore(seed + 1000 * k), image) for k in range(SEEDS)]
    return torch.stack(found).mean(0)


def pixels(pipe: Pipe) -> Pipe:
    """The pipe itself if it works on pixels, else the shipped one that does."""
    return pipe if pipe.vae is None else minidiff.load("tiny-pixel", device=pipe.device)


def bicubic(y: Tensor, factor: int = 4) -> Tensor:
    """What one gets without a model."""
    return F.interpolate(y, scale_factor=factor, mode="bicubic").clamp(-1, 1)


def likenesses(x: Tensor, image: Tensor) -> Tensor:
    """PSNR (n,) in dB of pictures as a file would hold them."""
    return psnr(x.cpu().clamp(-1, 1), image)
