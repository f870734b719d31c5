from itertools import pairwise

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.schedule import SPACINGS, Schedule

BUILDERS = [
    schedule.linear,
    schedule.scaled_linear,
    schedule.cosine,
    schedule.sigmoid,
    schedule.flow,
    schedule.ve,
    schedule.karras,
]
VP = BUILDERS[:4]


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("T", [1, 7, 1000])
def test_every_schedule_starts_clean_and_grows_noisier(build, T):
    sch = build(T)
    assert sch.T == T and len(sch.alpha) == len(sch.sigma) == T + 1
    assert sch.alpha[0] == 1 and sch.sigma[0] == 0 and sch.log_snr[0] == torch.inf
    assert (sch.alpha > 0).all() and (sch.log_snr.diff() < 0).all()


@pytest.mark.parametrize("build", VP)
def test_vp_schedules_preserve_variance_and_end_in_noise_at_any_length(build):
    for T in (50, 200, 1000):
        sch = build(T)
        assert (sch.alpha**2 + sch.sigma**2 - 1).abs().max() < 1e-15
        assert sch.alpha_bar[-1] < 0.006  # Stable Diffusion's own is 0.0047


def test_flow_is_the_straight_line_up_to_its_cut():
    sch = schedule.flow(100, sigma_max=0.99)
    assert (sch.alpha + sch.sigma - 1).abs().max() < 1e-15
    assert sch.sigma[-1] == 0.99 and sch.sigma.diff().diff().abs().max() < 1e-15


def test_ve_ratios_and_karras_roots_are_even():
    ve, ka = schedule.ve(50, 0.01, 50), schedule.karras(50, 0.002, 80)
    assert (ve.alpha == 1).all() and (ka.alpha == 1).all()
    assert ve.sigma[1:].log().diff().diff().abs().max() < 1e-12
    assert (ka.sigma[1:] ** (1 / 7)).diff().diff().abs().max() < 1e-12
    assert (
        abs(ve.sigma[-1] - 50) < 1e-12
        and abs(ka.sigma[1] - 0.002) < 1e-15
        and abs(ka.sigma[-1] - 80) < 1e-12
    )


def test_known_numbers_of_ddpm_stable_diffusion_and_cosine():
    assert abs(schedule.linear().alpha_bar[1] - (1 - 1e-4)) < 1e-15
    assert abs(schedule.linear().alpha_bar[-1] - 4.0358e-5) < 1e-9
    assert abs(schedule.scaled_linear().alpha_bar[1] - 0.99915) < 1e-15
    assert abs(schedule.scaled_linear().alpha_bar[-1] - 0.00466) < 1e-6
    assert abs(schedule.cosine(s=0.0).alpha_bar[500] - 0.5) < 1e-12  # cos^2(pi/4)
    assert abs(schedule.sigmoid().alpha_bar[500] - 0.5) < 1e-12  # the curve is symmetric


def test_at_gives_floats_for_ints_and_broadcastable_columns_for_tensors():
    sch = schedule.cosine(10)
    x = torch.zeros(3, 2, 4, 4)
    a, s = sch.at(4, x)
    assert isinstance(a, float) and a == sch.alpha[4].item() and s == sch.sigma[4].item()
    a, s = sch.at(torch.tensor([0, 4, 10]), x)
    assert a.shape == s.shape == (3, 1, 1, 1) and a.dtype == torch.float32
    assert (a.flatten().double() - sch.alpha[[0, 4, 10]]).abs().max() < 1e-7
    assert sch.at(torch.tensor([1]), x.double())[0].item() == sch.alpha[1].item()


@pytest.mark.parametrize("t", [-1, 11])
def test_a_time_outside_the_tables_is_refused(t):
    with pytest.raises(ValueError, match=rf"time {t} is outside 0\.\.10"):
        schedule.linear(10).at(t)


def test_times_in_a_tensor_need_to_know_what_they_are_for():
    with pytest.raises(ValueError, match="`like`"):
        schedule.linear(10).at(torch.tensor([1, 2]))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_fall_strictly_to_zero_for_every_number_of_steps(spacing):
    sch = schedule.linear(97)
    for start in (97, 40, 1):
        for n in range(1, start + 1):
            ts = sch.timesteps(n, start, spacing)
            assert len(ts) == n + 1 and ts[-1] == 0 and all(type(t) is int for t in ts)
            assert all(t > s for t, s in pairwise(ts)) and ts[0] <= start
            assert ts[0] == start or spacing == "leading"


