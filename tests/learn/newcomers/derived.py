"""Answers to what has to be derived: guesses, and guesses put together."""

from itertools import groupby

import torch
import torch.nn.functional as F

from minidiff.core.cond import Cond
from minidiff.core.process import ddim_step, q_sample, x0_to_eps
from newcomers import right, wrong

D = torch.float64


# ---- to_eps --------------------------------------------------------------------------------------


@right("to_eps")
def _(sch, x_t, out, t, prediction):
    a, s = sch.at(t, x_t)
    if prediction == "eps":
        return out
    if prediction == "x0":
        return (x_t - a * out) / s
    if prediction == "v":
        x0 = (a * x_t - s * out) / (a**2 + s**2)
        return (x_t - a * x0) / s
    x0 = (x_t - s * out) / (a + s)
    return out + x0


@right("to_eps")
def _(sch, x_t, out, t, prediction):
    a, s = sch.at(t, x_t)
    c, d = {"eps": (0, 1), "x0": (1, 0), "v": (-s, a), "flow": (-1, 1)}[prediction]
    return (a * out - c * x_t) / (a * d - c * s)


@wrong("to_eps", "not divided")
def _(sch, x_t, out, t, prediction):
    a, s = sch.at(t, x_t)
    if prediction == "x0":
        return x0_to_eps(sch, x_t, out, t)
    return {"eps": out, "v": a * out + s * x_t, "flow": x_t + a * out}[prediction]


@wrong("to_eps")
def _(sch, x_t, out, t, prediction):
    a, s = sch.at(t, x_t)
    if prediction == "x0":
        return (x_t - a * out) / s
    return {"eps": out, "v": (out + s * x_t) / a, "flow": out + x_t}[prediction]


@wrong("to_eps", "every output is noise")
def _(sch, x_t, out, t, prediction):
    return out


@wrong("to_eps", "a time for each row")
def _(sch, x_t, out, t, prediction):
    a, s = float(sch.alpha[t]), float(sch.sigma[t])
    c, d = {"eps": (0, 1), "x0": (1, 0), "v": (-s, a), "flow": (-1, 1)}[prediction]
    return (a * out - c * x_t) / (a * d - c * s)


# ---- betas_of, from_log_snr ----------------------------------------------------------------------


@right("betas_of")
def _(alpha_bar):
    return (alpha_bar[:-1] - alpha_bar[1:]) / alpha_bar[:-1]


@right("betas_of")
def _(alpha_bar):
    return -torch.expm1(alpha_bar.log().diff())


@wrong("betas_of", "shape is")
def _(alpha_bar):
    return 1 - alpha_bar / torch.cat([alpha_bar[:1], alpha_bar[:-1]])


@wrong("betas_of", "differences")
def _(alpha_bar):
    return -alpha_bar.diff()


@wrong("betas_of")
def _(alpha_bar):
    return alpha_bar[1:] / alpha_bar[:-1]


@wrong("betas_of", "what all steps took")
def _(alpha_bar):
    return (1 - alpha_bar)[1:]


@right("from_log_snr")
def _(log_snr):
    snr = log_snr.exp()
    alpha = (snr / (1 + snr)) ** 0.5
    return alpha, (1 / (1 + snr)) ** 0.5


@right("from_log_snr")
def _(log_snr):
    alpha = torch.sqrt(1 / (1 + torch.exp(-log_snr)))
    return [alpha, torch.sqrt(1 - alpha**2)]


@wrong("from_log_snr", "the roots left out")
def _(log_snr):
    alpha = torch.sigmoid(log_snr)
    return alpha, 1 - alpha


@wrong("from_log_snr", "not of its square")
def _(log_snr):
    alpha = torch.sigmoid(2 * log_snr).sqrt()
    return alpha, (1 - alpha**2).sqrt()


@wrong("from_log_snr", "tuple of 2")
def _(log_snr):
    return torch.sigmoid(log_snr).sqrt()


@wrong("from_log_snr", "exchanged")
def _(log_snr):
    return torch.sigmoid(-log_snr).sqrt(), torch.sigmoid(log_snr).sqrt()


