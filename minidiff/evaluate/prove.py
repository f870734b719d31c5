"""Toy proofs: what each technique claims, measured on scenes whose right answer is known.

A proof is a function (pipe, n, seed) -> rows; a row holds the claim, the baseline, the figure and the threshold. The
thresholds were set before the figures were known, and a proof that fails is printed as failing.
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minidiff.core.pipe import Pipe
from minidiff.data import shapes
from minidiff.editing.prompt_to_prompt import prompt_to_prompt
from minidiff.editing.sdedit import sdedit, strokes
from minidiff.evaluate.metrics import masked_psnr
from minidiff.evaluate.oracle import ATTRIBUTES, SHORT, compare, oracle
from minidiff.evaluate.synthesis import coverage_map, fit_ground
from minidiff.inversion.ddim import invert, replay
from minidiff.train.autoencoder import psnr


@dataclass(frozen=True)
class Row:
    """One claim: `figure` must be at least `threshold`; `baseline` is what one gets without the technique."""
    claim: str
    figure: float
    threshold: float
    baseline: float | None = None

    @property
    def holds(self) -> bool:
        return bool(self.figure >= self.threshold)


def draw(n: int, seed: int) -> list[shapes.Scene]:
    """n one-object scenes whose tuples training never saw."""
    rng = np.random.default_rng(seed)
    return [shapes.scene(rng, objects=1, split="test") for _ in range(n)]


def recoloured(s: shapes.Scene, rng: np.random.Generator) -> shapes.Scene:
    """The scene with another object colour, not that of its background."""
    free = [c for c in shapes.COLORS if c not in (s.objects[0].color, s.background)]
    return shapes.edit(s, "color", free[rng.integers(len(free))])


def object_region(image: Tensor, color: str, grow: int = 2) -> Tensor:
    """(1 64 64) of 0 and 1: pixels of a picture (3 64 64) that show the colour rather than the ground, grown."""
    x = (image.clamp(-1, 1) + 1) / 2
    cover = coverage_map(x, fit_ground(x).image, torch.tensor(shapes.COLORS[color]))
    return torch.nn.functional.max_pool2d((cover > .3).float()[None], 2 * grow + 1, 1, grow)


def rank_correlation(a, b) -> float:
    """Spearman's rho."""
    return float(np.corrcoef(*(np.argsort(np.argsort(v)) for v in (a, b)))[0, 1])


# ---- the proofs -------------------------------------------------------------------------------------------------------

def prove_ddim_inversion(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Round trips of rendered pictures, decoded, against the autoencoder's own copy."""
    scenes = draw(n, seed)
    image, prompts = shapes.render(scenes), [shapes.short_caption(s) for s in scenes]
    copy, found = pipe.decode(pipe.encode(image)), {}
    for steps, scale, iterations in ((10, 1, 0), (20, 1, 0), (50, 1, 0), (100, 1, 0), (50, 1, 2), (50, 5, 0)):
        x_T = invert(pipe, image, prompts, steps=steps, fixed_point=iterations)[-1]
        found[steps, scale, iterations] = psnr(replay(pipe, x_T, prompts, steps=steps, scale=scale), copy).mean().item()
    rise = [found[s, 1, 0] for s in (10, 20, 50, 100)]
    return [Row("round trip of 100 steps, dB to the autoencoder's copy", rise[3], 25, rise[0]),
            Row("it improves with every doubling (10, 20, 50, 100 steps): smallest gain, dB", min(np.diff(rise)), 0),
            Row("two fixed-point iterations at 50 steps: gain over none, dB", found[50, 1, 2] - rise[2], 0, rise[2]),
            Row("replayed with guidance 5 it loses, dB", rise[2] - found[50, 5, 0], 6, found[50, 5, 0])]


def prove_sdedit(pipe: Pipe, n: int, seed: int) -> list[Row]:
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


def prove_prompt_to_prompt(pipe: Pipe, n: int, seed: int, **knobs) -> list[Row]:
    """Recolouring of the model's own pictures, on captions that leave out position, size and texture."""
    rng, scenes, judge = np.random.default_rng(seed), draw(n, seed), oracle()
    edited = [recoloured(s, rng) for s in scenes]
    ours, again, source = [], [], []
    for i, (s, e) in enumerate(zip(scenes, edited)):
        a, b = shapes.short_caption(s), shapes.short_caption(e)
        pair = prompt_to_prompt(pipe, a, b, seed=seed + i, **knobs)
        source, ours = [*source, pair[0]], [*ours, pair[1]]
        again.append(pipe.generate(b, seed=seed + i)[0])
    source, ours, again = (torch.stack(v) for v in (source, ours, again))
    keep = torch.stack([1 - object_region(x, s.objects[0].color) for x, s in zip(source, scenes)])
    def score(x):
        rows = [(compare(r, e), r, r0) for r, e, r0 in zip(judge.read(x), edited, judge.read(source))]
        kept = [np.mean([_same(r, r0, a) for a in ATTRIBUTES if a != "color"]) for _, r, r0 in rows]
        return np.mean([c["color"] for c, _, _ in rows]), np.mean(kept), masked_psnr(x, source, keep).nanmean().item()
    (hit, kept, outside), (hit0, kept0, outside0) = score(ours), score(again)
    return [Row("recolour: edited attribute right", hit, .9, hit0),
            Row("recolour: untouched attributes kept (as read in the source)", kept, .95, kept0),
            Row("PSNR outside the object: gain over re-sampling with the same seed, dB", outside - outside0, 6, outside0)]


def _same(a: dict, b: dict, attribute: str) -> bool:
    if attribute in ("position", "background", "texture"):
        return a[attribute] == b[attribute]
    if attribute == "count" or len(a["objects"]) != len(b["objects"]):
        return len(a["objects"]) == len(b["objects"])
    return all(x[attribute] == y[attribute] for x, y in zip(a["objects"], b["objects"]))


PROOFS: dict[str, Callable[[Pipe, int, int], list[Row]]] = {
    "ddim-inversion": prove_ddim_inversion, "sdedit": prove_sdedit, "prompt-to-prompt": prove_prompt_to_prompt}


def prove(pipe: Pipe, *, names: tuple[str, ...] = (), n: int = 24, seed: int = 100) -> dict:
    """Run the proofs named (default: all) on n scenes each; {"rows": [...], "passed": bool}, and a printed table."""
    for name in names:
        if name not in PROOFS:
            raise ValueError(f"no proof called {name!r}; there are: {', '.join(PROOFS)}")
    rows = []
    for name in names or PROOFS:
        print(f"{name}: {PROOFS[name].__doc__}")
        for r in PROOFS[name](pipe, n, seed):
            base = "" if r.baseline is None else f"   (baseline {r.baseline:.2f})"
            print(f"  {'holds' if r.holds else 'FAILS'}  {r.claim:75} {r.figure:7.2f}  at least {r.threshold:.2f}{base}")
            rows.append({"proof": name, "claim": r.claim, "figure": float(r.figure), "threshold": r.threshold,
                         "baseline": None if r.baseline is None else float(r.baseline), "holds": r.holds})
    return {"rows": rows, "passed": all(r["holds"] for r in rows)}
