"""Perturbed attention: what is spoilt, where, and that the network is left as it was."""

import math

import pytest
import torch

import minidiff
from minidiff.core.taps import tap_names
from minidiff.guidance.perturbed_attention import perturbed_attention
from minidiff.models.attention import Attention


@pytest.fixture(scope="module")
def tiny():
    return minidiff.build("tiny", seed=0)


def test_no_perturbed_attention_is_the_denoiser_itself(tiny):
    x, cond = tiny.start(2), tiny.embed(["a red circle", "a blue star"])
    for how in ("alone", "alike"):
        off = perturbed_attention(tiny.eps, tiny.net, 0.0, how=how)
        assert torch.equal(off(x, 500, cond), tiny.eps(x, 500, cond))


def test_perturbed_attention_adds_what_the_spoilt_answer_lacks(tiny):
    x, cond = tiny.start(2), tiny.embed(["a red circle", "a blue star"])
    eps = tiny.eps(x, 500, cond)
    one = perturbed_attention(tiny.eps, tiny.net, 1.0)(x, 500, cond)
    three = perturbed_attention(tiny.eps, tiny.net, 3.0)(x, 500, cond)
    assert (one - eps).abs().max() > 1e-3
    assert (three - eps - 3 * (one - eps)).abs().max() < 1e-5
    assert torch.equal(tiny.eps(x, 500, cond), eps)  # the network is left as it was


def test_alone_returns_values_and_alike_the_same_for_every_place():
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


@pytest.mark.parametrize(
    "name, layers", [("tiny-dit", "blocks.[12]"), ("tiny-pixel", "^mid_block|^up")]
)
def test_other_networks_have_self_attention_by_other_names(name, layers):
    pipe = minidiff.build(name, seed=0).to(dtype=torch.float64)
    for parameter in pipe.net.parameters():  # a new transformer says nothing yet
        torch.nn.init.normal_(parameter, std=0.1)
    cond = pipe.embed(["a red circle"]) if pipe.text else pipe.null()
    x = pipe.start(1)
    off = pipe.eps(x, 500, cond)
    for how in ("alone", "alike"):
        on = perturbed_attention(pipe.eps, pipe.net, 1.0, layers=layers, how=how)(x, 500, cond)
        assert (on - off).abs().max() > 1e-6


def test_what_reads_the_prompt_is_left_alone(tiny):
    """`attn2` sees the words: its maps have a column for each, and no identity would fit."""
    x, cond = tiny.start(1), tiny.embed(["a red circle"])
    assert any("attn2" in name for name in tap_names(tiny.net, r"probs$"))
    perturbed_attention(tiny.eps, tiny.net, 1.0, layers="")(x, 500, cond)


def test_unknown_layers_and_ways_are_refused(tiny):
    with pytest.raises(KeyError, match="no tap matches"):
        perturbed_attention(tiny.eps, tiny.net, 1.0, layers="basement")
    with pytest.raises(ValueError, match="how='so'"):
        perturbed_attention(tiny.eps, tiny.net, 1.0, how="so")


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, "3"])
def test_a_scale_that_is_no_number_is_refused(tiny, bad):
    with pytest.raises(ValueError, match="number"):
        perturbed_attention(tiny.eps, tiny.net, bad)