# ---- best_guess, ideal_guess ---------------------------------------------------------------------


@right("best_guess")
def _(x_t, mean, var, alpha, sigma):
    total = sigma**2 + alpha**2 * var
    return (sigma**2 * mean + alpha * var * x_t) / total


@right("best_guess")
def _(x_t, mean, var, alpha, sigma):
    score = -(x_t - alpha * mean) / (alpha**2 * var + sigma**2)
    return (x_t + sigma**2 * score) / alpha


@wrong("best_guess", "NaN")
def _(x_t, mean, var, alpha, sigma):
    a, b = 1 / var, alpha**2 / torch.tensor(sigma, dtype=D) ** 2
    return (a * mean + b * x_t / alpha) / (a + b)


@wrong("best_guess")
def _(x_t, mean, var, alpha, sigma):
    return (sigma**2 * mean + var * x_t) / (sigma**2 + var)


@wrong("best_guess", "the data is not looked at")
def _(x_t, mean, var, alpha, sigma):
    return x_t / alpha


@wrong("best_guess")
def _(x_t, mean, var, alpha, sigma):
    return mean


@wrong("best_guess", "the deviation for the variance")
def _(x_t, mean, var, alpha, sigma):
    std = var.sqrt()
    return (sigma**2 * mean + alpha * std * x_t) / (sigma**2 + alpha**2 * std)


@right("ideal_guess")
def _(x_t, data, alpha, sigma):
    d2 = ((x_t[:, None] - alpha * data[None]) ** 2).sum(-1)
    logs = -0.5 * d2 / sigma**2
    w = torch.exp(logs - logs.logsumexp(1, keepdim=True))
    return w @ data


@right("ideal_guess")
def _(x_t, data, alpha, sigma):
    p = torch.distributions.Normal(alpha * data, sigma)
    logs = p.log_prob(x_t[:, None]).sum(-1)
    return torch.einsum("bn,nd->bd", torch.softmax(logs, dim=-1), data)


@wrong("ideal_guess", "NaN")
def _(x_t, data, alpha, sigma):
    w = torch.exp(-((x_t[:, None] - alpha * data) ** 2).sum(-1) / (2 * sigma**2))
    return w @ data / w.sum(1, keepdim=True)


@wrong("ideal_guess", "the 2 is forgotten")
def _(x_t, data, alpha, sigma):
    return torch.softmax(-((x_t[:, None] - alpha * data) ** 2).sum(-1) / sigma**2, 1) @ data


@wrong("ideal_guess")
def _(x_t, data, alpha, sigma):
    return torch.softmax(-((x_t[:, None] - alpha * data) ** 2).mean(-1) / (2 * sigma**2), 1) @ data


@wrong("ideal_guess")
def _(x_t, data, alpha, sigma):
    far = (x_t[:, None] - alpha * data).norm(dim=-1)
    return torch.softmax(-far / (2 * sigma**2), 1) @ data


@wrong("ideal_guess", "the nearest picture")
def _(x_t, data, alpha, sigma):
    return data[((x_t[:, None] - alpha * data) ** 2).sum(-1).argmin(1)]


# ---- heun_step -----------------------------------------------------------------------------------


@right("heun_step")
def _(denoise, sch, x_t, t, s, cond):
    e1 = denoise(x_t, t, cond)
    x_s = ddim_step(sch, x_t, e1, t, s)
    if s > 0:
        e2 = denoise(x_s, s, cond)
        x_s = ddim_step(sch, x_t, 0.5 * e1 + 0.5 * e2, t, s)
    return x_s


@right("heun_step")
def _(denoise, sch, x_t, t, s, cond):
    e1 = denoise(x_t, t, cond)
    a = ddim_step(sch, x_t, e1, t, s)
    if not s:
        return a
    return (a + ddim_step(sch, x_t, denoise(a, s, cond), t, s)) / 2


@wrong("heun_step", "asked at time 0")
def _(denoise, sch, x_t, t, s, cond):
    e1 = denoise(x_t, t, cond)
    e2 = denoise(ddim_step(sch, x_t, e1, t, s), s, cond)
    return ddim_step(sch, x_t, (e1 + e2) / 2, t, s)


