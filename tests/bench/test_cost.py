"""What an edit costs: every evaluation is counted, wherever its gradient enters."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import minidiff
from minidiff.bench.cost import Cost
from minidiff.bench.items import items
from minidiff.core.cfg import cfg_batched
from minidiff.editing.pix2pix_zero import pix2pix_zero


def test_evaluations_are_counted_by_rows_and_a_backward_pass_is_two_more():
    pipe = minidiff.build("tiny", seed=0)
    x, cond = pipe.noise(3), pipe.embed(["a red circle"] * 3)
    with Cost(pipe) as cost, torch.no_grad():
        pipe.eps(x, 500, cond)
    assert cost.nfe == 3 and cost.seconds > 0
    with Cost(pipe) as cost:
        z = x.clone().requires_grad_()
        pipe.eps(z, 500, cond).sum().backward()
    assert cost.nfe == 9 and not pipe.net._forward_hooks


def test_guidance_costs_two_rows_and_none_at_scale_1():
    pipe = minidiff.build("tiny", seed=0)
    x, cond = pipe.noise(2), pipe.embed(["a red circle"] * 2)
    for scale, rows in ((1.0, 2), (3.0, 4)):
        with Cost(pipe) as cost, torch.no_grad():
            cfg_batched(pipe.eps, pipe.null(), scale)(x, 500, cond)
        assert cost.nfe == rows, scale


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_pass_that_checkpointing_repeats_counts_again(reentrant):
    """Forward, forward again when its gradient is asked for, backward twice: four a row."""
    pipe = minidiff.build("tiny", seed=0)
    x, cond = pipe.noise(2), pipe.embed(["a red circle"] * 2)
    with Cost(pipe) as cost:
        z = x.clone().requires_grad_()
        eps = checkpoint(lambda z: pipe.eps(z, 500, cond), z, use_reentrant=reentrant)
        eps.sum().backward()
    assert cost.nfe == 2 * 4


def test_what_one_pass_gives_to_two_losses_is_walked_back_twice():
    pipe = minidiff.build("tiny", seed=0)
    x, cond = pipe.noise(1), pipe.embed("a red circle")
    with Cost(pipe) as cost:
        z = x.clone().requires_grad_()
        eps = pipe.eps(z, 500, cond)
        torch.autograd.grad(eps.sum(), z, retain_graph=True)
        torch.autograd.grad(eps.square().sum(), z)
    assert cost.nfe == 1 + 2 + 2


def test_a_gradient_that_enters_by_a_map_inside_is_counted_too():
    """Pix2pix-zero pulls on attention maps: that backward pass never crosses the output."""
    pipe = minidiff.build("tiny", seed=0)
    item = items("dev", 1, ("recolour",))[0]
    with Cost(pipe) as cost:
        pix2pix_zero(pipe, item.image, item.source, item.target, steps=2)
    # inversion 2; each step: source maps 1, the edit's maps 1 with a backward pass of 2, guided 2
    assert cost.nfe == 2 + 2 * (1 + 3 + 2)
