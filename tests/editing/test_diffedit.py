"""DiffEdit: where the mask comes from, what it promises, and the identity cases."""

import pytest
import torch

import minidiff
from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import noises, sample
from minidiff.core.process import q_sample
from minidiff.editing import diffedit as module
from minidiff.editing.diffedit import diffedit, difference, threshold_mask
from minidiff.inversion.ddim import invert

SOURCE, TARGET = "a red circle on a blue background", "a green circle on a blue background"


def window(b=1):
    m = torch.zeros(b, 1, 64, 64)
    m[..., 18:40, 10:31] = 1
    return m


def test_equal_prompts_disagree_nowhere_and_return_the_picture(pipe, image):
    d = difference(pipe, pipe.encode(image), SOURCE, SOURCE, samples=2)
    assert d.abs().max() == 0 and threshold_mask(d).sum() == 0
    assert torch.equal(diffedit(pipe, image, SOURCE, SOURCE, steps=2, samples=2), image)


def test_the_difference_is_the_mean_over_shared_noises(pipe, image):
    z = pipe.encode(image)
    d, parts = difference(pipe, z, SOURCE, TARGET, samples=3, seed=5), []
    for _, n in zip(range(3), noises(z, 5)):
        z_t = q_sample(pipe.schedule, z, 500, n)
        parts.append(
            (pipe.eps(z_t, 500, pipe.embed(TARGET)) - pipe.eps(z_t, 500, pipe.embed(SOURCE)))
            .abs()
            .mean(1)
        )
    assert (d[:, 0] - torch.stack(parts).mean(0)).abs().max() < 1e-5
    assert d.shape == (2, 1, 16, 16) and d.min() >= 0 and d.max() > 0


def test_guidance_would_not_change_the_mask(pipe, image):
    """eps_null cancels and the scale is divided out, so
    the mask costs two evaluations a noise, not four.
    """
    z = pipe.encode(image)
    guided = cfg_batched(pipe.eps, pipe.null(), 7.5)
    d, parts = difference(pipe, z, SOURCE, TARGET, samples=2), []
    for _, n in zip(range(2), noises(z, 0)):
        z_t = q_sample(pipe.schedule, z, 500, n)
        pair = [guided(z_t, 500, pipe.embed(p)) for p in (TARGET, SOURCE)]
        parts.append((pair[0] - pair[1]).abs().mean(1, keepdim=True))
    with_guidance = torch.stack(parts).mean(0)
    assert (with_guidance / 7.5 - d).abs().max() < 1e-5
    # cells at the threshold itself
    assert (threshold_mask(with_guidance) - threshold_mask(d)).abs().mean() < 0.01