@wrong("heun_step")
def _(denoise, sch, x_t, t, s, cond):
    e1 = denoise(x_t, t, cond)
    x_s = ddim_step(sch, x_t, e1, t, s)
    if s == 0:
        return x_s
    return ddim_step(sch, x_s, (e1 + denoise(x_s, s, cond)) / 2, t, s)


@wrong("heun_step", "asked again at the old time")
def _(denoise, sch, x_t, t, s, cond):
    e1 = denoise(x_t, t, cond)
    x_s = ddim_step(sch, x_t, e1, t, s)
    return x_s if s == 0 else ddim_step(sch, x_t, (e1 + denoise(x_s, t, cond)) / 2, t, s)


@wrong("heun_step", "Euler's step")
def _(denoise, sch, x_t, t, s, cond):
    return ddim_step(sch, x_t, denoise(x_t, t, cond), t, s)


@wrong("heun_step")
def _(denoise, sch, x_t, t, s, cond):
    e1 = denoise(x_t, t, cond)
    x_s = ddim_step(sch, x_t, e1, t, s)
    return x_s if s == 0 else ddim_step(sch, x_t, (e1 + denoise(x_s, s, None)) / 2, t, s)


# ---- steered_eps, compose ------------------------------------------------------------------------


@right("steered_eps")
def _(sch, eps, gradient, t, scale):
    _, sigma = sch.at(t, eps)
    score = -eps / sigma + scale * gradient
    return -sigma * score


@right("steered_eps")
def _(sch, eps, gradient, t, scale):
    return torch.sub(eps, sch.at(t, eps)[1] * gradient, alpha=scale)


@wrong("steered_eps", "the sign")
def _(sch, eps, gradient, t, scale):
    return eps + scale * sch.at(t, eps)[1] * gradient


@wrong("steered_eps", "sigma forgotten")
def _(sch, eps, gradient, t, scale):
    return eps - scale * gradient


@wrong("steered_eps")
def _(sch, eps, gradient, t, scale):
    return eps - scale * gradient / sch.at(t, eps)[1]


@wrong("steered_eps")
def _(sch, eps, gradient, t, scale):
    return eps - scale * (1 - sch.at(t, eps)[0] ** 2) ** 0.5 * gradient


@right("compose")
def _(e_null, e_conds, scales):
    out = e_null.clone()
    for e, w in zip(e_conds, scales):
        out += w * (e - e_null)
    return out


@right("compose")
def _(e_null, e_conds, scales):
    return e_null + torch.einsum("k...,k->...", torch.stack(e_conds) - e_null, torch.tensor(scales))


@wrong("compose", "guided one by one")
def _(e_null, e_conds, scales):
    return torch.stack([e_null + w * (e - e_null) for e, w in zip(e_conds, scales)]).sum(0)


@wrong("compose", "averaged")
def _(e_null, e_conds, scales):
    return torch.stack([e_null + w * (e - e_null) for e, w in zip(e_conds, scales)]).mean(0)


@wrong("compose", "one after the other")
def _(e_null, e_conds, scales):
    out = e_null
    for e, w in zip(e_conds, scales):
        out = out + w * (e - out)
    return out


@wrong("compose")
def _(e_null, e_conds, scales):
    return e_null + sum(abs(w) * (e - e_null) for e, w in zip(e_conds, scales))


# ---- guided_in_one, anagram_noise ----------------------------------------------------------------


@right("guided_in_one")
def _(denoise, x, t, cond, null, scale):
    tt = t.repeat(2) if torch.is_tensor(t) else t
    out = denoise(x.repeat(2, 1, 1, 1), tt, Cond.cat([cond, null]))
    b = len(x)
    return out[b:] + scale * (out[:b] - out[b:])


@right("guided_in_one")
def _(denoise, x, t, cond, null, scale):
    if isinstance(t, int):
        t = torch.full((len(x),), t)
    out = denoise(torch.cat([x] * 2), torch.cat([t] * 2), Cond.cat([null, cond]))
    e_null, e_cond = out.unflatten(0, (2, -1))
    return torch.lerp(e_null, e_cond, scale)


