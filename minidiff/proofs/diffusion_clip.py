"""Does one tuning serve pictures it has not seen, and do 50 steps train in the memory of 6?"""

import ctypes
import gc
from collections import defaultdict
from itertools import pairwise
from math import log10
from statistics import median
from time import process_time

import torch
from torch import Tensor

from minidiff.bench.cost import Cost
from minidiff.core.process import ddim_step
from minidiff.data import shapes
from minidiff.data.shapes import Scene
from minidiff.editing.diffusion_clip import Style, mixed, restyle, times, tune
from minidiff.evaluate.oracle import compare, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, counted, draw, gained
from minidiff.samplers.differentiable import sample_with_gradients
from minidiff.train.finetune import tuned

KEPT = ("shape", "size", "position", "background")
PUPILS = 12


def scenes(n: int, seed: int) -> list[Scene]:
    """Scenes with nothing red in them, on grounds that are not striped."""

    def is_free(s: Scene) -> bool:
        return "red" not in (s.objects[0].color, s.background) and s.texture != "striped"

    return [s for s in draw(8 * n, seed) if is_free(s)][:n]


def red(s: Scene) -> Scene:
    return shapes.edit(s, "color", "red")


def striped(s: Scene) -> Scene:
    return shapes.edit(s, "texture", "striped")


def told(scenes: list[Scene]) -> list[str]:
    """Captions that name the texture too."""
    return [shapes.caption(s, size=False, position=False) for s in scenes]


def learn(pipe: Pipe, change, seed: int, **knobs) -> Style:
    """Weights tuned on pictures of the training seed, told before and after."""
    pupils = scenes(PUPILS, seed + 1)
    changed = [change(s) for s in pupils]
    return tune(pipe, shapes.render(pupils), told(pupils), told(changed), seed=seed, **knobs)


def right(verdicts: list[dict], *names: str) -> Tensor:
    """(b,) 0 or 1: are all these attributes right?"""
    return torch.tensor([float(all(v[name] for name in names)) for v in verdicts])


def prove(pipe: Pipe, n: int, seed: int, **knobs) -> list[Row]:
    """ "Make everything red", learned on 12 pictures and asked of n others; memory and time of the
    gradients.
    """
    given = scenes(n, seed)
    image = shapes.render(given)

    def verdicts(denoise, change=red) -> list[dict]:
        pictures = restyle(pipe, image, told(given), denoise)
        return [compare(r, change(s)) for r, s in zip(oracle().read(pictures), given)]

    def through(steps: int) -> list[dict]:
        """Verdicts on a short tuning whose pictures are drawn in so many steps."""
        style = learn(pipe, red, seed, **knobs | {"updates": 10, "train_steps": steps})
        return verdicts(mixed(pipe, [style], [1.0]))

    make_red = learn(pipe, red, seed, **knobs)
    make_striped = learn(pipe, striped, seed, **knobs)
    ours = verdicts(mixed(pipe, [make_red], [1.0]))
    plain = verdicts(pipe.eps)
    mixture = mixed(pipe, [make_red, make_striped], [1.0, 1.0])
    both = verdicts(mixture, lambda s: striped(red(s)))
    short = right(through(6), "color", *KEPT)
    long = right(through(25), "color", *KEPT)
    rows = [
        averaged("unseen pictures: red", right(ours, "color"), 0.85, right(plain, "color").mean()),
        averaged(
            "unseen pictures: shape, size, place and background kept",
            right(ours, *KEPT),
            0.9,
            right(plain, *KEPT).mean(),
        ),
        gained("10 updates through 25 steps: red and all else kept, over 6 steps", long, short),
        averaged(
            "noises of two networks combined: red and striped",
            right(both, "color", "texture"),
            0.5,
        ),
    ]
    return counted(rows, n) + gradients(pipe, seed)


def plainly(denoise, sch, x, ts, cond, weights):
    """Ordinary backpropagation, which keeps the activations of every step."""
    for t, s in pairwise(ts):
        x = ddim_step(sch, x, denoise(x, t, cond), t, s)
    return x


def gradients(pipe: Pipe, seed: int, b: int = 2, rounds: int = 3) -> list[Row]:
    """Memory at 50 and 6 steps, time, and the difference of the two gradients; taking turns, in
    this process.
    """
    x = pipe.start(b, seed)
    cond = pipe.embed("a red circle on a blue background").expand(b)
    grads = {}
    mb = defaultdict(list)
    seconds = defaultdict(list)

    def measure(run, steps: int) -> None:
        grads.pop(run, None)
        release()
        with tuned(pipe.net, "") as weights, Cost(pipe) as cost:
            start = process_time()
            y = x.clone().requires_grad_()
            out = run(pipe.eps, pipe.schedule, y, times(pipe, 0.8, steps), cond, weights)
            grads[run] = torch.autograd.grad(out.square().mean(), [y, *weights])
            seconds[run, steps].append(process_time() - start)
            del out
        mb[run, steps].append(cost.mb or float("nan"))

    ours = sample_with_gradients
    for run in (plainly, ours):
        measure(run, 2)  # what is loaded once is loaded
    for _ in range(rounds):
        for run in (plainly, ours):
            for steps in (6, 50):
                measure(run, steps)
    peak = {key: median(values) for key, values in mb.items()}
    plain6 = peak[plainly, 6]
    plain50 = peak[plainly, 50]
    ours6 = peak[ours, 6]
    ours50 = peak[ours, 50]
    off = 0.0
    for exact, found in zip(grads[plainly], grads[ours]):
        off = max(off, ((exact - found).norm() / exact.norm().clamp_min(1e-12)).item())
    slower = median(b / a for a, b in zip(seconds[plainly, 50], seconds[ours, 50]))
    print(
        f"  peak MB above the base at 6 and 50 steps: plain {plain6:.0f}, {plain50:.0f}; "
        f"ours {ours6:.0f}, {ours50:.0f}. Time at 50: x {slower:.2f}. "
        f"Largest relative difference of a gradient: {off:.1e}"
    )
    rows = [
        Row(
            "peak memory at 6 steps, as a share of that at 50 (baseline: plain)",
            ours6 / ours50,
            1 / 1.25,
            plain6 / plain50,
        ),
        Row("processor time of plain backpropagation, as a share of ours", 1 / slower, 1 / 1.35),
        Row("digits to which all gradients agree", -log10(off + 1e-16), 6, source="identity"),
    ]
    return counted(rows, b)


def release() -> None:
    """Give freed memory back to the system, where the C library can: what it keeps would hide what
    the next run needs.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