def test_the_threshold_is_a_multiple_of_each_pictures_mean():
    d = torch.zeros(2, 1, 4, 4)
    d[0, 0, 0, :3] = torch.tensor([10.0, 2.0, 1.0])  # mean 13/16: the cut is 39/16, half of it 1.22
    d[1] = d[0] * 100  # the scale of a row does not matter
    assert torch.equal(threshold_mask(d)[0, 0, 0], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert torch.equal(threshold_mask(d)[0], threshold_mask(d)[1])
    assert torch.equal(threshold_mask(d), (d > 0.5 * 3 * d.mean((1, 2, 3), keepdim=True)).float())
    assert threshold_mask(d, 0.9).sum() < threshold_mask(d, 0.3).sum()
    assert threshold_mask(d, grow=1)[0, 0].sum() == 6  # the two cells and all around them


def test_a_picture_does_not_depend_on_its_batch(pipe, image):
    both = diffedit(pipe, image, SOURCE, [TARGET, "a star"], steps=2, samples=2, seed=3)
    alone = diffedit(pipe, image[1:], SOURCE, "a star", steps=2, samples=2, seed=4)
    assert (both[1:] - alone).abs().max() < 1e-4


def test_everything_masked_is_inversion_and_redrawing(pipe, image):
    out = diffedit(
        pipe, image, SOURCE, TARGET, mask=torch.ones(1, 1, 64, 64), strength=1.0, steps=4, scale=2.0
    )
    x = invert(pipe, image, SOURCE, steps=4)[-1]
    ts = pipe.schedule.timesteps(4, spacing="trailing")
    expected = pipe.decode(
        sample(cfg_batched(pipe.eps, pipe.null(), 2.0), pipe.schedule, x, ts, pipe.embed(TARGET))
    )
    assert (out - expected).abs().max() < 1e-5


def test_outside_the_mask_pixels_and_states_are_the_pictures(pipe, image, monkeypatch):
    out = diffedit(pipe, image, SOURCE, TARGET, mask=window(), steps=3)
    assert ((out - image) * (1 - window())).abs().max() == 0 and (
        (out - image) * window()
    ).abs().max() > 0.05
    assert torch.equal(diffedit(pipe, image, SOURCE, TARGET, mask=0 * window(), steps=2), image)
    seen = []
    monkeypatch.setattr(module, "paste", lambda x, image, mask: seen.append(x) or x)
    diffedit(pipe, image, SOURCE, TARGET, mask=0 * window(), steps=3)
    # nothing masked: the states lead back exactly
    assert (seen[0] - pipe.decode(pipe.encode(image))).abs().max() < 1e-6


def test_each_state_is_blended_with_the_inversion_of_its_own_time(pipe, image, monkeypatch):
    up, down = [], []
    step, back = module.ddim_step, module.invert_step
    monkeypatch.setattr(module, "invert_step", lambda *a: up.append(a[3:5]) or back(*a))
    monkeypatch.setattr(
        module, "ddim_step", lambda sch, x, e, t, s: down.append((t, s)) or step(sch, x, e, t, s)
    )
    diffedit(pipe, image, SOURCE, TARGET, mask=window(), steps=5, strength=0.6)
    assert up == [(0, 200), (200, 400), (400, 600)] and down == [(600, 400), (400, 200), (200, 0)]


def test_strength_zero_pastes_the_autoencoders_copy(pipe, image):
    out = diffedit(pipe, image, SOURCE, TARGET, mask=torch.ones(1, 1, 64, 64), strength=0)
    assert torch.equal(out, pipe.decode(pipe.encode(image)))


def test_models_on_pixels_and_transformers_edit_too(image):
    out = diffedit(
        minidiff.build("tiny-pixel"),
        image[..., ::2, ::2],
        "red circle",
        "green circle",
        steps=2,
        samples=1,
    )
    assert out.shape == (2, 3, 32, 32) and out.isfinite().all()
    assert (
        diffedit(minidiff.build("tiny-dit"), image, SOURCE, TARGET, steps=2, samples=1).shape
        == image.shape
    )


@pytest.mark.parametrize(
    "bad, complaint",
    [
        (dict(strength=1.5), "strength=1.5"),
        (dict(steps=0), "steps=0"),
        (dict(scale=-1.0), "scale=-1.0"),
        (dict(threshold=1.0), "threshold=1.0"),
        (dict(grow=-1), "grow=-1"),
        (dict(level=0.0), "level=0.0"),
        (dict(samples=0), "samples=0"),
        (dict(mask=torch.ones(1, 1, 32, 32)), r"mask is \(1, 1, 32, 32\)"),
        (dict(mask=window() * 0.5), "only 0 .keep. and 1 .edit."),
    ],
)
def test_bad_arguments_are_refused(pipe, image, bad, complaint):
    with pytest.raises(ValueError, match=complaint):
        diffedit(pipe, image, SOURCE, TARGET, **{"steps": 2} | bad)


@pytest.mark.weights
def test_the_mask_lies_on_what_the_words_disagree_about():
    from minidiff.bench.items import items

    pipe, found = minidiff.load("tiny"), items("dev", 4, ("recolour",))
    image, true = (torch.cat([getattr(i, k) for i in found]) for k in ("image", "mask"))
    m = threshold_mask(
        difference(pipe, pipe.encode(image), [i.source for i in found], [i.target for i in found])
    )
    m = torch.nn.functional.interpolate(m, (64, 64))
    assert ((m * true).sum() / (m + true).clamp(max=1).sum()).item() > 0.5
