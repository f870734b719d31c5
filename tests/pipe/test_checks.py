"""The door of the techniques: every kind of picture comes in, everything else is one sentence."""

from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minidiff.core import schedule
from minidiff.data import shapes
from minidiff.editing.prompt_to_prompt import prompt_to_prompt
from minidiff.editing.sdedit import sdedit
from minidiff.inversion.edict import edict
from minidiff.inversion.edit_friendly import edit_friendly
from minidiff.io import as_pictures, to_pil
from minidiff.pipe.checks import door, prompt_each, prompts_of
from minidiff.techniques import TECHNIQUES

A, B = "a red circle on a blue background", "a green circle on a blue background"


@pytest.fixture(scope="module")
def image():
    return shapes.render([shapes.scene(np.random.default_rng(1))])


@pytest.fixture(scope="module")
def mask():
    m = torch.zeros(1, 1, 64, 64)
    m[:, :, 16:48, 16:48] = 1
    return m


def bytes_of(image):
    return ((image + 1) * 127.5).round().to(torch.uint8)


def kinds(image, folder):
    """The same picture as users hold it."""
    to_pil(image).save(folder / "scene.png")
    first = bytes_of(image)
    hwc = first[0].permute(1, 2, 0)
    opaque = torch.full_like(hwc[..., :1], 255)
    return {
        "path": str(folder / "scene.png"),
        "Path": Path(folder / "scene.png"),
        "PIL": to_pil(image),
        "uint8 b c h w": first,
        "uint8 c h w": first[0],
        "uint8 h w c": hwc,
        "uint8 numpy": hwc.numpy(),
        "uint8 numpy batch": hwc.numpy()[None],
        "with alpha": torch.cat([hwc, opaque], -1).numpy(),
        "list": [to_pil(image)],
        "wants a gradient": image.clone().requires_grad_(),
    }


def test_every_kind_of_picture_gives_the_edit_of_the_float_tensor(pipe, image, tmp_path):
    wanted = sdedit(pipe, image, A, steps=2)
    for name, given in kinds(image, tmp_path).items():
        out = sdedit(pipe, given, A, steps=2)
        assert out.dtype == torch.float32 and not out.requires_grad, name
        assert (out - wanted).abs().max() < 0.05, name  # eight bits


def test_a_byte_picture_with_a_mask_comes_back_as_floats_and_keeps_its_pixels(pipe, image, mask):
    out = sdedit(pipe, bytes_of(image), A, steps=2, mask=mask)
    outside = (mask == 0).expand_as(out)
    assert out.dtype == torch.float32
    assert (out - image)[outside].abs().max() < 0.005 and (out - image)[~outside].abs().max() > 0.01


@pytest.mark.parametrize(
    "bad, said",
    [
        (lambda x: (x + 1) / 2, "looks like 0..1"),
        (lambda x: (x + 1) * 127.5, "outside|0 to 255"),
        (lambda x: x[0].permute(1, 2, 0), "torch.float32 of shape"),
        (lambda x: x[:0], "an empty batch"),
        (lambda x: x * float("nan"), "NaN"),
        (lambda x: x.long(), "torch.int64"),
        (lambda x: x[:, :2], r"\(1, 2, 64, 64\)"),
        (lambda x: [], "empty list"),
        (lambda x: 7, "got int"),
        (lambda x: "nowhere.png", "no picture at"),
        (lambda x: [x, x[:, :, :32]], "one size"),
    ],
)
def test_a_picture_that_is_none_is_one_sentence(pipe, image, bad, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said) as told:
        sdedit(pipe, bad(image), A, steps=2)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "bad, said",
    [
        (dict(prompt=[]), "empty list"),
        (dict(prompt=[A, B]), "2 texts as prompt for 1 picture"),
        (dict(prompt=7), "a text"),
        (dict(prompt=None), "prompt=None"),
        (dict(seed=None), "seed=None"),
        (dict(seed=1.5), "seed=1.5"),
        (dict(seed=-1), "seed=-1"),
        (dict(seed=True), "seed=True"),
        (dict(steps=2.0), "steps=2.0"),
        (dict(steps=None), "steps=None"),
        (dict(scale=float("nan")), "scale=nan"),
        (dict(scale=float("inf")), "scale=inf"),
        (dict(scale=-1.0), "negative"),
        (dict(strength="half"), "strength='half'"),
        (dict(strength=float("nan")), "strength=nan"),
        (dict(strength=0.01), "less than one step"),
        (dict(repeats=1.5), "repeats=1.5"),
        (dict(repeats=0), "at least 1"),
    ],
)
def test_everything_else_that_is_wrong_is_one_sentence(pipe, image, bad, said):
    with pytest.raises(ValueError, match=said) as told:
        sdedit(pipe, image, **{"prompt": A, "steps": 2} | bad)
    assert "\n" not in str(told.value)


