"""Answers about churn, the start of PNDM, Restart and RF-Solver, as newcomers wrote them."""

from itertools import pairwise

from minidiff.core.process import ddim_step, eps_to_x0, renoise, transition
from minidiff.samplers.heun import heun_step, raised
from minidiff.samplers.midpoint import (
    flow_time,
    middle,
    straight_step,
    straight_velocity,
)
from newcomers import right, wrong

# ---- churned -------------------------------------------------------------------------------------


@right("churned")
def _(sch, x_t, t, gamma, noise):
    u = raised(sch, t, gamma)
    a, var = transition(sch, t, u, x_t)
    return a * x_t + var**0.5 * noise, u


@right("churned")
def _(sch, x_t, t, gamma, noise):
    ratio = (sch.sigma / sch.alpha)[1:].log()
    goal = ratio[t - 1] + (1 + gamma * ratio.new_ones(1)).log()
    u = max(t, (ratio - goal).abs().argmin().item() + 1)
    (a_t, s_t), (a_u, s_u) = sch.at(t), sch.at(u)
    up = ((s_u / a_u) ** 2 - (s_t / a_t) ** 2) ** 0.5
    return [a_u * (x_t / a_t + up * noise), u]


@wrong("churned", "levels subtracted")
def _(sch, x_t, t, gamma, noise):
    u = raised(sch, t, gamma)
    (a_t, s_t), (a_u, s_u) = sch.at(t), sch.at(u)
    return a_u * (x_t / a_t + (s_u / a_u - s_t / a_t) * noise), u


@wrong("churned", "the old time is told")
def _(sch, x_t, t, gamma, noise):
    return renoise(sch, x_t, t, raised(sch, t, gamma), noise), t


@wrong("churned")
def _(sch, x_t, t, gamma, noise):
    u = min(round((1 + gamma) * t), sch.T)
    return renoise(sch, x_t, t, u, noise), u


# ---- runge_kutta ---------------------------------------------------------------------------------


@right("runge_kutta")
def _(denoise, sch, x, t, s, cond):
    m = (t + s) // 2
    answers, state, time = [], x, t
    for to in (m, m, s, None):
        answers.append(denoise(state, time, cond))
        if to is not None:
            state, time = ddim_step(sch, x, answers[-1], t, to), to
    a, b, c, d = answers
    return ddim_step(sch, x, a / 6 + b / 3 + c / 3 + d / 6, t, s), a


@right("runge_kutta")
def _(denoise, sch, x, t, s, cond):
    m = t - (t - s + 1) // 2
    e1 = denoise(x, t, cond)
    e2 = denoise(ddim_step(sch, x, e1, t, m), m, cond)
    e3 = denoise(ddim_step(sch, x, e2, t, m), m, cond)
    e4 = denoise(ddim_step(sch, x, e3, t, s), s, cond)
    ends = [ddim_step(sch, x, e, t, s) for e in (e1, e2, e2, e3, e3, e4)]
    return sum(ends) / 6, e1


@wrong("runge_kutta", "the mean is remembered")
def _(denoise, sch, x, t, s, cond):
    m = (t + s) // 2
    e1 = denoise(x, t, cond)
    e2 = denoise(ddim_step(sch, x, e1, t, m), m, cond)
    e3 = denoise(ddim_step(sch, x, e2, t, m), m, cond)
    e4 = denoise(ddim_step(sch, x, e3, t, s), s, cond)
    mean = (e1 + 2 * e2 + 2 * e3 + e4) / 6
    return ddim_step(sch, x, mean, t, s), mean


@wrong("runge_kutta", "four equal weights")
def _(denoise, sch, x, t, s, cond):
    m = (t + s) // 2
    e1 = denoise(x, t, cond)
    e2 = denoise(ddim_step(sch, x, e1, t, m), m, cond)
    e3 = denoise(ddim_step(sch, x, e2, t, m), m, cond)
    e4 = denoise(ddim_step(sch, x, e3, t, s), s, cond)
    return ddim_step(sch, x, (e1 + e2 + e3 + e4) / 4, t, s), e1


@wrong("runge_kutta")
def _(denoise, sch, x, t, s, cond):
    e1 = denoise(x, t, cond)
    e2 = denoise(ddim_step(sch, x, e1, t, s), s, cond)
    return ddim_step(sch, x, (e1 + e2) / 2, t, s), e1


