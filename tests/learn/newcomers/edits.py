"""Words and maps, masks, known pictures, and what other loops do between two moves."""

import math
from collections import defaultdict

import numpy as np
import torch
import torch.nn.functional as F

from minidiff.core.process import ddim_step, eps_to_x0, posterior, q_sample
from newcomers import right, wrong

# ---- align ---------------------------------------------------------------------------------------


def table(source, target, mismatch=-1, gap=0):
    score = np.zeros((len(source) + 1, len(target) + 1), dtype=int)
    for i in range(1, len(source) + 1):
        score[i, 0] = gap * i
    for j in range(1, len(target) + 1):
        score[0, j] = gap * j
    for i in range(1, len(source) + 1):
        for j in range(1, len(target) + 1):
            pair = score[i - 1, j - 1] + (1 if source[i - 1] == target[j - 1] else mismatch)
            score[i, j] = max(score[i, j - 1] + gap, score[i - 1, j] + gap, pair)
    return score


def walk(source, target, score, gap=0, pairs_first=False):
    out = [-1] * len(target)
    i, j = len(source), len(target)
    while i > 0 and j > 0:
        paired = score[i, j] == score[i - 1, j - 1] + (1 if source[i - 1] == target[j - 1] else -1)
        if pairs_first and paired:
            i, j = i - 1, j - 1
            out[j] = i
        elif score[i, j] == score[i, j - 1] + gap:
            j -= 1
        elif score[i, j] == score[i - 1, j] + gap:
            i -= 1
        else:
            i, j = i - 1, j - 1
            out[j] = i
    return out


@right("align")
def _(source, target):
    return walk(source, target, table(source, target))


@right("align")
def _(source, target):
    return [np.int64(k) for k in walk(source, target, table(source, target))]


@right("align")
def _(source, target):
    score = table(source, target)
    if not len(source) or not len(target):
        return [-1] * len(target)
    pairs = {}
    i, j = len(source), len(target)
    while i and j:
        if score[i, j] == score[i, j - 1]:
            j -= 1
        elif score[i, j] == score[i - 1, j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs[j] = i
    return [pairs.get(j, -1) for j in range(len(target))]


@wrong("align")
def _(source, target):
    return walk(source, target, table(source, target), pairs_first=True)


@wrong("align")
def _(source, target):
    return walk(source, target, table(source, target, gap=-1), gap=-1)


@wrong("align", "by place")
def _(source, target):
    return [j if j < len(source) else -1 for j in range(len(target))]


@wrong("align", "the first equal word")
def _(source, target):
    return [source.index(w) if w in source else -1 for w in target]


@wrong("align", "entries; expected")
def _(source, target):
    return [k for k in walk(source, target, table(source, target)) if k >= 0]


@wrong("align", "entries; expected")
def _(source, target):
    out = [-1] * len(source)
    for j, i in enumerate(walk(source, target, table(source, target))):
        if i >= 0:
            out[i] = j
    return out


# ---- blend_mask ----------------------------------------------------------------------------------


def _blend(maps, words, size, threshold=0.3, mode="nearest", grow=1, late=False, apart=True):
    rows = [maps[r][list(w)].sum(0) for r, w in enumerate(words)]
    m = torch.stack(rows)[:, None]

    def dilate(x):
        return F.max_pool2d(x, 2 * grow + 1, 1, grow)

    m = (
        dilate(F.interpolate(m, size, mode=mode))
        if late
        else F.interpolate(dilate(m), size, mode=mode)
    )
    top = m.flatten(1).max(1).values.view(-1, 1, 1, 1) if apart else m.max()
    return (m / top > threshold).float().amax(0, keepdim=True)


@right("blend_mask")
def _(maps, words, size, threshold=0.3):
    return _blend(maps, words, size, threshold)


@right("blend_mask")
def _(maps, words, size, threshold=0.3):
    return _blend(maps, words, size, threshold, mode="nearest-exact")


@right("blend_mask")
def _(maps, words, size, threshold=0.3):
    out = torch.zeros(size, dtype=torch.bool)
    for r in range(2):
        m = sum(maps[r, w] for w in words[r])
        m = F.max_pool2d(m[None, None], 3, stride=1, padding=1)[0, 0]
        y = torch.arange(size[0]) * m.shape[0] // size[0]
        x = torch.arange(size[1]) * m.shape[1] // size[1]
        m = m[y][:, x]
        out |= m > threshold * m.max()
    return out[None, None].to(maps.dtype)


@wrong("blend_mask", "smoothly")
def _(maps, words, size, threshold=0.3):
    return _blend(maps, words, size, threshold, mode="bilinear")


@wrong("blend_mask")
def _(maps, words, size, threshold=0.3):
    return _blend(maps, words, size, threshold, mode="bicubic")


@wrong("blend_mask", "grown after")
def _(maps, words, size, threshold=0.3):
    return _blend(maps, words, size, threshold, late=True)


@wrong("blend_mask", "not grown")
def _(maps, words, size, threshold=0.3):
    return _blend(maps, words, size, threshold, grow=0)


@wrong("blend_mask", "one largest value")
def _(maps, words, size, threshold=0.3):
    return _blend(maps, words, size, threshold, apart=False)


@wrong("blend_mask", "bool")
def _(maps, words, size, threshold=0.3):
    return _blend(maps, words, size, threshold).bool()


@wrong("blend_mask", "both rows")
def _(maps, words, size, threshold=0.3):
    m = torch.stack([maps[r][w].sum(0) for r, w in enumerate(words)])[:, None]
    m = F.interpolate(F.max_pool2d(m, 3, 1, 1), size)
    return (m / m.amax((2, 3), keepdim=True) > threshold).all(0, keepdim=True).float()


@wrong("blend_mask", "the threshold")
def _(maps, words, size, threshold=0.3):
    return _blend(maps, words, size)


# ---- threshold_mask ------------------------------------------------------------------------------


@right("threshold_mask")
def _(d, threshold=0.5, grow=0):
    cut = 3 * d.flatten(1).mean(1)[:, None, None, None]
    m = (torch.minimum(d, cut) > threshold * cut).float()
    return F.max_pool2d(m, 2 * grow + 1, stride=1, padding=grow)


@right("threshold_mask")
def _(d, threshold=0.5, grow=0):
    out = []
    for x in d:
        top = 3 * x.mean()
        m = (x.clamp(max=top.item()) > threshold * top)[None].to(d.dtype)
        for _ in range(grow):
            m = F.max_pool2d(m, 3, 1, 1)
        out.append(m)
    return torch.cat(out)


@right("threshold_mask")
def _(d, threshold=0.5, grow=0):
    m = (d > threshold * 3 * d.mean((1, 2, 3), keepdim=True)).float()
    kernel = torch.ones(1, 1, 2 * grow + 1, 2 * grow + 1)
    return (F.conv2d(m, kernel, padding=grow) > 0).float()


@wrong("threshold_mask", "the mean of the batch")
def _(d, threshold=0.5, grow=0):
    m = (d > threshold * 3 * d.mean()).float()
    return F.max_pool2d(m, 2 * grow + 1, 1, grow)


@wrong("threshold_mask")
def _(d, threshold=0.5, grow=0):
    m = (d.clamp(max=3 * d.mean()) > threshold).float()
    return F.max_pool2d(m, 2 * grow + 1, 1, grow)


@wrong("threshold_mask")
def _(d, threshold=0.5, grow=0):
    m = (d > threshold * 3 * d.mean((1, 2, 3), keepdim=True)).float()
    kernel = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]])[None, None]
    for _ in range(grow):
        m = (F.conv2d(m, kernel, padding=1) > 0).float()
    return m


