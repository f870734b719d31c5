"""Steps of other samplers, guidance with limits, training, and whole methods."""

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from minidiff.core.cfg import cfg_batched, guide
from minidiff.core.cond import Cond
from minidiff.core.process import (
    ddim_step,
    eps_to_x0,
    posterior,
    q_sample,
    target,
    transition,
)
from minidiff.core.taps import tap
from minidiff.editing.prompt_to_prompt import CROSS, SELF, edit_cross, edit_self, kind_of, token_map
from minidiff.inversion.ddim import invert, replay
from newcomers import right, wrong

D = torch.float64


# ---- ddpm_step -----------------------------------------------------------------------------------


@right("ddpm_step")
def _(sch, x_t, x0, t, s, noise, variance):
    mean, var = posterior(sch, x_t, x0, t, s)
    if s == 0:
        return mean
    if variance == "large":
        _, var = transition(sch, s, t, x_t)
    return mean + math.sqrt(var) * noise


@right("ddpm_step")
def _(sch, x_t, x0, t, s, noise, variance):
    a_t, s_t = sch.alpha[t], sch.sigma[t]
    a_s, s_s = sch.alpha[s], sch.sigma[s]
    a = a_t / a_s
    beta = s_t**2 - a**2 * s_s**2
    out = a * s_s**2 / s_t**2 * x_t + a_s * beta / s_t**2 * x0
    if s > 0:
        var = beta * s_s**2 / s_t**2 if variance == "small" else beta
        out = out + torch.sqrt(var) * noise
    return out


@wrong("ddpm_step", "sch.at")
def _(sch, x_t, x0, t, s, noise, variance):
    mean, var = posterior(sch, x_t, x0, t, s)
    if variance == "large":
        _, var = transition(sch, s, t, x_t)
    return mean + var.sqrt() * noise if s > 0 else mean


@wrong("ddpm_step", "the variance for its root")
def _(sch, x_t, x0, t, s, noise, variance):
    mean, var = posterior(sch, x_t, x0, t, s)
    if variance == "large":
        _, var = transition(sch, s, t, x_t)
    return mean + var * noise if s > 0 else mean


@wrong("ddpm_step", "noise at the last step")
def _(sch, x_t, x0, t, s, noise, variance):
    mean, var = posterior(sch, x_t, x0, t, s)
    if variance == "large":
        _, var = transition(sch, s, t, x_t)
    return mean + var**0.5 * noise


@wrong("ddpm_step", "always the small variance")
def _(sch, x_t, x0, t, s, noise, variance):
    mean, var = posterior(sch, x_t, x0, t, s)
    return mean + var**0.5 * noise if s > 0 else mean


@wrong("ddpm_step", "alpha^2 + sigma^2 = 1")
def _(sch, x_t, x0, t, s, noise, variance):
    ab_t, ab_s = sch.at(t)[0] ** 2, sch.at(s)[0] ** 2
    beta = 1 - ab_t / ab_s
    mean = ab_s**0.5 * beta / (1 - ab_t) * x0
    mean = mean + (ab_t / ab_s) ** 0.5 * (1 - ab_s) / (1 - ab_t) * x_t
    if s == 0:
        return mean
    var = beta if variance == "large" else beta * (1 - ab_s) / (1 - ab_t)
    return mean + var**0.5 * noise


@wrong("ddpm_step", "noise of its own")
def _(sch, x_t, x0, t, s, noise, variance):
    mean, var = posterior(sch, x_t, x0, t, s)
    if variance == "large":
        _, var = transition(sch, s, t, x_t)
    return mean + var**0.5 * torch.randn_like(mean) if s > 0 else mean


# ---- ddim_noisy_step -----------------------------------------------------------------------------


