import math

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import Counted, noise
from minidiff.core.process import ddim_step
from minidiff.data.toy2d import gauss_aniso, gaussian_flow_map, gmm8
from minidiff.samplers.ddim import ddim
from minidiff.samplers.plms import WEIGHTS, plms

FINE, SCH = schedule.linear(20_000), schedule.linear(1000)
STRAIGHT = schedule.flow(20_000, sigma_max=0.99)


def start(n=64, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def errors(sampler, sch, steps, **kw):
    """Mean distance to the exact flow of a Gaussian, for each number of steps."""
    data, x = gauss_aniso(), start()
    exact = gaussian_flow_map(data.means[0], data.covs[0], x, sch, sch.T, 0)
    ends = [sampler(data.denoise(sch), sch, x, steps=n, **kw) for n in steps]
    return [(end - exact).norm(dim=-1).mean().item() for end in ends]


def slope(errs, steps):
    return math.log(errs[0] / errs[-1]) / math.log(steps[-1] / steps[0])


def test_plms_is_of_order_above_2_where_the_noise_is_smooth_in_time():
    steps = (20, 40, 80)
    assert slope(errors(plms, STRAIGHT, steps, spacing="trailing"), steps) > 2.2


@pytest.mark.parametrize("spacing", schedule.SPACINGS)
def test_plms_is_far_better_than_ddim_at_the_price_of_one_evaluation(spacing):
    steps = (10, 20, 40)
    ours, ddims = (
        errors(plms, FINE, steps, spacing=spacing),
        errors(ddim, FINE, steps, spacing=spacing),
    )
    assert slope(ours, steps) > 1.8 > 1.1 > slope(ddims, steps) and ours[1] < ddims[1] / 25
    eps = Counted(gmm8().denoise(SCH))
    plms(eps, SCH, start(4), steps=20)
    assert eps.nfe == 4 * 21


def test_extrapolated_v_is_of_first_order_and_behind_ddim():
    """Why the noise is what we continue, also for models that predict v."""
    steps = (20, 40, 80)
    v = errors(plms, FINE, steps, extrapolate="v")
    assert 0.9 < slope(v, steps) < 1.1 and all(
        a > b for a, b in zip(v, errors(ddim, FINE, steps, spacing="leading"))
    )


def test_fixed_moves_lose_the_order_on_linspace_and_change_nothing_on_even_grids():
    steps = (20, 40, 80)
    fixed = errors(plms, FINE, steps, spacing="linspace", literal=True)
    assert (
        slope(fixed, steps) < 1.1
        and fixed[-1] > 20 * errors(plms, FINE, steps, spacing="linspace")[-1]
    )
    for spacing in ("leading", "trailing"):
        a, b = (
            plms(gmm8().denoise(SCH), SCH, start(), steps=20, spacing=spacing, literal=f)
            for f in (True, False)
        )
        assert torch.equal(a, b)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("end", [0, 1])
def test_a_network_that_knows_the_picture_gives_it_whatever_the_steps(steps, end):
    """The noise along the path of one picture never changes, so what is continued is exact."""
    sch, x0, n = schedule.scaled_linear(), start(seed=50), start()
    (a_T, s_T), (a, s) = sch.at(sch.T), sch.at(end)

    def knows(x, t, cond):
        a, s = sch.at(t)
        return (x - a * x0) / s

    got = plms(knows, sch, a_T * x0 + s_T * n, steps=steps, spacing="trailing", end=end)
    assert (got - (a * x0 + s * n)).abs().max() < 1e-10


def test_one_step_is_ddims():
    eps, x = gmm8().denoise(SCH), start()
    assert (
        plms(eps, SCH, x, steps=1) - ddim(eps, SCH, x, steps=1, spacing="leading")
    ).abs().max() <= 1e-12


def test_two_steps_by_hand():
    eps, x = gmm8().denoise(SCH), start()
    e0 = eps(x, 502)
    e1 = eps(ddim_step(SCH, x, e0, 502, 2), 2)
    y = ddim_step(SCH, x, (e0 + e1) / 2, 502, 2)
    y = ddim_step(SCH, y, (3 * eps(y, 2) - e0) / 2, 2, 0)
    assert (plms(eps, SCH, x, steps=2) - y).abs().max() <= 1e-12


def test_the_weights_integrate_polynomials_of_their_degree():
    """Adams and Bashforth: k weights give the mean over the coming step of every polynomial of
    degree below k.
    """
    for k, row in enumerate(WEIGHTS, 1):
        for degree in range(k):
            mean = 1 / (degree + 1)  # of u^degree over 0..1; old values at 0, -1, ..
            assert abs(sum(w * (-j) ** degree for j, w in enumerate(row)) - mean) < 1e-12


def test_a_start_in_pure_noise_is_refused_unless_v_is_extrapolated():
    for sch in (schedule.cosine(), schedule.flow()):
        with pytest.raises(ValueError, match=r"divides by alpha.*at time 1000 of schedule"):
            plms(gmm8().denoise(sch), sch, start(2), steps=10, spacing="trailing")
        assert plms(gmm8().denoise(sch), sch, start(2), steps=20).abs().max() < 10
    sch = schedule.cosine()
    assert (
        plms(gmm8().denoise(sch), sch, start(2), steps=10, spacing="trailing", extrapolate="v")
        .abs()
        .max()
        < 10
    )


def test_start_begins_at_that_time():
    eps = Counted(gauss_aniso().denoise(SCH))
    seen = []
    plms(
        lambda x, t, cond: seen.append(t) or eps(x, t, cond),
        SCH,
        start(2),
        steps=4,
        start=400,
        spacing="trailing",
    )
    assert seen == [400, 300, 300, 200, 100]


@pytest.mark.parametrize(
    "kw, complaint",
    [
        (dict(steps=0), "steps=0"),
        (dict(steps=1001), "steps=1001"),
        (dict(start=1001), "start=1001"),
        (dict(end=2), "end=2"),
        (dict(spacing="even"), "'even' is unknown"),
        (dict(extrapolate="noise"), "'noise' is unknown"),
    ],
)
def test_bad_options_are_refused(kw, complaint):
    with pytest.raises(ValueError, match=complaint):
        plms(gmm8().denoise(SCH), SCH, start(2), **kw)
