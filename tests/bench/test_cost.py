"""What an edit costs: every evaluation is counted, wherever its gradient enters."""

import torch

import minidiff
from minidiff.bench.cost import Cost
from minidiff.bench.items import items
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


def test_a_gradient_that_enters_by_a_map_inside_is_counted_too():
    """Pix2pix-zero pulls on attention maps: that backward pass never crosses the output."""
    pipe = minidiff.build("tiny", seed=0)
    item = items("dev", 1, ("recolour",))[0]
    with Cost(pipe) as cost:
        pix2pix_zero(pipe, item.image, item.source, item.target, steps=2)
    # inversion 2; each step: source maps 1, the edit's maps 1 with a backward pass of 2, guided 2
    assert cost.nfe == 2 + 2 * (1 + 3 + 2)
