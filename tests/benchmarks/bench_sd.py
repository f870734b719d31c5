"""Stable Diffusion 1.5 here and in diffusers: processor time and memory of the same work on the
same random weights.

    make bench-sd  # everything at full size: about half an hour, 12 GB
    make bench-sd ARGS="--only unet1 decode --rounds 1"      # two cases, once
    make bench-sd ARGS="--width .1 --latent 16"              # a tenth of the width: a minute

How it measures. Both sides run in ONE process on the same tensors, taking turns, and each ratio is
the median over rounds of the ratio within a round: what else the machine does then weighs on both
alike. Time is processor time of all threads, with sleeping in place of spinning threads
(OMP_WAIT_POLICY=passive): on a busy machine it repeats to a few percent where seconds on the clock
differ fivefold. Memory is the kernel's own high-water mark (VmHWM, Linux), reset before each run,
above what was resident before it. `floor` is ours over the time of the same arithmetic (torch's
count of it) at the rate of a large matrix product, measured here: 1 would be a machine that does
nothing but multiply. `error` is the largest difference of the two results over their spread: a race
between programs that compute different things means nothing.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch starts its threads

import argparse
import copy
import ctypes
import gc
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import process_time

import diffusers
import torch
from pairs import CLASSES, END, arguments, pairs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import minidiff
from minidiff.core import schedule
from minidiff.core.cond import Cond
from minidiff.io import write_json
from minidiff.models.packing import packed
from minidiff.models.tokenizer import Tokenizer
from minidiff.pipe.pipe import Pipe
from minidiff.samplers.ddim import ddim

SD = dict(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    steps_offset=1,
    clip_sample=False,
    set_alpha_to_one=False,
)
MB = 1 << 20


@dataclass
class Race:
    """Two callables that compute the same; `parts` {part: rows}: the arithmetic in them; `repeat`
    runs make a figure.
    """

    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    parts: dict[str, int]
    dtype: torch.dtype = torch.float32
    repeat: int = 1


# ---- what is raced: (models, side of the latents, stack of contexts) -> Race ---------------------


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(prompts: list[str]) -> Tensor:
    """A stand-in for the tokenizer: the same ids for the same prompt."""
    rows = [
        torch.randint(END - 1, (77,), generator=torch.Generator().manual_seed(len(p)))
        for p in prompts
    ]
    ids = torch.stack(rows)
    ids[:, 0], ids[:, -1] = END - 1, END
    return ids


def unet(models, n, stack, b=1, pack=False, dtype=torch.float32) -> Race:
    ours, theirs = models["unet"]
    if dtype != torch.float32:
        ours = copy.deepcopy(ours).to(dtype)
    if pack:
        stack.enter_context(packed(ours))
    x, text, t = (
        noise(b, 4, n, n),
        noise(b, 77, theirs.config.cross_attention_dim, seed=2),
        torch.full((b,), 500),
    )
    x16, cond = x.to(dtype), Cond(text=text.to(dtype))
    return Race(lambda: ours(x16, t, cond), lambda: theirs(x, t, text).sample, {"unet": b}, dtype)


def decode(models, n, stack) -> Race:
    (ours, theirs), z = models["vae"], noise(1, 4, n, n)
    return Race(lambda: ours.decode(z), lambda: theirs.decode(z).sample, {"decode": 1})


def encode(models, n, stack) -> Race:
    (ours, theirs), x = models["vae"], noise(1, 3, 8 * n, 8 * n).clamp(-1, 1)
    return Race(
        lambda: ours.encode(x).mean, lambda: theirs.encode(x).latent_dist.mean, {"encode": 1}
    )


def text(models, n, stack) -> Race:
    (ours, theirs), ids = models["text"], tokens(["", "a red circle"])
    return Race(lambda: ours(ids), lambda: theirs(ids).last_hidden_state, {"text": 2})


def generate(models, n, stack, steps=4) -> Race:
    """A prompt to a picture: text tower, four guided DDIM steps, decoder."""
    (net, unet), (vae, their_vae), (tower, their_tower) = (
        models[k] for k in ("unet", "vae", "text")
    )
    pipe = Pipe(
        net,
        schedule.scaled_linear(),
        (4, n, n),
        vae=vae,
        text=tower,
        tokenizer=tokens,
        spacing="leading",
        end=1,
        literal=True,
    )
    theirs = diffusers.StableDiffusionPipeline(
        their_vae,
        their_tower,
        None,
        unet,
        diffusers.DDIMScheduler(**SD),
        None,
        None,
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    x = noise(1, 4, n, n)

    def run() -> Tensor:
        rows = their_tower(tokens(["", "a red circle"])).last_hidden_state
        return theirs(
            prompt_embeds=rows[1:],
            negative_prompt_embeds=rows[:1],
            latents=x,
            num_inference_steps=steps,
            guidance_scale=7.5,
            output_type="pt",
            height=8 * n,
            width=8 * n,
        ).images

    return Race(
        lambda: pipe.generate("a red circle", steps=steps, scale=7.5, noise=x) / 2 + 0.5,
        run,
        {"text": 2, "unet": 2 * steps, "decode": 1},
    )


def sampler(models, n, stack, steps=50) -> Race:
    """What DDIM costs without a network: `steps` steps with a constant answer, 20 times."""
    x, eps = noise(1, 4, n, n), noise(1, 4, n, n, seed=2)
    sch, theirs = schedule.scaled_linear(), diffusers.DDIMScheduler(**SD)

    def run() -> Tensor:
        y = x
        theirs.set_timesteps(steps)
        for t in theirs.timesteps:
            y = theirs.step(eps, t, y).prev_sample
        return y

    return Race(
        lambda: ddim(lambda x, t, cond: eps, sch, x, steps=steps, spacing="leading", end=1),
        run,
        {},
        repeat=20,
    )


def load(models, n, stack) -> Race:
    """A diffusers folder of float32 safetensors to the UNet's first answer (for 8 x 8 latents, to
    touch every weight).
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    net, vae, tower = (models[part][1] for part in ("unet", "vae", "text"))
    x, t, states = (
        noise(1, 4, 8, 8),
        torch.tensor([500]),
        noise(1, 77, net.config.cross_attention_dim, seed=2),
    )
    parts = vae, tower, None, net, diffusers.DDIMScheduler(**SD), None, None
    diffusers.StableDiffusionPipeline(*parts, requires_safety_checker=False).save_pretrained(folder)
    words = Tokenizer.words(["circle"])
    heads = {"text": tower.config.num_attention_heads, "unet": net.config.attention_head_dim}

    def run() -> Tensor:
        absent = dict.fromkeys(
            ("tokenizer", "safety_checker", "feature_extractor", "image_encoder")
        )
        return (
            diffusers.StableDiffusionPipeline.from_pretrained(folder, **absent)
            .unet(x, t, states)
            .sample
        )

    return Race(
        lambda: minidiff.load(folder, tokenizer=words, heads=heads).net(x, t, Cond(text=states)),
        run,
        {},
    )


