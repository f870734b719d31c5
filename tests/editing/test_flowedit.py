"""FlowEdit: the straight line in other units, the exact walk between Gaussians, identity cases."""

import numpy as np
import pytest
import torch

import minidiff
from minidiff.core import schedule
from minidiff.core.cond import Cond
from minidiff.core.denoise import noise
from minidiff.core.process import ddim_step, q_sample
from minidiff.data import shapes
from minidiff.data.toy2d import Mixture
from minidiff.editing import flowedit as module
from minidiff.editing.flowedit import flow_time, flowedit, velocity

A, B = "a red circle on a blue background", "a green circle on a blue background"


@pytest.fixture(scope="module")
def pipe(awake):
    return awake("tiny")


@pytest.fixture(scope="module")
def image():
    return shapes.render([shapes.scene(np.random.default_rng(3))])


@pytest.mark.parametrize("sch", [schedule.scaled_linear(), schedule.cosine(), schedule.flow()])
def test_a_ddim_step_is_an_euler_step_of_the_velocity(sch):
    data = Mixture([[1.0, 0.0]], [[[0.3, 0.0], [0.0, 0.2]]])
    denoise = data.denoise(sch)
    t, s = 700, 500
    x = q_sample(sch, data.sample(5), t, noise((5, 2), 1, dtype=torch.float64))
    k_t, tau_t = flow_time(sch, t)
    k_s, tau_s = flow_time(sch, s)
    euler = x / k_t + (tau_s - tau_t) * velocity(denoise, sch, x / k_t, t, None)
    assert (k_s * euler - ddim_step(sch, x, denoise(x, t, None), t, s)).abs().max() < 1e-12


@pytest.mark.parametrize("fresh", [True, False])
def test_equal_prompts_and_scales_return_the_copy(pipe, image, fresh):
    out = flowedit(pipe, image, A, A, source_scale=2.0, scale=2.0, steps=5, fresh=fresh)
    assert (out - pipe.decode(pipe.encode(image))).abs().max() < 1e-5


def test_strength_0_returns_the_copy_and_another_prompt_an_edit(pipe, image):
    copy = pipe.decode(pipe.encode(image))
    assert (flowedit(pipe, image, A, B, strength=0, steps=4) - copy).abs().max() < 1e-6
    assert (flowedit(pipe, image, A, B, strength=1, steps=4) - copy).abs().max() > 1e-3


class Gaussians:
    """What flowedit asks of a pipe, for two Gaussians of one spread in the plane of 2 numbers."""

    def __init__(self, sch, end=0):
        self.schedule, self.end, self.asked = sch, end, []
        cov = [[0.16, 0.0], [0.0, 0.16]]
        self.of = {p: Mixture([[m, 0.0]], [cov]).denoise(sch) for p, m in (("a", -1.0), ("b", 1.0))}

    def eps(self, x_t, t, cond):
        self.asked.append((x_t, t))
        names = ["a" if v < 0 else "b" for v in cond.text[:, 0, 0]]
        flat = x_t.flatten(1)
        rows = [self.of[n](flat[i : i + 1], t, None) for i, n in enumerate(names)]
        return torch.cat(rows).view_as(x_t)

    def embed(self, prompts):
        prompts = [prompts] if isinstance(prompts, str) else prompts
        value = [-1.0 if p == "a" else 1.0 for p in prompts]
        return Cond(text=torch.tensor(value, dtype=torch.float64)[:, None, None])

    def null(self, n=1):
        return self.embed(["a"] * n)

    def latent_size(self, h, w):
        return h, w

    def encode(self, image):
        return image[:, :2, :1, :1].double()

    def decode(self, z):
        return z

    def timesteps(self, steps, strength=1.0):
        ts = self.schedule.timesteps(steps, spacing="trailing", end=self.end)
        return ts[steps - int(steps * strength) :]


@pytest.mark.parametrize("sch", [schedule.scaled_linear(), schedule.flow()])
def test_between_equal_gaussians_every_point_moves_alike_and_as_the_closed_form_says(sch):
    """Whatever the noise: the velocities differ by a linear function of the move so far, whose
    exact solution from tau to 0 is (1 - (1 - tau) s_0 / s_tau) of the distance of the means.
    """
    pipe = Gaussians(sch)
    image = torch.linspace(-0.9, 0.7, 4 * 3).view(4, 3, 1, 1).expand(4, 3, 2, 2)
    out = flowedit(
        pipe, image, ["a"] * 4, ["b"] * 4, strength=1.0, source_scale=1, scale=1, steps=200
    )
    moved = (out - pipe.encode(image)).flatten(1)
    _, tau = flow_time(sch, sch.T)
    spread = ((1 - tau) ** 2 * 0.16 + tau**2) ** 0.5
    expected = 2.0 * (1 - (1 - tau) * 0.4 / spread)
    assert (moved[:, 0] - expected).abs().max() < 0.02 and moved[:, 1].abs().max() < 1e-9


def test_the_source_is_asked_about_the_given_picture_and_never_about_the_edit():
    pipe = Gaussians(schedule.flow())
    image = torch.linspace(-0.9, 0.7, 3).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    flowedit(pipe, image, "a", "b", strength=1.0, source_scale=1, scale=1, steps=3, seed=5)
    draws = module.noises(pipe.encode(image), 5)
    for x_t, t in pipe.asked[::2]:  # source, target, source, ...
        k, tau = flow_time(pipe.schedule, t)
        expected = k * ((1 - tau) * pipe.encode(image) + tau * next(draws))
        assert torch.allclose(x_t, expected)


def test_a_row_does_not_depend_on_the_batch(pipe, image):
    two = torch.cat([image, image.flip(-1)])
    both = flowedit(pipe, two, [A, B], [B, A], steps=3, seed=4)
    alone = flowedit(pipe, image.flip(-1), B, A, steps=3, seed=5)
    assert (both[1:] - alone).abs().max() < 1e-3


def test_a_grid_that_ends_at_1_ends_clean(image):
    sch = schedule.flow()
    ends = [
        flowedit(
            Gaussians(sch, end), image, "a", "b", strength=1.0, source_scale=1, scale=1, steps=100
        )
        for end in (0, 1)
    ]
    assert (ends[0] - ends[1]).abs().max() < 0.01


@pytest.mark.parametrize("bad", [{"strength": 1.5}, {"source_scale": -1.0}, {"scale": -1.0}])
def test_bad_arguments_are_refused(image, bad):
    with pytest.raises(ValueError):
        flowedit(minidiff.build("tiny"), image, A, B, **bad)
