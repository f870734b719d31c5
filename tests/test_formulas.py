"""Equations on the pages, computed twice: by the project's code, and by hand in another way (loops, densities on a grid).

A page marks an equation by `<!-- formula NAME -->`, beside its pass mark, on the line above it; `test_NAME` here computes
it. A mark without a test, a test without a mark, or a mark with no equation below it, fails.
"""
import re
from itertools import pairwise, product
from math import log, pi, sqrt
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import minidiff
from minidiff.core import process as P
from minidiff.core import schedule
from minidiff.core.cond import Cond
from minidiff.core.schedule import Schedule
from minidiff.data.toy2d import Mixture, gaussian_flow_map, gmm8
from minidiff.editing.delta_denoising import score_gradient
from minidiff.editing.diffedit import difference, threshold_mask
from minidiff.editing.prompt_to_prompt import edit_cross
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import frechet, frechet_gaussians
from minidiff.guidance.cfg import cfg
from minidiff.guidance.classifier import pull
from minidiff.guidance.ilvr import refine
from minidiff.inversion.ddim import Inverted, invert_step
from minidiff.inversion.edict import down as edict_down
from minidiff.inversion.edict import up as edict_up
from minidiff.inversion.edit_friendly import noise_maps, replay_maps, scattered
from minidiff.restoration.ddnm import trust
from minidiff.restoration.ddrm import _mix
from minidiff.restoration.operators import blur, lossy

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"^<!-- formula (\w+) -->(.*)\n\n(\$\$)?", re.M)
PASS = " <sub>checked by <code>tests/test_formulas.py::test_{}</code></sub>"
TABLES = (schedule.linear(), schedule.cosine(), schedule.flow(), schedule.ve())
MOVES = ((1000, 700), (700, 699), (400, 1), (20, 10))
FORMULAS = {}


def formula(fn):
    """Adds a test to the table of equations, under its name without `test_`."""
    FORMULAS[fn.__name__.removeprefix("test_")] = fn
    return fn


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def column(v):
    return torch.tensor([[v]], dtype=torch.float64)


def near(got, want, tolerance=1e-9):
    got, want = torch.as_tensor(got, dtype=torch.float64), torch.as_tensor(want, dtype=torch.float64)
    assert got.shape == want.shape or not got.ndim
    gap = ((got - want).abs() / want.abs().clamp_min(1)).max().item()
    assert gap <= tolerance, f"off by {gap:.3g}"


def tables(sch, *times):
    return [v for t in times for v in (sch.alpha[t].item(), sch.sigma[t].item())]


# ---- the table and the pages ----------------------------------------------------------------------------------------

def wrong(pages: dict[str, str], tests) -> list[str]:
    """What is not as it should be with the marks of some pages."""
    found, faults = set(), []
    for page, text in pages.items():
        if text.count("<!-- formula") != len(MARK.findall(text)):
            faults.append(f"{page}: a mark is not alone on its line with a blank line below")
        for name, rest, equation in MARK.findall(text):
            found.add(name)
            faults += [f"{page}: {name} has no test"] * (name not in tests)
            faults += [f"{page}: {name} without its pass mark"] * (rest != PASS.format(name))
            faults += [f"{page}: no equation below {name}"] * (not equation)
    return faults + [f"{name} stands on no page" for name in tests if name not in found]


def test_every_mark_has_a_test_and_every_test_a_mark():
    pages = {str(p.relative_to(ROOT)): p.read_text() for p in sorted((ROOT / "tutorials").rglob("*.md"))}
    assert not wrong(pages, FORMULAS) and len(FORMULAS) >= 12


def test_a_mark_that_is_not_kept_is_found():
    good = f"text\n\n<!-- formula a -->{PASS.format('a')}\n\n$$x = y$$\n"
    assert not wrong({"page": good}, {"a"})
    for page, tests in ((good, {"a", "b"}), (good, set()), (good.replace("$$x = y$$", "text"), {"a"}),
                        (good.replace("test_a", "test_b"), {"a"}), (good.replace("\n\n$$", "\n$$"), {"a"})):
        assert len(wrong({"page": page}, tests)) >= 1


