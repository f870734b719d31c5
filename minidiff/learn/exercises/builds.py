"""Whole methods: sampling, SDEdit, an editor by inversion, on a tiny model with random weights.

A network that was never trained makes no pictures, but every formula holds for it, and it costs
milliseconds.
"""

import math
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

import minidiff
from minidiff.core import process
from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import Denoise, noise
from minidiff.core.schedule import Schedule
from minidiff.data.toy2d import gauss_aniso, gmm8
from minidiff.editing.sdedit import sdedit
from minidiff.inversion.ddim import invert, replay
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import LINEAR, guess_clipped, levels
from minidiff.learn.exercises.process import PAGE
from minidiff.pipe.pipe import Pipe

SOURCE = "a red circle on a blue background"
TARGET = "a small green circle on a blue background"


@cache
def tiny() -> Pipe:
    return minidiff.build("tiny", seed=0)


def picture(seed):
    x = noise((1, 3, 8, 8), seed)
    return torch.nn.functional.interpolate(x, (64, 64), mode="bilinear").tanh()


def step(sch, x, e, t, s):
    a_t, s_t = sch.at(t)
    a_s, s_s = sch.at(s)
    return a_s * (x - s_t * e) / a_t + s_s * e


# ---- DDPM sampling -------------------------------------------------------------------------------


def ddpm_sample(
    denoise: Denoise, sch: Schedule, x: Tensor, ts: list[int], zs: list[Tensor]
) -> Tensor:
    """Ancestral sampling of x (b d) down the falling times `ts`; `zs[i]` is the noise of move i,
    unused in the last.
    """
    for i, (t, s) in enumerate(pairwise(ts)):
        mean, var = process.posterior(
            sch, x, process.eps_to_x0(sch, x, denoise(x, t, None), t), t, s
        )
        x = mean + var**0.5 * zs[i] if s > 0 else mean
    return x


def slow_ddpm(
    denoise,
    sch,
    x,
    ts,
    zs,
    clock=lambda i, t: t,
    power=0.5,
    noisy=1.0,
    stride=True,
    large=False,
    clip=math.inf,
):
    for i, (t, s) in enumerate(pairwise(ts)):
        a_t, s_t, a_s, s_s = levels(sch, t, s if stride else t - 1)
        x0 = ((x - s_t * denoise(x, clock(i, t), None)) / a_t).clamp(-clip, clip)
        beta = s_t**2 - (a_t / a_s) ** 2 * s_s**2
        x = (a_t / a_s * s_s**2 * x + a_s * beta * x0) / s_t**2
        if s > 0:
            tilde = beta if large else beta * s_s**2 / s_t**2
            x = x + noisy * tilde**power * zs[i]
    return x


def by_ddim(denoise, sch, x, ts, zs):
    for t, s in pairwise(ts):
        x = step(sch, x, denoise(x, t, None), t, s)
    return x


def chains(seed):
    g = torch.Generator().manual_seed(seed)
    ts = [[900, 500, 0], [1000, 700, 300, 50, 0]][seed % 2]
    x, *zs = torch.randn(len(ts), 5, 2, generator=g, dtype=torch.float64)
    return [(gmm8().denoise(LINEAR), LINEAR, x, ts, zs)]


def spread_of(fn):
    toy = gauss_aniso()
    ts = LINEAR.timesteps(100, spacing="trailing")
    g = torch.Generator().manual_seed(0)
    x, *zs = torch.randn(101, 3000, 2, generator=g, dtype=torch.float64)
    true = toy.sample(3000, seed=1).T.cov()
    x = fn(toy.denoise(LINEAR), LINEAR, x, ts, zs)
    return (
        1 - ((x.T.cov() - true).norm() / true.norm()).item(),
        0.85,
        "likeness of the drawn covariance to the true one",
    )