@right("ddim_noisy_step")
def _(sch, x_t, eps, t, s, eta, noise):
    (a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    beta = s_t**2 - (a_t / a_s) ** 2 * s_s**2
    sig = eta * beta**0.5 * s_s / s_t
    x0 = (x_t - s_t * eps) / a_t
    return a_s * x0 + (s_s**2 - sig**2) ** 0.5 * eps + sig * noise


@right("ddim_noisy_step")
def _(sch, x_t, eps, t, s, eta, noise):
    return ddim_step(sch, x_t, eps, t, s, eta, noise)


@right("ddim_noisy_step")
def _(sch, x_t, eps, t, s, eta, noise):
    x0 = eps_to_x0(sch, x_t, eps, t)
    _, var = posterior(sch, x_t, x0, t, s)
    var = eta**2 * torch.as_tensor(var)
    a_s, s_s = sch.at(s, x_t)
    left = torch.sqrt(torch.as_tensor(s_s**2) - var).to(x_t.dtype)
    return a_s * x0 + left * eps + torch.sqrt(var).to(x_t.dtype) * noise


@wrong("ddim_noisy_step", "alpha^2 + sigma^2 = 1")
def _(sch, x_t, eps, t, s, eta, noise):
    ab_t, ab_s = sch.at(t, x_t)[0] ** 2, sch.at(s, x_t)[0] ** 2
    sig = eta * ((1 - ab_s) / (1 - ab_t)) ** 0.5 * (1 - ab_t / ab_s) ** 0.5
    x0 = (x_t - (1 - ab_t) ** 0.5 * eps) / ab_t**0.5
    return ab_s**0.5 * x0 + (1 - ab_s - sig**2) ** 0.5 * eps + sig * noise


@wrong("ddim_noisy_step", "kept whole")
def _(sch, x_t, eps, t, s, eta, noise):
    (a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    beta = s_t**2 - (a_t / a_s) ** 2 * s_s**2
    sig = eta * beta**0.5 * s_s / s_t
    return a_s * (x_t - s_t * eps) / a_t + s_s * eps + sig * noise


@wrong("ddim_noisy_step", "the large deviation")
def _(sch, x_t, eps, t, s, eta, noise):
    (a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    sig = eta * (s_t**2 - (a_t / a_s) ** 2 * s_s**2) ** 0.5
    left = s_s**2 - sig**2
    left = left.clamp(min=0) ** 0.5 if isinstance(left, torch.Tensor) else max(left, 0) ** 0.5
    return a_s * (x_t - s_t * eps) / a_t + left * eps + sig * noise


@wrong("ddim_noisy_step", "no noise")
def _(sch, x_t, eps, t, s, eta, noise):
    return ddim_step(sch, x_t, eps, t, s)


@wrong("ddim_noisy_step", "variances for their roots")
def _(sch, x_t, eps, t, s, eta, noise):
    (a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    beta = s_t**2 - (a_t / a_s) ** 2 * s_s**2
    sig = eta * beta**0.5 * s_s / s_t
    return a_s * (x_t - s_t * eps) / a_t + (s_s**2 - sig**2) * eps + sig**2 * noise


@wrong("ddim_noisy_step", "a time for each row")
def _(sch, x_t, eps, t, s, eta, noise):
    return ddim_step(sch, x_t, eps, int(t), int(s), eta, noise)


# ---- dpm_step ------------------------------------------------------------------------------------


@right("dpm_step")
def _(sch, x_t, x0, x0_before, r, t, s):
    lam = (sch.alpha / sch.sigma).log()
    h = lam[s] - lam[t]
    before = lam[t] - lam[r]
    D = x0 + h / (2 * before) * (x0 - x0_before)
    return sch.sigma[s] / sch.sigma[t] * x_t + sch.alpha[s] * (1 - torch.exp(-h)) * D


@right("dpm_step")
def _(sch, x_t, x0, x0_before, r, t, s):
    def lam(u):
        alpha, sigma = sch.at(u)
        return math.log(alpha / sigma)

    h = lam(s) - lam(t)
    ratio = h / (lam(t) - lam(r)) / 2
    D = (1 + ratio) * x0 - ratio * x0_before
    return sch.at(s)[1] / sch.at(t)[1] * x_t - sch.at(s)[0] * math.expm1(-h) * D


@right("dpm_step")
def _(sch, x_t, x0, x0_before, r, t, s):
    lam = sch.log_snr / 2
    h, hp = lam[s] - lam[t], lam[t] - lam[r]
    D = x0 + 0.5 * h / hp * (x0 - x0_before)
    a, sig = sch.at(s, x_t)
    return sig / sch.at(t, x_t)[1] * x_t + a * D - a * (-h).exp() * D


@wrong("dpm_step", "first order")
def _(sch, x_t, x0, x0_before, r, t, s):
    lam = (sch.alpha / sch.sigma).log()
    h = lam[s] - lam[t]
    return sch.sigma[s] / sch.sigma[t] * x_t + sch.alpha[s] * (1 - torch.exp(-h)) * x0


@wrong("dpm_step", "upside down")
def _(sch, x_t, x0, x0_before, r, t, s):
    lam = (sch.alpha / sch.sigma).log()
    h, hp = lam[s] - lam[t], lam[t] - lam[r]
    D = x0 + hp / (2 * h) * (x0 - x0_before)
    return sch.sigma[s] / sch.sigma[t] * x_t + sch.alpha[s] * (1 - torch.exp(-h)) * D


@wrong("dpm_step", "the half is forgotten")
def _(sch, x_t, x0, x0_before, r, t, s):
    lam = (sch.alpha / sch.sigma).log()
    h, hp = lam[s] - lam[t], lam[t] - lam[r]
    D = x0 + h / hp * (x0 - x0_before)
    return sch.sigma[s] / sch.sigma[t] * x_t + sch.alpha[s] * (1 - torch.exp(-h)) * D


@wrong("dpm_step", "log SNR for lambda")
def _(sch, x_t, x0, x0_before, r, t, s):
    lam = sch.log_snr
    h, hp = lam[s] - lam[t], lam[t] - lam[r]
    D = x0 + h / (2 * hp) * (x0 - x0_before)
    return sch.sigma[s] / sch.sigma[t] * x_t + sch.alpha[s] * (1 - torch.exp(-h)) * D


@wrong("dpm_step", "the sign of the slope")
def _(sch, x_t, x0, x0_before, r, t, s):
    lam = (sch.alpha / sch.sigma).log()
    h, hp = lam[s] - lam[t], lam[t] - lam[r]
    D = x0 + h / (2 * hp) * (x0_before - x0)
    return sch.sigma[s] / sch.sigma[t] * x_t + sch.alpha[s] * (1 - torch.exp(-h)) * D


@wrong("dpm_step", "alpha^2 + sigma^2 = 1")
def _(sch, x_t, x0, x0_before, r, t, s):
    ab = sch.alpha**2
    sigma = (1 - ab).sqrt()
    lam = 0.5 * (ab / (1 - ab)).log()
    h, hp = lam[s] - lam[t], lam[t] - lam[r]
    D = x0 + h / (2 * hp) * (x0 - x0_before)
    return sigma[s] / sigma[t] * x_t + sch.alpha[s] * (1 - torch.exp(-h)) * D


# ---- plms_noise ----------------------------------------------------------------------------------

WEIGHTS = {
    1: [1],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


@right("plms_noise")
def _(old):
    w = torch.tensor(WEIGHTS[len(old)])
    return torch.einsum("k,k...->...", w, torch.stack(old))


@right("plms_noise")
def _(old):
    if len(old) == 1:
        return old[0]
    if len(old) == 2:
        return (3 * old[0] - old[1]) / 2
    if len(old) == 3:
        return (23 * old[0] - 16 * old[1] + 5 * old[2]) / 12
    return (55 * old[0] - 59 * old[1] + 37 * old[2] - 9 * old[3]) / 24


@right("plms_noise")
def _(old):
    out = torch.zeros_like(old[0])
    for w, e in zip(WEIGHTS[len(old)], old):
        out += w * e
    return out


@wrong("plms_noise", "oldest first")
def _(old):
    return sum(w * e for w, e in zip(WEIGHTS[len(old)], reversed(old)))


@wrong("plms_noise", "the last noise alone")
def _(old):
    return old[0]


@wrong("plms_noise", "the mean of them")
def _(old):
    return torch.stack(old).mean(0)


@wrong("plms_noise", "four weights")
def _(old):
    return sum(w * e for w, e in zip(WEIGHTS[4], old))


# ---- euler_step ----------------------------------------------------------------------------------


@right("euler_step")
def _(sch, x_t, v, t, s):
    return x_t - (sch.at(t, x_t)[1] - sch.at(s, x_t)[1]) * v


@right("euler_step")
def _(sch, x_t, v, t, s):
    _, sig_t = sch.at(t)
    a_s, sig_s = sch.at(s)
    x0 = x_t - sig_t * v
    eps = x0 + v
    return (1 - sig_s) * x0 + sig_s * eps


@right("euler_step")
def _(sch, x_t, v, t, s):
    return torch.add(x_t, v, alpha=(sch.sigma[s] - sch.sigma[t]).item())


@wrong("euler_step", "the wrong way")
def _(sch, x_t, v, t, s):
    return x_t + (sch.at(t)[1] - sch.at(s)[1]) * v


@wrong("euler_step", "t / T for sigma")
def _(sch, x_t, v, t, s):
    return x_t + (s - t) / sch.T * v


@wrong("euler_step")
def _(sch, x_t, v, t, s):
    return x_t + (s - t) * v


@wrong("euler_step", "all the way")
def _(sch, x_t, v, t, s):
    return x_t - sch.at(t)[1] * v


@wrong("euler_step", "v read as noise")
def _(sch, x_t, v, t, s):
    return ddim_step(sch, x_t, v, t, s)


# ---- rescale -------------------------------------------------------------------------------------


@right("rescale")
def _(guided, e_cond, phi):
    s1 = e_cond.flatten(1).std(1).view(-1, 1, 1, 1)
    s2 = guided.flatten(1).std(1).view(-1, 1, 1, 1)
    return phi * (guided * s1 / s2) + (1 - phi) * guided


@right("rescale")
def _(guided, e_cond, phi):
    d = (1, 2, 3)
    cond = e_cond.var(d, keepdim=True, correction=0)
    ratio = (cond / guided.var(d, keepdim=True, correction=0)).sqrt()
    return torch.lerp(guided, guided * ratio, phi)


@right("rescale")
def _(guided, e_cond, phi):
    out = []
    for g, c in zip(guided, e_cond):
        out.append(g * (1 + phi * (c.std() / g.std() - 1)))
    return torch.stack(out)


@wrong("rescale", "the spread of the batch")
def _(guided, e_cond, phi):
    return phi * guided * e_cond.std() / guided.std() + (1 - phi) * guided


@wrong("rescale", "upside down")
def _(guided, e_cond, phi):
    d = (1, 2, 3)
    ratio = guided.std(d, keepdim=True) / e_cond.std(d, keepdim=True)
    return phi * guided * ratio + (1 - phi) * guided


@wrong("rescale", "phi and 1 - phi")
def _(guided, e_cond, phi):
    d = (1, 2, 3)
    ratio = e_cond.std(d, keepdim=True) / guided.std(d, keepdim=True)
    return (1 - phi) * guided * ratio + phi * guided


@wrong("rescale", "channel")
def _(guided, e_cond, phi):
    d = (2, 3)
    ratio = e_cond.std(d, keepdim=True) / guided.std(d, keepdim=True)
    return phi * guided * ratio + (1 - phi) * guided


@wrong("rescale", "the conditional guess")
def _(guided, e_cond, phi):
    d = (1, 2, 3)
    ratio = e_cond.std(d, keepdim=True) / guided.std(d, keepdim=True)
    return phi * guided * ratio + (1 - phi) * e_cond


@wrong("rescale")
def _(guided, e_cond, phi):
    d = (1, 2, 3)
    ratio = e_cond.var(d, keepdim=True) / guided.var(d, keepdim=True)
    return phi * guided * ratio + (1 - phi) * guided


# ---- guide_within --------------------------------------------------------------------------------


@right("guide_within")
def _(e_null, e_cond, scale, t, lo, hi):
    on = ((t > lo) & (t <= hi)).float().view(-1, 1, 1, 1)
    w = 1 + on * (scale - 1)
    return e_null + w * (e_cond - e_null)


@right("guide_within")
def _(e_null, e_cond, scale, t, lo, hi):
    out = e_cond.clone()
    rows = (lo < t) & (t <= hi)
    out[rows] = guide(e_null[rows], e_cond[rows], scale)
    return out


@right("guide_within")
def _(e_null, e_cond, scale, t, lo, hi):
    return torch.stack(
        [guide(n, c, scale) if lo < u <= hi else c for n, c, u in zip(e_null, e_cond, t)]
    )


@wrong("guide_within", "off means unconditional")
def _(e_null, e_cond, scale, t, lo, hi):
    on = ((t > lo) & (t <= hi)).view(-1, 1, 1, 1)
    return torch.where(on, e_null + scale * (e_cond - e_null), e_null)


@wrong("guide_within", "lo included, hi not")
def _(e_null, e_cond, scale, t, lo, hi):
    on = ((t >= lo) & (t < hi)).view(-1, 1, 1, 1)
    return torch.where(on, e_null + scale * (e_cond - e_null), e_cond)


@wrong("guide_within", "both ends included")
def _(e_null, e_cond, scale, t, lo, hi):
    on = ((t >= lo) & (t <= hi)).view(-1, 1, 1, 1)
    return torch.where(on, e_null + scale * (e_cond - e_null), e_cond)


@wrong("guide_within")
def _(e_null, e_cond, scale, t, lo, hi):
    if lo < t[0] <= hi:
        return e_null + scale * (e_cond - e_null)
    return e_cond


@wrong("guide_within", "everywhere")
def _(e_null, e_cond, scale, t, lo, hi):
    return e_null + scale * (e_cond - e_null)


# ---- threshold -----------------------------------------------------------------------------------


@right("threshold")
def _(x0, p):
    s = torch.quantile(x0.abs().reshape(len(x0), -1), p, dim=1)
    s = torch.maximum(s, torch.ones_like(s))[:, None, None, None]
    return torch.clamp(x0, -s, s) / s


@right("threshold")
def _(x0, p):
    out = []
    for x in x0:
        s = max(1.0, torch.quantile(x.abs(), p).item())
        out.append(x.clamp(-s, s) / s)
    return torch.stack(out)


@right("threshold")
def _(x0, p):
    s = np.quantile(x0.abs().flatten(1).numpy(), p, axis=1)
    s = torch.from_numpy(np.maximum(s, 1)).to(x0.dtype).view(-1, 1, 1, 1)
    return (x0 / s).clamp(-1, 1)


@wrong("threshold", "clamped to [-1, 1]")
def _(x0, p):
    return x0.clamp(-1, 1)


@wrong("threshold", "not at least 1")
def _(x0, p):
    s = torch.quantile(x0.abs().flatten(1), p, dim=1)[:, None, None, None]
    return x0.clamp(-s, s) / s


@wrong("threshold", "the quantile of the batch")
def _(x0, p):
    s = torch.quantile(x0.abs(), p).clamp(min=1)
    return x0.clamp(-s, s) / s


@wrong("threshold", "not divided")
def _(x0, p):
    s = torch.quantile(x0.abs().flatten(1), p, dim=1).clamp(min=1)[:, None, None, None]
    return x0.clamp(-s, s)


@wrong("threshold")
def _(x0, p):
    s = torch.quantile(x0.flatten(1), p, dim=1).clamp(min=1)[:, None, None, None]
    return x0.clamp(-s, s) / s


@wrong("threshold", "divided, not cut")
def _(x0, p):
    s = torch.quantile(x0.abs().flatten(1), p, dim=1).clamp(min=1)[:, None, None, None]
    return x0 / s


# ---- ema_update ----------------------------------------------------------------------------------


@right("ema_update")
def _(shadow, weights, decay, step):
    k = min(decay, (1 + step) / (10 + step))
    return [torch.lerp(w, a, k) for a, w in zip(shadow, weights)]


@right("ema_update")
def _(shadow, weights, decay, step):
    k = min(decay, (1 + step) / (10 + step))
    return tuple(a - (1 - k) * (a - w) for a, w in zip(shadow, weights))


@right("ema_update")
def _(shadow, weights, decay, step):
    k = torch.tensor(min(decay, (1 + step) / (10 + step)))
    out = []
    for i in range(len(shadow)):
        out.append(shadow[i] * k + weights[i] * (1 - k))
    return out


@wrong("ema_update", "no warm-up")
def _(shadow, weights, decay, step):
    return [decay * a + (1 - decay) * w for a, w in zip(shadow, weights)]


@wrong("ema_update", "the roles exchanged")
def _(shadow, weights, decay, step):
    k = min(decay, (1 + step) / (10 + step))
    return [k * w + (1 - k) * a for a, w in zip(shadow, weights)]


@wrong("ema_update", "in place")
def _(shadow, weights, decay, step):
    k = min(decay, (1 + step) / (10 + step))
    for a, w in zip(shadow, weights):
        a.mul_(k).add_(w, alpha=1 - k)
    return shadow


@wrong("ema_update", "the larger")
def _(shadow, weights, decay, step):
    k = max(decay, (1 + step) / (10 + step))
    return [k * a + (1 - k) * w for a, w in zip(shadow, weights)]


@wrong("ema_update", "counted from 1")
def _(shadow, weights, decay, step):
    k = min(decay, step / (9 + step))
    return [k * a + (1 - k) * w for a, w in zip(shadow, weights)]


# ---- drop_condition ------------------------------------------------------------------------------


@right("drop_condition")
def _(text, empty, u, share):
    out = text.clone()
    out[u < share] = empty
    return out


@right("drop_condition")
def _(text, empty, u, share):
    m = (u < share).float()[:, None, None]
    return m * empty + (1 - m) * text


@right("drop_condition")
def _(text, empty, u, share):
    return torch.where((u < share).view(-1, 1, 1), empty.unsqueeze(0).expand_as(text), text)


@wrong("drop_condition", "zeros")
def _(text, empty, u, share):
    return text * (u >= share).float()[:, None, None]


@wrong("drop_condition", "one draw for the batch")
def _(text, empty, u, share):
    return empty.expand_as(text).clone() if u[0] < share else text


@wrong("drop_condition", "the share is kept")
def _(text, empty, u, share):
    return torch.where((u < share)[:, None, None], text, empty)


@wrong("drop_condition", "in place")
def _(text, empty, u, share):
    text[u < share] = empty
    return text


@wrong("drop_condition", "noise of its own")
def _(text, empty, u, share):
    u = torch.rand(len(text))
    return torch.where((u < share)[:, None, None], empty, text)


# ---- min_snr_weight ------------------------------------------------------------------------------


@right("min_snr_weight")
def _(sch, t, gamma, prediction):
    ab = sch.alpha_bar[t]
    snr = ab / (1 - ab)
    w = torch.minimum(snr, torch.full_like(snr, gamma))
    return w / snr if prediction == "eps" else w / (snr + 1)


@right("min_snr_weight")
def _(sch, t, gamma, prediction):
    a, s = sch.at(t, torch.zeros(len(t), dtype=D))
    w = (a**2 / s**2).clamp(max=gamma)
    return w * (s**2 / a**2 if prediction == "eps" else s**2)


@right("min_snr_weight")
def _(sch, t, gamma, prediction):
    snr = sch.log_snr[t].exp()
    if prediction == "eps":
        return torch.clamp(gamma / snr, max=1)
    return snr.clamp(max=gamma) / (snr + 1)


@right("min_snr_weight")
def _(sch, t, gamma, prediction):
    a, s = sch.at(t, torch.zeros(len(t)))
    snr = (a / s) ** 2
    return (snr.clamp(max=gamma) / (snr if prediction == "eps" else snr + 1)).double()


@wrong("min_snr_weight", "v weighted as eps")
def _(sch, t, gamma, prediction):
    snr = (sch.alpha[t] / sch.sigma[t]) ** 2
    return snr.clamp(max=gamma) / snr


@wrong("min_snr_weight", "the weight of x0")
def _(sch, t, gamma, prediction):
    snr = (sch.alpha[t] / sch.sigma[t]) ** 2
    return snr.clamp(max=gamma)


@wrong("min_snr_weight", "the ratio without its square")
def _(sch, t, gamma, prediction):
    snr = sch.alpha[t] / sch.sigma[t]
    return snr.clamp(max=gamma) / (snr if prediction == "eps" else snr + 1)


@wrong("min_snr_weight", "the larger")
def _(sch, t, gamma, prediction):
    snr = (sch.alpha[t] / sch.sigma[t]) ** 2
    return snr.clamp(min=gamma) / (snr if prediction == "eps" else snr + 1)


@wrong("min_snr_weight", "float32")
def _(sch, t, gamma, prediction):
    a, s = sch.at(t, torch.zeros(len(t)))
    snr = (a / s) ** 2
    return snr.clamp(max=gamma) / (snr if prediction == "eps" else snr + 1)


# ---- diffusion_loss ------------------------------------------------------------------------------


def asked(net, batch, sch, shift=1):
    x_t = q_sample(sch, batch["x0"], batch["t"], batch["eps"])
    cond = Cond(text=batch.get("text"), label=batch.get("label"))
    return net(x_t, batch["t"] - shift, cond)[:, : batch["x0"].shape[1]]


def goal(batch, sch, prediction):
    x0, eps = batch["x0"], batch["eps"]
    a, s = sch.at(batch["t"], x0)
    return {"eps": eps, "x0": x0, "v": a * eps - s * x0}[prediction]


@right("diffusion_loss")
def _(net, batch, sch, prediction):
    return F.mse_loss(asked(net, batch, sch), goal(batch, sch, prediction))


@right("diffusion_loss")
def _(net, batch, sch, prediction):
    out = asked(net, batch, sch)
    want = target(sch, batch["x0"], batch["eps"], batch["t"], prediction)
    return ((out - want) ** 2).mean((1, 2, 3)).mean()


@right("diffusion_loss")
def _(net, batch, sch, prediction):
    d = asked(net, batch, sch) - goal(batch, sch, prediction)
    return d.pow(2).sum() / d.numel()


@wrong("diffusion_loss", "the network told the index")
def _(net, batch, sch, prediction):
    return F.mse_loss(asked(net, batch, sch, 0), goal(batch, sch, prediction))


@wrong("diffusion_loss", "gradient")
def _(net, batch, sch, prediction):
    return F.mse_loss(asked(net, batch, sch), goal(batch, sch, prediction)).item()


@wrong("diffusion_loss", "a sum")
def _(net, batch, sch, prediction):
    return F.mse_loss(asked(net, batch, sch), goal(batch, sch, prediction), reduction="sum")


@wrong("diffusion_loss", "noised to t - 1")
def _(net, batch, sch, prediction):
    x_t = q_sample(sch, batch["x0"], batch["t"] - 1, batch["eps"])
    cond = Cond(text=batch.get("text"), label=batch.get("label"))
    out = net(x_t, batch["t"] - 1, cond)[:, : batch["x0"].shape[1]]
    return F.mse_loss(out, goal(batch, sch, prediction))


@wrong("diffusion_loss", "the condition not handed on")
def _(net, batch, sch, prediction):
    x_t = q_sample(sch, batch["x0"], batch["t"], batch["eps"])
    out = net(x_t, batch["t"] - 1, Cond())[:, : batch["x0"].shape[1]]
    return F.mse_loss(out, goal(batch, sch, prediction))


@wrong("diffusion_loss", "text")
def _(net, batch, sch, prediction):
    x_t = q_sample(sch, batch["x0"], batch["t"], batch["eps"])
    out = net(x_t, batch["t"] - 1, Cond(label=batch.get("label")))[:, : batch["x0"].shape[1]]
    return F.mse_loss(out, goal(batch, sch, prediction))


@wrong("diffusion_loss", "absolute")
def _(net, batch, sch, prediction):
    return F.l1_loss(asked(net, batch, sch), goal(batch, sch, prediction))


@wrong("diffusion_loss", "eps whatever is predicted")
def _(net, batch, sch, prediction):
    return F.mse_loss(asked(net, batch, sch), batch["eps"])


# ---- ddpm_sample ---------------------------------------------------------------------------------


@right("ddpm_sample")
def _(denoise, sch, x, ts, zs):
    for i in range(len(ts) - 1):
        t, s = ts[i], ts[i + 1]
        x0 = eps_to_x0(sch, x, denoise(x, t, None), t)
        mean, var = posterior(sch, x, x0, t, s)
        x = mean
        if s != 0:
            x = x + math.sqrt(var) * zs[i]
    return x


@right("ddpm_sample")
def _(denoise, sch, x, ts, zs):
    ab = sch.alpha_bar
    for (t, s), z in zip(pairwise(ts), zs):
        eps = denoise(x, t, None)
        alpha = ab[t] / ab[s]
        x = (x - (1 - alpha) / (1 - ab[t]).sqrt() * eps) / alpha.sqrt()
        if s > 0:
            x = x + ((1 - ab[s]) / (1 - ab[t]) * (1 - alpha)).sqrt() * z
    return x


@right("ddpm_sample")
def _(denoise, sch, x, ts, zs):
    for (t, s), z in zip(zip(ts[:-1], ts[1:]), zs):
        x = ddim_step(sch, x, denoise(x, t, None), t, s, 1.0, z)
    return x


@wrong("ddpm_sample", "the variance for its root")
def _(denoise, sch, x, ts, zs):
    for i, (t, s) in enumerate(pairwise(ts)):
        mean, var = posterior(sch, x, eps_to_x0(sch, x, denoise(x, t, None), t), t, s)
        x = mean + var * zs[i]
    return x


@wrong("ddpm_sample", "no noise")
def _(denoise, sch, x, ts, zs):
    for t, s in pairwise(ts):
        x, _ = posterior(sch, x, eps_to_x0(sch, x, denoise(x, t, None), t), t, s)
    return x


@wrong("ddpm_sample", "sch.at")
def _(denoise, sch, x, ts, zs):
    for i, (t, s) in enumerate(pairwise(ts)):
        mean, var = posterior(sch, x, eps_to_x0(sch, x, denoise(x, t, None), t), t, s)
        x = mean + var.sqrt() * zs[i]
    return x


@wrong("ddpm_sample", "the large variance")
def _(denoise, sch, x, ts, zs):
    for i, (t, s) in enumerate(pairwise(ts)):
        mean, _ = posterior(sch, x, eps_to_x0(sch, x, denoise(x, t, None), t), t, s)
        var = transition(sch, s, t, x)[1]
        x = mean + var**0.5 * zs[i] if s > 0 else mean
    return x


@wrong("ddpm_sample", "DDIM")
def _(denoise, sch, x, ts, zs):
    for t, s in pairwise(ts):
        x = ddim_step(sch, x, denoise(x, t, None), t, s)
    return x


# ---- sdedit_picture ------------------------------------------------------------------------------


@right("sdedit_picture")
def _(pipe, image, prompt, strength, steps, scale, n):
    sch = pipe.schedule
    ts = pipe.timesteps(steps, strength)
    a, s = sch.at(ts[0])
    x = a * pipe.encode(image) + s * n
    cond, null = pipe.embed(prompt), pipe.null()
    for t, s in pairwise(ts):
        e = guide(pipe.eps(x, t, null), pipe.eps(x, t, cond), scale)
        x = ddim_step(sch, x, e, t, s)
    return pipe.decode(x)


@right("sdedit_picture")
def _(pipe, image, prompt, strength, steps, scale, n):
    ts = pipe.timesteps(steps, strength)
    x = q_sample(pipe.schedule, pipe.encode(image), ts[0], n)
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    for i in range(len(ts) - 1):
        eps = denoise(x, ts[i], pipe.embed([prompt]))
        x = q_sample(pipe.schedule, eps_to_x0(pipe.schedule, x, eps, ts[i]), ts[i + 1], eps)
    return pipe.decode(x)


@wrong("sdedit_picture", "noised to T")
def _(pipe, image, prompt, strength, steps, scale, n):
    ts = pipe.timesteps(steps, strength)
    x = q_sample(pipe.schedule, pipe.encode(image), pipe.timesteps(steps)[0], n)
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    for t, s in pairwise(ts):
        x = ddim_step(pipe.schedule, x, denoise(x, t, pipe.embed(prompt)), t, s)
    return pipe.decode(x)


@wrong("sdedit_picture", "not noised")
def _(pipe, image, prompt, strength, steps, scale, n):
    ts = pipe.timesteps(steps, strength)
    x = pipe.encode(image)
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    for t, s in pairwise(ts):
        x = ddim_step(pipe.schedule, x, denoise(x, t, pipe.embed(prompt)), t, s)
    return pipe.decode(x)


@wrong("sdedit_picture", "not guided")
def _(pipe, image, prompt, strength, steps, scale, n):
    ts = pipe.timesteps(steps, strength)
    x = q_sample(pipe.schedule, pipe.encode(image), ts[0], n)
    for t, s in pairwise(ts):
        x = ddim_step(pipe.schedule, x, pipe.eps(x, t, pipe.embed(prompt)), t, s)
    return pipe.decode(x)


@wrong("sdedit_picture", "shape is")
def _(pipe, image, prompt, strength, steps, scale, n):
    ts = pipe.timesteps(steps, strength)
    x = q_sample(pipe.schedule, pipe.encode(image), ts[0], n)
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    for t, s in pairwise(ts):
        x = ddim_step(pipe.schedule, x, denoise(x, t, pipe.embed(prompt)), t, s)
    return x


# ---- invert_and_edit -----------------------------------------------------------------------------


@right("invert_and_edit")
def _(pipe, image, source, target, steps, scale):
    sch = pipe.schedule
    ts = sch.timesteps(steps, spacing="trailing")
    x = pipe.encode(image)
    up = ts[::-1]
    for s, t in zip(up[:-1], up[1:]):
        x = ddim_step(sch, x, pipe.eps(x, t, pipe.embed(source)), s, t)
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    for t, s in zip(ts[:-1], ts[1:]):
        x = ddim_step(sch, x, denoise(x, t, pipe.embed(target)), t, s)
    return pipe.decode(x)


@right("invert_and_edit")
def _(pipe, image, source, target, steps, scale):
    noise = invert(pipe, image, source, steps=steps)[-1]
    return replay(pipe, noise, target, steps=steps, scale=scale)


def _edited(pipe, image, source, target, steps, up=1.0, down=1.0, late=True):
    sch = pipe.schedule
    ts = sch.timesteps(steps, spacing="trailing")
    x = pipe.encode(image)
    look = cfg_batched(pipe.eps, pipe.null(), up)
    for s, t in pairwise(ts[::-1]):
        x = ddim_step(sch, x, look(x, t if late else max(s, 1), pipe.embed(source)), s, t)
    look = cfg_batched(pipe.eps, pipe.null(), down)
    for t, s in pairwise(ts):
        x = ddim_step(sch, x, look(x, t, pipe.embed(target)), t, s)
    return pipe.decode(x)


@wrong("invert_and_edit", "guided on the way up")
def _(pipe, image, source, target, steps, scale):
    return _edited(pipe, image, source, target, steps, scale, scale)


@wrong("invert_and_edit", "not guided")
def _(pipe, image, source, target, steps, scale):
    return _edited(pipe, image, source, target, steps, 1.0, 1.0)


@wrong("invert_and_edit", "asked at the lower time")
def _(pipe, image, source, target, steps, scale):
    return _edited(pipe, image, source, target, steps, 1.0, scale, late=False)


@wrong("invert_and_edit", "inverted under the target")
def _(pipe, image, source, target, steps, scale):
    return _edited(pipe, image, target, target, steps, 1.0, scale)


@wrong("invert_and_edit", "the source")
def _(pipe, image, source, target, steps, scale):
    return _edited(pipe, image, source, source, steps, 1.0, scale)


# ---- edit_pair -----------------------------------------------------------------------------------


def _pair(
    pipe, source, target, x_T, cross, self_, steps, scale, null_too=False, no_self=False, ever=False
):
    M, alpha = token_map(pipe.tokenizer, source, target, kind_of(pipe.tokenizer, source, target))
    cond, null = pipe.embed([source, target]), pipe.null(2)
    x = x_T.repeat(2, 1, 1, 1)
    ts = pipe.schedule.timesteps(steps, spacing="trailing")
    for i, (t, s) in enumerate(pairwise(ts)):

        def on_cross(probs, name, i=i):
            if i < cross * steps or ever:
                src, edit = probs.chunk(2)
                return torch.cat([src, alpha * (src @ M) + (1 - alpha) * edit])
            return probs

        def on_self(probs, name, i=i):
            if i < self_ * steps and not no_self:
                src, _ = probs.chunk(2)
                return torch.cat([src, src])
            return probs

        e_null = None if null_too else pipe.eps(x, t, null)
        with tap(pipe.net, CROSS, on_cross), tap(pipe.net, SELF, on_self):
            e_cond = pipe.eps(x, t, cond)
            if null_too:
                e_null = pipe.eps(x, t, null)
        x = ddim_step(pipe.schedule, x, guide(e_null, e_cond, scale), t, s)
    return x


@right("edit_pair")
def _(pipe, source, target, x_T, cross, self_, steps, scale):
    return _pair(pipe, source, target, x_T, cross, self_, steps, scale)


@wrong("edit_pair", "the unconditional maps too")
def _(*args):
    return _pair(*args, null_too=True)


@wrong("edit_pair", "cross-attention alone")
def _(*args):
    return _pair(*args, no_self=True)


@wrong("edit_pair", "until the end")
def _(*args):
    return _pair(*args, ever=True)


@wrong("edit_pair", "shape is")
def _(*args):
    return _pair(*args)[1:]


@right("edit_pair")
def _(pipe, source, target, x_T, cross, self_, steps, scale):
    tok = pipe.tokenizer
    M, alpha = token_map(tok, source, target, kind_of(tok, source, target))
    x = torch.cat([x_T] * 2)
    ts = pipe.schedule.timesteps(steps, spacing="trailing")
    for i in range(steps):
        t, s = ts[i], ts[i + 1]
        e_null = pipe.eps(x, t, pipe.null(2))
        on = torch.tensor(1.0 if i < cross * steps else 0.0)
        limit = 10**6 if i < self_ * steps else 0
        with tap(pipe.net, CROSS, edit_cross(M, alpha, on, torch.ones(len(alpha)))):
            with tap(pipe.net, SELF, edit_self(tuple(x.shape[2:]), limit)):
                e_cond = pipe.eps(x, t, pipe.embed([source, target]))
        x = ddim_step(pipe.schedule, x, e_null + scale * (e_cond - e_null), t, s)
    return x
