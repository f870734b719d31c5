"""Guidances on guidances, and what each costs."""

from itertools import permutations

import pytest
import torch

import minidiff
from minidiff.core import schedule
from minidiff.core.cfg import cfg
from minidiff.core.cond import Cond
from minidiff.core.denoise import Counted, noise, sample
from minidiff.data.toy2d import gmm8
from minidiff.guidance.autoguidance import autoguidance
from minidiff.guidance.cfg_zero import cfg_zero
from minidiff.guidance.dynamic_threshold import dynamic_threshold
from minidiff.guidance.perturbed_attention import perturbed_attention
from minidiff.guidance.projected import projected

SCH = schedule.linear(1000)
DATA = gmm8(1.0, 0.15)
ANY = Cond(label=torch.tensor([-1]))


def points(n=16, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def mode(k, n=16):
    return Cond(label=torch.full((n,), k))


@pytest.fixture(scope="module")
def tiny():
    return minidiff.build("tiny", seed=0)


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


def test_linear_guidances_may_be_stacked_in_either_order_and_their_stack_is_not_their_sum(tiny):
    """Perturbed attention and classifier-free guidance. The sum of both pulls, as papers draw with,
    asks three times; a stack asks four times, for each pull pulls at the other.
    """
    null, cond, x = tiny.null(), tiny.embed(["a red circle"]), tiny.start(1)
    asked = Counted(tiny.eps)
    inside = cfg(perturbed_attention(asked, tiny.net, 1.0), null, 3.0)(x, 500, cond)
    assert asked.nfe == 4
    outside = perturbed_attention(cfg(tiny.eps, null, 3.0), tiny.net, 1.0)(x, 500, cond)
    assert (inside - outside).abs().max() < 1e-4
    eps = tiny.eps(x, 500, cond)
    led = cfg(tiny.eps, null, 3.0)(x, 500, cond)
    pulled = perturbed_attention(tiny.eps, tiny.net, 1.0)(x, 500, cond)
    assert (led + pulled - eps - inside).abs().max() > 1e-3


def test_a_projection_counts_where_it_stands():
    """It is not linear: a projected difference of thresholded guesses is another thing than a
    threshold on a projected guess.
    """
    eps, x = DATA.denoise(SCH), 2 * points()
    inner = projected(dynamic_threshold(eps, SCH, 0.5), ANY, SCH, 4.0)(x, 500, mode(0))
    outer = dynamic_threshold(projected(eps, ANY, SCH, 4.0), SCH, 0.5)(x, 500, mode(0))
    assert (inner - outer).abs().max() > 1e-3