# ---- the process ----------------------------------------------------------------------------------------------------

@formula
@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_forward_process(sch):
    x0, eps = rand(3, 2, 4, 4), rand(3, 2, 4, 4, seed=1)
    t = torch.tensor([1, 500, 1000])
    want = torch.stack([sch.alpha[k] * x + sch.sigma[k] * e for k, x, e in zip(t, x0, eps)])
    near(P.q_sample(sch, x0, t, eps), want)


@formula
@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_transition(sch):
    for t, s in MOVES:
        (al_s, sg_s, al_t, sg_t), n = tables(sch, s, t), rand(2, 5, seed=1)
        a, var = P.transition(sch, s, t, n)
        near([al_s * a, (a * sg_s) ** 2 + var], [al_t, sg_t ** 2])                        # end where q(x_t | x0) does
        ratio = al_t / al_s
        near(P.renoise(sch, rand(2, 5), s, t, n), ratio * rand(2, 5) + sqrt(sg_t ** 2 - (ratio * sg_s) ** 2) * n)


@formula
@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_posterior(sch):
    for t, s in MOVES:
        al_s, sg_s, al_t, sg_t = tables(sch, s, t)
        a, x0, x_t = al_t / al_s, .4, al_t * .4 + 1.3 * sg_t
        mean, var = P.posterior(sch, column(x_t), column(x0), t, s)
        u = torch.linspace(-9, 9, 4001, dtype=torch.float64) * sqrt(var) + mean.item()
        w = -(u - al_s * x0) ** 2 / sg_s ** 2 - (x_t - a * u) ** 2 / (sg_t ** 2 - a ** 2 * sg_s ** 2)
        w = (w / 2).softmax(0)
        centre = (w * u).sum()
        near([mean.item() / sg_t, var / sg_s ** 2], [centre / sg_t, (w * (u - centre) ** 2).sum() / sg_s ** 2], 1e-7)


def one_step_kl(sch, t, s):
    """KL of two posteriors that differ in x0, integrated over the line; the two x0 and x_t."""
    x0, guess, eps = .4, -.3, 1.1
    x_t = tables(sch, t)[0] * x0 + tables(sch, t)[1] * eps
    (m, var), (m_hat, _) = (P.posterior(sch, column(x_t), column(v), t, s) for v in (x0, guess))
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    p = torch.exp(-z ** 2 / 2) / sqrt(2 * pi) * (z[1] - z[0])
    shift = ((m - m_hat) / sqrt(var)).item()
    return (p * ((z + shift) ** 2 / 2 - z ** 2 / 2)).sum(), x0, guess, x_t


@formula
@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_elbo_weight(sch):
    for t, s in MOVES:
        kl, x0, guess, _ = one_step_kl(sch, t, s)
        near((.5 * (sch.log_snr[s].exp() - sch.log_snr[t].exp()) * (x0 - guess) ** 2) / kl, 1., 1e-7)


@formula
def test_elbo():
    """With a perfect network the bound stays below log p(x0), and the gap closes as the steps get smaller."""
    mix, x0, gaps = Mixture([[.3]], [[[.4]]]), 1.1, []
    z = torch.linspace(-6, 6, 121, dtype=torch.float64)
    p = torch.exp(-z ** 2 / 2)
    p = p / p.sum()
    for T in (250, 500, 1000):
        sch = schedule.ve(T, .01, 1000.)                                    # log SNR even: no step is much larger
        t = torch.arange(1, T + 1).repeat_interleave(len(z))
        x = P.q_sample(sch, torch.full((len(t), 1), x0, dtype=torch.float64), t, z.repeat(T)[:, None])
        guess = P.eps_to_x0(sch, x, mix.denoise(sch)(x, t, None), t).view(T, -1)
        error = ((x0 - guess) ** 2 @ p).tolist()                           # E |x0 - x0_hat|^2 at t = 1 .. T
        snr = [None, *((sch.alpha / sch.sigma)[1:] ** 2).tolist()]
        last = 1 / (snr[1] + 1 / .4)                                       # variance of p(x0 | x_1)
        steps = sum(.5 * (snr[k - 1] - snr[k]) * error[k - 1] for k in range(2, T + 1))
        al, sg = tables(sch, T)
        prior = .5 * (al * x0 / sg) ** 2
        bound = -.5 * (log(2 * pi * last) + error[0] / last) - prior - steps
        gaps.append(mix.log_prob(torch.tensor([[x0]], dtype=torch.float64)).item() - bound)
    assert 0 < gaps[2] < .6 * gaps[1] < .36 * gaps[0] < .1, gaps