def test_every_technique_has_the_door():
    from minidiff.techniques import TECHNIQUES

    for technique in TECHNIQUES.values():
        assert getattr(technique.load(), "has_door", False), technique.name


def test_behind_the_door_none_stays_where_a_parameter_takes_it():
    @door
    def technique(pipe, *, cross: float | None = 0.3, side: int | None = None):
        return cross, side

    assert technique(None, cross=None) == (None, None)
    with pytest.raises(ValueError, match="cross='x'"):
        technique(None, cross="x")


def test_a_prompt_is_given_to_each_picture_or_there_are_as_many():
    assert prompt_each("a", 3) == ["a"] * 3 and prompt_each(["a", "b"], 2) == ["a", "b"]
    with pytest.raises(ValueError, match="2 texts"):
        prompt_each(["a", "b"], 3)
    with pytest.raises(ValueError, match='"" is the empty prompt'):
        prompts_of([])


def test_a_list_of_another_length_is_refused_by_source_and_target_alike(pipe, image):
    for told in (dict(source=[A, B], target=B), dict(source=A, target=[A, B])):
        with pytest.raises(ValueError, match="2 texts"):
            edict(pipe, image, **told, steps=2)


def test_generate_asks_the_same_questions(pipe):
    for bad, said in (
        (dict(prompts=[]), "empty list"),
        (dict(prompts=A, scale=float("nan")), "scale=nan"),
        (dict(prompts=A, seed=-1), "seed=-1"),
        (dict(prompts=A, steps=2.0), "steps=2.0"),
        (dict(prompts=A, height=0), "0 x 64"),
        (dict(prompts=A, height=10**6, width=10**5), "million"),
    ):
        with pytest.raises(ValueError, match=said):
            pipe.generate(**{"steps": 2} | bad)


def test_tables_that_explode_start_at_sigma_T(pipe):
    from dataclasses import replace

    exploding = replace(pipe, schedule=schedule.ve(sigma_max=30.0), prediction="eps")
    assert exploding.start_std == pytest.approx(30)
    assert (exploding.start(2, 5) - 30 * pipe.noise(2, 5)).abs().max() < 1e-4
    assert torch.equal(pipe.start(2, 5), pipe.noise(2, 5))  # VP: as published, unit noise
    seen = []
    exploding.eps = lambda x, t, c: seen.append(x) or torch.zeros_like(x)
    exploding.generate(A, steps=1, scale=1.0, seed=5)
    assert (seen[0] - 30 * pipe.noise(1, 5)).abs().max() < 1e-4


@pytest.mark.parametrize("time, told", [("index", 499), ("sigma", None), ("log_snr", None)])
def test_the_network_is_told_the_time_that_its_pipe_says(pipe, time, told):
    from dataclasses import replace

    other = replace(pipe, time=time)
    x = pipe.noise(2)
    found = other.clock(500, x)
    alpha, sigma = pipe.schedule.at(500)
    wanted = {"index": 499, "sigma": sigma / alpha, "log_snr": 2 * np.log(alpha / sigma)}[time]
    assert found.shape == (2,) and found[0].item() == pytest.approx(wanted, rel=1e-6)
    each = other.clock(torch.tensor([1, 500]), x)
    assert each[1].item() == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(ValueError, match="time='hour'"):
        replace(pipe, time="hour").clock(500, x)