@wrong("threshold_mask", "not grown")
def _(d, threshold=0.5, grow=0):
    return (d > threshold * 3 * d.mean((1, 2, 3), keepdim=True)).float()


@wrong("threshold_mask", "bool")
def _(d, threshold=0.5, grow=0):
    return d > threshold * 3 * d.mean((1, 2, 3), keepdim=True)


@wrong("threshold_mask", "no cut")
def _(d, threshold=0.5, grow=0):
    m = (d > threshold * d.amax((1, 2, 3), keepdim=True)).float()
    return F.max_pool2d(m, 2 * grow + 1, 1, grow)


# ---- span_map ------------------------------------------------------------------------------------


@right("span_map")
def _(source, target, n):
    M = torch.zeros(n, n)
    for a, b in zip(source, target):
        if len(a) == len(b):
            M[a, b] = 1
        else:
            M[torch.tensor(a)[:, None], torch.tensor(b)] = 1 / len(a)
    return M


@right("span_map")
def _(source, target, n):
    M = np.zeros((n, n))
    for a, b in zip(source, target):
        for y, j in enumerate(b):
            for x, i in enumerate(a):
                M[i, j] = float(x == y) if len(a) == len(b) else 1 / len(a)
    return torch.from_numpy(M).float()


@wrong("span_map", "divided by the target")
def _(source, target, n):
    M = torch.zeros(n, n)
    for a, b in zip(source, target):
        for y, j in enumerate(b):
            for x, i in enumerate(a):
                M[i, j] = float(x == y) if len(a) == len(b) else 1 / len(b)
    return M


@wrong("span_map", "transposed")
def _(source, target, n):
    M = torch.zeros(n, n)
    for a, b in zip(source, target):
        for y, j in enumerate(b):
            for x, i in enumerate(a):
                M[j, i] = float(x == y) if len(a) == len(b) else 1 / len(a)
    return M


