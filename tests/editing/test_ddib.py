"""DDIB: the closed form between two Gaussians,
cycles that close, and the round trip it contains.
"""

import pytest
import torch

import minidiff
from minidiff.core import schedule
from minidiff.core.cond import Cond
from minidiff.data.toy2d import Mixture, gauss_aniso, gaussian_flow_map, gmm8
from minidiff.editing.ddib import bridge, ddib
from minidiff.inversion.ddim import invert, replay

A, B = "a red circle on a blue background", "a green circle on a blue background"
SCH = schedule.scaled_linear()
OTHER = Mixture([[-2.0, 0.5]], [[[0.3, -0.1], [-0.1, 0.2]]])


@pytest.fixture(scope="module")
def pipe():
    return minidiff.build("tiny", seed=0).to(dtype=torch.float64)


@pytest.fixture(scope="module")
def image():
    return (
        torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        * 2
        - 1
    )


def test_between_two_gaussians_it_is_the_known_flow_up_and_down():
    source, x = gauss_aniso(), gauss_aniso().sample(64, seed=1)
    noise = gaussian_flow_map(source.means[0], source.covs[0], x, SCH, 0, SCH.T)
    want = gaussian_flow_map(OTHER.means[0], OTHER.covs[0], noise, SCH, SCH.T, 0)
    error = [
        (bridge(source.denoise(SCH), OTHER.denoise(SCH), SCH, x, steps=n) - want).abs().max().item()
        for n in (50, 500)
    ]
    assert error[1] < 0.02 and error[1] < 0.2 * error[0], error


def test_what_is_left_of_the_source_at_T_crosses_with_the_noise():
    """Stable Diffusion's schedule ends at alpha .07, not 0:
    that much of the source's mean arrives with the noise.
    """
    source, out = (
        gauss_aniso(),
        lambda sch: bridge(
            gauss_aniso().denoise(sch),
            OTHER.denoise(sch),
            sch,
            gauss_aniso().sample(4000, seed=1),
            steps=200,
        ),
    )
    left = SCH.at(SCH.T)[0] * source.means  # 1 2
    want = gaussian_flow_map(OTHER.means[0], OTHER.covs[0], left, SCH, SCH.T, 0)
    got = out(SCH)
    assert (got.mean(0) - want).abs().max() < 0.03 and (want - OTHER.means[0]).abs().max() > 0.1
    assert (got.T.cov() - OTHER.covs[0]).abs().max() < 0.03
    # ends at noise: nothing is left
    assert (out(schedule.cosine()).mean(0) - OTHER.means[0]).abs().max() < 0.05


def test_there_and_back_closes_as_the_steps_grow():
    a, b, x = gmm8().denoise(SCH), OTHER.denoise(SCH), gmm8().sample(64, seed=1)

    def cycle(n):
        return (
            (bridge(b, a, SCH, bridge(a, b, SCH, x, steps=n), steps=n) - x)
            .pow(2)
            .mean()
            .sqrt()
            .item()
        )

    found = [cycle(n) for n in (50, 100, 400)]
    assert found[0] > found[1] > found[2] and found[2] < 0.4 * found[0], found


def test_two_conditions_of_one_model_are_two_models():
    mix, x = gmm8(), gmm8().sample(32, seed=2, label=3)
    cond = lambda k: Cond(label=torch.full((32,), k))  # noqa: E731
    out = bridge(mix.denoise(SCH), mix.denoise(SCH), SCH, x, cond(3), cond(6), steps=200)
    assert (out.mean(0) - mix.means[6]).abs().max() < 0.1


def test_identical_prompts_are_the_ddim_round_trip(pipe, image):
    states = invert(pipe, image, A, steps=5)
    assert (
        ddib(pipe, image, A, A, steps=5) - replay(pipe, states[-1], A, steps=5)
    ).abs().max() < 1e-12


def test_pictures_of_a_batch_do_not_depend_on_each_other(pipe, image):
    both = ddib(pipe, image, [A, B], [B, A], steps=4)
    assert (both[1:] - ddib(pipe, image[1:], B, A, steps=4)).abs().max() < 1e-9


def test_guidance_on_the_way_up_is_warned_about(pipe, image):
    with pytest.warns(UserWarning, match="way up"):
        ddib(pipe, image, A, B, source_scale=3.0, steps=2)


@pytest.mark.filterwarnings("error")
def test_guidance_on_the_way_down_is_allowed(pipe, image):
    assert ddib(pipe, image, A, B, scale=3.0, steps=2).isfinite().all()


@pytest.mark.parametrize(
    "bad", [dict(steps=0), dict(steps=10_000), dict(scale=-1.0), dict(fixed_point=-1)]
)
def test_bad_arguments_are_refused(pipe, image, bad):
    with pytest.raises(ValueError):
        ddib(pipe, image, A, B, **dict(steps=2) | bad)
