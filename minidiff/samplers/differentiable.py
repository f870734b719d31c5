"""Gradients through a whole sampling run, in the memory of one step.

Gwanghyun Kim, Taesung Kwon, Jong Chul Ye, "DiffusionCLIP", 2021, arXiv 2110.02711; Tianqi Chen et
al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv 1604.06174.

DiffusionCLIP trains through the sampler. Its code keeps every activation of every step, which ends
at six steps. The second paper trades arithmetic for memory, and so does this file. A sampler is
x_0 = f_1(f_2(... f_S(x_S))), where each f is a network evaluation and a DDIM move. The chain rule
is read from the clean end. At move i it needs only the state the move began with, and the gradient
that arrives from behind:

    forward    keep x_S, ..., x_1: one latent a step, no activations
    backward   g = dL/dx_0;    for i = 1 .. S:    y = f_i(x_i) once more, now with gradients
                                                  dL/dw += g dy/dw,    g <- g dy/dx

Try: 6, 50 and 500 steps, and look at the memory; a step with `eta`, whose noise was drawn
beforehand.

Weakness: every step is evaluated twice (four thirds of the time, if a backward costs two forwards).
The second evaluation must be the first one again: fixed weights, no dropout, noise that is given
and not drawn. Weights changed in between are found out and refused; the rest is up to the caller.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, Step
from minidiff.core.process import ddim_step
from minidiff.core.schedule import Schedule


class _Run(torch.autograd.Function):
    """The loop of `sample` as one node of the graph, which holds the states and nothing else."""

    @staticmethod
    def forward(ctx: Any, move: Callable, ts: list[int], x: Tensor, *weights: Tensor) -> Tensor:
        states = [x.detach().clone()]  # a copy: were it x, the run itself would be its own input
        for t, s in pairwise(ts):  # no graph in here
            states.append(move(states[-1], t, s))
        ctx.move = move
        ctx.ts = ts
        ctx.save_for_backward(*states[:-1], *weights)  # torch notices if they change
        return states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        n = len(ctx.ts) - 1
        states = ctx.saved_tensors[:n]
        weights = ctx.saved_tensors[n:]
        total: list[Tensor | None] = [None] * len(weights)
        for x, (t, s) in zip(reversed(states), reversed(list(pairwise(ctx.ts)))):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                y = ctx.move(x, t, s)
            # vector times Jacobian
            g, *dw = torch.autograd.grad(y, (x, *weights), g, allow_unused=True)
            total = [b if a is None else a if b is None else a.add_(b) for a, b in zip(total, dw)]
        return None, None, g, *total


def sample_with_gradients(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    ts: list[int],
    cond: Cond | None = None,
    weights: Sequence[Tensor] = (),
    step: Step = ddim_step,
) -> Tensor:
    """As `core.denoise.sample`, from ts[0] to ts[-1], but a
    loss on the result has a gradient to x and to `weights`.

    weights   every tensor the gradient is wanted for and `denoise` looks at: parameters of a
              network, text tokens ...
              A tensor that is not named here gets no gradient, whatever it requires.
    step      (sch, x_t, eps, t, s) -> x_s, the same in both evaluations

    Memory: the states (one x a step) and the activations of one step, whatever len(ts) is. First
    derivatives only. RuntimeError from `backward` if a weight was changed after the run.
    ValueError: fewer than two times.
    """
    if len(ts) < 2:
        raise ValueError(
            f"ts={ts}: expected two times or more, from the noisy one to the clean one"
        )
    return _Run.apply(
        lambda x, t, s: step(sch, x, denoise(x, t, cond), t, s), list(ts), x, *weights
    )