@wrong("span_map", "always the mean")
def _(source, target, n):
    M = torch.zeros(n, n)
    for a, b in zip(source, target):
        for j in b:
            for i in a:
                M[i, j] = 1 / len(a)
    return M


@wrong("span_map", "the task asks for it")
def _(source, target, n):
    M = torch.zeros(n, n, dtype=torch.float64)
    for a, b in zip(source, target):
        for y, j in enumerate(b):
            for x, i in enumerate(a):
                M[i, j] = float(x == y) if len(a) == len(b) else 1 / len(a)
    return M


@wrong("span_map", "the other tokens")
def _(source, target, n):
    M = torch.eye(n)
    for a, b in zip(source, target):
        for y, j in enumerate(b):
            M[:, j] = 0
            for x, i in enumerate(a):
                M[i, j] = float(x == y) if len(a) == len(b) else 1 / len(a)
    return M


# ---- edited_maps ---------------------------------------------------------------------------------


@right("edited_maps")
def _(source, edit, M, alpha, inject, weight):
    share = alpha * inject
    return (share * (source @ M) + (1 - share) * edit) * weight


@right("edited_maps")
def _(source, edit, M, alpha, inject, weight):
    carried = torch.einsum("bhni,ij->bhnj", source, M)
    mixed = torch.where(alpha.bool() & bool(inject), carried, edit)
    return mixed * weight


@right("edited_maps")
def _(source, edit, M, alpha, inject, weight):
    out = edit + inject * alpha * (source @ M - edit)
    return out @ torch.diag(weight)


@wrong("edited_maps", "renormalised")
def _(source, edit, M, alpha, inject, weight):
    share = alpha * inject
    out = (share * (source @ M) + (1 - share) * edit) * weight
    return out / out.sum(-1, keepdim=True)


@wrong("edited_maps", "M transposed")
def _(source, edit, M, alpha, inject, weight):
    share = alpha * inject
    return (share * (source @ M.T) + (1 - share) * edit) * weight


@wrong("edited_maps", "all tokens from the source")
def _(source, edit, M, alpha, inject, weight):
    return (inject * (source @ M) + (1 - inject) * edit) * weight


@wrong("edited_maps", "weights only while")
def _(source, edit, M, alpha, inject, weight):
    if not inject:
        return edit
    return (alpha * (source @ M) + (1 - alpha) * edit) * weight


@wrong("edited_maps", "injected to the end")
def _(source, edit, M, alpha, inject, weight):
    return (alpha * (source @ M) + (1 - alpha) * edit) * weight


@wrong("edited_maps", "no weights")
def _(source, edit, M, alpha, inject, weight):
    share = alpha * inject
    return share * (source @ M) + (1 - share) * edit


# ---- lora_weight ---------------------------------------------------------------------------------


@right("lora_weight")
def _(W, A, B, alpha, strength):
    delta = torch.mm(B.reshape(len(B), -1), A.reshape(len(A), -1))
    return W + strength * (alpha / A.shape[0]) * delta.reshape(W.shape)


@right("lora_weight")
def _(W, A, B, alpha, strength):
    r = A.size(0)
    if W.ndim == 2:
        return W + strength * alpha / r * torch.matmul(B, A)
    return W + strength * alpha / r * torch.einsum("orxy,rikl->oikl", B, A)


@right("lora_weight")
def _(W, A, B, alpha, strength):
    s = (abs(strength * alpha / len(A))) ** 0.5
    sign = 1 if strength >= 0 else -1
    return W + sign * ((s * B.flatten(1)) @ (s * A.flatten(1))).view(W.shape)


@wrong("lora_weight", "alpha forgotten")
def _(W, A, B, alpha, strength):
    return W + strength * (B.flatten(1) @ A.flatten(1)).view_as(W)


@wrong("lora_weight", "not divided by the rank")
def _(W, A, B, alpha, strength):
    return W + strength * alpha * (B.flatten(1) @ A.flatten(1)).view_as(W)


@wrong("lora_weight", "the rank from the wrong axis")
def _(W, A, B, alpha, strength):
    return W + strength * alpha / B.shape[0] * (B.flatten(1) @ A.flatten(1)).view_as(W)


@wrong("lora_weight", "the weight itself is left out")
def _(W, A, B, alpha, strength):
    return strength * alpha / len(A) * (B.flatten(1) @ A.flatten(1)).view_as(W)


@wrong("lora_weight", "in place")
def _(W, A, B, alpha, strength):
    W += strength * alpha / len(A) * (B.flatten(1) @ A.flatten(1)).view_as(W)
    return W


# ---- expand_word ---------------------------------------------------------------------------------


@right("expand_word")
def _(ids, word, first, count):
    return [k for i in ids for k in (range(first, first + count) if i == word else (i,))]


