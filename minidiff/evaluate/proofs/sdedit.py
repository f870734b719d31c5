"""Does a crude painting become a picture, and stay where it was?"""
import torch
from torch import Tensor

from minidiff.core.pipe import Pipe
from minidiff.data import shapes
from minidiff.editing.sdedit import sdedit, strokes
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.evaluate.prove import Row, draw, object_region, rank_correlation
from minidiff.train.autoencoder import psnr


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Strokes to picture: crude paintings of scenes, every strength, one noise."""
    scenes, judge = draw(n, seed), oracle()
    guide, prompts = strokes(shapes.render(scenes)), [shapes.short_caption(s) for s in scenes]
    right = lambda x: judge.judge(x, scenes, SHORT)["joint"].float().mean().item()  # noqa: E731
    strengths = (.2, .3, .4, .5, .6, .7, .8, .9)
    pictures = [sdedit(pipe, guide, prompts, strength=s, steps=25, seed=seed) for s in strengths]
    fresh = pipe.generate(prompts, steps=25, seed=seed)
    faithful, real, layout = zip(*[(psnr(x, guide).mean().item(), right(x), _layout(x, scenes)) for x in pictures])
    base = max(right(fresh), .01)
    best = max(zip(real, layout), key=lambda v: min(v[0] / base / .9, v[1] / .7))
    return [Row("strength against likeness to the guide: -rank correlation", -rank_correlation(strengths, faithful), .9),
            Row("strength against attributes right: rank correlation", rank_correlation(strengths, real), .9, real[0]),
            Row("at the best strength: attributes right, of text-to-image's", best[0] / base, .9, real[0]),
            Row("at the same strength: overlap with the painted object's place (IoU)", best[1], .7, _layout(fresh, scenes))]


def _layout(images: Tensor, scenes: list[shapes.Scene]) -> float:
    """Mean IoU of the objects' pixels with the true masks of the scenes."""
    found = torch.stack([object_region(x, s.objects[0].color, 0) for x, s in zip(images, scenes)]) > .5
    true = shapes.object_masks(scenes)[:, :1] > .5
    return ((found & true).sum((1, 2, 3)) / (found | true).sum((1, 2, 3)).clamp_min(1)).mean().item()
