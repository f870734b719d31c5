"""The pipe: the one place that knows about latents,
index shifts, prediction types, prompts and classes.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from minidiff.core import schedule
from minidiff.core.cond import Cond
from minidiff.core.denoise import noise
from minidiff.core.process import PREDICTIONS, q_sample, target
from minidiff.pipe.pipe import Pipe
from minidiff.weights.store import build

SCH = schedule.linear(1000)


class Recorder(nn.Module):
    """Returns what it is told to; remembers what it was given."""

    def __init__(self, answer=None):
        super().__init__()
        self.anchor, self.answer, self.calls = nn.Parameter(torch.zeros(1)), answer, []

    def forward(self, x, t, cond):
        self.calls.append((x, t, cond))
        return x if self.answer is None else self.answer


def fake(answer=None, **kw):
    return Pipe(**dict(net=Recorder(answer), schedule=SCH, shape=(4, 8, 8)) | kw)


@pytest.fixture(scope="module")
def tiny():
    return build("tiny", seed=1)


@pytest.fixture(scope="module")
def pixel():
    return build("tiny-pixel", seed=1)


# ---- eps -----------------------------------------------------------------------------------------


def test_network_time_is_the_index_minus_one_for_every_row():
    pipe, x = fake(), torch.zeros(3, 4, 8, 8)
    pipe.eps(x, 1, None)
    pipe.eps(x, 1000, Cond())
    pipe.eps(x, torch.tensor([5, 1, 999]), None)
    assert [c[1].tolist() for c in pipe.net.calls] == [[0, 0, 0], [999, 999, 999], [4, 0, 998]]
    assert pipe.net.calls[0][1].dtype == torch.int64


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [1, 400, 1000, torch.tensor([1, 400, 1000])], ids=str)
def test_eps_is_read_from_every_kind_of_network(prediction, t):
    x0, eps = (noise((3, 4, 8, 8), s).double() for s in (0, 10))
    sch = schedule.flow(1000) if prediction == "flow" else SCH
    pipe = fake(target(sch, x0, eps, t, prediction), prediction=prediction, schedule=sch)
    assert (pipe.eps(q_sample(sch, x0, t, eps), t, None) - eps).abs().max() < 1e-9


def test_only_the_first_channels_of_a_network_that_also_predicts_variance_count():
    x = noise((2, 4, 8, 8))
    pipe = fake(torch.cat([x, torch.full_like(x, torch.nan)], dim=1))
    assert torch.equal(pipe.eps(x, 7, None), x)


def test_one_condition_serves_all_rows_and_a_wrong_number_is_refused():
    pipe, x = fake(), torch.zeros(3, 4, 8, 8)
    pipe.eps(x, 7, Cond(text=torch.ones(1, 5, 6)))
    assert pipe.net.calls[0][2].text.shape == (3, 5, 6)
    with pytest.raises(ValueError, match="can only expand 1 row"):
        pipe.eps(x, 7, Cond(text=torch.ones(2, 5, 6)))


def test_gradients_pass_through_eps(tiny):
    x = noise((1, 4, 16, 16)).requires_grad_()
    tiny.eps(x, 500, tiny.embed("a red circle")).square().sum().backward()
    assert x.grad.abs().max() > 1e-6


# ---- conditions ----------------------------------------------------------------------------------


def test_prompts_become_states_of_the_text_tower(tiny):
    prompts = ["a red circle on a blue background", "a star"]
    cond = tiny.embed(prompts)
    assert cond.text.shape == (2, 20, 128) and not cond.text.requires_grad
    assert torch.equal(cond.text, tiny.text(tiny.tokenizer(prompts)))
    assert (tiny.embed("a star").text - cond.text[1:]).abs().max() < 1e-5
    with pytest.raises(ValueError, match="unknown words: dragon"):
        tiny.embed("a red dragon")


def test_the_null_condition_is_the_empty_prompt_or_the_index_after_the_last_class(tiny, pixel):
    assert (tiny.null(3).text - tiny.embed("").text).abs().max() < 1e-6 and len(tiny.null(3)) == 3
    assert pixel.null(2).label.tolist() == [56, 56] and pixel.embed("").label.tolist() == [56]
    assert len(fake().null(2)) == 0 and fake().null().text is None  # unconditional: nothing to say


def test_class_names_become_labels_and_unknown_ones_list_the_known(pixel):
    assert pixel.embed(["red circle", "pink cross", ""]).label.tolist() == [0, 55, 56]
    for bad in ("a red circle", "red", "circle red"):
        with pytest.raises(
            ValueError, match=f"class '{bad}' is unknown; choose one of: red circle, orange circle"
        ):
            pixel.embed(bad)
    with pytest.raises(ValueError, match="unconditional: it takes no prompt"):
        fake(name="ddpm").embed("a red circle")


# ---- pictures ------------------------------------------------------------------------------------


@torch.no_grad()
def test_encode_is_the_scaled_posterior_mean_and_decode_its_way_back(tiny):
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = tiny.encode(x)
    assert tiny.image_size == (64, 64) and z.shape == (2, *tiny.shape)
    assert (z - tiny.vae.scale * tiny.vae.encode(x).mean).abs().max() < 1e-6
    assert (tiny.decode(z) - tiny.vae.decode(z / tiny.vae.scale).clamp(-1, 1)).abs().max() < 1e-6
    assert tiny.encode(x.double()).dtype == torch.float32  # the network's own dtype


def test_a_pixel_model_works_on_the_picture_itself(pixel):
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert (
        pixel.image_size == (32, 32)
        and torch.equal(pixel.encode(x), x)
        and torch.equal(pixel.decode(3 * x), (3 * x).clamp(-1, 1))
    )


@pytest.mark.parametrize(
    "shape, complaint",
    [
        ((1, 1, 64, 64), r"\(1, 1, 64, 64\).*takes \(b, 3, 64, 64\) in \[-1, 1\]"),
        ((3, 64, 64), r"\(3, 64, 64\).*takes \(b, 3"),
        ((1, 64, 64, 3), r"\(1, 64, 64, 3\).*takes \(b, 3"),
        ((1, 3, 64, 63), "64 x 63 pixels.*64 x 64.*multiples of 4"),
        ((1, 3, 0, 64), "0 x 64 pixels"),
    ],
    ids=str,
)
def test_pictures_that_do_not_fit_are_refused_with_both_shapes(tiny, shape, complaint):
    with pytest.raises(ValueError, match=complaint):
        tiny.encode(torch.zeros(shape))


@torch.no_grad()
def test_latent_unets_take_every_size_and_the_others_their_own(tiny, pixel):
    assert tiny.encode(torch.zeros(1, 3, 40, 72)).shape == (1, 4, 10, 18)
    assert tiny.generate("a star", steps=1, height=40, width=72).shape == (1, 3, 40, 72)
    # 13 latents wide: an odd number
    assert tiny.generate("a star", steps=1, width=52).shape == (1, 3, 64, 52)
    dit = build("tiny-dit")
    for pipe in (dit, pixel):
        size = f"{pipe.image_size[0]} x {pipe.image_size[1]}"
        with pytest.raises(
            ValueError, match=f"32 x 48 pixels: {pipe.name} makes pictures of {size} and takes that"
        ):
            pipe.generate("a star" if pipe is dit else "red circle", steps=1, height=32, width=48)
    with pytest.raises(ValueError, match=r"64 x 66 pixels: tiny .* multiples of 4"):
        tiny.generate("a star", steps=1, width=66)


def test_starting_noise_depends_on_the_seed_of_each_picture_alone(tiny):
    assert torch.equal(tiny.noise(3, seed=5)[1], tiny.noise(1, seed=6)[0]) and tiny.noise(
        3
    ).shape == (3, 4, 16, 16)


# ---- moving --------------------------------------------------------------------------------------


def test_to_moves_every_network_and_keeps_the_rest():
    pipe = build("tiny-dit").to(dtype=torch.bfloat16)
    assert {p.dtype for m in (pipe.net, pipe.vae, pipe.text) for p in m.parameters()} == {
        torch.bfloat16
    }
    assert (
        pipe.dtype == pipe.noise(1).dtype == torch.bfloat16
        and pipe.name == "tiny-dit"
        and pipe.prediction == "v"
    )
    assert pipe.schedule.alpha.dtype == torch.float64 and pipe.device.type == "cpu"
    assert pipe.eps(pipe.noise(1), 500, pipe.embed("a star")).dtype == torch.bfloat16


# ---- generate ------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_picture_whatever_the_batch(tiny):
    prompts = ["a red circle", "a star on a blue background", "a cross"]
    together = tiny.generate(prompts, steps=3, seed=4)
    alone = tiny.generate(prompts[2], steps=3, seed=6)
    assert together.shape == (3, 3, 64, 64) and together.abs().max() <= 1
    assert torch.equal(tiny.generate(prompts, steps=3, seed=4), together)
    assert (alone - together[2:]).abs().max() <= 1e-5
    assert (tiny.generate(prompts, steps=3, seed=5) - together).abs().amax((1, 2, 3)).min() > 1e-3


def test_the_picture_does_not_depend_on_global_randomness(tiny):
    torch.manual_seed(0)
    a = tiny.generate("a star", steps=2, eta=1.0, seed=3)
    torch.manual_seed(1)
    assert torch.equal(tiny.generate("a star", steps=2, eta=1.0, seed=3), a)
    assert (tiny.generate("a star", steps=2, eta=0.0, seed=3) - a).abs().max() > 1e-3


def calls_of(pipe, *args, **kw):
    pipe.generate(*args, **kw)
    return [(len(x), t[0].item(), cond.label.tolist()) for x, t, cond in pipe.net.calls]


def test_generate_walks_from_T_to_zero_with_guidance_in_one_call_per_step():
    classes = ("cat", "dog")
    assert calls_of(fake(classes=classes), ["dog", "cat"], steps=4, scale=2.0) == [
        (4, t, [2, 2, 1, 0]) for t in (999, 749, 499, 249)
    ]  # rows: [null, cond]
    assert calls_of(fake(classes=classes), "dog", steps=2, scale=1.0) == [
        (1, 999, [1]),
        (1, 499, [1]),
    ]
    assert calls_of(fake(classes=classes), "dog", steps=1, scale=2.0, negative="cat") == [
        (2, 999, [0, 1])
    ]
    assert calls_of(fake(classes=classes), "dog", steps=4, scale=2.0, interval=(500, 1000)) == [
        # (lo, hi]: 500 is outside
        (2, 999, [2, 1]),
        (2, 749, [2, 1]),
        (1, 499, [1]),
        (1, 249, [1]),
    ]


def test_a_network_that_knows_the_noise_generates_the_picture_behind_it():
    x0 = torch.linspace(-0.9, 0.9, 256).view(1, 4, 8, 8)

    class Knows(Recorder):
        def forward(self, x, t, cond):
            a, s = SCH.at(t + 1, x)
            return (x - a * x0) / s

    pipe = fake(net=Knows(), classes=("it",))
    assert (pipe.generate("it", steps=5, scale=3.0) - x0).abs().max() < 1e-4


def test_the_pipe_carries_how_its_model_is_sampled():
    times = lambda **kw: [t for _, t, _ in calls_of(fake(classes=("cat",), **kw), "cat", steps=4)]  # noqa: E731
    assert times() == [999, 749, 499, 249] and times(spacing="leading") == [751, 501, 251, 1]
    assert times(spacing="linspace") == [999, 666, 333, 0]
    sd = fake(classes=("cat",), spacing="leading", end=1)
    assert (
        sd.timesteps(4) == [752, 502, 252, 2, 1]
        and sd.timesteps(4, 0.5) == [252, 2, 1]
        and sd.timesteps(4, 0) == [1]
    )
    assert len(sd.timesteps(50, 0.58)) == 28 + 1  # int(50 * .58), as diffusers counts
    guided = [len(x) for x, *_ in sd.net.calls]
    sd.generate("cat", steps=1)
    assert not guided and len(sd.net.calls[0][0]) == 2  # its own scale, 3, guides
    single = replace(sd, scale=1.0, net=Recorder())
    single.generate("cat", steps=1)
    assert len(single.net.calls[0][0]) == 1
    with pytest.raises(ValueError, match=r"strength=1.5 is outside 0\.\.1"):
        sd.timesteps(4, 1.5)


def test_noise_can_be_handed_in_and_latents_out(tiny):
    z = tiny.noise(2, seed=9)
    a = tiny.generate(["a star", "a cross"], steps=2, noise=z, seed=0, decode=False)
    assert a.shape == (2, 4, 16, 16)
    assert torch.equal(a, tiny.generate(["a star", "a cross"], steps=2, seed=9, decode=False))
    assert torch.equal(tiny.decode(a), tiny.generate(["a star", "a cross"], steps=2, seed=9))
    with pytest.raises(
        ValueError, match=r"noise of shape \(2, 4, 16, 16\): these 1 picture\(s\) start from \(1, 4"
    ):
        tiny.generate("a star", steps=2, noise=z)


@pytest.mark.parametrize("sampler, calls", [("ddim", 4), ("plms", 5), ("dpm++", 4)])
def test_every_sampler_walks_the_same_grid_with_its_own_number_of_calls(tiny, sampler, calls):
    pipe = fake(classes=("cat",))
    pipe.generate("cat", steps=4, sampler=sampler)
    assert len(pipe.net.calls) == calls and pipe.net.calls[0][1][0] == 999
    image = tiny.generate("a star", steps=4, sampler=sampler, seed=2)
    assert image.shape == (1, 3, 64, 64) and image.isfinite().all()
    if sampler != "ddim":
        assert (image - tiny.generate("a star", steps=4, seed=2)).abs().max() > 1e-3


def test_one_negative_serves_all_and_each_picture_may_have_its_own():
    classes = ("cat", "dog", "cow")
    calls = calls_of(
        fake(classes=classes), ["dog", "cat"], steps=1, scale=2.0, negative=["cow", "dog"]
    )
    assert calls == [(4, 999, [2, 1, 1, 0])]  # rows: [negatives, prompts]


@pytest.mark.parametrize(
    "kw, message",
    [
        (dict(scale=-1.0), "scale=-1.0 is negative"),
        (dict(steps=0), "steps=0 is outside"),
        (dict(steps=10_000), r"steps=10000 is outside 1\.\.1000"),
        (dict(eta=2.0), "eta=2.0"),
        (dict(negative="a red dragon"), "dragon"),
        (dict(sampler="rk4"), "'rk4' is unknown; choose one of ddim, euler"),
        (dict(sampler="plms", eta=0.5), "eta=0.5 with sampler='plms': only ddim"),
    ],
)
def test_bad_settings_are_refused(tiny, kw, message):
    with pytest.raises(ValueError, match=message):
        tiny.generate("a star", **{"steps": 1} | kw)
