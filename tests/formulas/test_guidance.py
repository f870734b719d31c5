"""Guidance."""

from itertools import product
from math import cos, exp, log, pi, sqrt

import torch
from by_hand import (
    Judge,
    Reader,
    Stack,
    foreseen,
    guided,
    move,
    near,
    picture,
    rand,
    slope,
    small,
    stack,
    tables,
)

from minidiff.analysis.daam import as_pictures, heat
from minidiff.analysis.diffusion_classifier import diffusion_classifier
from minidiff.core import schedule
from minidiff.core.cfg import cfg
from minidiff.core.cond import Cond
from minidiff.core.denoise import noises
from minidiff.core.taps import tap
from minidiff.data.toy2d import Mixture
from minidiff.guidance.attend_and_excite import attend_and_excite
from minidiff.guidance.autoguidance import autoguidance
from minidiff.guidance.cfg_pp import cfg_pp, same_scale
from minidiff.guidance.cfg_zero import cfg_zero, guide_zero
from minidiff.guidance.classifier_guidance import pull
from minidiff.guidance.dynamic_threshold import thresholded
from minidiff.guidance.freeu import low_frequencies
from minidiff.guidance.paint_with_words import Painted, painted
from minidiff.guidance.perturbed_attention import perturbed_attention
from minidiff.guidance.projected import projected
from minidiff.guidance.regions import Region, regional
from minidiff.guidance.semantic_guidance import look_ahead, wish
from minidiff.models.attention import Attention
from minidiff.restoration.ilvr import refine


def test_classifier_guidance():
    """One Gaussian per class: weight 1 must give the class's own noise."""
    sch, mix, t = (
        schedule.linear(),
        Mixture([[-1.0], [0.5]], [[[0.1]], [[0.3]]], weights=[0.3, 0.7]),
        400,
    )
    x, (al, sg) = rand(5, 1), tables(sch, 400)

    def log_p(x_t, _):
        return mix.log_prob(x_t, al, sg, torch.zeros(len(x_t)).long()) - mix.log_prob(x_t, al, sg)

    got = pull(mix.denoise(sch), sch, log_p, 1.0)(x, t, None)
    near(got, mix.denoise(sch)(x, t, Cond(label=torch.zeros(5).long())), 1e-8)
    h, w = 1e-5, 2.5
    slope = (log_p(x + h, t) - log_p(x - h, t))[:, None] / (2 * h)
    near(
        pull(mix.denoise(sch), sch, log_p, w)(x, t, None),
        mix.denoise(sch)(x, t, None) - w * sg * slope,
        1e-6,
    )


def test_cfg():
    def denoise(x_t, t, cond):
        return x_t * cond.extra["k"].view(-1, 1)

    x, null, cond = (
        rand(3, 4),
        Cond(extra={"k": torch.tensor([2.0])}),
        Cond(extra={"k": torch.tensor([5.0, 7.0, 11.0])}),
    )
    for scale in (0.0, 1.0, 3.0):
        want = [
            [2 * v + scale * (k * v - 2 * v) for v in row] for k, row in zip((5, 7, 11), x.tolist())
        ]
        near(cfg(denoise, null, scale)(x, 500, cond), torch.tensor(want, dtype=torch.float64))


