"""Steps that ask twice or more, and noise that goes up: churn, Runge and Kutta, Restart, RF-Solver
(Heun's own step is in guesses.py).
"""

import math
from itertools import pairwise

import torch

from minidiff.core.cond import Cond
from minidiff.core.process import ddim_step
from minidiff.data.toy2d import gauss_aniso, gaussian_flow_map
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.guesses import EDM, slow_heun
from minidiff.learn.exercises.inputs import (
    ANY_SCHEDULE,
    FLOW,
    LINEAR,
    draw,
    draws,
    levels,
    preserving_assumed,
    states,
)
from minidiff.learn.exercises.loops import noise_of
from minidiff.samplers.heun import churned
from minidiff.samplers.midpoint import midpoint_step
from minidiff.samplers.pndm import runge_kutta
from minidiff.samplers.restart import restarted

PNDM = "tutorials/samplers/pndm.md"
RESTART = "tutorials/samplers/restart.md"
RF = "tutorials/samplers/rf_solver.md"
D = torch.float64


def bars(sch) -> list[float]:
    """sigma / alpha at every index."""
    return (sch.sigma / sch.alpha).tolist()


def asked(seed):
    """(denoise, schedule, state, t, s, cond) in float64."""
    conds = (None, Cond(label=torch.tensor([3])), Cond(label=torch.tensor([7])))
    for cond, (sch, x, _, t, s) in zip(conds, states(seed)):
        yield noise_of, sch, x.double(), t, s, cond


def step_cases(seed):
    cases = []
    for denoise, sch, x, t, s, cond in asked(seed):
        cases.append((denoise, sch, x, t, s, cond))
    return cases


def gain_over_ddim(step):
    """DDIM's error in 12 steps of a Gaussian's flow over that of `step(eps, x, t, s)`."""
    toy = gauss_aniso()
    eps = toy.denoise(LINEAR)
    ts = [round(900 - 880 * k / 12) for k in range(13)]
    start = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    true = gaussian_flow_map(toy.means[0], toy.covs[0], start, LINEAR, ts[0], ts[-1])
    by_ddim = start
    x = start
    for t, s in pairwise(ts):
        by_ddim = ddim_step(LINEAR, by_ddim, eps(by_ddim, t), t, s)
        x = step(eps, x, t, s)
    return ((by_ddim - true).norm() / (x - true).norm()).item()


# ---- churn ---------------------------------------------------------------------------------------


def slow_churned(sch, x_t, t, gamma, noise, squares=True, bar=True, told=True, exact=True):
    bar_t = bars(sch)
    wanted = (1 + gamma) * bar_t[t]
    u = min(range(1, sch.T + 1), key=lambda k: abs(math.log(bar_t[k] / wanted)))
    u = max(t, u)
    up = bar_t[u] if exact else wanted
    spread = math.sqrt(max(up**2 - bar_t[t] ** 2, 0)) if squares else up - bar_t[t]
    a_t, _, a_u, _ = levels(sch, t, u)
    if bar:
        y = (x_t.double() / a_t + spread * noise.double()) * a_u
    else:
        y = x_t.double() + spread * noise.double()
    return y.to(x_t.dtype), torch.tensor(u if told else t)


def churned_like(**how):
    return lambda *args: slow_churned(*args, **how)


def churn_cases(seed):
    cases = []
    for gamma, (sch, x, e, _, t) in zip((0.4, 0.2, 0.41), states(seed)):
        cases.append((sch, x, min(t, 700), gamma, e))
    return cases


def as_tensors(answer):
    """(state, time) as two tensors; what is no such pair is left to the contract."""
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], int):
        return answer
    x, u = answer
    return x, torch.as_tensor(u)