@wrong("guided_in_one", "called twice")
def _(denoise, x, t, cond, null, scale):
    a, b = denoise(x, t, null), denoise(x, t, cond)
    return a + scale * (b - a)


@wrong("guided_in_one", "the halves exchanged")
def _(denoise, x, t, cond, null, scale):
    tt = torch.cat([t, t]) if torch.is_tensor(t) else t
    e_cond, e_null = denoise(torch.cat([x, x]), tt, Cond.cat([null, cond])).chunk(2)
    return e_null + scale * (e_cond - e_null)


@wrong("guided_in_one")
def _(denoise, x, t, cond, null, scale):
    out = denoise(torch.cat([x, x]), t, Cond.cat([null, cond]))
    return out[: len(x)] + scale * (out[len(x) :] - out[: len(x)])


@wrong("guided_in_one")
def _(denoise, x, t, cond, null, scale):
    tt = torch.cat([t, t]) if torch.is_tensor(t) else t
    out = denoise(torch.cat([x, x]), tt, Cond.cat([null, cond]))
    return out[::2] + scale * (out[1::2] - out[::2])


@right("anagram_noise")
def _(denoise, x, t, conds, turn, turn_back):
    a = denoise(x, t, conds[0])
    b = denoise(turn(x), t, conds[1])
    return torch.stack([a, turn_back(b)]).mean(0)


@right("anagram_noise")
def _(denoise, x, t, conds, turn, turn_back):
    return 0.5 * denoise(x, t, conds[0]) + turn_back(denoise(turn(x), t, conds[1]) * 0.5)


@wrong("anagram_noise", "not turned back")
def _(denoise, x, t, conds, turn, turn_back):
    b = denoise(turn(x), t, conds[1])
    return (denoise(x, t, conds[0]) + b) / 2


@wrong("anagram_noise", "turned again")
def _(denoise, x, t, conds, turn, turn_back):
    return (denoise(x, t, conds[0]) + turn(denoise(turn(x), t, conds[1]))) / 2


@wrong("anagram_noise")
def _(denoise, x, t, conds, turn, turn_back):
    return (denoise(x, t, conds[1]) + turn_back(denoise(turn(x), t, conds[0]))) / 2


@wrong("anagram_noise", "a sum for the mean")
def _(denoise, x, t, conds, turn, turn_back):
    return denoise(x, t, conds[0]) + turn_back(denoise(turn(x), t, conds[1]))


# ---- up ------------------------------------------------------------------------------------------


def _up(denoise, sch, x, y, s, t, cond, p, swap, wrong_mix=False, wrong_moves=False, at=None):
    z = {"x": x, "y": y}
    for a, b in ("xy", "yx") if wrong_mix else ("yx", "xy"):
        z[a] = (z[a] - (1 - p) * z[b]) / p
    moves = ("xy", "yx") if swap != wrong_moves else ("yx", "xy")
    for a, b in moves:
        e = denoise(z[b], t if at is None else at(s, t), cond)
        z[a] = q_sample(sch, (z[a] - sch.at(s)[1] * e) / sch.at(s)[0], t, e)
    return z["x"], z["y"]


@right("up")
def _(*args):
    return _up(*args)


@right("up")
def _(denoise, sch, x, y, s, t, cond, p, swap):
    y = (y + (p - 1) * x) / p
    x = (x + (p - 1) * y) / p
    if swap:
        x = ddim_step(sch, x, denoise(y, t, cond), s, t)
        y = ddim_step(sch, y, denoise(x, t, cond), s, t)
    else:
        y = ddim_step(sch, y, denoise(x, t, cond), s, t)
        x = ddim_step(sch, x, denoise(y, t, cond), s, t)
    return x, y


@wrong("up", "unmixed in the same order")
def _(*args):
    return _up(*args, wrong_mix=True)


@wrong("up", "moved in the same order")
def _(*args):
    return _up(*args, wrong_moves=True)


@wrong("up", "asked at the lower time")
def _(*args):
    return _up(*args, at=lambda s, t: s)