def test_ilvr_exchange():
    x, y, N = rand(1, 2, 4, 4), rand(1, 2, 4, 4, seed=1), 2
    got = refine(x, y, N)
    for c, i, j in product(range(2), range(4), range(4)):
        block = (0, c, slice(i // N * N, i // N * N + N), slice(j // N * N, j // N * N + N))
        near(got[0, c, i, j], x[0, c, i, j] - x[block].mean() + y[block].mean())
        near(got[block].mean(), y[block].mean())


def test_attend_and_excite():
    """Two steps: maps pixel by pixel, and their slope by differences."""
    pipe, prompt, alpha = small(Stack()), "a red circle left of a green star", 30.0
    pipe.text.weight.data *= 0.1  # words nearly alike: no softmax is saturated
    cond, said = pipe.embed(prompt), prompt.split()
    mirror, g = (1, 0, 1, 2, 3, 2), exp(-2)  # beyond an edge stands what is before it
    kernel = [g / (1 + 2 * g), 1 / (1 + 2 * g), g / (1 + 2 * g)]

    def loss(x, t):
        seen = stack(pipe, x, t, cond)[1]
        # pixels tokens
        mean = sum(seen[(i, "text"), "probs", head] for i in range(3) for head in range(2)) / 6
        # of the prompt's words alone
        maps = (100 * mean[:, 1 : 1 + len(said)]).softmax(1).view(4, 4, -1)
        worst = 0.0
        for w in ("circle", "star"):
            a = maps[..., said.index(w)]
            smooth = [
                sum(
                    kernel[p] * kernel[q] * a[mirror[i + p], mirror[j + q]].item()
                    for p, q in product(range(3), range(3))
                )
                for i, j in product(range(4), range(4))
            ]
            worst = max(worst, 1 - max(smooth))
        return worst

    x, first = pipe.noise(1, 5), 0.0
    for t, s, size in ((1000, 500, alpha), (500, 0, alpha / sqrt(2))):
        pull = slope(lambda x: loss(x, t), x)  # noqa: B023
        first, x = max(first, (alpha * pull).abs().max()), x - size * pull
        x = move(pipe.schedule, x, guided(pipe, x, t, cond, 2.0), t, s)
    run = dict(strength=alpha, until=1.0, side=4, steps=2, scale=2.0, seed=5)
    near(attend_and_excite(pipe, prompt, ("circle", "star"), **run), pipe.decode(x), 1e-5)
    assert first > 0.05


def f_by_hand(judge, x, r, words, w_t, w_c, w_s, w_y):
    """F of one picture: towers, products and Gram matrices by sums."""

    def tower(p):
        f, states = torch.cat([torch.ones(1, 3), p.flatten(1).T]), []
        for w in judge.weights():
            f = torch.tanh(f @ w)
            states.append(f[1:].tolist())  # 16 patches
        v = sum((k + 1) * row for k, row in enumerate(f))
        return v / v.norm(), states

    def gram(f):
        return [
            sum(row[i] * row[j] for row in f) / len(f)
            for i, j in product(range(len(f[0])), repeat=2)
        ]

    def apart(a, b):
        return sum((p - q) ** 2 for p, q in zip(a, b)) / sum(q**2 for q in b)

    (v, f), (v_r, f_r) = tower(x), tower(r)
    first = [[u for row in states[0] for u in row] for states in (f, f_r)]
    return (
        w_t * (v @ words).item()
        + w_c * (v @ v_r).item()
        - w_s * apart(*first)
        - w_y * sum(apart(gram(a), gram(b)) for a, b in zip(f, f_r))
    )


def test_semantic_wish():
    judge, weights = Judge(), dict(text=2.0, content=1.5, structure=0.7, style=0.4)
    x, r, words, sch = (
        picture(2, 1),
        picture(1, 2),
        torch.nn.functional.normalize(rand(1, 4)),
        schedule.linear(),
    )
    score, by_hand = (
        wish(judge, words=words, reference=r, **weights),
        lambda p: f_by_hand(judge, p, r[0], words[0], *weights.values()),
    )
    near(score(x), [by_hand(p) for p in x], 1e-8)

    pipe, cond = small(Reader()), small().embed("a red circle")
    eps = lambda x: pipe.eps(x, 400, cond).detach()  # noqa: E731
    x_t, (_, sg) = rand(1, 3, 4, 4), tables(sch, 400)
    g = slope(lambda x: by_hand(foreseen(sch, x, eps(x), 400)[0]), x_t)
    near(look_ahead(pipe.eps, sch, score, through=True)(x_t, 400, cond), eps(x_t) - sg * g, 1e-6)


def test_semantic_jacobian():
    """Data of unit variance and an exact denoiser: a difference, the formula, the shortcut and the
    long way agree.
    """
    mix, x, h = Mixture([[0.3, -0.2]], [[[1.0, 0.0], [0.0, 1.0]]]), rand(3, 2), 1e-5
    for sch in (schedule.linear(), schedule.flow()):
        for t in (100, 500, 900):
            (al, sg), denoise = tables(sch, t), mix.denoise(sch)
            ahead = [foreseen(sch, x + d, denoise(x + d, t, None), t) for d in (h, -h)]
            near((ahead[0] - ahead[1]) / (2 * h), torch.full_like(x, al / (al**2 + sg**2)), 1e-6)
            score = lambda x0: torch.sin(3 * x0).sum(1)  # noqa: E731
            short, long = (
                look_ahead(denoise, sch, score, through)(x, t, None) for through in (False, True)
            )
            near(short, long, 1e-6)
            want = (
                3 * torch.cos(3 * foreseen(sch, x, denoise(x, t, None), t)) * al / (al**2 + sg**2)
            )
            near(denoise(x, t, None) - short, sg * want, 1e-6)


def test_regions_mean():
    """Three windows on a canvas, value by value; weights from their own formula."""

    def denoise(x_t, t, cond):
        return torch.sin(x_t + cond.label.view(-1, 1, 1, 1)) + x_t.roll(1, -1)

    x = rand(1, 1, 4, 9)
    conds = [Cond(label=torch.tensor([k])) for k in range(3)]
    regions = [Region(0, left, 4, 5, cond) for left, cond in zip((0, 2, 4), conds)]
    for kind in ("gauss", "even"):
        got = regional(denoise, regions, (4, 9), weights=kind)(x, 5, None)
        for i, j in product(range(4), range(9)):
            above = below = 0.0
            for r in regions:
                if r.left <= j < r.left + 5:
                    far = (i - 1.5) ** 2 / 16 + (j - r.left - 2) ** 2 / 25  # in sides
                    w = exp(-far / 0.02) if kind == "gauss" else 1.0
                    said = denoise(x[..., r.left : r.left + 5], 5, r.cond)
                    above += w * said[0, 0, i, j - r.left].item()
                    below += w
            near(got[0, 0, i, j], above / below, 1e-5)


def test_freeu_filter():
    """Taken off is 1 - s of each wave of the window, found by sums; the window of frequencies -1
    and 0 along either axis, and of the product the real part.
    """
    n, s, x = 6, 0.3, rand(1, 1, 6, 6)
    got = low_frequencies(x, s)
    for i, j in product(range(n), range(n)):
        off = 0.0
        for p, q in product((-1, 0), (-1, 0)):
            for k, m in product(range(n), range(n)):
                phase = 2 * pi * (p * (i - k) + q * (j - m)) / n
                off += x[0, 0, k, m].item() * cos(phase) / n**2
        near(got[0, 0, i, j], x[0, 0, i, j] - (1 - s) * off, 1e-5)


def test_painted_scores():
    """The scores before they are divided by the root of d, raised by w M; softmax by hand."""
    pipe, prompt, t, strength = small(Stack()), "a red circle left of a green star", 700, 0.6
    cond, x = pipe.embed(prompt), pipe.noise(1, 5)
    tokens, half = torch.zeros(1, cond.text.shape[1]), torch.zeros(1, 1, 4, 4)
    tokens[0, 2:4] = 1
    half[..., :2] = 1
    plain, seen = {}, {}
    with tap(pipe.net, r"attn2\.logits$", lambda v, name: plain.update({name: v.clone()})):
        pipe.eps(x, t, cond)

    def inside(x_t, t, c):
        with tap(pipe.net, r"attn2\.probs$", lambda v, name: seen.update({name: v.clone()})):
            return pipe.eps(x_t, t, c)

    paint = Painted(tokens, half)
    painted(inside, pipe.net, pipe.schedule, paint, strength)(x, t, cond)
    name = next(iter(plain))
    scores, probs, d = plain[name][0], seen[name.replace("logits", "probs")][0], 7.0
    al, sg = tables(pipe.schedule, t)
    for head in range(len(scores)):
        qk = scores[head] * sqrt(d)  # whatever d is, it falls out
        w = strength * log(1 + sg / al) * max(qk.max().item(), 0.0)
        M = half.flatten()[:, None] * tokens
        want = ((qk + w * M) / sqrt(d)).exp()
        near(probs[head], want / want.sum(1, keepdim=True), 1e-5)


def test_classifier_error():
    """The mean over one set of times and noises, of squares by hand."""
    pipe = small(Reader())
    image, said, times = rand(1, 3, 4, 4, seed=2), ["a red circle", "a green star"], (300, 700)
    found = diffusion_classifier(pipe, image, said, times=times, rounds=2, seed=4)
    drawn, z = noises(pipe.encode(image), 4), pipe.encode(image)
    total = [0.0, 0.0]
    for t in times * 2:
        n, (al, sg) = next(drawn), tables(pipe.schedule, t)
        for c, prompt in enumerate(said):
            eps = pipe.eps(al * z + sg * n, t, pipe.embed(prompt))
            gaps = (n - eps).flatten().tolist()
            total[c] += sum(g**2 for g in gaps) / len(gaps) / 4
    near(found.errors[0], total, 1e-5)
    assert found.best.item() == (0 if total[0] < total[1] else 1)


def test_daam_sum():
    """Maps of the size asked for, so that nothing is enlarged: sums over heads, layers, times."""
    probs = {
        (layer, t): rand(1, 2, 16, 3, seed=t + k).softmax(-1)
        for k, layer in enumerate("ab")
        for t in (1, 9)
    }
    maps = {key: as_pictures(p, (4, 4)) for key, p in probs.items()}
    got = heat(maps, [1], (4, 4))[0]
    want = [
        [
            sum(p[0, h, 4 * i + j, 1].item() / 2 for p in probs.values() for h in range(2))
            for j in range(4)
        ]
        for i in range(4)
    ]
    near(got, torch.tensor(want) / max(map(max, want)), 1e-5)


# ---- guidances that are functions from Denoise to Denoise ----------------------------------------


def test_autoguidance():
    """The difference followed further, and what it does to errors of one kind and two sizes."""
    good, bad = rand(3, 4), rand(3, 4, seed=1)
    got = autoguidance(lambda *a: good, lambda *a: bad, 2.5)(good, 500, None)
    want = [[b + 2.5 * (g - b) for g, b in zip(*rows)] for rows in zip(good.tolist(), bad.tolist())]
    near(got, torch.tensor(want, dtype=torch.float64))
    right, error, delta = rand(3, 4, seed=2), rand(3, 4, seed=3), 0.01
    for k in (2.0, 3.0, 10.0):
        good, bad = right + delta * error, right + k * delta * error
        got = autoguidance(lambda *a: good, lambda *a: bad, k / (k - 1))(right, 500, None)  # noqa: B023
        near(got, right)


def test_perturbed_attention():
    """One head by loops: the place alone, and the mean question."""
    torch.manual_seed(0)
    attention = Attention(4, 1).double()
    net = torch.nn.ModuleDict({"mid_block": torch.nn.ModuleDict({"attn1": attention})})
    x, scale = rand(1, 3, 4), 2.0

    def weighted(maps):
        v = attention.to_v(x)[0]
        rows = [sum(m * row for m, row in zip(line, v)) for line in maps]
        return attention.to_out[0](torch.stack(rows))[None]

    q, k = attention.to_q(x)[0], attention.to_k(x)[0]
    mean = sum(q) / 3

    def asked(question):
        weights = [exp((question @ key).item() / 2) for key in k]  # sqrt(4)
        return [w / sum(weights) for w in weights]

    plain = weighted([asked(question) for question in q])
    spoilt = {
        "alone": weighted([[float(i == j) for j in range(3)] for i in range(3)]),
        "alike": weighted([asked(mean)] * 3),
    }
    for how, worse in spoilt.items():
        guided = perturbed_attention(lambda x, t, c: attention(x), net, scale, how=how)
        near(guided(x, 0, None), plain + scale * (plain - worse), 1e-6)


def guesses():
    x0_cond, x0_null = rand(2, 3, 4), rand(2, 3, 4, seed=1)

    def denoise_at(sch, t, x):
        al, sg = tables(sch, t)
        return lambda x_t, _, cond: (x_t - al * (x0_null if cond.label[0] == -1 else x0_cond)) / sg

    return x0_cond, x0_null, denoise_at


def test_projected():
    """Row by row with sums over all values: a length cut, and a share of the parallel part."""
    sch, t, x = schedule.linear(), 500, rand(2, 3, 4, seed=2)
    x0_cond, x0_null, denoise_at = guesses()
    eta, radius, scale = 0.3, 2.0, 5.0
    null, cond = Cond(label=torch.tensor([-1])), Cond(label=torch.tensor([1, 1]))
    guided = projected(denoise_at(sch, t, x), null, sch, scale, eta=eta, radius=radius)
    al, sg = tables(sch, t)
    got = (x - sg * guided(x, t, cond)) / al
    for i in range(2):
        c, d = x0_cond[i].flatten().tolist(), (x0_cond - x0_null)[i].flatten().tolist()
        length = sqrt(sum(v * v for v in d))
        d = [v * min(1, radius / length) for v in d]
        share = sum(a * b for a, b in zip(d, c)) / sum(b * b for b in c)
        want = [b + (scale - 1) * (a - share * b + eta * share * b) for a, b in zip(d, c)]
        near(got[i].flatten(), torch.tensor(want, dtype=torch.float64), 1e-8)


def test_cfg_zero():
    """The best multiple is found by search, and then guided from, in the flow's velocity."""
    null, cond = rand(1, 6), rand(1, 6, seed=1)
    multiples = torch.linspace(-3, 3, 60_001, dtype=torch.float64)
    left = ((cond - multiples[:, None] * null) ** 2).sum(1)
    s = multiples[left.argmin()].item()
    near(guide_zero(null, cond, 4.0), s * null + 4 * (cond - s * null), 1e-3)
    for sch in (schedule.linear(), schedule.flow(), schedule.ve()):
        x, t = rand(1, 6, seed=2), 400
        al, sg = tables(sch, t)
        eps = lambda x, t, c: null if c.label[0] == -1 else cond  # noqa: E731
        v_null, v_cond = (e - (x - sg * e) / al for e in (null, cond))
        v = guide_zero(v_null, v_cond, 4.0)
        labels = Cond(label=torch.tensor([-1])), Cond(label=torch.tensor([1]))
        got = cfg_zero(eps, labels[0], sch, 4.0)(x, t, labels[1])
        near(got - (x - sg * got) / al, v, 1e-7)


def test_cfg_pp_step():
    """Down by the guided noise, up by the unconditional one."""
    for sch in (schedule.linear(), schedule.flow(), schedule.ve()):
        null, cond, x = rand(2, 3), rand(2, 3, seed=1), rand(2, 3, seed=2)
        al, sg, al_s, sg_s = tables(sch, 600, 300)
        eps = lambda x, t, c: null if c.label[0] == -1 else cond  # noqa: E731,B023
        labels = Cond(label=torch.tensor([-1])), Cond(label=torch.tensor([1, 1]))
        got = cfg_pp(eps, labels[0], sch, x, labels[1], lam=0.7, times=(600, 300))
        led = null + 0.7 * (cond - null)
        near(got, al_s * (x - sg * led) / al + sg_s * null)


def test_cfg_pp_scale():
    """The guided part of DDIM's step has the same size as that of CFG++."""
    for sch in (schedule.linear(), schedule.flow(), schedule.ve()):
        for t, s in ((900, 899), (600, 300), (10, 1), (700, 0)):
            al, sg, al_s, sg_s = tables(sch, t, s)
            of_ddim = sg_s - al_s * sg / al  # what one unit of guidance moves in DDIM
            of_plus = -al_s * sg / al
            near(same_scale(sch, 0.3, t, s) * of_ddim, 0.3 * of_plus, 1e-9)


def test_dynamic_threshold():
    """s by sorting: the value below which the share lies, on the line between its neighbours."""
    x0, quantile = 3 * rand(2, 11), 0.73
    for row, got in zip(x0.tolist(), thresholded(x0, quantile)):
        sizes = sorted(abs(v) for v in row)
        at = quantile * 10
        below = sizes[int(at)]
        s = max(1.0, below + (at - int(at)) * (sizes[int(at) + 1] - below))
        near(got, torch.tensor([max(-s, min(s, v)) / s for v in row]), 1e-6)
