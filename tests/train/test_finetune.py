"""A network comes back as it was."""

import pytest
import torch
from torch import nn

import minidiff
import minidiff.editing.delta_denoising as walk
from minidiff.editing.asyrp import asyrp
from minidiff.editing.blended_latent import tune_decoder
from minidiff.editing.diffusion_clip import mixed, restyle, tune
from minidiff.editing.imagic import imagic
from minidiff.editing.real_pictures import null_text, pivotal_tuning
from minidiff.editing.unitune import unitune
from minidiff.foundations.latent_diffusion import diffusion_loss
from minidiff.train.finetune import READS_TEXT, fit_picture, in_float32, picture_batch, tuned


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


# ---- models in half precision --------------------------------------------------------------------


def test_in_float32_is_for_the_block_and_gives_every_bit_back(pipe):
    half = minidiff.build("tiny", seed=1, dtype=torch.float16)
    half.vae.bfloat16()
    before = {name: v.clone() for name, v in half.net.state_dict().items()}
    with pytest.raises(RuntimeError), in_float32(half):
        assert half.dtype == torch.float32
        assert half.eps(half.noise(1), 500, half.embed("a star")).dtype == torch.float32
        raise RuntimeError
    assert all(
        v.equal(before[n]) and v.dtype == torch.float16 for n, v in half.net.named_parameters()
    )
    assert {v.dtype for v in half.vae.parameters()} == {torch.bfloat16}
    with in_float32(pipe):
        assert pipe.dtype == torch.float32


def test_half_precision_parameters_are_not_fitted():
    half = minidiff.build("tiny", seed=0, dtype=torch.float16)
    text = half.embed("a star").text
    with pytest.raises(ValueError, match="float16, too coarse for an optimiser"):
        fit_picture(half, half.noise(1), text, [text], updates=1, lr=0.1)


PICTURE = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
SOURCE, TARGET = "a red star", "a blue star"


def by_imagic(pipe, updates):
    how = dict(text_updates=updates, net_updates=updates, eta=0.5, steps=2, batch=2)
    return imagic(pipe, PICTURE, TARGET, text_lr=0.1, lr=1e-2, **how)


def by_unitune(pipe, updates):
    return unitune(pipe, PICTURE, TARGET, updates=updates, lr=1e-2, steps=2, batch=2)


def by_pivotal_tuning(pipe, updates):
    return pivotal_tuning(pipe, PICTURE, SOURCE, TARGET, updates=updates, lr=1e-2, steps=2)


def by_null_text(pipe, updates):
    return null_text(pipe, PICTURE, SOURCE, TARGET, inner=updates, lr=0.1, steps=2)


def by_diffusion_clip(pipe, updates):
    """The tuned weights, in the model's own type, drawn with."""
    style = tune(pipe, PICTURE, SOURCE, TARGET, updates=updates, lr=1e-2, train_steps=2)
    return restyle(pipe, PICTURE, SOURCE, mixed(pipe, [style], (1.0,)), steps=2)


def by_asyrp(pipe, updates):
    return asyrp(pipe, PICTURE, SOURCE, TARGET, learn=1, strength=updates / 2, steps=2)


def by_a_decoder(pipe, updates):
    mask = torch.zeros(1, 1, 64, 64)
    return tune_decoder(pipe, pipe.encode(PICTURE), PICTURE, mask, iterations=updates)


LEARN = (
    by_imagic,
    by_unitune,
    by_pivotal_tuning,
    by_null_text,
    by_diffusion_clip,
    by_asyrp,
    by_a_decoder,
)


@pytest.mark.weights
@pytest.mark.parametrize("edit", LEARN, ids=lambda edit: edit.__name__)
def test_what_learns_learns_the_same_in_a_float16_model(edit, awake):
    half = awake("tiny").to(dtype=torch.float16)
    exact = awake("tiny").to(dtype=torch.float16).to(dtype=torch.float32)
    got, want, idle = edit(half, 2), edit(exact, 2), edit(exact, 0)
    assert got.dtype == torch.float16 and got.isfinite().all()
    learned = (want - idle).abs().mean()
    assert (got.float() - want).abs().mean() < 0.3 * learned and learned > 1e-3


def test_small_steps_add_up_in_a_float16_model(monkeypatch):
    """A hundred steps of a ten-thousandth, each less than float16 can add to 1."""
    half = minidiff.build("tiny", seed=0, dtype=torch.float16)
    half.encode = lambda image: torch.ones(1, 4, 16, 16, dtype=torch.float16)
    half.decode = lambda z: z
    monkeypatch.setattr(walk, "score_gradient", lambda *args: torch.ones(1, 4, 16, 16).half())
    out = walk.delta_denoising(half, PICTURE, SOURCE, TARGET, iterations=100, rate=1e-4)
    assert out.dtype == torch.float16 and (out - 0.99).abs().max() < 1e-3