@formula
@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_elbo_readings(sch):
    for t, s in MOVES:
        kl, x0, guess, x_t = one_step_kl(sch, t, s)
        al_s, sg_s, al, sg = tables(sch, s, t)
        gain = (al_s / sg_s) ** 2 - (al / sg) ** 2
        weight = {"eps": .5 * gain * (sg / al) ** 2, "v": sg ** 2 * gain / (2 * (al ** 2 + sg ** 2) ** 2),
                  "flow": sg ** 2 * gain / (2 * (al + sg) ** 2), "x0": .5 * gain}
        for kind, w in weight.items():                                     # an error of the output, read by the project
            x = torch.tensor([x_t], dtype=torch.float64)
            true, said = (P.target(sch, v, P.x0_to_eps(sch, x, v, t), t, kind) for v in
                          (torch.tensor([x0], dtype=torch.float64), torch.tensor([guess], dtype=torch.float64)))
            near((w * (true - said) ** 2).item() / kl, 1., 1e-6)


@formula
@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_readings(sch):
    x0, eps = rand(2, 6), rand(2, 6, seed=1)
    for t in (1, 30, 500, 1000):
        al, sg = tables(sch, t)
        x = al * x0 + sg * eps
        said = {"x0": x0, "eps": eps, "v": al * eps - sg * x0, "flow": eps - x0}
        by_hand = {"x0": (x - al * said["x0"]) / sg, "eps": eps, "v": (sg * x + al * said["v"]) / (al ** 2 + sg ** 2),
                   "flow": (x + al * said["flow"]) / (al + sg)}
        for kind in P.PREDICTIONS:
            near(P.target(sch, x0, eps, t, kind), said[kind])
            near(P.to_eps(sch, x, said[kind], t, kind), by_hand[kind])
            near(P.to_eps(sch, x, said[kind], t, kind), eps, 1e-7)
        near(P.eps_to_x0(sch, x, eps, t), (x - sg * eps) / al)


@formula
@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_tweedie(sch):
    mix = Mixture([[-1.], [.5]], [[[.1]], [[.3]]], weights=[.3, .7])
    u = torch.linspace(-8, 8, 200001, dtype=torch.float64)
    prior = .3 * torch.exp(-(u + 1) ** 2 / .2) / sqrt(.1) + .7 * torch.exp(-(u - .5) ** 2 / .6) / sqrt(.3)
    for t in (200, 500, 900):
        al, sg = tables(sch, t)
        x = al * .2 + sg * .8
        w = prior * torch.exp(-(x - al * u) ** 2 / (2 * sg ** 2))
        mean = (w * u).sum() / w.sum()                                     # E[x0 | x_t], integrated
        row = torch.tensor([[x]], dtype=torch.float64)
        eps, score = mix.denoise(sch)(row, t, None).item(), mix.score(row, al, sg).item()
        x0 = P.eps_to_x0(sch, row, torch.tensor([[eps]], dtype=torch.float64), t).item()
        near([eps, x0, (x + sg ** 2 * score) / al], [-sg * score, mean, mean], 1e-6)
        near(eps, ((x - al * mean) / sg).item(), 1e-6)                     # and E[eps | x_t]


# ---- samplers and processes -----------------------------------------------------------------------------------------