@wrong("up")
def _(denoise, sch, x, y, s, t, cond, p, swap):
    x, y = p * x + (1 - p) * y, p * y + (1 - p) * x
    return _up(denoise, sch, x, y, s, t, cond, 1.0, swap)


@wrong("up", "tuple of 2")
def _(*args):
    return _up(*args)[0]


# ---- contrastive_loss, join ----------------------------------------------------------------------


@right("contrastive_loss")
def _(logits):
    n = len(logits)
    rows = -logits.log_softmax(1).trace() / n
    columns = -logits.log_softmax(0).trace() / n
    return (rows + columns) / 2


@right("contrastive_loss")
def _(logits):
    y = torch.arange(logits.shape[0])
    return torch.stack([F.cross_entropy(logits, y), F.cross_entropy(logits.T, y)]).mean()


@wrong("contrastive_loss", "pictures only")
def _(logits):
    return F.cross_entropy(logits, torch.arange(len(logits)))


@wrong("contrastive_loss", "a sum for the mean")
def _(logits):
    y = torch.arange(len(logits))
    return F.cross_entropy(logits, y) + F.cross_entropy(logits.T, y)


@wrong("contrastive_loss", "gradient")
def _(logits):
    y = torch.arange(len(logits))
    return (F.cross_entropy(logits, y).item() + F.cross_entropy(logits.T, y).item()) / 2


@wrong("contrastive_loss")
def _(logits):
    y = torch.arange(len(logits))
    return (F.cross_entropy(logits.softmax(1), y) + F.cross_entropy(logits.softmax(0).T, y)) / 2


@wrong("contrastive_loss")
def _(logits):
    return F.binary_cross_entropy_with_logits(logits, torch.eye(len(logits)))


@right("join")
def _(symbols, pair):
    out = list(symbols)
    i = 0
    while i < len(out) - 1:
        if out[i] == pair[0] and out[i + 1] == pair[1]:
            out[i : i + 2] = [pair[0] + pair[1]]
        i += 1
    return out


@right("join")
def _(symbols, pair):
    out, waiting = [], None
    for s in [*symbols, None]:
        if waiting == pair[0] and s == pair[1]:
            out.append(waiting + s)
            waiting = None
        else:
            if waiting is not None:
                out.append(waiting)
            waiting = s
    return out


@wrong("join", "only the first")
def _(symbols, pair):
    for i in range(len(symbols) - 1):
        if symbols[i] == pair[0] and symbols[i + 1] == pair[1]:
            return [*symbols[:i], pair[0] + pair[1], *symbols[i + 2 :]]
    return symbols


@wrong("join")
def _(symbols, pair):
    out = []
    for i, s in enumerate(symbols):
        follows = i + 1 < len(symbols) and (s, symbols[i + 1]) == pair
        out.append(s + symbols[i + 1] if follows else s)
    return out


@wrong("join")
def _(symbols, pair):
    return [s for s, _ in groupby(symbols)]


@wrong("join", "the str")
def _(symbols, pair):
    return "".join(symbols).replace("".join(pair), "-")


@wrong("join", "in place")
def _(symbols, pair):
    for i in range(len(symbols) - 2, -1, -1):
        if (symbols[i], symbols[i + 1]) == pair:
            symbols[i : i + 2] = ["".join(pair)]
    return symbols


# ---- pictures with two readings ------------------------------------------------------------------


@right("hybrid_noise")
def _(eps_a, eps_b, part):
    return eps_b + part(eps_a - eps_b)


@right("hybrid_noise")
def _(eps_a, eps_b, part):
    far = part(eps_a)
    near = eps_b - part(eps_b)
    return far + near


@wrong("hybrid_noise", "the part added, not replaced")
def _(eps_a, eps_b, part):
    return eps_b + part(eps_a)


@wrong("hybrid_noise", "the two exchanged")
def _(eps_a, eps_b, part):
    return eps_a + part(eps_b - eps_a)


@wrong("hybrid_noise")
def _(eps_a, eps_b, part):
    return torch.where(part(eps_a).abs() > part(eps_b).abs(), eps_a, eps_b)
