"""Keeping to a path: what makes a guided replay return an inverted picture, noise that is read off,
layouts mixed in.
"""

import torch
from torch import Tensor

from minidiff.core import process
from minidiff.core.schedule import Schedule, times_of_strength
from minidiff.inversion.ddim import follow
from minidiff.inversion.edit_friendly import noise_map
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import (
    ANY_SCHEDULE,
    LINEAR,
    draw,
    draws,
    levels,
    preserving_assumed,
    states,
)

NULL = "tutorials/inversion/null_text.md"
DIRECT = "tutorials/editing/real_pictures.md"
FRIENDLY = "tutorials/inversion/edit_friendly.md"


# ---- null-text in closed form --------------------------------------------------------------------


def landing_null(
    sch: Schedule, x_t: Tensor, goal: Tensor, e_cond: Tensor, t: int, s: int, scale: float
) -> Tensor:
    """The unconditional guess with which a guided DDIM move from x_t at t ends in `goal` at s;
    scale is not 1.
    """
    a_t, s_t = sch.at(t)
    a_s, s_s = sch.at(s)
    wanted = (goal - a_s / a_t * x_t) / (s_s - a_s / a_t * s_t)  # the guided noise that leads there
    return (wanted - scale * e_cond) / (1 - scale)


def slow_landing(sch, x_t, goal, e_cond, t, s, scale):
    """A guided move is a straight line in the null guess: try two, and see which point of the line
    is the goal.
    """

    def lands(null):
        return process.ddim_step(sch, x_t, null + scale * (e_cond - null), t, s)

    at0 = lands(torch.zeros_like(x_t))
    at1 = lands(torch.ones_like(x_t))
    return (goal - at0) / (at1 - at0)


def landings(seed):
    cases = []
    for (sch, x, _, t, s), scale in zip(states(seed), (3.0, 7.5, 0.5)):
        goal, e_cond = draws(seed + 4, x.shape, x.shape)
        cases.append((sch, x.double(), goal.double(), e_cond.double(), t, s, scale))
    return cases


def it_lands(fn):
    sch, x, goal, e, t, s, w = landings(6)[1]
    null = fn(sch, x, goal, e, t, s, w)
    return process.ddim_step(sch, x, null + w * (e - null), t, s), goal


def wanted_noise(sch, x, goal, t, s):
    """What carries x to the goal in a move without guidance."""
    return slow_landing(sch, x, goal, torch.zeros_like(x), t, s, 0.0)


def null_from(formula, wanted=wanted_noise):
    def wrong(sch, x, goal, e, t, s, w):
        return formula(wanted(sch, x, goal, t, s), e, w)

    return wrong


landing = Exercise(
    "landing_null",
    "core",
    "Null-text inversion learns, by hundreds of gradient steps, which unconditional guess makes "
    "the guided move from x_t land on the next state of the inverted path, `goal`. It can be "
    "solved for. First: which noise carries x_t to goal by a DDIM move from t to s? Then: which "
    "$e_\\varnothing$ makes $e_\\varnothing + scale\\,(e_c - e_\\varnothing)$ that noise? All (b "
    "c h w)." + ANY_SCHEDULE,
    landing_null,
    slow_landing,
    landings,
    apart="the package needs no such guess: its direct inversion puts the state itself on the goal",
    facts=(Fact("the guided move lands on the goal", it_lands),),
    tolerance=1e-7,
    mutants=(
        Mutant(
            "the wanted noise itself",
            null_from(lambda eps, e, w: eps),
            "It leads there without guidance; guided, the move goes as many times too far as "
            "`scale` says.",
        ),
        Mutant(
            "the paper's w",
            null_from(lambda eps, e, w: ((1 + w) * e - eps) / w),
            "scale = 1 + w: with the other convention the null is the one for a guidance one unit "
            "stronger.",
        ),
        Mutant(
            "the sign",
            null_from(lambda eps, e, w: (eps - w * e) / (w - 1)),
            "1 - scale, not scale - 1: above scale 1 the denominator is negative.",
        ),
        Mutant(
            "noise that links x_t and goal as a clean picture",
            null_from(
                lambda eps, e, w: (eps - w * e) / (1 - w),
                lambda sch, x, goal, t, s: process.x0_to_eps(sch, x, goal, t),
            ),
            "The goal is a state at time s, with noise of its own, not x0.",
        ),
        preserving_assumed(landing_null),
    ),
    hints=(
        "Both questions are linear equations.",
        "`ddim_step` is A x_t + B eps with A = a_s / a_t, B = sig_s - A sig_t.",
        "`wanted = (goal - A * x_t) / B`; `(wanted - scale * e_cond) / (1 - scale)`.",
    ),
    about="null-text inversion, solved for",
    page=NULL,
)