churn = Exercise(
    "churned",
    "core",
    "Churn: noise is added to a state before a step, and the step comes down from there. The noise "
    "level, $\\bar\\sigma = \\sigma / \\alpha$, is to become $1 + \\gamma$ times that of t. The "
    "network is asked about whole times, so take the time u >= t whose level is nearest to that "
    "(in ratio), and raise the state to the level of u exactly. Return (x_u, u). `raised(sch, t, "
    "gamma)` of minidiff.samplers.heun finds u, and `renoise` of minidiff.core.process goes up."
    + ANY_SCHEDULE,
    churned,
    slow_churned,
    churn_cases,
    read=as_tensors,
    tolerance=1e-4,
    mutants=(
        Mutant(
            "levels subtracted in place of their squares",
            churned_like(squares=False),
            "Variances add up, deviations do not. With the difference of the levels far too little "
            "noise is added, and the state is cleaner than its new time.",
        ),
        Mutant(
            "the noise of sigma / alpha added to x itself",
            churned_like(bar=False),
            "EDM's states are a picture plus noise; these are alpha times that. Divide, add, and "
            "multiply with the alpha of the new time.",
        ),
        Mutant(
            "the old time is told",
            churned_like(told=False),
            "The network is asked about the state before the noise was added: it sees more noise "
            "than it is told of, and leaves some in.",
        ),
        Mutant(
            "the level between two times is kept",
            churned_like(exact=False),
            "Up to (1 + gamma) times the level, where no time is. The network is asked about the "
            "nearest, and is told something that is nearly true.",
        ),
    ),
    hints=(
        "First the time, then the noise that leads up to it.",
        "`u = raised(sch, t, gamma)`.",
        "`return renoise(sch, x_t, t, u, noise), u`.",
    ),
    about="churn: up to a higher noise level",
    page=EDM,
)


# ---- the start of PNDM ---------------------------------------------------------------------------


def slow_runge_kutta(
    denoise,
    sch,
    x,
    t,
    s,
    cond=None,
    weights=(1, 2, 2, 1),
    old=True,
    third=True,
    far=True,
    keep="e1",
):
    """In sigma / alpha."""
    bar = bars(sch)
    m = (t + s) // 2
    a_t, a_m, a_s = (sch.alpha[k].item() for k in (t, m, s))
    y = x / a_t
    e1 = denoise(x, t, cond)
    half = y + (bar[m] - bar[t]) * e1
    e2 = denoise(a_m * half, m, cond)
    begin = y if old else half
    e3 = denoise(a_m * (begin + (bar[m] - bar[t]) * e2), m, cond) if third else e2
    e4 = denoise(a_s * (y + (bar[s] - bar[t]) * e3), s if far else m, cond)
    answers = (e1, e2, e3, e4)
    mean = sum(w * e for w, e in zip(weights, answers)) / sum(weights)
    return a_s * (y + (bar[s] - bar[t]) * mean), e1 if keep == "e1" else mean


def runge_like(**how):
    return lambda *args: slow_runge_kutta(*args, **how)


start = Exercise(
    "runge_kutta",
    "core",
    "A step of the start of PNDM, from t to s with t > s > 0 and the middle m = (t + s) // 2. Four "
    "looks: $e_1$ at $x$; $e_2$ at m, after a move along $e_1$; $e_3$ at m, after a move along "
    "$e_2$; $e_4$ at s, after a move along $e_3$. Every move is DDIM's, from x (`ddim_step` of "
    "minidiff.core.process). The step is then made along $(e_1 + 2 e_2 + 2 e_3 + e_4) / 6$. "
    "Return (x_s, e1): the multistep method that follows remembers the answer at the start.",
    runge_kutta,
    slow_runge_kutta,
    step_cases,
    tolerance=1e-8,
    mutants=(
        Mutant(
            "four equal weights",
            runge_like(weights=(1, 1, 1, 1)),
            "The middle counts for four of six, as in Simpson's rule.",
        ),
        Mutant(
            "the third look is left out",
            runge_like(third=False),
            "Both looks at the middle are needed: the second one corrects the first.",
        ),
        Mutant(
            "the second move begins where the first ended",
            runge_like(old=False),
            "All moves of a step begin at its start; in the middle they would be half a step too "
            "far.",
        ),
        Mutant(
            "the last look is told the middle's time",
            runge_like(far=False),
            "The state of the fourth look stands at s.",
        ),
        Mutant(
            "the mean is remembered",
            runge_like(keep="mean"),
            "The multistep weights continue answers at grid times. The mean is one of the middle, "
            "half a step later.",
        ),
    ),
    hints=(
        "Two looks at the middle, one at each end.",
        "`e2 = denoise(ddim_step(sch, x, e1, t, m), m, cond)`, and e3 in the same way with e2.",
        "`mean = (e1 + 2 * e2 + 2 * e3 + e4) / 6`; return the move along it, and e1.",
    ),
    about="Runge and Kutta, with DDIM's moves",
    page=PNDM,
)