def test_at_the_end_of_the_models_grid_a_picture_is_clean(pipe):
    from dataclasses import replace

    z, n = pipe.noise(1, 1), pipe.noise(1, 2)
    literal = replace(pipe, end=1)
    assert torch.equal(literal.noised(z, 1, n), z) and torch.equal(pipe.noised(z, 0, n), z)
    assert (pipe.noised(z, 1, n) - z).abs().max() > 0
    alpha, sigma = pipe.schedule.at(500)
    assert torch.allclose(literal.noised(z, 500, n), alpha * z + sigma * n)


def test_what_must_be_given_may_not_be_none(pipe, image, mask):
    for bad in (dict(image=None), dict(prompt=None)):
        with pytest.raises(ValueError, match="needs a value"):
            sdedit(pipe, **{"image": image, "prompt": A, "steps": 2} | bad)


def test_a_ground_to_paste_on_has_the_size_of_the_picture(pipe, image, mask):
    with pytest.raises(ValueError, match="outside has shape"):
        sdedit(pipe, image, A, steps=2, mask=mask, outside=image[..., :32])


@pytest.mark.parametrize(
    "bad, said",
    [
        (dict(eta="x"), "eta='x'"),
        (dict(interval=5), "interval=5: two numbers"),
        (dict(interval=(400,)), "two numbers"),
        (dict(height=64.0), "height=64.0"),
        (dict(negative=[A, B]), "2 texts as negative for 1 picture"),
        (dict(noise=torch.full((1, 4, 16, 16), float("nan"))), "noise holds NaN"),
    ],
)
def test_generation_asks_before_it_draws(pipe, bad, said):
    with pytest.raises(ValueError, match=said):
        pipe.generate(A, **{"steps": 2} | bad)


def test_a_whole_number_of_numpy_is_a_seed(pipe, image):
    assert torch.equal(pipe.start(1, int(np.int64(3))), pipe.noise(1, 3))
    drawn = pipe.generate(A, steps=1, seed=np.int64(3))
    assert torch.equal(drawn, pipe.generate(A, steps=1, seed=3))
    assert sdedit(pipe, image, A, steps=2, seed=np.int64(3)).isfinite().all()


def test_pairs_and_factors_are_looked_at(pipe):
    for bad, said in (
        (dict(weights={"green": float("nan")}), "weights"),
        (dict(weights=5), "weights=5"),
        (dict(blend="red"), "blend='red'"),
        (dict(blend=5), "blend=5"),
    ):
        with pytest.raises(ValueError, match=said):
            prompt_to_prompt(pipe, A, B, steps=2, **bad)


def test_pictures_whose_range_cannot_be_told_are_refused():
    for im in (
        Image.fromarray(np.full((8, 8), 200, np.uint8)).convert("I"),
        Image.fromarray(np.random.default_rng(0).random((8, 8)).astype(np.float32)),
    ):
        with pytest.raises(ValueError, match=r"mode [IF]"):
            as_pictures(im)


def test_guidance_that_is_not_given_is_that_of_the_model(pipe, image):
    steps = dict(steps=2, strength=1.0)
    own = replace(pipe, scale=1.5)
    assert (sdedit(own, image, A, **steps) == sdedit(pipe, image, A, scale=1.5, **steps)).all()
    assert (sdedit(own, image, A, scale=1.5, **steps) == sdedit(own, image, A, **steps)).all()
    assert (sdedit(own, image, A, **steps) != sdedit(pipe, image, A, **steps)).any()
    one = edit_friendly(own, image, A, B, steps=2)
    assert (one == edit_friendly(pipe, image, A, B, scale=1.5, source_scale=1.5, steps=2)).all()


def test_no_technique_writes_down_the_guidance_of_the_tiny_model():
    """A scale of its own is one that a paper gives; the model's is the model's to say."""
    theirs = {  # technique: guidance of its paper or of its page
        "unitune": 4.0,
        "instruct-pix2pix": 7.5,
        "semantic-guidance": None,
        "classifier-guidance": None,
    }
    for name, technique in TECHNIQUES.items():
        known = signature(technique.load()).parameters.get("scale")
        if known is not None and name in theirs and theirs[name]:
            assert known.default == theirs[name], name
        elif known is not None and name not in theirs:
            assert known.default in (None, 1.0), name