# ---- direct inversion ----------------------------------------------------------------------------


def slow_follow(x, goal, share):
    b = len(goal)
    out = x.clone()
    for i in range(b):
        offset = goal[i] - x[i]
        out[i] = x[i] + offset
        out[b + i] = x[b + i] + share * offset
    return out


def follow_cases(seed):
    shares = ((1, 0.0), (1, 1.0), (3, 0.4))
    return [(*draws(seed, (2 * b, 2, 3, 3), (b, 2, 3, 3)), share) for b, share in shares]


def without_a_share(fn):
    x, goal = draws(0, (2, 1, 2, 2), (1, 1, 2, 2))
    return fn(x, goal, 0.0)[1], x[1]


following = Exercise(
    "follow",
    "warm-up",
    "Direct inversion: rows [sources, edits] were moved together (2b c h w). Put each source on "
    "the inverted path, `goal` (b c h w), exactly; its edit gets the share `share` of the same "
    "offset, goal - source.",
    follow,
    slow_follow,
    follow_cases,
    facts=(
        Fact(
            "share 0 leaves the edits alone",
            without_a_share,
        ),
    ),
    mutants=(
        Mutant(
            "the whole offset for both",
            lambda x, goal, w: follow(x, goal, 1.0),
            "That is the closed form of null-text inversion; direct inversion leaves the edit "
            "free. The papers differ in this one number.",
        ),
        Mutant(
            "edits on the path",
            lambda x, goal, w: torch.cat([goal, (1 - w) * x.chunk(2)[1] + w * goal]),
            "The edit is drawn towards the source itself instead of being shifted beside it.",
        ),
        Mutant(
            "rows alternate",
            lambda x, goal, w: torch.stack([goal, x[1::2] + w * (goal - x[::2])], 1).flatten(0, 1),
            "[source, edit, source, edit]: the same for one picture, and another order for more.",
        ),
        Mutant(
            "the share for the source too",
            lambda x, goal, w: x + w * (goal - x.chunk(2)[0]).repeat(2, 1, 1, 1),
            "The source is not on its path then: after fifty moves it is another picture.",
        ),
        Mutant(
            "the sign of the offset",
            lambda x, goal, w: torch.cat([goal, follow(x, goal, -w).chunk(2)[1]]),
            "The edit is pushed away by what the source is drawn back.",
        ),
    ),
    hints=(
        "`x.chunk(2)` gives both halves.",
        "The offset is goal - source.",
        "`torch.cat([goal, edit + share * (goal - source)])`.",
    ),
    about="direct inversion: back onto the path",
    page=DIRECT,
)


# ---- edit-friendly noise -------------------------------------------------------------------------


def slow_noise_map(sch, x_t, x_s, eps, t, s):
    a_t, s_t, a_s, s_s = levels(sch, t, s)
    beta = s_t**2 - (a_t / a_s) ** 2 * s_s**2
    x0 = (x_t.double() - s_t * eps.double()) / a_t
    mean = a_t / a_s * s_s**2 / s_t**2 * x_t.double() + a_s * beta / s_t**2 * x0
    return (x_s.double() - mean).to(x_t.dtype)


def replayed(fn):
    sch, x, e, t, s = list(states(2))[1]
    want = draw(9, 2, 3, 8, 8)
    mean, _ = process.posterior(sch, x, process.eps_to_x0(sch, x, e, t), t, s)
    return mean + fn(sch, x, want, e, t, s), want


def noise_map_cases(seed):
    return [
        (sch, x, draw(seed + 1, *x.shape), e, t, to)
        for sch, x, e, t, s in states(seed)
        for to in (s, 0)
    ]


