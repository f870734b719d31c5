"""Does CLIP's gradient paint what the prompt says, and inside the mask only?"""

from minidiff.bench.scores import likeness
from minidiff.editing.blended_diffusion import blended_diffusion
from minidiff.evaluate.metrics import masked_psnr
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.blended_latent import drawn, questions
from minidiff.proofs.claims import Row, averaged, counted, gained, share

N = 8


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Another object in a given box, 30 steps, one run each; against the same without CLIP."""
    image, _, mask, prompt, scenes = questions(n, seed)
    run = dict(mask=mask, steps=30, runs=1, seed=seed)
    out = blended_diffusion(pipe, image, prompt, weight=500.0, **run)
    unasked = blended_diffusion(pipe, image, prompt, weight=0.0, **run)
    rows = [
        gained(
            "likeness to the prompt in the eyes of CLIP: gain over no guidance",
            likeness(out, prompt),
            likeness(unasked, prompt),
            0.1,
            source="aim",
        ),
        averaged(
            "shape and colour drawn in the box, as the oracle sees it",
            drawn(out, scenes),
            0.5,
            share(drawn(unasked, scenes)),
        ),
        Row(
            "outside the box: PSNR to the picture, dB",
            masked_psnr(out, image, 1 - mask).nanmean().item(),
            50,
            source="identity",
        ),
    ]
    return counted(rows, n)