@formula
@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_ddim_family(sch):
    x, eps, n = rand(2, 6), rand(2, 6, seed=1), rand(2, 6, seed=2)
    for (t, s), eta in product(MOVES, (0., .5, 1.)):
        al_s, sg_s, al, sg = tables(sch, s, t)
        x0 = (x - sg * eps) / al
        tau = eta * sqrt((sg ** 2 - (al / al_s * sg_s) ** 2) * sg_s ** 2 / sg ** 2)
        want = al_s * x0 + sqrt(sg_s ** 2 - tau ** 2) * eps + tau * n
        near(P.ddim_step(sch, x, eps, t, s, eta, n), want, 1e-8)
        if eta == 1:                                                       # a draw from the posterior
            mean, var = P.posterior(sch, x, x0, t, s)
            near(want, mean + sqrt(var) * n, 1e-7)


@formula
@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_ddim_is_euler(sch):
    x, eps = rand(2, 6), rand(2, 6, seed=1)
    for t, s in (*MOVES, (10, 20), (30, 0)):                               # up as well as down
        al_s, sg_s, al, sg = tables(sch, s, t)
        near(P.ddim_step(sch, x, eps, t, s) / al_s, x / al + (sg_s / al_s - sg / al) * eps, 1e-8)


@formula
def test_gaussian_flow():
    mu, c, x = .7, .3, torch.tensor([[1.9], [-.4]], dtype=torch.float64)
    mix = Mixture([[mu]], [[[c]]])
    for sch in (schedule.linear(), schedule.flow()):
        al, sg = tables(sch, 900)
        al_s, sg_s = tables(sch, 100)
        want = al_s * mu + sqrt((al_s ** 2 * c + sg_s ** 2) / (al ** 2 * c + sg ** 2)) * (x - al * mu)
        near(gaussian_flow_map(torch.tensor([mu]).double(), torch.tensor([[c]]).double(), x, sch, 900, 100), want, 1e-7)
        y = x
        for t in range(900, 100, -1):                                      # the ODE, 800 steps of Euler
            y = P.ddim_step(sch, y, mix.denoise(sch)(y, t, None), t, t - 1)
        near(y, want, 5e-3)


@formula
def test_three_processes():
    x, eps = rand(2, 6), rand(2, 6, seed=1)
    for t, s in MOVES:
        vp, ve, flow = schedule.linear(), schedule.ve(), schedule.flow()
        beta = 1 - torch.linspace(1e-4, .02, 1000, dtype=torch.float64)[s:t].neg().add(1).log().sum().exp().item()
        near(P.transition(vp, s, t, x)[1], beta)
        near(P.ddim_step(ve, x, eps, t, s), x + (ve.sigma[s] - ve.sigma[t]) * eps)
        x0 = P.eps_to_x0(flow, x, eps, t)
        near(P.ddim_step(flow, x, eps, t, s), x + (flow.sigma[s] - flow.sigma[t]) * (eps - x0), 1e-8)


@formula
def test_rescaled_path():
    vp, mix = schedule.cosine(), gmm8()
    bar = Schedule(torch.ones(1001, dtype=torch.float64), vp.sigma / vp.alpha, "sigma / alpha")
    x = rand(4, 2)
    y = x / vp.alpha[700]
    for t, s in ((700, 500), (500, 300), (300, 100)):
        e, e_bar = mix.denoise(vp)(x, t, None), mix.denoise(bar)(y, t, None)
        near(e, e_bar, 1e-8)
        x, y = P.ddim_step(vp, x, e, t, s), P.ddim_step(bar, y, e_bar, t, s)
        near(x, vp.alpha[s] * y, 1e-8)


# ---- guidance -------------------------------------------------------------------------------------------------------