def test_leading_is_stable_diffusions_grid_shifted_to_indices():
    assert schedule.linear().timesteps(50, spacing="leading")[:-1] == [
        t + 1 for t in range(981, 0, -20)
    ]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_an_end_at_1_changes_the_last_time_alone(spacing):
    for n in (1, 5, 50, 1000):
        ts = schedule.linear().timesteps(n, spacing=spacing, end=1)
        assert ts == [*schedule.linear().timesteps(n, spacing=spacing)[:-1], 1] and ts[-2] >= 1
    with pytest.raises(ValueError, match=r"^end=2: sampling ends at 0.*stops$"):
        schedule.linear().timesteps(5, end=2)


@pytest.mark.oracle
def test_timesteps_equal_diffusers():
    DDIMScheduler = pytest.importorskip("diffusers").DDIMScheduler
    sch = schedule.linear()
    for spacing in SPACINGS:
        theirs = DDIMScheduler(num_train_timesteps=1000, timestep_spacing=spacing, steps_offset=1)
        for n in (2, 5, 7, 10, 27, 50, 100, 250, 333, 999):
            theirs.set_timesteps(n)
            assert sch.timesteps(n, spacing=spacing)[:-1] == [
                t + 1 for t in theirs.timesteps.tolist()
            ]


@pytest.mark.oracle
@pytest.mark.parametrize(
    "ours, theirs",
    [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")],
)
def test_tables_equal_diffusers(ours, theirs):
    DDIMScheduler = pytest.importorskip("diffusers").DDIMScheduler
    beta0, beta1 = (1e-4, 0.02) if ours == "linear" else (0.00085, 0.012)
    ref = DDIMScheduler(beta_start=beta0, beta_end=beta1, beta_schedule=theirs).alphas_cumprod
    assert (getattr(schedule, ours)().alpha_bar[1:] - ref).abs().max() < 1e-6


@pytest.mark.parametrize("steps", [0, -3, 10000])
def test_an_impossible_number_of_steps_fails_in_one_line(steps):
    with pytest.raises(ValueError, match=rf"^steps={steps} is outside 1\.\.1000; .*usual$"):
        schedule.linear().timesteps(steps)


@pytest.mark.parametrize("start", [0, 1001])
def test_an_impossible_start_fails_in_one_line(start):
    with pytest.raises(ValueError, match=rf"^start={start} is outside 1\.\.1000; .*$"):
        schedule.linear().timesteps(1, start=start)


def test_an_unknown_spacing_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="'even' is unknown; choose one of linspace, leading, trailing"
    ):
        schedule.linear().timesteps(5, spacing="even")


@pytest.mark.parametrize(
    "alpha, sigma, complaint",
    [
        ([1, 0.5], [0, 0.5, 1], "tables"),
        ([1], [0], "tables"),
        ([1, 0.0], [0, 1], "alpha > 0"),
        ([1, float("nan")], [0, 1], "finite"),
        ([0.9, 0.5], [0, 1], "start at alpha 1"),
        ([1, 0.5, 0.5], [0, 0.5, 0.5], "noisier"),
    ],
)
def test_broken_tables_are_refused(alpha, sigma, complaint):
    with pytest.raises(ValueError, match=complaint):
        Schedule(torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64))


def test_float32_tables_and_empty_schedules_are_refused():
    with pytest.raises(ValueError, match="float64"):
        Schedule(torch.tensor([1, 0.5]), torch.tensor([0, 0.5]))
    for build in BUILDERS:
        with pytest.raises(ValueError):
            build(0)


@pytest.mark.parametrize("spacing", schedule.LEVELS)
@pytest.mark.parametrize("build", [schedule.linear, schedule.flow, schedule.ve])
def test_grids_of_levels_fall_and_are_even_in_what_they_name(build, spacing):
    sch = build(1000)
    for n in (1, 2, 5, 10, 50, 999, 1000):
        ts = sch.timesteps(n, spacing=spacing)
        assert len(ts) == n + 1 and ts[0] == 1000 and ts[-1] == 0
        assert sch.checked(ts) == ts
    fine = build(200_000)
    level = (fine.sigma / fine.alpha)[fine.timesteps(9, spacing=spacing)[:-1]]
    even = level ** (1 / 7) if spacing == "karras" else level.log()
    steps = even.diff()
    assert (steps - steps.mean()).abs().max() < 0.02 * steps.mean().abs()


def test_a_grid_of_ones_own_is_checked():
    sch = schedule.linear(1000)
    assert sch.timesteps(50, times=(900, 400, 0)) == [900, 400, 0]
    assert schedule.solver_times(sch, 50, times=(900, 400, 0)) == [900, 400, 0]
    for bad in ((5,), (5, 5, 0), (0, 5), (7.5, 0)):
        with pytest.raises(ValueError, match="two whole numbers or more, each smaller"):
            sch.timesteps(50, times=bad)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1000"):
        sch.timesteps(50, times=(1001, 0))
