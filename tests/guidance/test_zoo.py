"""Guidances that are functions from Denoise to Denoise: what each is at its identity, what it does
where the answer is known, and that they stack.
"""

import math
from itertools import permutations

import pytest
import torch

import minidiff
from minidiff.core import schedule
from minidiff.core.cfg import cfg, guide
from minidiff.core.cond import Cond
from minidiff.core.denoise import Counted, noise, sample
from minidiff.core.process import ddim_step, eps_to_x0, q_sample
from minidiff.data.toy2d import Mixture, gmm8
from minidiff.guidance.autoguidance import autoguidance
from minidiff.guidance.cfg_pp import cfg_pp
from minidiff.guidance.cfg_zero import cfg_zero, guide_zero
from minidiff.guidance.dynamic_threshold import dynamic_threshold, thresholded
from minidiff.guidance.perturbed_attention import perturbed_attention
from minidiff.guidance.projected import dot, projected, projected_difference

SCH = schedule.linear(1000)
DATA = gmm8(1.0, 0.15)
ANY = Cond(label=torch.tensor([-1]))
TABLES = {"vp": schedule.linear(1000), "flow": schedule.flow(1000), "ve": schedule.ve(1000)}


def points(n=16, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def mode(k, n=16):
    return Cond(label=torch.full((n,), k))


@pytest.fixture(scope="module")
def tiny():
    return minidiff.build("tiny", seed=0)


# ---- each is nothing at its identity, to the bit -------------------------------------------------


def unguided(eps, sch=SCH):
    return {
        "autoguidance": autoguidance(eps, lambda *a: 1 / 0, 1.0),
        "projected": projected(eps, ANY, sch, 1.0),
        "cfg-zero": cfg_zero(eps, ANY, sch, 1.0),
        "dynamic threshold": dynamic_threshold(eps, sch, 1.0),
    }


@pytest.mark.parametrize("name", ["autoguidance", "projected", "cfg-zero", "dynamic threshold"])
def test_its_identity_is_the_denoiser_itself(name):
    eps = DATA.denoise(SCH)
    x0 = points().clamp(-1, 1) / 2
    x = q_sample(SCH, x0, 30, points(seed=5))
    assert torch.equal(unguided(eps)[name](x, 30, mode(2)), eps(x, 30, mode(2)))


def test_no_perturbed_attention_is_the_denoiser_itself(tiny):
    x, cond = tiny.start(2), tiny.embed(["a red circle", "a blue star"])
    for how in ("alone", "alike"):
        off = perturbed_attention(tiny.eps, tiny.net, 0.0, how=how)
        assert torch.equal(off(x, 500, cond), tiny.eps(x, 500, cond))


# ---- autoguidance --------------------------------------------------------------------------------


def blurred(c, delta):
    """The best denoiser of a Gaussian of variance c^2 that learned from data blurred by delta."""
    return Mixture([[0.0]], [[[c * c + delta]]]).denoise(SCH)


@pytest.mark.parametrize("k", [2.0, 4.0])
def test_autoguidance_is_richardson_extrapolation(k):
    """Two blurs, delta and k delta: scale k / (k - 1) takes away the first order of the error, so
    what is left falls fourfold when delta is halved; without guidance it halves.
    """
    x = noise((2000, 1), 0, dtype=torch.float64)
    scale = k / (k - 1)
    ts = SCH.timesteps(200, spacing="lambda")
    left = []
    for delta in (0.02, 0.01):
        good, bad = blurred(0.6, delta), blurred(0.6, k * delta)
        true = sample(blurred(0.6, 0.0), SCH, x, ts).std()
        guided = sample(autoguidance(good, bad, scale), SCH, x, ts).std() - true
        alone = sample(good, SCH, x, ts).std() - true
        left.append((alone.abs().item(), guided.abs().item()))
    (alone, guided), (half_alone, half_guided) = left
    assert guided < alone / 10
    assert 1.8 < alone / half_alone < 2.2 and 3.5 < guided / half_guided < 4.5


def test_autoguidance_with_a_bad_model_of_another_fault_is_pushed_away():
    """Its mean is off by .3: to first order the guided mean is off by (1 - scale) .3."""
    x = noise((2000, 1), 0, dtype=torch.float64)
    good = Mixture([[0.0]], [[[0.36]]]).denoise(SCH)
    bad = Mixture([[0.3]], [[[0.36]]]).denoise(SCH)
    ts = SCH.timesteps(200, spacing="lambda")
    shift = sample(autoguidance(good, bad, 2.0), SCH, x, ts) - sample(good, SCH, x, ts)
    assert abs(shift.mean().item() + 0.3) < 0.01


# ---- perturbed attention -------------------------------------------------------------------------


def test_perturbed_attention_adds_what_the_spoilt_answer_lacks(tiny):
    x, cond = tiny.start(2), tiny.embed(["a red circle", "a blue star"])
    eps = tiny.eps(x, 500, cond)
    one = perturbed_attention(tiny.eps, tiny.net, 1.0)(x, 500, cond)
    three = perturbed_attention(tiny.eps, tiny.net, 3.0)(x, 500, cond)
    assert (one - eps).abs().max() > 1e-3
    assert (three - eps - 3 * (one - eps)).abs().max() < 1e-5
    assert torch.equal(tiny.eps(x, 500, cond), eps)  # the network is left as it was


def test_alone_returns_values_and_alike_the_same_for_every_place():
    from minidiff.models.attention import Attention

    torch.manual_seed(0)
    attention = Attention(8, 2)
    x = torch.randn(1, 5, 8)
    alone = perturbed_attention(lambda x, t, c: attention(x), _holder(attention), 1.0)
    values = attention.to_out[0](attention.to_v(x))
    got = alone(x, 0, None)
    assert (got - (2 * attention(x) - values)).abs().max() < 1e-6
    alike = perturbed_attention(lambda x, t, c: attention(x), _holder(attention), 1.0, how="alike")
    spoilt = 2 * attention(x) - alike(x, 0, None)
    assert (spoilt - spoilt[:, :1]).abs().max() < 1e-5


def _holder(attention):
    block = torch.nn.Module()
    block.mid_block = torch.nn.Module()
    block.mid_block.attn1 = attention
    return block


# ---- projected -----------------------------------------------------------------------------------


def test_projected_guidance_with_all_of_it_is_classifier_free_guidance():
    eps = DATA.denoise(SCH)
    for t in (900, 500, 100):
        x = points()
        plain = cfg(eps, ANY, 4.0)(x, t, mode(3))
        assert (projected(eps, ANY, SCH, 4.0, eta=1.0)(x, t, mode(3)) - plain).abs().max() < 1e-9


def test_what_is_left_of_a_difference_is_at_right_angles_to_the_picture():
    d, x0 = noise((3, 4, 5, 5), 1), noise((3, 4, 5, 5), 2)
    kept = projected_difference(d, x0, 0.0)
    assert dot(kept, x0).abs().max() < 1e-4
    parallel = d - kept
    half = projected_difference(d, x0, 0.5)
    assert (half - kept - 0.5 * parallel).abs().max() < 1e-6
    # an orthogonal step leaves the length to first order, a parallel one does not
    length = dot(x0, x0)
    assert (dot(x0 + 0.01 * kept, x0) / length - 1).abs().max() < 1e-6


def test_a_radius_cuts_the_length_and_nothing_shorter():
    d, x0 = noise((3, 4, 5, 5), 1), noise((3, 4, 5, 5), 2)
    cut = projected_difference(d, x0, 1.0, radius=2.0)
    assert (dot(cut, cut).sqrt() - 2).abs().max() < 1e-5
    assert (projected_difference(d, x0, 1.0, radius=1e3) - d).abs().max() < 1e-6


def test_momentum_remembers_one_run_and_forgets_it_at_the_next():
    eps = DATA.denoise(SCH)
    x, cond = points(), mode(1)
    guided = projected(eps, ANY, SCH, 3.0, momentum=-0.5)
    fresh = guided(x, 800, cond)
    with_memory = guided(x, 700, cond)
    again = guided(x, 800, cond)  # a time that does not fall: a new run
    assert torch.equal(fresh, again)
    assert (with_memory - projected(eps, ANY, SCH, 3.0)(x, 700, cond)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="one time for all rows"):
        guided(x, torch.full((16,), 700), cond)


def test_projection_keeps_the_contrast_that_guidance_raises():
    """One picture of many values whose two guesses differ by a contrast and by a change: only the
    change survives.
    """
    picture = noise((1, 1, 8, 8), 3, dtype=torch.float64)
    change = noise((1, 1, 8, 8), 4, dtype=torch.float64)
    change = change - dot(change, picture) / dot(picture, picture) * picture
    moved = projected_difference(0.5 * picture + change, picture, 0.0)
    assert (moved - change).abs().max() < 1e-12


# ---- CFG-Zero* -----------------------------------------------------------------------------------


def test_the_multiple_is_the_least_squares_one_and_drops_out_at_scale_1():
    null, cond = noise((3, 4, 5), 1, dtype=torch.float64), noise((3, 4, 5), 2, dtype=torch.float64)
    s = dot(cond, null) / dot(null, null)
    assert dot(cond - s * null, null).abs().max() < 1e-9  # the normal equation
    assert (guide_zero(null, cond, 1.0) - cond).abs().max() < 1e-12
    assert (guide_zero(2 * null, cond, 3.0) - guide_zero(null, cond, 3.0)).abs().max() < 1e-9


@pytest.mark.parametrize("name", TABLES)
def test_standing_still_leaves_the_straightened_state_where_it_is(name):
    sch = TABLES[name]
    eps = DATA.denoise(sch)
    guided = cfg_zero(eps, ANY, sch, 3.0, still=700)
    x = points()
    y = ddim_step(sch, x, guided(x, 900, mode(1)), 900, 800)
    (a, s), (b, r) = sch.at(900), sch.at(800)
    assert (x / (a + s) - y / (b + r)).abs().max() < 1e-9
    moved = ddim_step(sch, x, guided(x, 600, mode(1)), 600, 500)
    (a, s), (b, r) = sch.at(600), sch.at(500)
    assert (x / (a + s) - moved / (b + r)).abs().max() > 1e-4


# ---- dynamic thresholding ------------------------------------------------------------------------


def test_thresholding_is_imagens():
    x0 = torch.tensor([[-4.0, -2.0, 0.0, 1.0, 2.0], [0.1, 0.2, 0.3, 0.4, 1.0]])
    got = thresholded(x0, 0.75)  # |x| sorted: 0 1 2 2 4, so s = 2; and s = 1
    assert (got - torch.tensor([[-1, -1, 0, 0.5, 1], [0.1, 0.2, 0.3, 0.4, 1.0]])).abs().max() < 1e-6


def test_the_guess_stays_in_range_under_strong_guidance():
    eps = cfg(DATA.denoise(SCH), ANY, 12.0)
    x = 2 * points()
    free = eps_to_x0(SCH, x, eps(x, 700, mode(0)), 700)
    held = eps_to_x0(SCH, x, dynamic_threshold(eps, SCH, 0.9)(x, 700, mode(0)), 700)
    assert free.abs().max() > 1.5 and held.abs().max() <= 1 + 1e-9


# ---- CFG++ ---------------------------------------------------------------------------------------

TWO = Mixture([[-1.0], [0.8]], [[[0.0625]], [[0.09]]], [0.4, 0.6])


def drawn_mean(how, steps):
    x = noise((4000, 1), 0, dtype=torch.float64)
    right = Cond(label=torch.ones(4000, dtype=torch.long))
    eps = TWO.denoise(SCH)
    if how == "cfg++":
        return cfg_pp(eps, ANY, SCH, x, right, lam=0.3, steps=steps).mean().item()
    ts = SCH.timesteps(steps)
    return sample(cfg(eps, ANY, 3.0), SCH, x, ts, right).mean().item()


def test_cfg_pp_means_more_in_more_steps_and_guidance_does_not():
    twenty, hundred = drawn_mean("cfg++", 20), drawn_mean("cfg++", 100)
    assert hundred - twenty > 0.2
    assert abs(drawn_mean("cfg", 100) - drawn_mean("cfg", 20)) < 0.05


def test_cfg_pp_without_pull_draws_without_the_condition():
    eps, x = DATA.denoise(SCH), points()
    ts = SCH.timesteps(20)
    got = cfg_pp(eps, ANY, SCH, x, mode(2), lam=0.0, steps=20)
    assert (got - sample(eps, SCH, x, ts, ANY.expand(16))).abs().max() < 1e-9


def test_one_step_of_cfg_pp_by_hand():
    eps, x = DATA.denoise(SCH), points()
    null, cond = eps(x, 600, ANY.expand(16)), eps(x, 600, mode(2))
    x0 = eps_to_x0(SCH, x, guide(null, cond, 0.4), 600)
    a, s = SCH.at(300)
    got = cfg_pp(eps, ANY, SCH, x, mode(2), lam=0.4, times=(600, 300))
    assert (got - (a * x0 + s * null)).abs().max() < 1e-12


# ---- together ------------------------------------------------------------------------------------

INSIDE = gmm8(0.6, 0.1)  # of [-1, 1], as pictures are
WRAPS = {
    "cfg": lambda eps: cfg(eps, ANY, 2.0),
    "autoguidance": lambda eps: autoguidance(eps, gmm8(0.6, 0.2).denoise(SCH), 1.5),
    "projected": lambda eps: projected(eps, ANY, SCH, 2.0, eta=0.5, momentum=-0.2),
    "cfg-zero": lambda eps: cfg_zero(eps, ANY, SCH, 2.0, still=950),
    "dynamic threshold": lambda eps: dynamic_threshold(eps, SCH, 0.99),
}


@pytest.mark.parametrize("inner, outer", list(permutations(WRAPS, 2)))
def test_every_guidance_stacks_on_every_other(inner, outer):
    """The points still end at the mode that was asked for, or beyond: nearer to it than to the
    middle, and to no other.
    """
    guided = WRAPS[outer](WRAPS[inner](INSIDE.denoise(SCH)))
    out = sample(guided, SCH, points(64), SCH.timesteps(25), mode(0, 64))
    assert (out[:, 0] > 0.3).all() and (out[:, 1].abs() < out[:, 0]).all()


@pytest.mark.parametrize("outer", WRAPS)
def test_perturbed_attention_stacks_on_a_network_with_words(tiny, outer):
    null, cond = tiny.null(), tiny.embed(["a red circle", "a blue star"])
    sch, x = tiny.schedule, tiny.start(2)
    wraps = {
        "cfg": lambda eps: cfg(eps, null, 2.0),
        "autoguidance": lambda eps: autoguidance(eps, tiny.eps, 1.5),
        "projected": lambda eps: projected(eps, null, sch, 2.0),
        "cfg-zero": lambda eps: cfg_zero(eps, null, sch, 2.0),
        "dynamic threshold": lambda eps: dynamic_threshold(eps, sch),
    }
    inside = wraps[outer](perturbed_attention(tiny.eps, tiny.net, 1.0))
    outside = perturbed_attention(wraps[outer](tiny.eps), tiny.net, 1.0)
    for guided in (inside, outside):
        assert guided(x, 500, cond).shape == x.shape and guided(x, 500, cond).isfinite().all()


@pytest.mark.parametrize(
    "guided, calls",
    [
        (lambda e: cfg(e, ANY, 2.0), 2),
        (lambda e: projected(e, ANY, SCH, 2.0), 2),
        (lambda e: cfg_zero(e, ANY, SCH, 2.0), 2),
        (lambda e: cfg_zero(e, ANY, SCH, 2.0, still=100), 0),
        (lambda e: dynamic_threshold(e, SCH), 1),
        (lambda e: autoguidance(e, e, 2.0), 2),
    ],
)
def test_what_each_costs(guided, calls):
    eps = Counted(DATA.denoise(SCH))
    guided(eps)(points(4), 500, mode(0, 4))
    assert eps.nfe == 4 * calls


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_scales_that_are_no_numbers_are_refused(tiny, bad):
    eps = DATA.denoise(SCH)
    for make in (
        lambda: autoguidance(eps, eps, bad),
        lambda: projected(eps, ANY, SCH, bad),
        lambda: cfg_zero(eps, ANY, SCH, bad),
        lambda: perturbed_attention(tiny.eps, tiny.net, bad),
        lambda: cfg_pp(eps, ANY, SCH, points(), mode(0), lam=bad),
        lambda: dynamic_threshold(eps, SCH, bad),
    ):
        with pytest.raises(ValueError, match="expected a number of at least"):
            make()


def test_other_options_out_of_range_are_refused(tiny):
    eps = DATA.denoise(SCH)
    for make, says in (
        (lambda: projected(eps, ANY, SCH, 2.0, eta=2.0), "eta=2.0"),
        (lambda: projected(eps, ANY, SCH, 2.0, radius=0.0), "radius=0.0"),
        (lambda: projected(eps, ANY, SCH, 2.0, momentum=-2.0), "momentum=-2.0"),
        (lambda: cfg_zero(eps, ANY, SCH, 2.0, still=1001), "still=1001"),
        (lambda: perturbed_attention(tiny.eps, tiny.net, 1.0, how="so"), "how='so'"),
    ):
        with pytest.raises(ValueError, match=says):
            make()
    with pytest.raises(KeyError, match="no tap matches"):
        perturbed_attention(tiny.eps, tiny.net, 1.0, layers="basement")