@right("expand_word")
def _(ids, word, first, count):
    out = []
    for i in ids:
        if i == word:
            out.extend(np.arange(first, first + count))
        else:
            out.append(i)
    return out


@right("expand_word")
def _(ids, word, first, count):
    out = torch.cat(
        [torch.arange(first, first + count) if i == word else torch.tensor([i]) for i in ids]
    )
    return out.tolist()


@wrong("expand_word", "one vector repeated")
def _(ids, word, first, count):
    out = []
    for i in ids:
        out += [first] * count if i == word else [i]
    return out


@wrong("expand_word", "entries; expected")
def _(ids, word, first, count):
    return [first if i == word else i for i in ids]


@wrong("expand_word", "entries; expected")
def _(ids, word, first, count):
    out = list(ids)
    if word in out:
        k = out.index(word)
        out[k : k + 1] = range(first, first + count)
    return out


@wrong("expand_word", "entries; expected")
def _(ids, word, first, count):
    out = []
    for i in ids:
        out += range(first, first + count + 1) if i == word else [i]
    return out


@wrong("expand_word")
def _(ids, word, first, count):
    out = []
    for i in ids:
        if i == word:
            out.append(list(range(first, first + count)))
        else:
            out.append(i)
    return out


# ---- keep_rows -----------------------------------------------------------------------------------


@right("keep_rows")
def _(table, before, learned):
    out = before.clone()
    out[learned] = table[learned]
    return out


@right("keep_rows")
def _(table, before, learned):
    m = torch.zeros(len(table), 1)
    m[learned] = 1
    return m * table + (1 - m) * before


@right("keep_rows")
def _(table, before, learned):
    m = torch.zeros(len(table), 1)
    m[learned] = 1
    return before + m * (table - before)


@right("keep_rows")
def _(table, before, learned):
    return torch.stack([table[i] if i in learned else before[i] for i in range(len(table))])


@wrong("keep_rows", "in place")
def _(table, before, learned):
    for i in range(len(table)):
        if i not in learned:
            table[i] = before[i]
    return table


@wrong("keep_rows", "the learned rows put back")
def _(table, before, learned):
    out = table.clone()
    out[learned] = before[learned]
    return out


@wrong("keep_rows", "nothing put back")
def _(table, before, learned):
    return table


@wrong("keep_rows", "all put back")
def _(table, before, learned):
    return before


@wrong("keep_rows", "last bit")
def _(table, before, learned):
    m = torch.ones(len(table), 1)
    m[learned] = 0
    return table + m * (before - table)


# ---- times_of_strength ---------------------------------------------------------------------------


@right("times_of_strength")
def _(ts, strength):
    n = len(ts) - 1
    return ts[n - int(n * strength) :]


@right("times_of_strength")
def _(ts, strength):
    k = math.floor((len(ts) - 1) * strength)
    return ts[-(k + 1) :]


@right("times_of_strength")
def _(ts, strength):
    n = len(ts) - 1
    return list(np.array(ts)[n - int(n * strength) :])


@right("times_of_strength")
def _(ts, strength):
    k = int((len(ts) - 1) * strength)
    out = []
    for i in range(len(ts) - 1 - k, len(ts)):
        out.append(ts[i])
    return tuple(out)


@wrong("times_of_strength", "rounded")
def _(ts, strength):
    n = len(ts) - 1
    return ts[n - round(n * strength) :]


@wrong("times_of_strength", "the share that is skipped")
def _(ts, strength):
    n = len(ts) - 1
    return ts[int(n * strength) :]


@wrong("times_of_strength", "entries; expected")
def _(ts, strength):
    k = int((len(ts) - 1) * strength)
    return ts[-k:]


@wrong("times_of_strength")
def _(ts, strength):
    return ts[len(ts) - int(len(ts) * strength) :]


@wrong("times_of_strength")
def _(ts, strength):
    return [t for t in ts if t <= strength * ts[0]]


# ---- mix -----------------------------------------------------------------------------------------


@right("mix")
def _(sch, x_s, layout, nu, t, s, noise):
    a, sig = sch.at(s, x_s)
    return nu * x_s + (1 - nu) * (a * layout + sig * noise)


@right("mix")
def _(sch, x_s, layout, nu, t, s, noise):
    return torch.lerp(q_sample(sch, layout, s, noise), x_s, nu)


@wrong("mix", "nu of the layout")
def _(sch, x_s, layout, nu, t, s, noise):
    return (1 - nu) * x_s + nu * q_sample(sch, layout, s, noise)


@wrong("mix", "noised to t")
def _(sch, x_s, layout, nu, t, s, noise):
    return nu * x_s + (1 - nu) * q_sample(sch, layout, t, noise)


@wrong("mix", "the layout clean")
def _(sch, x_s, layout, nu, t, s, noise):
    return nu * x_s + (1 - nu) * layout