# ---- restarted -----------------------------------------------------------------------------------


@right("restarted")
def _(denoise, sch, x, ts, noise, cond):
    x = renoise(sch, x, ts[-1], ts[0], noise)
    for t, s in pairwise(ts):
        x = heun_step(denoise, sch, x, t, s, cond)
    return x


@right("restarted")
def _(denoise, sch, x, ts, noise, cond):
    (a_s, s_s), (a_t, s_t) = sch.at(ts[-1]), sch.at(ts[0])
    y = a_t * (x / a_s + ((s_t / a_t) ** 2 - (s_s / a_s) ** 2) ** 0.5 * noise)
    for i in range(len(ts) - 1):
        y = heun_step(denoise, sch, y, ts[i], ts[i + 1], cond)
    return y


@wrong("restarted", "the variance for its root")
def _(denoise, sch, x, ts, noise, cond):
    a, var = transition(sch, ts[-1], ts[0], x)
    x = a * x + var * noise
    for t, s in pairwise(ts):
        x = heun_step(denoise, sch, x, t, s, cond)
    return x


@wrong("restarted", "all the noise of the upper time")
def _(denoise, sch, x, ts, noise, cond):
    a, _ = transition(sch, ts[-1], ts[0], x)
    x = a * x + sch.at(ts[0])[1] * noise
    for t, s in pairwise(ts):
        x = heun_step(denoise, sch, x, t, s, cond)
    return x


@wrong("restarted")
def _(denoise, sch, x, ts, noise, cond):
    x = renoise(sch, x, ts[-1], ts[0], noise)
    for t, s in pairwise(ts):
        x = ddim_step(sch, x, denoise(x, t, cond), t, s)
    return x


# ---- midpoint_step -------------------------------------------------------------------------------


@right("midpoint_step")
def _(denoise, sch, x_t, t, s, cond):
    m = middle(sch, t, s)
    (_, tau_t), (_, tau_m), (_, tau_s) = (flow_time(sch, u) for u in (t, m, s))
    v = straight_velocity(denoise, sch, x_t, t, cond)
    v_m = straight_velocity(denoise, sch, straight_step(sch, x_t, v, t, m), m, cond)
    half = 0.5 * (tau_s - tau_t) / (tau_m - tau_t)
    return straight_step(sch, x_t, (1 - half) * v + half * v_m, t, s)


@right("midpoint_step")
def _(denoise, sch, x_t, t, s, cond):
    m = middle(sch, t, s)
    (k_t, tau_t), (k_m, tau_m), (k_s, tau_s) = (flow_time(sch, u) for u in (t, m, s))
    e = denoise(x_t, t, cond)
    v = e - eps_to_x0(sch, x_t, e, t)
    x_m = k_m * (x_t / k_t + (tau_m - tau_t) * v)
    e = denoise(x_m, m, cond)
    slope = (e - eps_to_x0(sch, x_m, e, m) - v) / (tau_m - tau_t)
    h = tau_s - tau_t
    return k_s * (x_t / k_t + h * v + h * h / 2 * slope)


@wrong("midpoint_step", "the term of second order is left out")
def _(denoise, sch, x_t, t, s, cond):
    return ddim_step(sch, x_t, denoise(x_t, t, cond), t, s)


@wrong("midpoint_step", "the half of h squared is forgotten")
def _(denoise, sch, x_t, t, s, cond):
    m = middle(sch, t, s)
    (_, tau_t), (_, tau_m), (_, tau_s) = (flow_time(sch, u) for u in (t, m, s))
    v = straight_velocity(denoise, sch, x_t, t, cond)
    v_m = straight_velocity(denoise, sch, straight_step(sch, x_t, v, t, m), m, cond)
    slope = (v_m - v) / (tau_m - tau_t)
    return straight_step(sch, x_t, v + (tau_s - tau_t) * slope, t, s)


@wrong("midpoint_step")
def _(denoise, sch, x_t, t, s, cond):
    m = (t + s) // 2
    x_m = ddim_step(sch, x_t, denoise(x_t, t, cond), t, m)
    return ddim_step(sch, x_t, denoise(x_m, m, cond), t, s)
