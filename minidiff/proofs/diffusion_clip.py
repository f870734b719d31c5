"""Does one tuning serve pictures it has not seen, and do 50 steps train in the memory of 6?"""

import ctypes
import gc
from collections import defaultdict
from itertools import pairwise
from math import log10
from statistics import median
from time import process_time

import torch

from minidiff.bench.cost import Cost
from minidiff.core.process import ddim_step
from minidiff.data import shapes
from minidiff.data.shapes import Scene
from minidiff.editing.diffusion_clip import Style, mixed, restyle, times, tune
from minidiff.evaluate.oracle import compare, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, draw
from minidiff.samplers.differentiable import sample_with_gradients
from minidiff.train.finetune import tuned

KEPT = ("shape", "size", "position", "background")
PUPILS = 12


def scenes(n: int, seed: int) -> list[Scene]:
    """Scenes with nothing red in them, on grounds that are not striped."""
    free = lambda s: "red" not in (s.objects[0].color, s.background) and s.texture != "striped"  # noqa: E731
    return [s for s in draw(8 * n, seed) if free(s)][:n]


def red(s: Scene) -> Scene:
    return shapes.edit(s, "color", "red")


def striped(s: Scene) -> Scene:
    return shapes.edit(s, "texture", "striped")


def learn(pipe: Pipe, change, seed: int, **knobs) -> Style:
    """Weights tuned on pictures of the training seed, told before and after in words that name the
    texture too.
    """
    some = scenes(PUPILS, seed + 1)
    before, after = (
        [shapes.caption(s, size=False, position=False) for s in v]
        for v in (some, map(change, some))
    )
    return tune(pipe, shapes.render(some), before, after, seed=seed, **knobs)


def prove(pipe: Pipe, n: int, seed: int, **knobs) -> list[Row]:
    """ "Make everything red", learned on 12 pictures and asked of n others; memory and time of the
    gradients.
    """
    some = scenes(n, seed)
    image, told = shapes.render(some), [shapes.caption(s, size=False, position=False) for s in some]

    def seen(denoise, change=red):
        found = oracle().read(restyle(pipe, image, told, denoise))
        return [compare(r, change(s)) for r, s in zip(found, some)]

    mean = lambda rows, *names: sum(all(r[a] for a in names) for r in rows) / len(rows)  # noqa: E731
    one, two = learn(pipe, red, seed, **knobs), learn(pipe, striped, seed, **knobs)
    rows, plain = seen(mixed(pipe, [one], [1.0])), seen(pipe.eps)
    both = seen(mixed(pipe, [one, two], [1.0, 1.0]), lambda s: striped(red(s)))
    short, long = (
        seen(
            mixed(
                pipe, [learn(pipe, red, seed, **knobs | {"updates": 10, "train_steps": k})], [1.0]
            )
        )
        for k in (6, 25)
    )
    return [
        Row("unseen pictures: red", mean(rows, "color"), 0.85, mean(plain, "color")),
        Row(
            "unseen pictures: shape, size, place and background kept",
            mean(rows, *KEPT),
            0.9,
            mean(plain, *KEPT),
        ),
        Row(
            "10 updates through 25 steps: red and all else kept, over 6 steps",
            mean(long, "color", *KEPT) - mean(short, "color", *KEPT),
            0,
            mean(short, "color", *KEPT),
        ),
        Row(
            "noises of two networks combined: red and striped", mean(both, "color", "texture"), 0.5
        ),
        *gradients(pipe, seed),
    ]


def plainly(denoise, sch, x, ts, cond, weights):
    """Ordinary backpropagation, which keeps the activations of every step."""
    for t, s in pairwise(ts):
        x = ddim_step(sch, x, denoise(x, t, cond), t, s)
    return x


def gradients(pipe: Pipe, seed: int, b: int = 2, rounds: int = 3) -> list[Row]:
    """Memory at 50 and 6 steps, time, and the difference of the two gradients; taking turns, in
    this process.
    """
    x, cond = pipe.start(b, seed), pipe.embed("a red circle on a blue background").expand(b)
    runs, grads, mb, seconds = (
        (plainly, sample_with_gradients),
        {},
        defaultdict(list),
        defaultdict(list),
    )

    def one(run, steps: int) -> None:
        grads.pop(run, None)
        release()
        with tuned(pipe.net, "") as weights, Cost(pipe) as cost:
            start, y = process_time(), x.clone().requires_grad_()
            out = run(pipe.eps, pipe.schedule, y, times(pipe, 0.8, steps), cond, weights)
            grads[run] = torch.autograd.grad(out.square().mean(), [y, *weights])
            seconds[run, steps].append(process_time() - start)
            del out
        mb[run, steps].append(cost.mb or float("nan"))

    for run in runs:
        one(run, 2)  # what is loaded once is loaded
    for _ in range(rounds):
        for run in runs:
            for steps in (6, 50):
                one(run, steps)
    p6, p50, o6, o50 = [median(mb[run, steps]) for run in runs for steps in (6, 50)]
    off = max(
        ((a - b).norm() / a.norm().clamp_min(1e-12)).item()
        for a, b in zip(*(grads[run] for run in runs))
    )
    slower = median(b / a for a, b in zip(*(seconds[run, 50] for run in runs)))
    print(
        f"  peak MB above the base at 6 and 50 steps: plain {p6:.0f}, {p50:.0f}; ours {o6:.0f}, "
        f"{o50:.0f}. "
        f"Time at 50: x {slower:.2f}. Largest relative difference of a gradient: {off:.1e}"
    )
    return [
        Row(
            "peak memory at 6 steps, as a share of that at 50 (baseline: plain)",
            o6 / o50,
            1 / 1.25,
            p6 / p50,
        ),
        Row("processor time of plain backpropagation, as a share of ours", 1 / slower, 1 / 1.35),
        Row("digits to which all gradients agree", -log10(off + 1e-16), 6),
    ]


def release() -> None:
    """Give freed memory back to the system, where the C library can: what it keeps would hide what
    the next run needs.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