def from_the_guess(sch, x_t, x_s, eps, t, s):
    x0 = process.eps_to_x0(sch, x_t, eps, t)
    return x_s - process.q_sample(sch, x0, s, torch.zeros_like(x0))


def from_one_step(sch, x_t, x_s, eps, t, s):
    x0 = process.eps_to_x0(sch, x_t, eps, t)
    mean, _ = process.posterior(sch, x_t, x0, t, t - 1)
    return x_s - mean


friendly = Exercise(
    "noise_map",
    "core",
    "Edit-friendly inversion: two states of one picture, x_t and x_s (s < t), noised "
    "independently. Whatever lies between them is called the step's noise and kept: x_s minus the "
    "mean of $q(x_s \\mid x_t, \\hat x_0)$, with the guess of x0 that the network's `eps` "
    "implies. All (b c h w); s may be 0. `posterior` and `eps_to_x0` of minidiff.core.process may "
    "be used." + ANY_SCHEDULE,
    noise_map,
    slow_noise_map,
    noise_map_cases,
    tolerance=1e-4,
    facts=(Fact("the step with that noise gives x_s back", replayed),),
    mutants=(
        Mutant(
            "the deterministic step's mean",
            lambda sch, x, y, e, t, s: y - process.ddim_step(sch, x, e, t, s),
            "DDIM's end point holds all the old noise; the ancestral mean less. Replayed by "
            "another sampler than it was read with, the noise does not fit.",
        ),
        Mutant(
            "the state's own noise",
            from_the_guess,
            "Counted from the guess of x0 instead of from the mean: then x_t has no part in the "
            "step.",
        ),
        Mutant(
            "one step's beta",
            from_one_step,
            "The full chain's coefficients in a strided loop.",
        ),
        Mutant(
            "the sign",
            lambda *a: -slow_noise_map(*a),
            "Mean minus state: added to the mean again, it leads to the other side.",
        ),
        preserving_assumed(noise_map),
    ),
    hints=(
        "A subtraction.",
        "`posterior(sch, x_t, x0, t, s)` of minidiff.core.process returns mean and variance.",
        "`x_s - posterior(sch, x_t, eps_to_x0(sch, x_t, eps, t), t, s)[0]`.",
    ),
    about="edit-friendly inversion: the noise read off",
    page=FRIENDLY,
)


# ---- MagicMix ------------------------------------------------------------------------------------


def mix(
    sch: Schedule, x_s: Tensor, layout: Tensor, nu: float, t: int, s: int, noise: Tensor
) -> Tensor:
    """After a move from t to s: share nu of the state x_s, the rest the clean `layout` with `noise`
    of the state's time.
    """
    return nu * x_s + (1 - nu) * process.q_sample(sch, layout, s, noise)


def slow_mix(sch, x_s, layout, nu, t, s, noise):
    a = sch.alpha[s].item()
    sigma = sch.sigma[s].item()
    out = torch.empty_like(x_s)
    for i in range(x_s.numel()):
        noised = a * layout.reshape(-1)[i] + sigma * noise.reshape(-1)[i]
        out.view(-1)[i] = nu * x_s.reshape(-1)[i] + (1 - nu) * noised
    return out


def mix_cases(seed):
    return [
        (sch, x, e, nu, t, s, draw(seed + 1, *x.shape))
        for nu, (sch, x, e, t, s) in zip((0.5, 0.9, 0.3), states(seed))
    ]


def nothing_mixed_in(fn):
    return (
        fn(
            LINEAR,
            *draws(0, (1, 1, 2, 2), (1, 1, 2, 2)),
            1.0,
            500,
            400,
            torch.ones(1, 1, 2, 2),
        ),
        draw(0, 1, 1, 2, 2),
    )


