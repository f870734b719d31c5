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
from minidiff.proofs.claims import Row, averaged, counted, draw, gained, recoloured, share
from minidiff.weights.store import load_clip


def prove(pipe: Pipe, n: int, seed: int, steps: int = 25) -> list[Row]:
    """Scenes that training never saw, as a caption, as a picture, and a picture whose colour the
    words change.
    """
    rng = np.random.default_rng(seed)
    scenes = draw(n, seed)
    other = [recoloured(s, rng) for s in scenes]
    image = shapes.render(scenes)
    clip = load_clip()

    def run(prompt="", **weights) -> Tensor:
        return semantic_guidance(pipe, image, prompt, steps=steps, seed=seed, **weights)

    def right(x: Tensor, truth: list[shapes.Scene] = scenes) -> dict[str, Tensor]:
        return {what: v.float() for what, v in oracle().judge(x, truth).items()}

    def alike(x: Tensor) -> Tensor:
        return (clip.embed_image(x) * clip.embed_image(image)).sum(1)

    free_pictures = run()
    free = right(free_pictures)
    text = right(run([shapes.short_caption(s) for s in scenes]))
    content_pictures = run(content=1000)
    content = right(content_pictures)
    form = right(run(structure=1000))
    style = right(run(style=1000))

    both = run([shapes.short_caption(s) for s in other], text=2000, structure=500)
    verdict = oracle().judge(both, other)

    def colours(right: dict[str, Tensor]) -> Tensor:
        return (right["color"] + right["background"]) / 2

    ours = colours(content)
    plain = colours(right(_by_state(pipe, image, steps, seed, clip)))
    tuned = colours(right(_by_tuned(pipe, image, steps, seed)))

    def led(label: str, found: dict[str, Tensor], *whats: str) -> list[Row]:
        """What is asked for comes oftener than unasked."""
        return [
            gained(f"{label}: {what} right, gain over no guidance", found[what], free[what])
            for what in whats
        ]

    rows = [
        *led("text", text, "color", "background", "shape"),
        gained(
            "content: gain of cosine to the reference",
            alike(content_pictures),
            alike(free_pictures),
            0.2,
            source="aim",
        ),
        *led("content", content, "color", "shape"),
        *led("structure", form, "position", "shape"),
        *led("style", style, "background"),
        averaged(
            "words for the colour, picture for the form: both right",
            verdict["color"] & verdict["shape"],
            0.6,
            share(right(free_pictures, other)["shape"]),
        ),
        gained(
            "content, colours right: looking ahead, over the clean tower on the state",
            ours,
            plain,
        ),
        gained(
            "content, colours right: looking ahead, over an encoder tuned on noise", ours, tuned
        ),
    ]
    return counted(rows, n)


@torch.no_grad()
def _by_state(pipe: Pipe, image: Tensor, steps: int, seed: int, clip) -> Tensor:
    """The ablation: CLIP looks at the decoded noisy state itself."""
    only_content = dict(text=0.0, content=1000.0, structure=0.0, style=0.0)
    score = wish(clip, words=None, reference=image, **only_content)
    return _drawn(pipe, lambda x, t: score(pipe.vae.to_image(x)), len(image), steps, seed)


@torch.no_grad()
def _by_tuned(pipe: Pipe, image: Tensor, steps: int, seed: int, weight: float = 100.0) -> Tensor:
    """As in the paper: an encoder that knows noise (the noisy classifier's trunk), the reference as
    noisy as the state.
    """
    net = noisy_classifier()
    z = pipe.encode(image)
    n = noise((len(image), *pipe.shape), seed)

    def score(x: Tensor, t) -> Tensor:
        reference = net.features(q_sample(pipe.schedule, z, t, n), t)
        return weight * F.cosine_similarity(net.features(x, t), reference)

    return _drawn(pipe, score, len(image), steps, seed)


def _drawn(pipe: Pipe, score, b: int, steps: int, seed: int) -> Tensor:
    """b pictures, drawn unconditionally while the gradient of `score` pulls."""
    start = noise((b, *pipe.shape), seed)
    denoise = pull(pipe.eps, pipe.schedule, score, 1.0)
    ts = pipe.timesteps(steps)
    return pipe.decode(ancestral(denoise, pipe.schedule, start, ts, pipe.null(), 1.0, seed))