sampling = Exercise(
    "ddpm_sample",
    "build",
    "A whole sampler: carry x (b d) down the falling times `ts` by draws from $q(x_s \\mid x_t, "
    "\\hat x_0)$, where `denoise(x, t, None)` gives the noise and `zs[i]` (b d) is the random "
    "number of move i. The last move, to time 0, takes the mean. Times are ints, so `posterior` of "
    "minidiff.core.process gives the variance as a Python float (no `.sqrt()`, but `** 0.5`).",
    ddpm_sample,
    slow_ddpm,
    chains,
    apart="the noise is given here, so that answers can be compared; the sampler `ddpm` draws "
    "its own",
    behaviour=spread_of,
    tolerance=1e-7,
    mutants=(
        Mutant(
            "the network told the loop's index",
            lambda *a: slow_ddpm(*a, clock=lambda i, t: len(a[3]) - 1 - i),
            "Strided loops count 49, 48, ... while the times are 981, 961, ...: the network "
            "believes there is hardly any noise.",
        ),
        Mutant(
            "the variance for its root",
            lambda *a: slow_ddpm(*a, power=1.0),
            "Too little noise is put back, and the spread of the data is lost.",
        ),
        Mutant(
            "no noise",
            lambda *a: slow_ddpm(*a, noisy=0.0),
            "The mean of every draw. It is not DDIM: noise is taken away that nothing replaces, "
            "and all samples move to the middle.",
        ),
        Mutant(
            "the large variance",
            lambda *a: slow_ddpm(*a, large=True),
            "beta of the stride: DDPM's other choice, but not the variance of q(x_s | x_t, x0). "
            "With few steps it leaves grain.",
        ),
        guess_clipped(lambda *a: slow_ddpm(*a, clip=1.0)),
        Mutant(
            "DDIM",
            by_ddim,
            "Without fresh noise, and with all of the old one: a sampler as good, and another.",
        ),
        Mutant(
            "one step's posterior",
            lambda *a: slow_ddpm(*a, stride=False),
            "The coefficients of t to t - 1 while the loop jumps to s: at the end most of the "
            "noise is still there.",
        ),
    ),
    hints=(
        "`itertools.pairwise(ts)` gives the moves.",
        "x0 by `process.eps_to_x0`, then `process.posterior(sch, x, x0, t, s)`.",
        "`x = mean + var ** .5 * zs[i] if s > 0 else mean`.",
    ),
    about="a whole DDPM sampler",
    page=PAGE,
)


# ---- SDEdit --------------------------------------------------------------------------------------


def sdedit_picture(
    pipe: Pipe, image: Tensor, prompt: str, strength: float, steps: int, scale: float, n: Tensor
) -> Tensor:
    """SDEdit with given noise n (b c h w): picture (b 3 H W) in [-1, 1] -> edited picture, guided
    by `scale`.
    """
    ts = pipe.timesteps(steps, strength)
    z = pipe.encode(image)
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    cond = pipe.embed(prompt)
    x = process.q_sample(pipe.schedule, z, ts[0], n)
    for t, s in pairwise(ts):
        x = process.ddim_step(pipe.schedule, x, denoise(x, t, cond), t, s)
    return pipe.decode(x)


def slow_sdedit(
    pipe,
    image,
    prompt,
    strength,
    steps,
    scale,
    n,
    late=False,
    share=None,
    exchanged=False,
    clean=False,
):
    if share is not None:
        strength = share(strength)
    sch = pipe.schedule
    grid = pipe.timesteps(steps)
    ts = grid[len(grid) - 1 - int(steps * strength) :]
    x = pipe.encode(image)
    if not clean:
        alpha, sigma = sch.at(grid[0] if late else ts[0])
        x = alpha * x + sigma * n
    for t, s in pairwise(ts):
        e_null = pipe.eps(x, t, pipe.null())
        e_cond = pipe.eps(x, t, pipe.embed(prompt))
        if exchanged:
            e_null, e_cond = e_cond, e_null
        x = step(sch, x, e_null + scale * (e_cond - e_null), t, s)
    return pipe.decode(x)


def pictures(seed):
    if seed == 2:
        return []
    strength = (0.5, 0.75)[seed]
    scale = (8.0, 3.0)[seed]
    n = noise((1, *tiny().shape), seed)
    return [(tiny(), picture(seed), TARGET, strength, 4, scale, n)]


def as_the_project(fn):
    pipe = tiny()
    x = picture(5)
    ours = fn(pipe, x, TARGET, 0.5, 4, 3.0, noise((1, *pipe.shape), 3))
    return ours, sdedit(pipe, x, TARGET, strength=0.5, steps=4, scale=3.0, seed=3)


def sdedit_like(**how):
    return lambda *args: slow_sdedit(*args, **how)