@formula
def test_classifier_guidance():
    """One Gaussian per class: weight 1 must give the class's own noise."""
    sch, mix, t = schedule.linear(), Mixture([[-1.], [.5]], [[[.1]], [[.3]]], weights=[.3, .7]), 400
    x, (al, sg) = rand(5, 1), tables(sch, 400)

    def log_p(x_t, _):
        return mix.log_prob(x_t, al, sg, torch.zeros(len(x_t)).long()) - mix.log_prob(x_t, al, sg)
    got = pull(mix.denoise(sch), sch, log_p, 1.)(x, t, None)
    near(got, mix.denoise(sch)(x, t, Cond(label=torch.zeros(5).long())), 1e-8)
    h, w = 1e-5, 2.5
    slope = (log_p(x + h, t) - log_p(x - h, t))[:, None] / (2 * h)
    near(pull(mix.denoise(sch), sch, log_p, w)(x, t, None), mix.denoise(sch)(x, t, None) - w * sg * slope, 1e-6)


@formula
def test_cfg():
    def denoise(x_t, t, cond):
        return x_t * cond.extra["k"].view(-1, 1)
    x, null, cond = rand(3, 4), Cond(extra={"k": torch.tensor([2.])}), Cond(extra={"k": torch.tensor([5., 7., 11.])})
    for scale in (0., 1., 3.):
        want = [[2 * v + scale * (k * v - 2 * v) for v in row] for k, row in zip((5, 7, 11), x.tolist())]
        near(cfg(denoise, null, scale)(x, 500, cond), torch.tensor(want, dtype=torch.float64))


# ---- editing, inversion, restoration --------------------------------------------------------------------------------

def by_rows(x_t, t, cond):
    """A network that is no special case: curved in x, different in every t and row of the condition."""
    k = cond.extra["k"].view(-1, *[1] * (x_t.ndim - 1)) if cond is not None and cond.extra else 0.
    return torch.sin(x_t * 1.3 + k) * .5 + x_t.roll(1, -1) * .2 + torch.as_tensor(t).double().sin() * .1


def words(*k):
    return Cond(extra={"k": torch.tensor(k, dtype=torch.float64)})


@formula
@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_ddim_move(sch):
    x, eps = rand(2, 6), rand(2, 6, seed=1)
    for t, s in (*MOVES, (30, 0), (10, 20)):
        al_s, sg_s, al, sg = tables(sch, s, t)
        want = [[al_s * (v - sg * e) / al + sg_s * e for v, e in zip(*rows)] for rows in zip(x.tolist(), eps.tolist())]
        near(P.ddim_step(sch, x, eps, t, s), torch.tensor(want, dtype=torch.float64), 1e-8)


@formula
def test_sdedit_start():
    """What the network is shown first: the picture's latents, noised to the time that `strength` says."""
    pipe, seen = minidiff.build("tiny", seed=0), []
    net = pipe.net.forward
    pipe.net.forward = lambda x, t, cond: seen.append((x, t)) or net(x, t, cond)
    image = rand(1, 3, 64, 64).clamp(-1, 1).float()
    sdedit(pipe, image, "a red circle on a blue background", strength=.5, steps=4, scale=1., seed=3)
    t0 = pipe.schedule.timesteps(4, spacing=pipe.spacing)[2]
    z, n = pipe.encode(image), torch.randn(pipe.shape, generator=torch.Generator().manual_seed(3))
    near(seen[0][0][0], pipe.schedule.alpha[t0].item() * z[0] + pipe.schedule.sigma[t0].item() * n, 1e-5)
    assert len(seen) == 2 and seen[0][1].item() == t0 - 1


@formula
def test_inversion_step():
    """Iterated, `invert_step` ends at the x_t that solves the equation; not iterated, eps is of x_s at time t."""
    sch, x_s, s, t, c = schedule.linear(), rand(2, 6), 480, 500, words(.3, .7)
    al_s, sg_s, al, sg = tables(sch, s, t)
    A = al_s / al
    B = sg_s - A * sg
    near(invert_step(by_rows, sch, x_s, s, t, c), (x_s - B * by_rows(x_s, t, c)) / A)
    x_t = invert_step(by_rows, sch, x_s, s, t, c, fixed_point=60)
    near(x_t, (x_s - B * by_rows(x_t, t, c)) / A)
    near(P.ddim_step(sch, x_t, by_rows(x_t, t, c), t, s), x_s)             # which is: a step down returns