magic = Exercise(
    "mix",
    "warm-up",
    "MagicMix: the prompt draws, and at each time a share of the picture whose layout is wanted "
    "is mixed in. After the move from t to s: `nu` parts of x_s, 1 - nu parts of `layout`, noised "
    "with `noise` to the time x_s is at. All (b c h w)." + ANY_SCHEDULE,
    mix,
    slow_mix,
    mix_cases,
    apart="`magicmix` mixes low bands and fading shares too, with what `Pipe.noised` makes",
    facts=(
        Fact(
            "nu = 1 mixes nothing in",
            nothing_mixed_in,
        ),
    ),
    mutants=(
        Mutant(
            "nu of the layout",
            lambda sch, x, z, nu, t, s, n: mix(sch, x, z, 1 - nu, t, s, n),
            "The shares are exchanged: .9 then means hardly any prompt.",
        ),
        Mutant(
            "noised to t",
            lambda sch, x, z, nu, t, s, n: nu * x + (1 - nu) * process.q_sample(sch, z, t, n),
            "The time before the move: two states of different noise are mixed, and the network "
            "is told only one time.",
        ),
        Mutant(
            "the layout clean",
            lambda sch, x, z, nu, t, s, n: nu * x + (1 - nu) * z,
            "Its details come along, which noise was to hide; only the layout was wanted.",
        ),
        preserving_assumed(mix),
    ),
    hints=(
        "A weighted mean of two states of one time.",
        "`process.q_sample(sch, layout, s, noise)`.",
        "`nu * x_s + (1 - nu) * process.q_sample(...)`.",
    ),
    about="MagicMix: a layout mixed into the state",
    page="tutorials/editing/magicmix.md",
)


# ---- which times are run -------------------------------------------------------------------------


def slow_strength(ts, strength):
    n = len(ts) - 1
    steps = 0
    while steps + 1 <= n * strength:
        steps += 1
    return [time for place, time in enumerate(ts) if n - place <= steps]


def times_of_strength_cases(seed):
    return [
        ([100, 75, 50, 25, 0], 0.5),
        ([*range(1000, -1, -20)], 0.3 + 0.2 * seed),
        ([*range(50, -1, -1)], 0.58),
        ([3, 2, 1, 0], 1.0),
        ([3, 2, 1, 0], 0.0),
        ([999, 700, 650, 600, 300, 0], 0.6),  # steps are counted, not times
    ]


strength = Exercise(
    "times_of_strength",
    "warm-up",
    "SDEdit noises a picture to a middle time and runs only what lies below. `ts` are the n + 1 "
    "falling times of n steps; keep the last int(n strength) steps. The first of the returned "
    "times is the one the picture is noised to; strength 0 leaves only the end.",
    times_of_strength,
    slow_strength,
    times_of_strength_cases,
    mutants=(
        Mutant(
            "rounded",
            lambda ts, a: ts[len(ts) - 1 - round((len(ts) - 1) * a) :],
            "In floating point .58 of 50 is a hair below 29; public pipelines cut that off. With "
            "rounding the same strength starts one step earlier.",
        ),
        Mutant(
            "the share that is skipped",
            lambda ts, a: ts[int((len(ts) - 1) * a) :],
            "Strength upside down: .2 redraws nearly everything.",
        ),
        Mutant(
            "noised one time later than run",
            lambda ts, a: ts[max(len(ts) - 2 - int((len(ts) - 1) * a), 0) :],
            "A widely copied script noises to index k and denoises from k - 1: the state is "
            "noisier than the network is told.",
        ),
        Mutant(
            "the end left out",
            lambda ts, a: ts[len(ts) - 1 - int((len(ts) - 1) * a) : -1] or ts[-1:],
            "The last move never happens, and a film of noise stays.",
        ),
        Mutant(
            "the share of the times",
            lambda ts, a: [time for time in ts if time <= a * ts[0]],
            "It is the steps that are counted. Where their strides differ, as in most grids of few "
            "steps, half of the time is not half of the steps.",
        ),
        Mutant(
            "one time too few",
            lambda ts, a: ts[-max(int((len(ts) - 1) * a), 1) :],
            "k steps visit k + 1 times: the first of them is where the picture is noised to.",
        ),
    ),
    hints=(
        "A slice of a list.",
        "How many times have k steps?",
        "`ts[n - int(n * strength):]` with n = len(ts) - 1.",
    ),
    about="SDEdit: how far up, and so how far down",
    page="tutorials/editing/sdedit.md",
)

EXERCISES = (strength, magic, following, landing, friendly)