@wrong("mix", "alpha^2 + sigma^2 = 1")
def _(sch, x_s, layout, nu, t, s, noise):
    a, _ = sch.at(s, x_s)
    return nu * x_s + (1 - nu) * (a * layout + (1 - a * a) ** 0.5 * noise)


# ---- follow --------------------------------------------------------------------------------------


@right("follow")
def _(x, goal, share):
    b = len(goal)
    src, edit = x[:b], x[b:]
    return torch.cat([goal, edit + share * (goal - src)], 0)


@right("follow")
def _(x, goal, share):
    out = x.clone()
    b = goal.shape[0]
    off = goal - x[:b]
    out[:b] = out[:b] + off
    out[b:] = out[b:] + share * off
    return out


@wrong("follow", "the whole offset")
def _(x, goal, share):
    src, edit = x.chunk(2)
    return torch.cat([goal, edit + goal - src])


@wrong("follow", "edits on the path")
def _(x, goal, share):
    src, edit = x.chunk(2)
    return torch.cat([goal, edit + share * (goal - edit)])


@wrong("follow", "the sign")
def _(x, goal, share):
    src, edit = x.chunk(2)
    return torch.cat([goal, edit + share * (src - goal)])


@wrong("follow", "the share for the source too")
def _(x, goal, share):
    src, edit = x.chunk(2)
    return torch.cat([src + share * (goal - src), edit + share * (goal - src)])


@wrong("follow", "rows alternate")
def _(x, goal, share):
    out = x.clone()
    out[0::2] = goal
    out[1::2] = x[1::2] + share * (goal - x[0::2])
    return out


# ---- landing_null --------------------------------------------------------------------------------


