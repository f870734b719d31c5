"""A network comes back as it was."""

import pytest
import torch
from torch import nn

import minidiff
from minidiff.foundations.latent_diffusion import diffusion_loss
from minidiff.train.finetune import READS_TEXT, fit_picture, picture_batch, tuned


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).requires_grad_(False)


def test_only_what_matches_learns_and_all_is_put_back():
    net, x = network(), torch.randn(5, 3)
    before = net(x)
    with tuned(net, r"^1\.") as weights:
        assert len(weights) == 2 and not net[0].weight.requires_grad
        optimizer = torch.optim.SGD(weights, lr=0.1)
        net(x).square().sum().backward()
        optimizer.step()
        assert not torch.equal(net(x), before)
    assert torch.equal(net(x), before) and not any(
        p.requires_grad or p.grad is not None for p in net.parameters()
    )


def test_an_exception_puts_back_too():
    net = network()
    before = {n: p.clone() for n, p in net.named_parameters()}
    with pytest.raises(RuntimeError), tuned(net) as weights:
        with torch.no_grad():
            weights[0].zero_()
        raise RuntimeError
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(KeyError, match=r"0\.weight"), tuned(network(), "attn9"):
        pass


@pytest.fixture(scope="module")
def pipe():
    return minidiff.build("tiny", seed=0)


def test_every_update_sees_one_time_of_each_band(pipe):
    z, g = pipe.noise(1), torch.Generator().manual_seed(0)
    for _ in range(20):
        rows = picture_batch(pipe, z, pipe.noise(8), g)
        assert ((rows["t"] - 1) * 8 // pipe.schedule.T).tolist() == list(range(8)) and rows[
            "x0"
        ].shape == (8, 4, 16, 16)


def test_fitting_lowers_the_loss_on_times_and_noises_it_never_saw(pipe):
    z, text = pipe.noise(1, seed=5), pipe.embed("a red circle on a blue background").text
    g = torch.Generator().manual_seed(1)
    fresh = picture_batch(pipe, z, pipe.noise(16, seed=900), g) | {"text": text.expand(16, -1, -1)}

    def loss():
        with torch.no_grad():
            return diffusion_loss(pipe.net, fresh, pipe.schedule, pipe.prediction).item()

    before = loss()
    with tuned(pipe.net, READS_TEXT + "|conv_out") as weights:
        losses = fit_picture(pipe, z, text, weights, updates=6, lr=1e-3, batch=4)
        assert len(losses) == 6 and loss() < 0.98 * before
    assert loss() == before


def test_text_can_be_what_is_fitted(pipe):
    text = pipe.embed("a red circle on a blue background").text.clone().requires_grad_()
    start = text.detach().clone()
    fit_picture(pipe, pipe.noise(1), text, [text], updates=0, lr=0.1)
    assert torch.equal(text.detach(), start)
    fit_picture(pipe, pipe.noise(1), text, [text], updates=1, lr=0.1, batch=2)
    # every token, not the pooled one alone
    assert (text.detach() - start).abs().amax((0, 2)).min() > 0


def test_the_same_seed_fits_the_same_and_a_negative_number_is_refused(pipe):
    a, b, c = (
        fit_picture(
            pipe,
            pipe.noise(1),
            pipe.embed("a").text.requires_grad_(),
            [torch.zeros(1)],
            updates=2,
            lr=0.0,
            batch=2,
            seed=s,
        )
        for s in (0, 0, 1)
    )
    assert a == b != c
    with pytest.raises(ValueError, match="0"):
        fit_picture(pipe, pipe.noise(1), pipe.embed("a").text, [], updates=-1, lr=0.0)