CASES: dict[str, Callable] = {
    "unet1": unet,
    "unet2": lambda *a: unet(*a, b=2),
    "unet1-packed": lambda *a: unet(*a, pack=True),
    "unet2-packed": lambda *a: unet(*a, b=2, pack=True),
    "unet1-bf16": lambda *a: unet(*a, dtype=torch.bfloat16),
    "decode": decode,
    "encode": encode,
    "text": text,
    "generate": generate,
    "sampler": sampler,
    "load": load,
}


# ---- how it is measured --------------------------------------------------------------------------


def memory(what: str) -> float:
    """A line of the kernel's account of this process in MB: VmRSS now, VmHWM the most since the
    last reset.
    """
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(what)) / 1024


def measure(run: Callable[[], Tensor], repeat: int) -> tuple[float, float, Tensor]:
    """Processor seconds, MB above what was resident, and the result, of one run."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # free memory that the allocator kept does not count
    Path("/proc/self/clear_refs").write_text("5")
    base, start = memory("VmRSS"), process_time()
    for _ in range(repeat):
        out = run()
    return (process_time() - start) / repeat, memory("VmHWM") - base, out


def rate(dtype: torch.dtype, n: int = 1024) -> float:
    """Arithmetic operations per processor second in a product of n x n matrices; the best of
    three, or the first if it takes seconds.
    """
    a, times = torch.randn(n, n).to(dtype), []
    for _ in range(3):
        start = process_time()
        a @ a
        times.append(process_time() - start)
        if times[-1] > 2:  # a processor without arithmetic for this type: once is enough
            break
    return 2 * n**3 / min(times)


def arithmetic(args: dict, parts: dict[str, int], n: int) -> int:
    """Additions and multiplications in the given rows of each part, counted on the meta device."""
    total = 0
    with torch.device("meta"), torch.no_grad():
        for part, rows in parts.items():
            net = CLASSES[{"decode": "vae", "encode": "vae"}.get(part, part)](
                **args.get(part, args["vae"])
            )
            with FlopCounterMode(display=False) as count:
                if part == "unet":
                    net(
                        torch.empty(1, 4, n, n),
                        torch.empty(1),
                        Cond(text=torch.empty(1, 77, args["unet"]["context"])),
                    )
                elif part == "text":
                    net(torch.empty(1, 77, dtype=torch.long))
                else:
                    net.decode(torch.empty(1, 4, n, n)) if part == "decode" else net.encode(
                        torch.empty(1, 3, 8 * n, 8 * n)
                    )
            total += rows * count.get_total_flops()
    return total


@torch.inference_mode()
def race(name: str, models: dict, args: dict, n: int, rounds: int) -> dict:
    """One line of the table."""
    with ExitStack() as stack:
        case = CASES[name](models, n, stack)
        with ExitStack() as small:  # touches every weight once, for little
            warm = CASES[name.removesuffix("-packed")](models, min(n, 8), small)
            warm.ours(), warm.theirs()
        if name.endswith("-packed"):
            case.ours()  # packs for this very size
        runs = []
        for i in range(rounds):
            sides = [case.ours, case.theirs] if i % 2 == 0 else [case.theirs, case.ours]
            pair = [measure(side, case.repeat) for side in sides]
            runs.append(pair if i % 2 == 0 else pair[::-1])
    flops, mid = arithmetic(args, case.parts, n), lambda f: median(f(a, b) for a, b in runs)
    ours, theirs = mid(lambda a, b: a[0]), mid(lambda a, b: b[0])
    return {
        "case": name,
        "ours_s": ours,
        "theirs_s": theirs,
        "time": mid(lambda a, b: a[0] / b[0]),
        "ours_mb": mid(lambda a, b: a[1]),
        "theirs_mb": mid(lambda a, b: b[1]),
        "memory": mid(lambda a, b: a[1] / max(b[1], 1)),
        "gflop": flops / 1e9,
        "floor": ours * rate(case.dtype) / flops if flops else None,
        "error": mid(lambda a, b: ((a[2].float() - b[2]).abs().max() / b[2].std()).item()),
    }


COLUMNS = {
    "case": "{}",
    "ours_s": "{:.4g}",
    "theirs_s": "{:.4g}",
    "time": "{:.3f}",
    "ours_mb": "{:.0f}",
    "theirs_mb": "{:.0f}",
    "memory": "{:.2f}",
    "gflop": "{:.0f}",
    "floor": "{:.2f}",
    "error": "{:.0e}",
}


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description="Stable Diffusion 1.5 here against diffusers: ratios of time and memory."
    )
    p.add_argument(
        "--only",
        nargs="+",
        choices=CASES,
        default=list(CASES),
        metavar="CASE",
        help=", ".join(CASES),
    )
    p.add_argument("--rounds", type=int, default=3, help="how often each side runs (default 3)")
    p.add_argument(
        "--width", type=float, default=1.0, help="share of the networks' width (default 1)"
    )
    p.add_argument(
        "--latent",
        type=int,
        default=64,
        help="side of the latents; pictures have 8 times that (default 64)",
    )
    p.add_argument("--json", help="also write the figures into this file")
    a = p.parse_args(argv)
    if sys.platform != "linux":
        p.error("memory is read from /proc, which only Linux has")
    args = arguments("sd15", a.width)
    models, rows = pairs(args), []
    print("  ".join(c.rjust(12) for c in COLUMNS))
    for name in a.only:
        rows.append(race(name, models, args, a.latent, a.rounds))
        print(
            "  ".join(
                ("-" if rows[-1][c] is None else f.format(rows[-1][c])).rjust(12)
                for c, f in COLUMNS.items()
            ),
            flush=True,
        )
    if a.json:
        write_json(
            {
                "width": a.width,
                "latent": a.latent,
                "rounds": a.rounds,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "cases": rows,
            },
            Path(a.json),
        )


if __name__ == "__main__":
    main()