# ---- Restart -------------------------------------------------------------------------------------


def slow_restarted(denoise, sch, x, ts, noise, cond, how="right"):
    a_low, s_low, a_high, s_high = levels(sch, ts[-1], ts[0])
    a = a_high / a_low
    var = s_high**2 - a**2 * s_low**2
    spread = {
        "right": math.sqrt(max(var, 0)),
        "variance": var,
        "whole": s_high,
        "unscaled": math.sqrt(max(s_high**2 - s_low**2, 0)),
        "levels": s_high - a * s_low,
        "kept": math.sqrt(max(var, 0)),
    }[how]
    x = (1.0 if how == "kept" else a) * x + spread * noise
    for t, s in pairwise(ts):
        x = slow_heun(denoise, sch, x, t, s, cond)
    return x


def restarted_like(how):
    return lambda *args: slow_restarted(*args, how=how)


def restart_cases(seed):
    cases = []
    grids = ([700, 400, 120], [650, 500, 350, 200], [800, 300])
    for ts, (denoise, sch, x, _, _, cond) in zip(grids, asked(seed)):
        cases.append((denoise, sch, x, ts, draw(seed + 7, *x.shape).double(), cond))
    return cases


def law_kept(fn):
    """Unit Gaussian data and the network that knows it: every state is one of them too."""
    x, z = (v.double() for v in draws(2, (4000, 1), (4000, 1)))
    knows = lambda x, t, cond: FLOW.sigma[t] * x / (FLOW.alpha[t] ** 2 + FLOW.sigma[t] ** 2)  # noqa: E731
    ts = list(range(800, 99, -20))
    alpha, sigma = FLOW.at(100)
    state = math.sqrt(alpha**2 + sigma**2) * x
    out = fn(knows, FLOW, state, ts, z, None)
    return out.std() / state.std(), torch.tensor(1.0, dtype=D)


again = Exercise(
    "restarted",
    "core",
    "One restart. The state x stands at the last of the falling times `ts`. Noise it up to the "
    "first in one jump of the forward process: $x \\leftarrow a x + \\sqrt{\\sigma_t^2 - a^2 "
    "\\sigma_s^2}\\, z$ with $a = \\alpha_t / \\alpha_s$, from s = ts[-1] to t = ts[0], z = "
    "`noise`. Then come down along ts by `heun_step` of minidiff.samplers.heun, called as "
    "`heun_step(denoise, sch, x, t, s, cond)`. `renoise` of minidiff.core.process may be used."
    + ANY_SCHEDULE,
    restarted,
    slow_restarted,
    restart_cases,
    facts=(Fact("a right network's states keep their spread", law_kept, 0.03),),
    tolerance=1e-8,
    mutants=(
        Mutant(
            "the variance for its root",
            restarted_like("variance"),
            "The noise has that variance; it is multiplied by the deviation.",
        ),
        Mutant(
            "all the noise of the upper time",
            restarted_like("whole"),
            "The state holds noise already. With sigma_t on top of it there is more than its time "
            "says, and the way down does not remove the rest.",
        ),
        Mutant(
            "the old noise is taken for unscaled",
            restarted_like("unscaled"),
            "Going up shrinks the picture by a, and the noise that is in it as well. Right only "
            "where alpha is 1.",
        ),
        Mutant(
            "deviations subtracted",
            restarted_like("levels"),
            "Variances add up, deviations do not: far too little noise.",
        ),
        Mutant(
            "the picture is not made fainter",
            restarted_like("kept"),
            "The forward process has two halves, less picture and more noise.",
        ),
        preserving_assumed(restarted),
    ),
    hints=(
        "Up in one jump, down in many steps.",
        "`x = renoise(sch, x, ts[-1], ts[0], noise)`.",
        "`for t, s in pairwise(ts): x = heun_step(denoise, sch, x, t, s, cond)`.",
    ),
    about="Restart: up by noise, down by steps",
    page=RESTART,
)