@right("landing_null")
def _(sch, x_t, goal, e_cond, t, s, scale):
    (a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    eps = (goal / a_s - x_t / a_t) / (s_s / a_s - s_t / a_t)
    return (eps - scale * e_cond) / (1 - scale)


@right("landing_null")
def _(sch, x_t, goal, e_cond, t, s, scale):
    zero = ddim_step(sch, x_t, torch.zeros_like(x_t), t, s)
    unit = ddim_step(sch, x_t, torch.ones_like(x_t), t, s) - zero
    eps = (goal - zero) / unit
    return e_cond + (eps - e_cond) / (1 - scale)


@wrong("landing_null", "the wanted noise itself")
def _(sch, x_t, goal, e_cond, t, s, scale):
    (a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    return (goal - a_s / a_t * x_t) / (s_s - a_s / a_t * s_t)


@wrong("landing_null", "the sign")
def _(sch, x_t, goal, e_cond, t, s, scale):
    (a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    eps = (goal - a_s / a_t * x_t) / (s_s - a_s / a_t * s_t)
    return (eps - scale * e_cond) / (scale - 1)


@wrong("landing_null", "clean picture")
def _(sch, x_t, goal, e_cond, t, s, scale):
    a_t, s_t = sch.at(t, x_t)
    eps = (x_t - a_t * goal) / s_t
    return (eps - scale * e_cond) / (1 - scale)


@wrong("landing_null", "alpha^2 + sigma^2 = 1")
def _(sch, x_t, goal, e_cond, t, s, scale):
    a_t, a_s = sch.at(t, x_t)[0], sch.at(s, x_t)[0]
    s_t, s_s = (1 - a_t**2) ** 0.5, (1 - a_s**2) ** 0.5
    eps = (goal - a_s / a_t * x_t) / (s_s - a_s / a_t * s_t)
    return (eps - scale * e_cond) / (1 - scale)


# ---- noise_map -----------------------------------------------------------------------------------


@right("noise_map")
def _(sch, x_t, x_s, eps, t, s):
    x0 = eps_to_x0(sch, x_t, eps, t)
    mean, _ = posterior(sch, x_t, x0, t, s)
    return x_s - mean


@right("noise_map")
def _(sch, x_t, x_s, eps, t, s):
    (a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)
    x0 = (x_t - s_t * eps) / a_t
    mean = a_s * x0 + a_t / a_s * s_s**2 / s_t * eps
    return x_s - mean


@wrong("noise_map", "deterministic")
def _(sch, x_t, x_s, eps, t, s):
    return x_s - ddim_step(sch, x_t, eps, t, s)


@wrong("noise_map")
def _(sch, x_t, x_s, eps, t, s):
    mean, var = posterior(sch, x_t, eps_to_x0(sch, x_t, eps, t), t, s)
    return (x_s - mean) / max(var, 1e-12) ** 0.5


@wrong("noise_map", "the sign")
def _(sch, x_t, x_s, eps, t, s):
    mean, _ = posterior(sch, x_t, eps_to_x0(sch, x_t, eps, t), t, s)
    return mean - x_s


@wrong("noise_map")
def _(sch, x_t, x_s, eps, t, s):
    mean, _ = posterior(sch, x_t, eps, t, s)
    return x_s - mean


@wrong("noise_map", "alpha^2 + sigma^2 = 1")
def _(sch, x_t, x_s, eps, t, s):
    ab_t, ab_s = sch.at(t)[0] ** 2, sch.at(s)[0] ** 2
    x0 = (x_t - (1 - ab_t) ** 0.5 * eps) / ab_t**0.5
    beta = 1 - ab_t / ab_s
    mean = ab_s**0.5 * beta / (1 - ab_t) * x0
    mean = mean + (ab_t / ab_s) ** 0.5 * (1 - ab_s) / (1 - ab_t) * x_t
    return x_s - mean


# ---- refine --------------------------------------------------------------------------------------


def low(v, f):
    return F.avg_pool2d(v, f).repeat_interleave(f, 2).repeat_interleave(f, 3)


@right("refine")
def _(x, y, factor):
    return x + low(y - x, factor)


@right("refine")
def _(x, y, factor):
    b, c, h, w = x.shape

    def phi(v):
        v = v.view(b, c, h // factor, factor, w // factor, factor)
        return v.mean((3, 5), keepdim=True).expand_as(v).reshape(b, c, h, w)

    return x - phi(x) + phi(y)


@right("refine")
def _(x, y, factor):
    size = x.shape[2:]
    small = [n // factor for n in size]

    def phi(v):
        return F.interpolate(F.interpolate(v, small, mode="area"), size, mode="nearest")

    return x - phi(x) + phi(y)


@wrong("refine", "smooth")
def _(x, y, factor):
    def phi(v):
        small = F.avg_pool2d(v, factor)
        return F.interpolate(small, scale_factor=factor, mode="bilinear")

    return x - phi(x) + phi(y)


@wrong("refine", "only added")
def _(x, y, factor):
    return x + low(y, factor)


@wrong("refine", "the reference's detail")
def _(x, y, factor):
    return y - low(y, factor) + low(x, factor)


@wrong("refine", "one pixel for the mean")
def _(x, y, factor):
    def phi(v):
        small = F.interpolate(v, scale_factor=1 / factor)
        return F.interpolate(small, scale_factor=factor)

    return x - phi(x) + phi(y)


@wrong("refine")
def _(x, y, factor):
    def phi(v):
        return F.avg_pool2d(v, factor)

    return x - phi(x) + phi(y)


# ---- down ----------------------------------------------------------------------------------------


@right("down")
def _(denoise, sch, x, y, t, s, cond, p, swap):
    if swap:
        y = ddim_step(sch, y, denoise(x, t, cond), t, s)
        x = ddim_step(sch, x, denoise(y, t, cond), t, s)
    else:
        x = ddim_step(sch, x, denoise(y, t, cond), t, s)
        y = ddim_step(sch, y, denoise(x, t, cond), t, s)
    x = p * x + (1 - p) * y
    y = p * y + (1 - p) * x
    return x, y


@right("down")
def _(denoise, sch, x, y, t, s, cond, p, swap):
    a, b = (y, x) if swap else (x, y)
    a = q_sample(sch, eps_to_x0(sch, a, e := denoise(b, t, cond), t), s, e)
    b = q_sample(sch, eps_to_x0(sch, b, e := denoise(a, t, cond), t), s, e)
    x, y = (b, a) if swap else (a, b)
    x = torch.lerp(y, x, p)
    return [x, torch.lerp(x, y, p)]


@wrong("down", "moved at once")
def _(denoise, sch, x, y, t, s, cond, p, swap):
    x, y = (
        ddim_step(sch, x, denoise(y, t, cond), t, s),
        ddim_step(sch, y, denoise(x, t, cond), t, s),
    )
    x = p * x + (1 - p) * y
    return x, p * y + (1 - p) * x


@wrong("down", "mixed at once")
def _(denoise, sch, x, y, t, s, cond, p, swap):
    if swap:
        y = ddim_step(sch, y, denoise(x, t, cond), t, s)
        x = ddim_step(sch, x, denoise(y, t, cond), t, s)
    else:
        x = ddim_step(sch, x, denoise(y, t, cond), t, s)
        y = ddim_step(sch, y, denoise(x, t, cond), t, s)
    return p * x + (1 - p) * y, p * y + (1 - p) * x


@wrong("down", "the roles never change")
def _(denoise, sch, x, y, t, s, cond, p, swap):
    x = ddim_step(sch, x, denoise(y, t, cond), t, s)
    y = ddim_step(sch, y, denoise(x, t, cond), t, s)
    x = p * x + (1 - p) * y
    return x, p * y + (1 - p) * x


@wrong("down", "each by its own noise")
def _(denoise, sch, x, y, t, s, cond, p, swap):
    x = ddim_step(sch, x, denoise(x, t, cond), t, s)
    y = ddim_step(sch, y, denoise(y, t, cond), t, s)
    x = p * x + (1 - p) * y
    return x, p * y + (1 - p) * x


@wrong("down", "not exchanged back")
def _(denoise, sch, x, y, t, s, cond, p, swap):
    if swap:
        x, y = y, x
    x = ddim_step(sch, x, denoise(y, t, cond), t, s)
    y = ddim_step(sch, y, denoise(x, t, cond), t, s)
    x = p * x + (1 - p) * y
    return x, p * y + (1 - p) * x


# ---- jumps ---------------------------------------------------------------------------------------


def as_published(ts, length, repeats, first=0):
    """RePaint's own scheduler, whose t is one below our level: it writes down every step up."""
    n = len(ts) - 1
    left = {}
    for j in range(first, n - length, length):
        left[j] = repeats - 1
    t = n
    levels = []
    while t >= 1:
        t = t - 1
        levels.append(t)
        if left.get(t, 0) > 0:
            left[t] -= 1
            for _ in range(length):
                t = t + 1
                levels.append(t)
    levels.append(-1)
    return [ts[n - (k + 1)] for k in levels]


@right("jumps")
def _(ts, length, repeats):
    return as_published(ts, length, repeats)


@right("jumps")
def _(ts, length, repeats):
    n = len(ts) - 1
    left = defaultdict(int)
    for k in range(1, n - length + 1, length):
        left[k] = repeats - 1
    out, level = [ts[0]], n
    while level > 0:
        level -= 1
        out.append(ts[n - level])
        if left[level] > 0:
            left[level] -= 1
            level += length
            out.append(ts[n - level])
    return out


@right("jumps")
def _(ts, length, repeats):
    n = len(ts) - 1
    grid = np.array(ts)[::-1]
    left = np.zeros(n + 1, int)
    left[1 : n - length + 1 : length] = repeats - 1
    out, level = [grid[n]], n
    while level:
        level -= 1
        out.append(grid[level])
        if left[level]:
            left[level] -= 1
            level += length
            out.append(grid[level])
    return out


@wrong("jumps", "one jump too many")
def _(ts, length, repeats):
    return as_published(ts, length, repeats + 1)


@wrong("jumps", "never back")
def _(ts, length, repeats):
    return list(ts)


@wrong("jumps")
def _(ts, length, repeats):
    n = len(ts) - 1
    left = {k: repeats - 1 for k in range(0, n - length + 1, length)}
    out, level = [ts[0]], n
    while level > 0:
        level -= 1
        out.append(ts[n - level])
        if left.get(level, 0) > 0:
            left[level] -= 1
            level += length
            out.append(ts[n - level])
    return out


@wrong("jumps", "entries; expected")
def _(ts, length, repeats):
    n = len(ts) - 1
    left = {k: repeats - 1 for k in range(1, n - length + 1, length)}
    out, level = [ts[0]], n
    while level > 0:
        level -= 1
        out.append(ts[n - level])
        if left.get(level, 0) > 0:
            left[level] -= 1
            level += length
    return out


# ---- project_average -----------------------------------------------------------------------------


@right("project_average")
def _(x, y, factor):
    error = y - F.avg_pool2d(x, factor)
    return x + error.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


@right("project_average")
def _(x, y, factor):
    return x - low(x, factor) + F.interpolate(y, scale_factor=factor)


@right("project_average")
def _(x, y, factor):
    return x - torch.kron(F.avg_pool2d(x, factor) - y, torch.ones(factor, factor))


@wrong("project_average", "transpose")
def _(x, y, factor):
    error = F.avg_pool2d(x, factor) - y
    return x - F.interpolate(error, scale_factor=factor) / factor**2


@wrong("project_average", "replaced")
def _(x, y, factor):
    return F.interpolate(y, scale_factor=factor)


@wrong("project_average", "the sign")
def _(x, y, factor):
    return x + F.interpolate(F.avg_pool2d(x, factor) - y, scale_factor=factor)


@wrong("project_average", "sums for means")
def _(x, y, factor):
    total = F.avg_pool2d(x, factor, divisor_override=1)
    return x - F.interpolate(total - y, scale_factor=factor) / factor**2


@wrong("project_average", "smoothly")
def _(x, y, factor):
    error = F.avg_pool2d(x, factor) - y
    return x - F.interpolate(error, scale_factor=factor, mode="bilinear")


# ---- luma_pinv -----------------------------------------------------------------------------------


@right("luma_pinv")
def _(y, weights):
    w = weights.view(1, -1, 1, 1)
    return w * y / (w**2).sum()


@right("luma_pinv")
def _(y, weights):
    inverse = torch.linalg.pinv(weights[None])[:, 0]
    return torch.einsum("c,bhw->bchw", inverse, y[:, 0])


@right("luma_pinv")
def _(y, weights):
    return y * (weights / torch.dot(weights, weights))[None, :, None, None]


@wrong("luma_pinv", "the transpose")
def _(y, weights):
    return y * weights[None, :, None, None]


@wrong("luma_pinv", "the same grey")
def _(y, weights):
    return y.repeat(1, len(weights), 1, 1)


@wrong("luma_pinv", "divided by the length of w")
def _(y, weights):
    return y * (weights / weights.norm())[None, :, None, None]


@wrong("luma_pinv", "share undone")
def _(y, weights):
    return y / (weights * len(weights))[None, :, None, None]


@wrong("luma_pinv", "the transpose")
def _(y, weights):
    return y * (weights / weights.sum())[None, :, None, None]


# ---- to_latent_mask ------------------------------------------------------------------------------


@right("to_latent_mask")
def _(mask, pipe):
    f = pipe.factor
    b, _, h, w = mask.shape
    return mask.view(b, 1, h // f, f, w // f, f).amax((3, 5))


@right("to_latent_mask")
def _(mask, pipe):
    return (F.avg_pool2d(mask, pipe.factor) > 0).float()


@right("to_latent_mask")
def _(mask, pipe):
    f = pipe.factor
    size = (mask.shape[2] // f, mask.shape[3] // f)
    return F.adaptive_max_pool2d(mask.to(pipe.device, pipe.dtype), size)


@wrong("to_latent_mask", "every f-th pixel")
def _(mask, pipe):
    return F.interpolate(mask, scale_factor=1 / pipe.factor)


@wrong("to_latent_mask", "the mean")
def _(mask, pipe):
    return F.avg_pool2d(mask, pipe.factor)


@wrong("to_latent_mask", "the majority")
def _(mask, pipe):
    return F.avg_pool2d(mask, pipe.factor).round()


@wrong("to_latent_mask", "only whole latents")
def _(mask, pipe):
    return (F.avg_pool2d(mask, pipe.factor) == 1).float()


@wrong("to_latent_mask", "bool")
def _(mask, pipe):
    return F.avg_pool2d(mask, pipe.factor) > 0


@wrong("to_latent_mask", "the sum")
def _(mask, pipe):
    return F.avg_pool2d(mask, pipe.factor, divisor_override=1)


# ---- paste ---------------------------------------------------------------------------------------


@right("paste")
def _(out, image, mask):
    return image + mask * (out - image)


@right("paste")
def _(out, image, mask):
    return torch.where(mask.bool(), out, image)


@right("paste")
def _(out, image, mask):
    return out * mask + image * (1 - mask)


@right("paste")
def _(out, image, mask):
    result = image.clone()
    m = mask.expand_as(image) == 1
    result[m] = out[m]
    return result


@right("paste")
def _(out, image, mask):
    return torch.lerp(image, out, mask.expand_as(image))


@wrong("paste", "last bit")
def _(out, image, mask):
    return out + (1 - mask) * (image - out)


@wrong("paste", "the mask means keep")
def _(out, image, mask):
    return mask * image + (1 - mask) * out


@wrong("paste", "added")
def _(out, image, mask):
    return image + mask * out


@wrong("paste", "only the inside")
def _(out, image, mask):
    return mask * out


@wrong("paste", "in place")
def _(out, image, mask):
    m = mask.expand_as(image) == 1
    image[m] = out[m]
    return image


# ---- blend_known ---------------------------------------------------------------------------------


@right("blend_known")
def _(sch, x_s, known, mask, t, s, noise):
    a, sig = sch.at(s, known)
    return torch.where(mask.bool(), x_s, a * known + sig * noise)


@right("blend_known")
def _(sch, x_s, known, mask, t, s, noise):
    outside = q_sample(sch, known, s, noise)
    return outside + mask * (x_s - outside)


@wrong("blend_known", "noised to t")
def _(sch, x_s, known, mask, t, s, noise):
    return mask * x_s + (1 - mask) * q_sample(sch, known, t, noise)


@wrong("blend_known", "not noised")
def _(sch, x_s, known, mask, t, s, noise):
    return mask * x_s + (1 - mask) * known


@wrong("blend_known", "the mask means keep")
def _(sch, x_s, known, mask, t, s, noise):
    return (1 - mask) * x_s + mask * q_sample(sch, known, s, noise)


@wrong("blend_known", "added")
def _(sch, x_s, known, mask, t, s, noise):
    return x_s + (1 - mask) * q_sample(sch, known, s, noise)


@wrong("blend_known", "alpha^2 + sigma^2 = 1")
def _(sch, x_s, known, mask, t, s, noise):
    a, _ = sch.at(s)
    return mask * x_s + (1 - mask) * (a * known + (1 - a**2) ** 0.5 * noise)
