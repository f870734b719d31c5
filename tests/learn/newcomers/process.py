"""Tables of time, noising, and the moves of a state."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from minidiff.core.process import ddim_step, eps_to_x0, posterior, q_sample, transition
from newcomers import right, wrong

D = torch.float64


# ---- alpha_bar_of --------------------------------------------------------------------------------


@right("alpha_bar_of")
def _(betas):
    out = [torch.tensor(1.0, dtype=D)]
    for b in betas:
        out.append(out[-1] * (1 - b))
    return torch.stack(out)


@right("alpha_bar_of")
def _(betas):
    return F.pad(torch.cumprod(1 - betas, 0), (1, 0), value=1.0)


@right("alpha_bar_of")
def _(betas):
    return torch.cat([torch.zeros(1, dtype=D), torch.log1p(-betas).cumsum(0)]).exp()


@right("alpha_bar_of")
def _(betas):
    return torch.from_numpy(np.concatenate([[1.0], np.cumprod(1 - betas.numpy())]))


@wrong("alpha_bar_of", "shape is")
def _(betas):
    return (1 - betas).cumprod(0)


@wrong("alpha_bar_of", "float32")
def _(betas):
    return torch.cat([torch.ones(1), (1 - betas.float()).cumprod(0)])


@wrong("alpha_bar_of", "the root already taken")
def _(betas):
    return torch.cat([torch.ones(1, dtype=D), (1 - betas).sqrt().cumprod(0)])


@wrong("alpha_bar_of", "the betas multiplied")
def _(betas):
    return torch.cat([torch.ones(1, dtype=D), betas.cumprod(0)])


@wrong("alpha_bar_of", "numpy")
def _(betas):
    return np.concatenate([[1.0], np.cumprod(1 - betas.numpy())])


# ---- alpha_bar_cosine ----------------------------------------------------------------------------


@right("alpha_bar_cosine")
def _(T, s):
    t = torch.arange(T + 1, dtype=D)
    f = torch.cos((t / T + s) / (1 + s) * torch.pi / 2).pow(2)
    return f / f[0]


@right("alpha_bar_cosine")
def _(T, s):
    def f(t):
        return math.cos((t / T + s) / (1 + s) * math.pi * 0.5) ** 2

    return torch.tensor([f(t) / f(0) for t in range(T + 1)], dtype=D)


@right("alpha_bar_cosine")
def _(T, s):
    u = (torch.linspace(0, 1, T + 1, dtype=D) + s) / (1 + s)
    f = (1 + torch.cos(math.pi * u)) / 2
    return f / f[0]


@wrong("alpha_bar_cosine", "float32")
def _(T, s):
    t = torch.arange(T + 1)
    f = torch.cos((t / T + s) / (1 + s) * torch.pi / 2) ** 2
    return f / f[0]


@wrong("alpha_bar_cosine", "not divided by f(0)")
def _(T, s):
    t = torch.arange(T + 1, dtype=D)
    return torch.cos((t / T + s) / (1 + s) * torch.pi / 2) ** 2


@wrong("alpha_bar_cosine", "cos, not its square")
def _(T, s):
    t = torch.arange(T + 1, dtype=D)
    f = torch.cos((t / T + s) / (1 + s) * torch.pi / 2)
    return f / f[0]


@wrong("alpha_bar_cosine", "shape is")
def _(T, s):
    t = torch.arange(T, dtype=D)
    f = torch.cos((t / T + s) / (1 + s) * torch.pi / 2) ** 2
    return f / f[0]


# ---- times ---------------------------------------------------------------------------------------


@right("times")
def _(n, start, spacing):
    if spacing == "trailing":
        return [start - round(i * start / n) for i in range(n)]
    return [i * (start // n) + 2 for i in range(n - 1, -1, -1)]


@right("times")
def _(n, start, spacing):
    if spacing == "trailing":
        return list(np.round(start - np.arange(n) * start / n).astype(int))
    return list(np.arange(n)[::-1] * (start // n) + 2)


@right("times")
def _(n, start, spacing):
    i = torch.arange(n)
    if spacing == "trailing":
        return torch.round(start - i * start / n).long().tolist()
    return (i.flip(0) * (start // n) + 2).tolist()


@right("times")
def _(n, start, spacing):
    out = []
    for i in range(n):
        if spacing == "trailing":
            out.append(int(start - i * start / n + 0.5))
        else:
            out.insert(0, i * (start // n) + 2)
    return tuple(out)


@wrong("times", "has 51 entries; expected 50")
def _(n, start, spacing):
    if spacing == "trailing":
        return [round(start - i * start / n) for i in range(n)]
    return [i * (start // n) + 2 for i in range(n, -1, -1)]


@wrong("times", "the offset is missing")
def _(n, start, spacing):
    if spacing == "trailing":
        return [round(start - i * start / n) for i in range(n)]
    return [i * (start // n) + 1 for i in range(n - 1, -1, -1)]


@wrong("times", "cut off")
def _(n, start, spacing):
    if spacing == "trailing":
        return [int(start - i * start / n) for i in range(n)]
    return [i * (start // n) + 2 for i in range(n - 1, -1, -1)]


@wrong("times", "ints")
def _(n, start, spacing):
    if spacing == "trailing":
        return [start - i * start / n for i in range(n)]
    return [i * (start // n) + 2 for i in range(n - 1, -1, -1)]


@wrong("times", "rising")
def _(n, start, spacing):
    if spacing == "trailing":
        return [round(start - i * start / n) for i in range(n)][::-1]
    return [i * (start // n) + 2 for i in range(n)]


@wrong("times", "list")
def _(n, start, spacing):
    if spacing == "trailing":
        return torch.tensor([round(start - i * start / n) for i in range(n)])
    return torch.arange(n - 1, -1, -1) * (start // n) + 2


# ---- timestep_embedding --------------------------------------------------------------------------


@right("timestep_embedding")
def _(t, dim, cos_first=True, shift=0):
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32)
    w = 10000 ** (-k / (half - shift))
    a = torch.outer(t.float(), w)
    parts = (a.cos(), a.sin()) if cos_first else (a.sin(), a.cos())
    return torch.cat(parts, dim=1)


@right("timestep_embedding")
def _(t, dim, cos_first=True, shift=0):
    half = dim // 2
    w = torch.exp(-math.log(10000) * torch.arange(half, dtype=D) / (half - shift))
    a = t.double().unsqueeze(1) * w.unsqueeze(0)
    c, s = torch.cos(a), torch.sin(a)
    return torch.hstack([c, s] if cos_first else [s, c]).float()


@right("timestep_embedding")
def _(t, dim, cos_first=True, shift=0):
    out = torch.zeros(len(t), dim)
    half = dim // 2
    for k in range(half):
        a = t * (10000 ** (-k / (half - shift)))
        out[:, k] = a.cos() if cos_first else a.sin()
        out[:, half + k] = a.sin() if cos_first else a.cos()
    return out


@wrong("timestep_embedding", "sines first")
def _(t, dim, cos_first=True, shift=0):
    half = dim // 2
    w = 10000 ** (-torch.arange(half) / (half - shift))
    a = t[:, None].float() * w
    return torch.cat([a.sin(), a.cos()] if cos_first else [a.cos(), a.sin()], 1)


@wrong("timestep_embedding", "interleaved")
def _(t, dim, cos_first=True, shift=0):
    half = dim // 2
    w = 10000 ** (-torch.arange(half) / (half - shift))
    a = t[:, None].float() * w
    out = torch.zeros(len(t), dim)
    out[:, 0::2] = a.cos() if cos_first else a.sin()
    out[:, 1::2] = a.sin() if cos_first else a.cos()
    return out


@wrong("timestep_embedding", "the shift is forgotten")
def _(t, dim, cos_first=True, shift=0):
    half = dim // 2
    w = 10000 ** (-torch.arange(half) / half)
    a = t[:, None].float() * w
    return torch.cat([a.cos(), a.sin()] if cos_first else [a.sin(), a.cos()], 1)


@wrong("timestep_embedding", "float64")
def _(t, dim, cos_first=True, shift=0):
    half = dim // 2
    w = 10000 ** (-torch.arange(half, dtype=D) / (half - shift))
    a = t[:, None].double() * w
    return torch.cat([a.cos(), a.sin()] if cos_first else [a.sin(), a.cos()], 1)


@wrong("timestep_embedding")
def _(t, dim, cos_first=True, shift=0):
    half = dim // 2
    w = 10000 ** (-torch.arange(half) / (dim - shift))
    a = t[:, None].float() * w
    return torch.cat([a.cos(), a.sin()] if cos_first else [a.sin(), a.cos()], 1)


# ---- q_sample ------------------------------------------------------------------------------------


@right("q_sample")
def _(sch, x0, t, eps):
    alpha, sigma = sch.at(t, x0)
    return torch.add(alpha * x0, sigma * eps)


@right("q_sample")
def _(sch, x0, t, eps):
    alpha, sigma = sch.at(t, x0)
    return alpha * (x0 + sigma / alpha * eps)


@right("q_sample")
def _(sch, x0, t, eps):
    alpha = sch.alpha[t].to(x0.dtype)
    sigma = sch.sigma[t].to(x0.dtype)
    while 0 < alpha.ndim < x0.ndim:
        alpha, sigma = alpha.unsqueeze(-1), sigma.unsqueeze(-1)
    return alpha * x0 + sigma * eps


@right("q_sample")
def _(sch, x0, t, eps):
    t = torch.as_tensor(t).expand(len(x0))
    rows = []
    for i in range(len(x0)):
        rows.append(sch.alpha[t[i]] * x0[i] + sch.sigma[t[i]] * eps[i])
    return torch.stack(rows)


@wrong("q_sample", "alpha^2 + sigma^2 = 1")
def _(sch, x0, t, eps):
    alpha, _ = sch.at(t, x0)
    return alpha * x0 + (1 - alpha**2) ** 0.5 * eps


@wrong("q_sample", "sch.at")
def _(sch, x0, t, eps):
    alpha, _ = sch.at(t, x0)
    return alpha * x0 + (1 - alpha**2).sqrt() * eps


@wrong("q_sample", "a time for each row")
def _(sch, x0, t, eps):
    return sch.alpha[t].item() * x0 + sch.sigma[t].item() * eps


@wrong("q_sample", "a time for each row")
def _(sch, x0, t, eps):
    alpha, sigma = sch.at(t)
    return alpha * x0 + sigma * eps


@wrong("q_sample", "no square root")
def _(sch, x0, t, eps):
    alpha, sigma = sch.at(t, x0)
    return alpha**2 * x0 + sigma**2 * eps


@wrong("q_sample", "sigma instead of alpha")
def _(sch, x0, t, eps):
    sigma, alpha = sch.at(t, x0)
    return alpha * x0 + sigma * eps


@wrong("q_sample", "off by one")
def _(sch, x0, t, eps):
    alpha, sigma = sch.at(t - 1 if isinstance(t, torch.Tensor) else max(t - 1, 0), x0)
    return alpha * x0 + sigma * eps


@wrong("q_sample", "not scaled")
def _(sch, x0, t, eps):
    alpha, _ = sch.at(t, x0)
    return alpha * x0 + eps


@wrong("q_sample", "noise of its own")
def _(sch, x0, t, eps):
    alpha, sigma = sch.at(t, x0)
    return alpha * x0 + sigma * torch.randn_like(x0)


# ---- ddim_step -----------------------------------------------------------------------------------


@right("ddim_step")
def _(sch, x_t, eps, t, s):
    a_t, s_t = sch.at(t, x_t)
    a_s, s_s = sch.at(s, x_t)
    return a_s / a_t * x_t + (s_s - a_s * s_t / a_t) * eps


@right("ddim_step")
def _(sch, x_t, eps, t, s):
    x0 = eps_to_x0(sch, x_t, eps, t)
    return q_sample(sch, x0, s, eps)


@right("ddim_step")
def _(sch, x_t, eps, t, s, **ignored):
    (a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    pred = (x_t - s_t * eps) / a_t
    return torch.add(pred * a_s, eps * s_s)


@right("ddim_step")
def _(sch, x_t, eps, t, s):
    (a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    return a_s * (x_t / a_t + (s_s / a_s - s_t / a_t) * eps)


@wrong("ddim_step", "alpha^2 + sigma^2 = 1")
def _(sch, x_t, eps, t, s):
    ab_t = sch.at(t, x_t)[0] ** 2
    ab_s = sch.at(s, x_t)[0] ** 2
    x0 = (x_t - (1 - ab_t) ** 0.5 * eps) / ab_t**0.5
    return ab_s**0.5 * x0 + (1 - ab_s) ** 0.5 * eps


@wrong("ddim_step", "a time for each row")
def _(sch, x_t, eps, t, s):
    (a_t, s_t), (a_s, s_s) = sch.at(int(t), x_t), sch.at(int(s), x_t)
    return a_s * (x_t - s_t * eps) / a_t + s_s * eps


@wrong("ddim_step", "not divided by alpha_t")
def _(sch, x_t, eps, t, s):
    (_, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    return a_s * (x_t - s_t * eps) + s_s * eps


@wrong("ddim_step", "t and s exchanged")
def _(sch, x_t, eps, t, s):
    (a_t, s_t), (a_s, s_s) = sch.at(s, x_t), sch.at(t, x_t)
    return a_s * (x_t - s_t * eps) / a_t + s_s * eps


@wrong("ddim_step", "the noise is not put back")
def _(sch, x_t, eps, t, s):
    (a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    return a_s * (x_t - s_t * eps) / a_t


@wrong("ddim_step", "only the guess of x0")
def _(sch, x_t, eps, t, s):
    a_t, s_t = sch.at(t, x_t)
    return (x_t - s_t * eps) / a_t


@wrong("ddim_step", "noise of its own")
def _(sch, x_t, eps, t, s):
    (a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    return a_s * (x_t - s_t * eps) / a_t + s_s * torch.randn_like(eps)


# ---- eps_to_x0 -----------------------------------------------------------------------------------


@right("eps_to_x0")
def _(sch, x_t, eps, t):
    alpha, sigma = sch.at(t, x_t)
    return x_t / alpha - sigma / alpha * eps


@right("eps_to_x0")
def _(sch, x_t, eps, t):
    alpha, sigma = sch.at(t, x_t)
    return torch.div(x_t - eps * sigma, alpha)


@right("eps_to_x0")
def _(sch, x_t, eps, t):
    alpha, sigma = sch.at(t, x_t)
    return (1 / alpha) * (x_t - sigma * eps)


@wrong("eps_to_x0", "alpha^2 + sigma^2 = 1")
def _(sch, x_t, eps, t):
    alpha, _ = sch.at(t, x_t)
    return (x_t - (1 - alpha**2) ** 0.5 * eps) / alpha


@wrong("eps_to_x0", "not divided")
def _(sch, x_t, eps, t):
    _, sigma = sch.at(t, x_t)
    return x_t - sigma * eps


@wrong("eps_to_x0", "a time for each row")
def _(sch, x_t, eps, t):
    return (x_t - float(sch.sigma[t]) * eps) / float(sch.alpha[t])


@wrong("eps_to_x0", "the sign")
def _(sch, x_t, eps, t):
    alpha, sigma = sch.at(t, x_t)
    return (x_t + sigma * eps) / alpha


@wrong("eps_to_x0")
def _(sch, x_t, eps, t):
    alpha, sigma = sch.at(t, x_t)
    return x_t / alpha - sigma * eps


# ---- v_target ------------------------------------------------------------------------------------


@right("v_target")
def _(alpha, sigma, x0, eps):
    return torch.sub(alpha * eps, sigma * x0)


@right("v_target")
def _(alpha, sigma, x0, eps):
    return -(sigma * x0) + eps * alpha


@right("v_target")
def _(alpha, sigma, x0, eps):
    return (alpha * eps.double() - sigma * x0.double()).to(x0.dtype)


@wrong("v_target", "alpha and sigma exchanged")
def _(alpha, sigma, x0, eps):
    return sigma * eps - alpha * x0


@wrong("v_target", "the sign")
def _(alpha, sigma, x0, eps):
    return sigma * x0 - alpha * eps


@wrong("v_target", "added")
def _(alpha, sigma, x0, eps):
    return alpha * eps + sigma * x0


@wrong("v_target", "ValueError")
def _(alpha, sigma, x0, eps):
    return float(alpha) * eps - float(sigma) * x0


@wrong("v_target", "flow")
def _(alpha, sigma, x0, eps):
    return eps - x0


# ---- renoise -------------------------------------------------------------------------------------


@right("renoise")
def _(sch, x_s, s, t, noise):
    a, var = transition(sch, s, t, x_s)
    if isinstance(var, torch.Tensor):
        return a * x_s + var.clamp(min=0).sqrt() * noise
    return a * x_s + math.sqrt(max(var, 0.0)) * noise


@right("renoise")
def _(sch, x_s, s, t, noise):
    a_s, sig_s = sch.at(s, x_s)
    a_t, sig_t = sch.at(t, x_s)
    a = a_t / a_s
    return a * x_s + (sig_t**2 - a**2 * sig_s**2) ** 0.5 * noise


@right("renoise")
def _(sch, x_s, s, t, noise):
    (a_s, sig_s), (a_t, sig_t) = sch.at(s, x_s), sch.at(t, x_s)
    kept = a_t / a_s * sig_s
    fresh = ((sig_t - kept) * (sig_t + kept)) ** 0.5
    return x_s * a_t / a_s + fresh * noise


@wrong("renoise", "alpha^2 + sigma^2 = 1")
def _(sch, x_s, s, t, noise):
    ratio = (sch.at(t, x_s)[0] / sch.at(s, x_s)[0]) ** 2
    return ratio**0.5 * x_s + (1 - ratio) ** 0.5 * noise


@wrong("renoise", "old noise not scaled")
def _(sch, x_s, s, t, noise):
    (a_s, sig_s), (a_t, sig_t) = sch.at(s, x_s), sch.at(t, x_s)
    return a_t / a_s * x_s + (sig_t**2 - sig_s**2) ** 0.5 * noise


@wrong("renoise", "a difference of sigmas")
def _(sch, x_s, s, t, noise):
    (a_s, sig_s), (a_t, sig_t) = sch.at(s, x_s), sch.at(t, x_s)
    return a_t / a_s * x_s + (sig_t - sig_s) * noise


@wrong("renoise", "the variance for its root")
def _(sch, x_s, s, t, noise):
    a, var = transition(sch, s, t, x_s)
    return a * x_s + var * noise


@wrong("renoise", "the state is not scaled")
def _(sch, x_s, s, t, noise):
    (a_s, sig_s), (a_t, sig_t) = sch.at(s, x_s), sch.at(t, x_s)
    return x_s + (sig_t**2 - (a_t / a_s) ** 2 * sig_s**2) ** 0.5 * noise


@wrong("renoise", "a time for each row")
def _(sch, x_s, s, t, noise):
    (a_s, sig_s), (a_t, sig_t) = sch.at(int(s), x_s), sch.at(int(t), x_s)
    a = a_t / a_s
    return a * x_s + math.sqrt(max(sig_t**2 - a**2 * sig_s**2, 0)) * noise


# ---- posterior -----------------------------------------------------------------------------------


@right("posterior")
def _(sch, x_t, x0, t, s):
    (a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    a = a_t / a_s
    beta = s_t**2 - a**2 * s_s**2
    mean = (a * s_s**2 * x_t + a_s * beta * x0) / s_t**2
    return mean, torch.as_tensor(beta * s_s**2 / s_t**2)


@right("posterior")
def _(sch, x_t, x0, t, s):
    (a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    a = a_t / a_s
    beta = s_t**2 - a**2 * s_s**2
    mean = (a * s_s**2 * x_t + a_s * beta * x0) / s_t**2
    return mean, (beta * s_s**2 / s_t**2) * torch.ones_like(x_t)


@right("posterior")
def _(sch, x_t, x0, t, s):
    (a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    ratio = (s_s / s_t) ** 2
    a = a_t / a_s
    mean = a_s * x0 + a * ratio * (x_t - a_t * x0)
    return [mean, s_s**2 * (1 - a**2 * ratio)]


@right("posterior")
def _(sch, x_t, x0, t, s):
    a_t, s_t = sch.alpha[t], sch.sigma[t]
    a_s, s_s = sch.alpha[s], sch.sigma[s]
    a = a_t / a_s
    beta = s_t**2 - a**2 * s_s**2
    var = beta * s_s**2 / s_t**2

    def wide(v):
        return v.view(-1, 1, 1, 1).to(x_t.dtype)

    return wide(a * s_s**2 / s_t**2) * x_t + wide(a_s * beta / s_t**2) * x0, wide(var)


@right("posterior")
def _(sch, x_t, x0, t, s):
    mean, _ = posterior(sch, x_t, x0, t, s)
    a = sch.alpha[t] / sch.alpha[s]
    beta = sch.sigma[t] ** 2 - a**2 * sch.sigma[s] ** 2
    return mean, beta * sch.sigma[s] ** 2 / sch.sigma[t] ** 2


@wrong("posterior", "alpha^2 + sigma^2 = 1")
def _(sch, x_t, x0, t, s):
    ab_t, ab_s = sch.at(t, x_t)[0] ** 2, sch.at(s, x_t)[0] ** 2
    alpha = ab_t / ab_s
    beta = 1 - alpha
    mean = ab_s**0.5 * beta / (1 - ab_t) * x0 + alpha**0.5 * (1 - ab_s) / (1 - ab_t) * x_t
    return mean, (1 - ab_s) / (1 - ab_t) * beta


@wrong("posterior", "the standard deviation")
def _(sch, x_t, x0, t, s):
    mean, var = posterior(sch, x_t, x0, t, s)
    return mean, var**0.5


@wrong("posterior", "the large variance")
def _(sch, x_t, x0, t, s):
    mean, _ = posterior(sch, x_t, x0, t, s)
    return mean, transition(sch, s, t, x_t)[1]


@wrong("posterior", "tuple of 2")
def _(sch, x_t, x0, t, s):
    return posterior(sch, x_t, x0, t, s)[0]


@wrong("posterior")
def _(sch, x_t, x0, t, s):
    mean, var = posterior(sch, x_t, x0, t, s)
    return mean, torch.as_tensor(var).log()


@wrong("posterior", "a time for each row")
def _(sch, x_t, x0, t, s):
    return posterior(sch, x_t, x0, int(t), int(s))


@wrong("posterior", "x0 and x_t exchanged")
def _(sch, x_t, x0, t, s):
    return posterior(sch, x0, x_t, t, s)


# ---- guide ---------------------------------------------------------------------------------------


@right("guide")
def _(e_null, e_cond, scale):
    return torch.lerp(e_null, e_cond, scale)


@right("guide")
def _(e_null, e_cond, scale):
    return (1 - scale) * e_null + scale * e_cond


@right("guide")
def _(e_null, e_cond, scale):
    return e_cond + (scale - 1) * (e_cond - e_null)


@wrong("guide", "the paper's w")
def _(e_null, e_cond, scale):
    return (1 + scale) * e_cond - scale * e_null


@wrong("guide", "the paper's w")
def _(e_null, e_cond, scale):
    return e_cond + scale * (e_cond - e_null)


@wrong("guide", "the two guesses exchanged")
def _(e_null, e_cond, scale):
    return e_cond + scale * (e_null - e_cond)


@wrong("guide", "the sign")
def _(e_null, e_cond, scale):
    return e_null - scale * (e_cond - e_null)


@wrong("guide", "not taken off")
def _(e_null, e_cond, scale):
    return e_null + scale * e_cond


@wrong("guide", "in place")
def _(e_null, e_cond, scale):
    e_null += scale * (e_cond - e_null)
    return e_null


# ---- invert_step ---------------------------------------------------------------------------------


@right("invert_step")
def _(denoise, sch, x_s, s, t, cond):
    eps = denoise(x_s, t, cond)
    return ddim_step(sch, x_s, eps, s, t)


@right("invert_step")
def _(denoise, sch, x_s, s, t, cond):
    a_s, sig_s = sch.at(s, x_s)
    a_t, sig_t = sch.at(t, x_s)
    eps = denoise(x_s, t, cond)
    return a_t * ((x_s - sig_s * eps) / a_s) + sig_t * eps


@right("invert_step")
def _(denoise, sch, x_s, s, t, cond, fixed_point=0):
    eps = denoise(x_s, t, cond)
    return q_sample(sch, eps_to_x0(sch, x_s, eps, s), t, eps)


@wrong("invert_step", "asked at the lower time")
def _(denoise, sch, x_s, s, t, cond):
    return ddim_step(sch, x_s, denoise(x_s, s, cond), s, t)


@wrong("invert_step", "moved down")
def _(denoise, sch, x_s, s, t, cond):
    return ddim_step(sch, x_s, denoise(x_s, t, cond), t, s)


@wrong("invert_step", "asked twice")
def _(denoise, sch, x_s, s, t, cond):
    x0 = eps_to_x0(sch, x_s, denoise(x_s, s, cond), s)
    return q_sample(sch, x0, t, denoise(x_s, t, cond))


@wrong("invert_step", "the condition")
def _(denoise, sch, x_s, s, t, cond):
    return ddim_step(sch, x_s, denoise(x_s, t, None), s, t)


@wrong("invert_step")
def _(denoise, sch, x_s, s, t, cond):
    return denoise(x_s, t, cond)