@formula
def test_prompt_to_prompt_maps():
    h, n, m = 2, 4, 3
    probs, M = rand(2, h, n, m).softmax(-1), rand(m, m, seed=1).abs()
    alpha, weight = torch.tensor([1., 0., 1.]).double(), torch.tensor([1., 2., .5]).double()
    for a in (0., 1.):
        got = edit_cross(M, alpha, torch.tensor(a), weight)(probs, "")
        near(got[0], probs[0])
        for i, j, k in product(range(h), range(n), range(m)):
            moved = sum(probs[0, i, j, q] * M[q, k] for q in range(m))
            own = probs[1, i, j, k]
            near(got[1, i, j, k], (a * (alpha[k] * moved + (1 - alpha[k]) * own) + (1 - a) * own) * weight[k])


def guided_landing(w=3.):
    """A guided DDIM move and the state of an inversion that it should have reached."""
    sch, t, s = schedule.linear(), 500, 480
    goal, c, null = rand(1, 6), words(.3), words(0.)
    z_t = invert_step(by_rows, sch, goal, s, t, c, fixed_point=60)
    e_c, e_null = by_rows(z_t, t, c), by_rows(z_t, t, null)
    al_s, sg_s, al, sg = tables(sch, s, t)
    A = al_s / al
    B = sg_s - A * sg
    return sch, t, s, goal, z_t, e_c, e_null, A, B, w


@formula
def test_closed_form_null():
    sch, t, s, goal, z_t, e_c, _, A, B, w = guided_landing()
    u = ((goal - A * z_t) / B - w * e_c) / (1 - w)                         # eps* from the first equation
    near(P.ddim_step(sch, z_t, u + w * (e_c - u), t, s), goal, 1e-8)


@formula
def test_closed_form_offset():
    """The share of the null's change that an edit row gets is the share of d that `Inverted.follow` gives it."""
    sch, t, s, goal, z_t, e_c, e_null, A, B, w = guided_landing()
    u = ((goal - A * z_t) / B - w * e_c) / (1 - w)
    source, edit = P.ddim_step(sch, z_t, e_null + w * (e_c - e_null), t, s), rand(1, 6, seed=5)
    for g in (0., .3, 1.):
        left = (1 - w) * B * g * (u - e_null)
        near(left, g * (goal - source), 1e-8)
        near(Inverted([goal, z_t], share=g).follow(torch.cat([source, edit]), 0), torch.cat([goal, edit + left]), 1e-8)


@formula
def test_edict_step():
    sch, t, s, c, p = schedule.linear(), 500, 480, words(.3), .9
    x0, y0 = rand(1, 6), rand(1, 6, seed=1)
    al_s, sg_s, al, sg = tables(sch, s, t)
    A = al_s / al
    B = sg_s - A * sg
    x = A * x0 + B * by_rows(y0, t, c)
    y = A * y0 + B * by_rows(x, t, c)
    x = p * x + (1 - p) * y
    y = p * y + (1 - p) * x
    got = edict_down(by_rows, sch, x0, y0, t, s, c, p, False)
    near(torch.cat(got), torch.cat([x, y]))
    near(torch.cat(edict_up(by_rows, sch, *got, s, t, c, p, False)), torch.cat([x0, y0]))


@formula
def test_null_space():
    """A as a matrix, and its pseudo-inverse by torch: the operator of the method must agree."""
    mask = (rand(1, 1, 2, 2) > 0).double()
    op = lossy(mask, factor=2, grey=True)
    basis = torch.eye(48, dtype=torch.float64).view(48, 3, 4, 4)
    A = op.A(basis).flatten(1).T                                           # 4 48
    x, y = rand(2, 3, 4, 4), op.A(rand(2, 3, 4, 4, seed=1))
    plus = torch.linalg.pinv(A)
    want = [plus @ v.flatten() + u.flatten() - plus @ (A @ u.flatten()) for u, v in zip(x, y)]
    near(op.project(x, y).flatten(1), torch.stack(want), 1e-8)
    near(op.A(op.project(x, y)), y, 1e-8)


