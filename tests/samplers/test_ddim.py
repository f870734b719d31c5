import math
from itertools import pairwise

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import Counted, noise, noises, sample, trace
from minidiff.core.process import ddim_step, posterior, q_sample, to_eps
from minidiff.data.toy2d import energy_distance, gauss_aniso, gaussian_flow_map, gmm8
from minidiff.samplers.ddim import ddim

FINE = schedule.linear(20_000)  # as good as continuous time
SCH = schedule.linear(1000)


def start(n=64, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def err(x, y):
    return (x - y).norm(dim=-1).mean().item()


@pytest.mark.parametrize("spacing", schedule.SPACINGS)
def test_ddim_converges_to_the_flow_of_a_gaussian_with_order_1(spacing):
    data, x = gauss_aniso(), start()
    exact = gaussian_flow_map(data.means[0], data.covs[0], x, FINE, FINE.T, 0)
    errs = [
        err(ddim(data.denoise(FINE), FINE, x, steps=n, spacing=spacing), exact)
        for n in (40, 80, 160, 320)
    ]
    assert all(0.9 < math.log2(a / b) < 1.1 for a, b in pairwise(errs)) and errs[-1] < 0.01


@pytest.mark.parametrize("build", [schedule.flow, schedule.cosine], ids=["flow", "cosine"])
def test_ddim_has_order_1_on_other_tables_too(build):
    data, sch, x = gauss_aniso(), build(20_000), start()
    exact = gaussian_flow_map(data.means[0], data.covs[0], x, sch, sch.T, 0)
    errs = [
        err(ddim(data.denoise(sch), sch, x, steps=n, spacing="trailing"), exact)
        for n in (80, 160, 320)
    ]
    assert all(0.85 < math.log2(a / b) < 1.15 for a, b in pairwise(errs))


def test_ddim_has_order_1_on_eight_modes():
    eps, x = gmm8().denoise(FINE), start()
    ends = [ddim(eps, FINE, x, steps=n) for n in (80, 160, 320, 640)]
    # no closed form: each doubling must halve what is left
    gaps = [err(a, b) for a, b in pairwise(ends)]
    assert abs(math.log2(gaps[0] / gaps[-1]) / 2 - 1) < 0.15


def test_ddim_inversion_error_shrinks_with_steps():
    data = gmm8()
    eps, x0 = data.denoise(SCH), data.sample(100)
    ts = [SCH.timesteps(n) for n in (50, 100, 200, 400)]
    back = [sample(eps, SCH, sample(eps, SCH, x0, t[::-1]), t) for t in ts]
    errs = [err(b, x0) for b in back]  # measured: 4.0e-2, 2.0e-2, 1.1e-2, 5.9e-3
    assert all(a > 1.6 * b for a, b in pairwise(errs)) and errs[-1] < 0.01


def test_inverted_gaussian_converges_to_its_exact_latent_with_order_1():
    data = gauss_aniso()
    x0 = data.sample(64)
    exact = gaussian_flow_map(data.means[0], data.covs[0], x0, FINE, 0, FINE.T)
    errs = [
        err(sample(data.denoise(FINE), FINE, x0, FINE.timesteps(n)[::-1]), exact)
        for n in (80, 160, 320)
    ]
    assert all(0.85 < math.log2(a / b) < 1.15 for a, b in pairwise(errs))


def test_coarse_inversion_gives_latents_that_are_too_narrow():
    data = gmm8()
    stds = [
        sample(data.denoise(SCH), SCH, data.sample(200), SCH.timesteps(n)[::-1]).std().item()
        for n in (25, 200)
    ]
    assert stds[0] < 0.88 and abs(stds[1] - 1) < 0.06  # measured: .83 and .98


def test_eta_1_walks_the_ancestral_chain_step_by_step():
    data, ts = gmm8(), SCH.timesteps(8)
    eps, x = data.denoise(SCH), start()
    zs = [noise(x.shape, 100 * k, dtype=torch.float64) for k in range(8)]
    walk, y = iter(zs), x

    def ancestral(sch, x_t, e, t, s):
        a, sig = sch.at(t)
        mean, var = posterior(sch, x_t, (x_t - sig * e) / a, t, s)
        return mean + var**0.5 * next(walk)

    states = trace(eps, SCH, x, ts, step=ancestral)
    for (t, s), z, state in zip(pairwise(ts), zs, states[1:]):
        y = ddim_step(SCH, y, eps(y, t, None), t, s, 1.0, z)
        assert (y - state).abs().max() <= 1e-12


def test_fifty_steps_sample_the_mixture_and_five_do_not():
    data, x = gmm8(1.0, 0.15), start(1500)
    truth = data.sample(1500, seed=5)
    far, near = (energy_distance(ddim(data.denoise(SCH), SCH, x, steps=n), truth) for n in (5, 50))
    assert near < 3e-3 < 1e-2 < far


def test_at_few_steps_noise_costs_quality():
    # one picture of 3000 points: one stream
    data, x = gmm8(1.0, 0.15), noise((1, 3000, 2), dtype=torch.float64)
    truth = data.sample(3000, seed=5)
    ed = [
        energy_distance(ddim(data.denoise(SCH), SCH, x, steps=10, eta=eta)[0], truth)
        for eta in (0.0, 0.5, 1.0)
    ]
    assert ed[0] < ed[1] < ed[2]


def test_eta_0_ignores_the_seed_and_eta_1_follows_it():
    eps, x = gmm8().denoise(SCH), start(8)
    assert torch.equal(ddim(eps, SCH, x, steps=5, seed=1), ddim(eps, SCH, x, steps=5, seed=2))
    a, b, c = (ddim(eps, SCH, x, steps=5, eta=1.0, seed=s) for s in (1, 1, 2))
    assert torch.equal(a, b) and (a - c).abs().max() > 0.1


def test_a_row_is_the_same_alone_and_in_a_batch():
    eps, x = gmm8().denoise(SCH), start(6, seed=20)
    batch = ddim(eps, SCH, x, steps=10, eta=1.0, seed=20)
    alone = ddim(eps, SCH, x[2:3], steps=10, eta=1.0, seed=22)
    assert (batch[2:3] - alone).abs().max() <= 1e-12


def test_start_begins_at_that_time_and_follows_the_flow_from_there():
    data = gauss_aniso()
    x_t = q_sample(FINE, data.sample(64), 8000, start())
    eps = Counted(data.denoise(FINE))
    end = ddim(eps, FINE, x_t, steps=200, start=8000)
    assert eps.nfe == 200 * 64
    assert err(end, gaussian_flow_map(data.means[0], data.covs[0], x_t, FINE, 8000, 0)) < 0.01


def test_fixed_moves_are_of_order_1_but_worse_on_linspace_and_the_same_on_even_grids():
    data, x = gauss_aniso(), start()
    exact = gaussian_flow_map(data.means[0], data.covs[0], x, FINE, FINE.T, 0)
    fixed, ours = (
        [err(ddim(data.denoise(FINE), FINE, x, steps=n, literal=f), exact) for n in (40, 80, 160)]
        for f in (True, False)
    )
    assert all(0.9 < math.log2(a / b) < 1.1 for a, b in pairwise(fixed)) and all(
        a > b for a, b in zip(fixed, ours)
    )
    for spacing in ("leading", "trailing"):
        a, b = (
            ddim(gmm8().denoise(SCH), SCH, x, steps=20, spacing=spacing, literal=f)
            for f in (True, False)
        )
        assert torch.equal(a, b)


def test_ending_at_1_leaves_the_noise_of_the_first_table_entry():
    sch, x0, n = schedule.scaled_linear(), start(seed=50), start()
    end = ddim(
        lambda x, t, cond: n, sch, q_sample(sch, x0, 1000, n), steps=4, spacing="trailing", end=1
    )
    assert (end - q_sample(sch, x0, 1, n)).abs().max() < 1e-12 and 0.02 < (end - x0).std() < 0.05


@pytest.mark.parametrize(
    "kw, complaint",
    [
        (dict(steps=0), "steps=0"),
        (dict(steps=5000), "steps=5000"),
        (dict(end=2), "end=2"),
        (dict(eta=2.0), "eta=2.0"),
        (dict(start=1001), "start=1001"),
    ],
)
def test_bad_options_are_refused(kw, complaint):
    with pytest.raises(ValueError, match=complaint):
        ddim(gmm8().denoise(SCH), SCH, start(2), **kw)


def test_fixed_moves_of_a_leading_grid_end_where_the_grid_does():
    """They are its own moves, also where it ends at 1."""
    denoise = gauss_aniso().denoise(SCH)
    how = dict(steps=10, spacing="leading", end=1)
    plain, fixed = (ddim(denoise, SCH, start(), literal=f, **how) for f in (False, True))
    assert (plain - fixed).abs().max() < 1e-12


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", schedule.SPACINGS)
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_latents_equal_diffusers_with_and_without_noise(eta, spacing, prediction):
    """On the literal path, in float64, at step counts of which some do not divide 1000."""
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers is not installed (development extra)"
    )
    sch = schedule.scaled_linear()
    theirs = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1 if spacing == "leading" else 0,
        timestep_spacing=spacing,
        prediction_type={"eps": "epsilon", "v": "v_prediction", "x0": "sample"}[prediction],
    )
    theirs.alphas_cumprod = sch.alpha_bar[1:]  # theirs are float32
    theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]

    def network(x, t):
        return torch.tanh(0.7 * x + math.cos(0.003 * t))

    def denoise(x, t, cond):
        return to_eps(sch, x, network(x, t), t, prediction)

    # one step of their linspace asks at the clean end, and at no other
    for steps in (1, 2, 3, 5, 7, 10, 20, 333)[spacing == "linspace" :]:
        x = start(3)
        ours = ddim(
            denoise, sch, x, steps=steps, eta=eta, seed=4, spacing=spacing, end=1, literal=True
        )
        fresh = noises(x, 4)
        theirs.set_timesteps(steps)
        for t in theirs.timesteps:
            z = next(fresh) if eta else None
            out = network(x, t.item() + 1)
            x = theirs.step(out, t, x, eta=eta, variance_noise=z).prev_sample
        gap = (ours - x).abs().max() / x.abs().max()
        assert gap < 1e-5, f"{steps} steps: {gap:.2g}"
