"""Do words and pictures lead a model that knows of neither?"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.denoise import noise
from minidiff.core.process import q_sample
from minidiff.data import shapes
from minidiff.evaluate.oracle import oracle
from minidiff.guidance.classifier_guidance import ancestral, noisy_classifier, pull
from minidiff.guidance.semantic_guidance import semantic_guidance, wish
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, draw, recoloured
from minidiff.weights.store import load_clip


def prove(pipe: Pipe, n: int, seed: int, steps: int = 25) -> list[Row]:
    """Scenes that training never saw, as a caption, as a picture, and a picture whose colour the
    words change.
    """
    rng, scenes, judge, clip = np.random.default_rng(seed), draw(n, seed), oracle(), load_clip()
    image, words = shapes.render(scenes), [shapes.short_caption(s) for s in scenes]
    other = [recoloured(s, rng) for s in scenes]

    def run(prompt="", **weights):
        return semantic_guidance(pipe, image, prompt, steps=steps, seed=seed, **weights)

    right = lambda x, what, truth=scenes: judge.judge(x, truth)[what].float().mean().item()  # noqa: E731
    alike = lambda x: (clip.embed_image(x) * clip.embed_image(image)).sum(1).mean().item()  # noqa: E731
    free, text, content, form, style = (
        run(),
        run(words),
        run(content=1000),
        run(structure=1000),
        run(style=1000),
    )
    both = run([shapes.short_caption(e) for e in other], text=2000, structure=500)
    verdict = judge.judge(both, other)
    plain = _by_state(pipe, image, steps, seed, clip)
    tuned = _by_tuned(pipe, image, steps, seed)
    half = lambda x: (right(x, "color") + right(x, "background")) / 2  # noqa: E731
    return [
        *[
            Row(f"text: {w} right", right(text, w), 0.8, right(free, w))
            for w in ("color", "background", "shape")
        ],
        Row(
            "content: gain of cosine to the reference",
            alike(content) - alike(free),
            0.2,
            alike(free),
        ),
        *[
            Row(f"content: {w} right", right(content, w), 0.8, right(free, w))
            for w in ("color", "shape")
        ],
        *[
            Row(f"structure: {w} right", right(form, w), 0.8, right(free, w))
            for w in ("position", "shape")
        ],
        Row("style: background right", right(style, "background"), 0.8, right(free, "background")),
        Row(
            "words for the colour, picture for the form: both right",
            (verdict["color"] & verdict["shape"]).float().mean().item(),
            0.6,
            right(free, "shape", other),
        ),
        Row(
            "content, colours right: looking ahead, over the clean tower on the state",
            half(content) - half(plain),
            0.2,
            half(plain),
        ),
        Row(
            "content, colours right: looking ahead over an encoder tuned on noise",
            half(content) - half(tuned),
            0.0,
            half(tuned),
        ),
    ]


@torch.no_grad()
def _by_state(pipe: Pipe, image: Tensor, steps: int, seed: int, clip) -> Tensor:
    """The ablation: CLIP looks at the decoded noisy state itself."""
    n = noise((len(image), *pipe.shape), seed)
    score = wish(
        clip, words=None, reference=image, text=0.0, content=1000.0, structure=0.0, style=0.0
    )
    denoise = pull(pipe.eps, pipe.schedule, lambda x, t: score(pipe.vae.to_image(x)), 1.0)
    return pipe.decode(
        ancestral(denoise, pipe.schedule, n, pipe.timesteps(steps), pipe.null(), 1.0, seed)
    )


@torch.no_grad()
def _by_tuned(pipe: Pipe, image: Tensor, steps: int, seed: int, weight: float = 100.0) -> Tensor:
    """As in the paper: an encoder that knows noise (the noisy classifier's trunk), the reference as
    noisy as the state.
    """
    net, z, n = noisy_classifier(), pipe.encode(image), noise((len(image), *pipe.shape), seed)

    def score(x, t):
        ref = net.features(q_sample(pipe.schedule, z, t, n), t)
        return weight * F.cosine_similarity(net.features(x, t), ref)

    denoise = pull(pipe.eps, pipe.schedule, score, 1.0)
    return pipe.decode(
        ancestral(denoise, pipe.schedule, n, pipe.timesteps(steps), pipe.null(), 1.0, seed)
    )