@formula
def test_ddnm_plus():
    op, a, eta, sigma, sigma_y = blur(4, 4), .8, .85, .4, .1
    lam, d = trust(op, sigma_y, a, eta * sigma, rand(1, 1, 4, 4))
    for i, j in product(range(4), range(4)):
        s = op.s[i, j].item()
        theirs = a * sigma_y / s if s else 0.
        want = min(1., eta * sigma / theirs) if s else 1.
        near([lam[i, j], d[i, j] ** 2], [want, max((eta * sigma) ** 2 - (want * theirs) ** 2, 0.)], 1e-7)
    assert lam.min() < 1


@formula
def test_ddrm_lines():
    op = blur(4, 4, sigma=1., cut=.2)
    x0, eps, n, ybar = (rand(1, 1, 4, 4, seed=k) for k in range(4))
    a, sigma, sigma_y, eta, eta_b, used = .8, .3, .15, .85, .7, set()
    got = _mix(op, ybar, x0, eps, n, a, sigma, sigma_y, eta, eta_b)
    h0, he, hn = (op.Vt(v) for v in (x0, eps, n))
    for i, j in product(range(4), range(4)):
        s, p, q, r, y = (v[..., i, j].item() for v in (op.s, h0, he, hn, ybar))
        if s == 0:
            line, want = "unseen", a * p + sigma * (sqrt(1 - eta ** 2) * q + eta * r)
        elif a * sigma_y / s > sigma:
            line, want = "noisy", a * p + sigma * (sqrt(1 - eta ** 2) * (y - p) / (sigma_y / s) + eta * r)
        else:
            left = sqrt(sigma ** 2 - (eta_b * a * sigma_y / s) ** 2)
            line, want = "clean", a * ((1 - eta_b) * p + eta_b * y) + left * r
        used.add(line)
        near(got[0, 0, i, j], want, 1e-8)
    assert used == {"unseen", "noisy", "clean"}