# ---- RF-Solver -----------------------------------------------------------------------------------


def slow_midpoint(denoise, sch, x_t, t, s, cond=None, at="m", told="m", half=0.5, order=2):
    """The paper's two terms of Taylor's series, in z = x / (alpha + sigma)."""
    alpha, sigma = sch.alpha.tolist(), sch.sigma.tolist()
    k = [a + b for a, b in zip(alpha, sigma)]
    tau = [b / c for b, c in zip(sigma, k)]
    goal = (tau[t] + tau[s]) / 2
    goal = goal / (1 - goal)
    m = min(range(1, sch.T + 1), key=lambda u: abs(math.log(sigma[u] / alpha[u] / goal)))

    def look(z, state, time):
        eps = denoise(k[state] * z, time, cond)
        return eps - (k[state] * z - sigma[state] * eps) / alpha[state]

    z = x_t / k[t]
    v = look(z, t, t)
    there = z + (tau[m] - tau[t]) * v if at == "m" else z
    slope = (look(there, m, m if told == "m" else t) - v) / (tau[m] - tau[t])
    h = tau[s] - tau[t]
    return k[s] * (z + h * v + (half * h**2 * slope if order == 2 else 0))


def midpoint_like(**how):
    return lambda *args: slow_midpoint(*args, **how)


def far_cases(seed):
    cases = []
    for i, (denoise, sch, x, _, _, cond) in enumerate(asked(seed)):
        t, s = ((900, 300), (200, 800), (700, 100))[i]
        cases.append((denoise, sch, x, t, s, cond))
    return cases


rf = Exercise(
    "midpoint_step",
    "core",
    "RF-Solver's step from t to s, up or down, on the straightened path: $z = x / k$ with $k = "
    "\\alpha + \\sigma$, $\\tau = \\sigma / k$, $v = \\hat\\epsilon - \\hat x_0$. With $h = "
    "\\tau_s - \\tau_t$ and the time m in the middle: $z_s = z_t + h v_t + \\frac{h^2}{2} (v_m - "
    "v_t) / (\\tau_m - \\tau_t)$, where $v_m$ is the velocity of $z_t + (\\tau_m - \\tau_t) v_t$ "
    "at m. From minidiff.samplers.midpoint may be used: `middle(sch, t, s)`, `flow_time(sch, "
    "t)` -> (k, tau), `straight_velocity(denoise, sch, x_t, t, cond)` and `straight_step(sch, x_t, "
    "v, t, s)`; the two steps work on x itself. t and s are far apart and above 0 here.",
    midpoint_step,
    slow_midpoint,
    far_cases,
    behaviour=lambda fn: (
        gain_over_ddim(lambda eps, x, t, s: fn(eps, LINEAR, x, t, s, None)),
        2.0,
        "DDIM's error in 12 steps over yours",
    ),
    tolerance=1e-8,
    mutants=(
        Mutant(
            "the half of h squared is forgotten",
            midpoint_like(half=1.0),
            "Taylor's second term is halved: twice the correction is as wrong as none.",
        ),
        Mutant(
            "the second look is at the start",
            midpoint_like(at="start"),
            "The state has to be moved to the middle before the network is asked about it.",
        ),
        Mutant(
            "the second look is told the time of the start",
            midpoint_like(told="t"),
            "A state of the middle, and the network is told of more noise than there is.",
        ),
        Mutant(
            "the term of second order is left out",
            midpoint_like(order=1),
            "This is Euler's step on the straight path, which is DDIM.",
        ),
    ),
    hints=(
        "Two velocities: at the start, and in the middle.",
        "`v_m = straight_velocity(denoise, sch, straight_step(sch, x_t, v_t, t, m), m, cond)`.",
        "The step goes along `v_t + half * (v_m - v_t)` with half = (h / 2) / (tau_m - tau_t).",
    ),
    about="RF-Solver: a step of second order, either way",
    page=RF,
)

EXERCISES = (churn, start, again, rf)
