"""The gradient of a sampling run: equal to plain backpropagation, to a closed form, and in flat
memory.
"""

from itertools import pairwise

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import minidiff
from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import noise, sample
from minidiff.core.process import ddim_step
from minidiff.core.schedule import scaled_linear
from minidiff.samplers.differentiable import sample_with_gradients
from minidiff.train.finetune import tuned

SCH, TS = scaled_linear(), [600, 450, 300, 150, 0]
PROMPT = "a red circle on a blue background"


def plain(denoise, sch, x, ts, cond, weights=()):
    for t, s in pairwise(ts):
        x = ddim_step(sch, x, denoise(x, t, cond), t, s)
    return x


def both(pipe, ts=TS, scale=1.0):
    """[(value, gradient to x, gradients to the weights)] of the plain loop and of ours."""
    x, cond = pipe.noise(2), pipe.embed([PROMPT, "a green star on a white background"])
    denoise, found = cfg_batched(pipe.eps, pipe.null(), scale), []
    with tuned(pipe.net, "") as weights:
        for run in (plain, sample_with_gradients):
            start = x.clone().requires_grad_()
            out = run(denoise, pipe.schedule, start, ts, cond, weights)
            loss = (out.sin() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()
            found.append(
                (loss.detach(), *torch.autograd.grad(loss, (start, *weights), allow_unused=True))
            )
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_gradients_equal_plain_backpropagation(dtype, scale):
    pipe = minidiff.build("tiny", seed=0, dtype=dtype)
    for a, b in zip(*both(pipe, scale=scale), strict=True):
        assert (a is None and b is None) or (
            0 < (a - b).norm() + a.norm() and (a - b).norm() <= 1e-6 * a.norm()
        )


def test_the_run_itself_is_that_of_sample():
    pipe = minidiff.build("tiny", seed=0)
    x, cond = pipe.noise(1), pipe.embed(PROMPT)
    out = sample_with_gradients(pipe.eps, pipe.schedule, x, TS, cond)
    assert torch.equal(out, sample(pipe.eps, pipe.schedule, x, TS, cond))


def test_a_linear_denoiser_has_its_closed_form():
    """With eps = w x every move multiplies x by A + B w, so x_0 = x prod_i (A_i + B_i w)."""
    w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
    out = sample_with_gradients(lambda x, t, cond: w * x, SCH, x, TS, None, [w])
    out.backward()
    a, sig = SCH.alpha[TS], SCH.sigma[TS]
    A = a[1:] / a[:-1]
    B = sig[1:] - A * sig[:-1]
    factors = A + B * w.detach()
    assert out.item() == pytest.approx(2 * factors.prod().item())
    assert x.grad.item() == pytest.approx(factors.prod().item())
    assert w.grad.item() == pytest.approx((2 * factors.prod() * (B / factors).sum()).item())


def test_finite_differences_agree():
    g = torch.Generator().manual_seed(0)
    w, x = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (3, 2))

    def run(x, w):
        return sample_with_gradients(
            lambda x, t, cond: (x @ w).tanh() * t / 600, SCH, x, TS, None, [w]
        )

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), w.requires_grad_()))


def test_only_one_state_a_step_is_kept():
    """What the graph holds after the forward pass, number for number: S latents, and weights that
    are there anyway.
    """
    pipe, kept = minidiff.build("tiny", seed=0), []
    x, cond = pipe.noise(2), pipe.embed([PROMPT] * 2)
    for steps in (3, 6):
        kept.clear()
        with (
            tuned(pipe.net, r"attn2\.to_k") as weights,
            saved_tensors_hooks(lambda v: kept.append(v) or v, lambda v: v),
        ):
            sample_with_gradients(
                pipe.eps, pipe.schedule, x, pipe.schedule.timesteps(steps), cond, weights
            )
        assert sum(v.numel() for v in kept) == steps * x.numel() + sum(w.numel() for w in weights)


def test_gradient_reaches_the_text():
    pipe = minidiff.build("tiny", seed=0)
    text = pipe.embed(PROMPT).text.clone().requires_grad_()
    cond = pipe.embed(PROMPT).replace(text=text)
    sample_with_gradients(pipe.eps, pipe.schedule, pipe.noise(1), TS, cond, [text]).sum().backward()
    ours, text.grad = text.grad, None
    plain(pipe.eps, pipe.schedule, pipe.noise(1), TS, cond).sum().backward()
    assert torch.allclose(ours, text.grad, rtol=1e-5, atol=1e-7) and ours.abs().max() > 0


def test_noise_that_is_given_serves_both_evaluations():
    pipe = minidiff.build("tiny", seed=0)
    drawn = {t: noise((1, *pipe.shape), seed=t) for t in TS}

    def step(sch, x, eps, t, s):
        return ddim_step(sch, x, eps, t, s, 1.0, drawn[t])

    found = []
    for run in (
        lambda x: sample_with_gradients(
            pipe.eps, pipe.schedule, x, TS[:-1], pipe.embed(PROMPT), step=step
        ),
        lambda x: loop(pipe, x, step),
    ):
        x = pipe.noise(1).requires_grad_()
        run(x).sum().backward()
        found.append(x.grad)
    assert torch.allclose(*found, rtol=1e-5, atol=1e-6)


def loop(pipe, x, step):
    for t, s in pairwise(TS[:-1]):
        x = step(pipe.schedule, x, pipe.eps(x, t, pipe.embed(PROMPT)), t, s)
    return x


def test_weights_that_change_before_the_backward_pass_are_found_out():
    w = torch.ones(1, requires_grad=True)
    out = sample_with_gradients(lambda x, t, cond: w * x, SCH, torch.ones(1, 1), TS, None, [w])
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_one_time_is_no_run():
    with pytest.raises(ValueError, match="two times"):
        sample_with_gradients(lambda x, t, cond: x, SCH, torch.ones(1, 1), [500])