@formula
def test_ilvr_exchange():
    x, y, N = rand(1, 2, 4, 4), rand(1, 2, 4, 4, seed=1), 2
    got = refine(x, y, N)
    for c, i, j in product(range(2), range(4), range(4)):
        block = (0, c, slice(i // N * N, i // N * N + N), slice(j // N * N, j // N * N + N))
        near(got[0, c, i, j], x[0, c, i, j] - x[block].mean() + y[block].mean())
        near(got[block].mean(), y[block].mean())


@formula
def test_edit_friendly_maps():
    sch, ts, x0 = schedule.linear(), [800, 500, 200, 0], rand(1, 6)
    xs, said, wanted = scattered(sch, x0, ts, seed=1), words(.3), words(1.1)

    def mu(x, t, s, c):
        al_s, sg_s, al, sg = tables(sch, s, t)
        var = sg ** 2 - (al / al_s * sg_s) ** 2
        return al / al_s * sg_s ** 2 / sg ** 2 * x + al_s * var / sg ** 2 * (x - sg * by_rows(x, t, c)) / al
    noises_ = [(x - sch.alpha[t] * x0) / sch.sigma[t] for x, t in zip(xs, ts[:-1])]
    assert all((a - b).abs().max() > .1 for a, b in pairwise(noises_))     # one noise each
    maps, x = noise_maps(by_rows, sch, xs, ts, said), xs[0]
    for r, x_t, x_s, t, s in zip(maps, xs, xs[1:], ts, ts[1:]):
        near(r, x_s - mu(x_t, t, s, said), 1e-8)
        x = mu(x, t, s, wanted) + r
    near(replay_maps(by_rows, sch, xs[0], maps, ts, wanted), x, 1e-8)


@formula
def test_edit_friendly_variance():
    """With a model that knows x0: k from the mean's own weights, and the variance of many maps."""
    sch, t, s, x0 = schedule.linear(), 500, 450, .4
    al_s, sg_s, al, sg = tables(sch, s, t)
    k = al / al_s * sg_s ** 2 / sg
    n_t, n_s = rand(40000, 1), rand(40000, 1, seed=1)
    x_t, x_s = al * x0 + sg * n_t, al_s * x0 + sg_s * n_s
    r = noise_maps(lambda x, t, c: n_t, sch, [x_t, x_s], [t, s])[0]
    near(r, sg_s * n_s - k * n_t, 1e-8)
    near(P.posterior(sch, x_t, x_t, t, s)[1], sg_s ** 2 - k ** 2)           # where a sampler has the difference
    assert abs(r.var() / (sg_s ** 2 + k ** 2) - 1) < .03


@formula
def test_diffedit_mask():
    pipe = SimpleNamespace(schedule=schedule.linear(), eps=by_rows, embed=lambda p: words(float(p)))
    z, total = rand(1, 2, 4, 4), 0.
    g = torch.Generator().manual_seed(7)
    torch.randn(2, 4, 4, generator=g)                                      # a stream's first draw is for a start
    for _ in range(3):
        z_t = P.q_sample(pipe.schedule, z, 500, torch.randn(2, 4, 4, generator=g)[None])
        total = total + (by_rows(z_t, 500, words(1.1)) - by_rows(z_t, 500, words(.3))).abs().sum(1, keepdim=True) / 2
    near(difference(pipe, z, ".3", "1.1", level=.5, samples=3, seed=7), total / 3, 1e-6)
    d, theta = rand(3, 1, 4, 4).abs() ** 3, .5
    got = threshold_mask(d, theta)
    for row, m in zip(d, got):
        mean = sum(row.flatten().tolist()) / 16
        near(m.flatten(), torch.tensor([float(min(v, 3 * mean) / (3 * mean) > theta) for v in row.flatten().tolist()]))
    assert 0 < got.mean() < 1


@formula
def test_delta_denoising():
    pipe = SimpleNamespace(schedule=schedule.linear())
    z, z0, n, t = rand(1, 2, 4, 4), rand(1, 2, 4, 4, seed=1), rand(1, 2, 4, 4, seed=2), torch.tensor([400])
    al, sg = tables(pipe.schedule, 400)
    shown = lambda x, c: by_rows(al * x + sg * n, 400, c)  # noqa: E731
    y, y0 = words(1.1), words(.3)
    run = lambda given: score_gradient(lambda x, t, c: by_rows(x, 400, c), pipe, z, z0, y, given, t, n)    # noqa: E731
    near(run(None), al * sg * (shown(z, y) - n), 1e-8)
    near(run(y0), al * sg * (shown(z, y) - shown(z0, y0)), 1e-8)


# ---- measuring ------------------------------------------------------------------------------------------------------

@formula
def test_frechet():
    """By the eigenvalues of C1 C2, which is not symmetric, and on one feature by deviations."""
    d, (m1, m2) = 3, rand(2, 3)
    a, b = rand(2, d, d, seed=1)
    c1, c2 = a @ a.T + .2 * torch.eye(d), b @ b.T + .2 * torch.eye(d)
    w = torch.linalg.eigvals(c1 @ c2)
    want = sum((p - q) ** 2 for p, q in zip(m1.tolist(), m2.tolist())) + (c1 + c2).trace() - 2 * w.real.sqrt().sum()
    near(frechet_gaussians(m1, c1, m2, c2), want.item(), 1e-8)
    near(frechet_gaussians(m1[:1], c1[:1, :1], m2[:1], c2[:1, :1]),
         ((m1[0] - m2[0]) ** 2 + (c1[0, 0].sqrt() - c2[0, 0].sqrt()) ** 2).item())


@formula
def test_frechet_bias():
    for d, n in ((8, 500), (32, 1000)):
        got = [frechet(rand(n, d, seed=2 * i), rand(n, d, seed=2 * i + 1)) for i in range(20)]
        assert abs(sum(got) / len(got) / (d * (d + 5) / (2 * n)) - 1) < .08