stroke = Exercise(
    "sdedit_picture",
    "build",
    "SDEdit from picture to picture. Encode (`pipe.encode`); take the share `strength` of the "
    "model's grid (`pipe.timesteps(steps, strength)`); noise the latents with n to its first "
    "time; DDIM down to 0 with guidance `scale` against `pipe.null()`; decode. `pipe.eps(x, t, "
    "cond)` is the network, `pipe.embed(prompt)` the condition.",
    sdedit_picture,
    slow_sdedit,
    pictures,
    apart="the noise is given here, and masks and repeats are left out; a fact compares the "
    "answer with `sdedit`",
    facts=(Fact("it is the project's sdedit", as_the_project),),
    tolerance=2e-5,
    mutants=(
        Mutant(
            "noised to T",
            sdedit_like(late=True),
            "The state is pure noise while the network is told a middle time: the layout of the "
            "picture is gone, and grain stays.",
        ),
        Mutant(
            "the strength upside down",
            sdedit_like(share=lambda a: 1 - a),
            "A small strength then redraws nearly everything.",
        ),
        Mutant(
            "not noised",
            sdedit_like(clean=True),
            "Noise is taken from a picture that has none: it gets flat and harsh.",
        ),
        Mutant(
            "guided away from the prompt",
            sdedit_like(exchanged=True),
            "The two guesses were split in the wrong order.",
        ),
        Mutant(
            "not guided",
            lambda *a: slow_sdedit(*a[:5], 1.0, a[6]),
            "The conditional guess alone: scale 1, whatever is asked.",
        ),
    ),
    hints=(
        "Three lines before the loop, one in it, one after it.",
        "`cfg_batched(pipe.eps, pipe.null(), scale)` is the guided network.",
        "`x = process.q_sample(pipe.schedule, z, ts[0], n)`, then `process.ddim_step` for every "
        "pair of times, then `pipe.decode(x)`.",
    ),
    about="the whole of SDEdit",
    page="tutorials/editing/sdedit.md",
)


# ---- an editor by inversion ----------------------------------------------------------------------


def invert_and_edit(
    pipe: Pipe, image: Tensor, source: str, target: str, steps: int, scale: float
) -> Tensor:
    """DDIM inversion of a picture (b 3 H W) under `source`, unguided; then sampling under `target`
    guided by `scale`.
    """
    x_T = invert(pipe, image, source, steps=steps)[-1]
    return replay(pipe, x_T, target, steps=steps, scale=scale)


def slow_invert_and_edit(
    pipe, image, source, target, steps, scale, guided=False, explained=None, low=False
):
    sch = pipe.schedule
    ts = sch.timesteps(steps, spacing="trailing")
    known = pipe.embed(explained or source)
    wanted = pipe.embed(target)
    null = pipe.null()

    def look(x, t, cond, weight):
        e_null = pipe.eps(x, t, null)
        return e_null + weight * (pipe.eps(x, t, cond) - e_null)

    x = pipe.encode(image)
    for s, t in pairwise(ts[::-1]):
        eps = look(x, max(s, 1) if low else t, known, scale if guided else 1.0)
        x = step(sch, x, eps, s, t)
    for t, s in pairwise(ts):
        x = step(sch, x, look(x, t, wanted, scale), t, s)
    return pipe.decode(x)


def editor_like(**how):
    return lambda *args: slow_invert_and_edit(*args, **how)


editor = Exercise(
    "invert_and_edit",
    "build",
    "Edit a given picture: encode; climb to noise by DDIM inversion with the prompt `source` and "
    "no guidance (scale 1, the network asked at the higher time of each move); come down with "
    '`target`, guided by `scale`. Both on `pipe.schedule.timesteps(steps, spacing="trailing")`. '
    "Decode.",
    invert_and_edit,
    slow_invert_and_edit,
    lambda seed: [] if seed else [(tiny(), picture(0), SOURCE, TARGET, 2, 6.0)],
    apart="the package has its two halves, `invert` and `replay`",
    tolerance=2e-4,
    mutants=(
        Mutant(
            "guided on the way up",
            editor_like(guided=True),
            "Guided inversion runs out of the range of states: its noise is no Gaussian, and what "
            "comes back is burnt.",
        ),
        Mutant(
            "inverted under the target",
            lambda *a: slow_invert_and_edit(*a, explained=a[3]),
            "The new prompt explains the old picture badly, and the noise has to hold what it "
            "cannot: it comes back as artefacts.",
        ),
        Mutant(
            "asked at the lower time",
            editor_like(low=True),
            "The way down asks at the higher time, so the way up must too.",
        ),
        Mutant(
            "not guided on the way down",
            lambda *a: slow_invert_and_edit(*a[:5], 1.0),
            "Scale 1 all the way: the picture comes back, and the new prompt is hardly heard.",
        ),
        Mutant(
            "the source's prompt on the way down",
            lambda pipe, x, source, target, *rest: slow_invert_and_edit(
                pipe, x, source, source, *rest
            ),
            "The picture is reconstructed, not edited.",
        ),
    ),
    hints=(
        "Two loops over the same times, one of them backwards.",
        "Up: `ddim_step(sch, x, pipe.eps(x, t, cond), s, t)` of minidiff.core.process for s < t.",
        "The project has both halves: `invert(...)[-1]` and `replay(...)` in "
        "minidiff.inversion.ddim.",
    ),
    about="an editor by inversion",
    page="tutorials/inversion/ddim.md",
)

EXERCISES = (sampling, stroke, editor)
