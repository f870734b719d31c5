"""Training a latent denoiser: times, the loss and its zero, batches, dropped captions, standardised
text.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from minidiff.core import schedule
from minidiff.core.cond import Cond
from minidiff.core.process import PREDICTIONS, q_sample, target
from minidiff.data import shapes
from minidiff.foundations.latent_diffusion import (
    binding_gain,
    diffusion_loss,
    draw_times,
    encoded_scenes,
    latent_batches,
    shape_gain,
    standardise_text,
)
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.vae import VAE

SCH, TOK = schedule.scaled_linear(), Tokenizer.words(shapes.VOCAB)


def text_tower(seed=0, width=32):
    torch.manual_seed(seed)
    return CLIPText(len(TOK), width, 1, 4, 20, act="gelu", eos_id=2).eval().requires_grad_(False)


def small_vae(seed=0):
    torch.manual_seed(seed)
    return VAE(channels=(8, 16), layers=1, groups=4, patch=2, scale=1.0).eval()


def row(b=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(b, 4, 16, 16, generator=g), torch.randn(b, 4, 16, 16, generator=g)
    return {
        "x0": x0,
        "eps": eps,
        "t": torch.tensor([1, 40, 600, 1000])[:b],
        "text": torch.randn(b, 20, 32, generator=g),
    }


def test_times_cover_the_schedule_from_one_to_T_with_the_median_of_the_sigmoid():
    t = draw_times(np.random.default_rng(0), 20_000, 1000)
    assert (
        t.dtype == torch.int64
        and t.min() >= 1
        and t.max() <= 1000
        and t.min() < 60
        and t.max() > 970
    )
    assert abs(t.double().median() - 1000 / (1 + np.exp(-0.7))) < 10
    # almost all mass at the two ends
    wide = draw_times(np.random.default_rng(0), 1000, 10, mean=0.0, std=100.0)
    assert wide.min() == 1 and wide.max() == 10


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_the_perfect_network_is_zero_and_of_a_shifted_one_its_square(prediction):
    batch = row()

    def perfect(x_t, t, cond):
        assert torch.equal(x_t, q_sample(SCH, batch["x0"], batch["t"], batch["eps"]))
        # network time: t - 1
        assert torch.equal(t, batch["t"] - 1) and torch.equal(cond.text, batch["text"])
        return target(SCH, batch["x0"], batch["eps"], batch["t"], prediction)

    assert diffusion_loss(perfect, batch, SCH, prediction).item() == 0
    assert (
        abs(diffusion_loss(lambda *a: perfect(*a) + 0.5, batch, SCH, prediction).item() - 0.25)
        < 1e-6
    )
    for other in PREDICTIONS:
        if other != prediction:
            assert diffusion_loss(perfect, batch, SCH, other).item() > 0.01


def test_a_variance_head_and_labels_pass_through_the_loss():
    batch = row()
    label = torch.arange(4)

    def net(x_t, t, cond):
        assert cond.text is None and torch.equal(cond.label, label)
        # second half of a DiT: variance
        return torch.cat([batch["eps"], torch.full_like(x_t, torch.nan)], dim=1)

    del batch["text"]
    assert diffusion_loss(net, batch | {"label": label}, SCH, "eps").item() == 0


def test_latents_of_scenes_are_encoded_once_and_kept(tmp_path):
    vae, path = small_vae(), tmp_path / "deep" / "latents.safetensors"
    scenes, z = encoded_scenes(vae, 70, seed=3, path=path)
    assert len(scenes) == 70 and z.shape == (70, 4, 16, 16) and z.dtype == torch.float16
    assert not any(map(shapes.held_out, scenes)) and sorted(
        p.name for p in path.parent.iterdir()
    ) == ["latents.safetensors"]
    with torch.no_grad():
        assert (z[66].float() - vae.to_latent(shapes.render(scenes[66]))[0]).abs().max() < 2e-3
    save_file({"latents": z + 0.01}, path)  # read back, not encoded again
    again, kept = encoded_scenes(vae, 70, seed=3, path=path)
    assert again == scenes and torch.equal(kept, z + 0.01)
    assert encoded_scenes(vae, 4, seed=4)[0] != scenes[:4]
    for other in ((small_vae(1), 70, 3), (vae, 70, 4), (vae, 69, 3)):  # network, seed, number
        with pytest.raises(
            ValueError,
            match=r"latents\.safetensors holds latents of other scenes or of another autoencoder",
        ):
            encoded_scenes(*other, path=path)


@pytest.fixture
def stock():
    rng = np.random.default_rng(0)
    scenes = [shapes.scene(rng, split="train") for _ in range(50)]
    return scenes, torch.arange(50.0).half()[:, None, None, None].expand(50, 4, 16, 16)


def test_batches_are_a_function_of_seed_and_step(stock):
    make = lambda seed: latent_batches(*stock, text_tower(), TOK, 5, seed, 1000)  # noqa: E731
    a, b, other = make(5), make(5), make(6)
    assert all(torch.equal(v, b(2)[k]) for k, v in a(2).items()) and set(a(2)) == {
        "x0",
        "text",
        "t",
        "eps",
    }
    for k in a(2):
        assert not torch.equal(a(2)[k], a(3)[k]) and not torch.equal(a(2)[k], other(2)[k])
    assert (
        a(0)["x0"].shape == (5, 4, 16, 16)
        and a(0)["x0"].dtype == torch.float32
        and a(0)["text"].shape == (5, 20, 32)
    )


def test_the_share_of_pairs_in_a_stock_is_what_was_asked_for():
    scenes, _ = encoded_scenes(small_vae(), 100, seed=0, pairs=0.8)
    assert 65 <= sum(len(s.objects) == 2 for s in scenes) <= 90


class Ids(torch.nn.Module):
    """A text tower that hands the ids through."""

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, ids):
        return ids


def test_a_tenth_of_the_captions_is_dropped_and_a_third_of_the_rest_is_short(stock):
    scenes, z = stock
    b = latent_batches(scenes, z, Ids(), TOK, 2000, 0, 1000)(0)
    captions = [TOK.decode(r) for r in b["text"]]
    assert abs(captions.count("") / 2000 - 0.1) < 0.03  # 4.5 standard errors
    whose = b["x0"][:, 0, 0, 0].long().tolist()
    assert set(whose) == set(range(50))
    said = [(c, scenes[i]) for c, i in zip(captions, whose) if c]
    short = sum(c == shapes.short_caption(s) for c, s in said) / len(said)
    assert 0.30 < short < 0.48  # some long ones lose every group too
    words = {*shapes.SIZES, *shapes.TEXTURES}
    for c, s in said:  # a caption belongs to its own latent
        truth = set(shapes.caption(s).split())
        assert (
            set(c.split()) <= truth
            and s.objects[0].color in c
            and (words & set(c.split())) <= truth
        )
    none = latent_batches(scenes, z, Ids(), TOK, 200, 0, 1000, drop=0.0)(0)
    assert "" not in [TOK.decode(r) for r in none["text"]]


def test_standardised_states_have_mean_zero_and_variance_one():
    text = text_tower()
    with torch.no_grad():
        text.final_layer_norm.bias.normal_(std=2.0)
    standardise_text(text, TOK)
    for seed, loose in ((3, False), (9, True)):  # 3: the captions it was fitted on
        rng = np.random.default_rng(seed)
        ids = TOK(
            [shapes.random_caption(shapes.scene(rng, split="train"), rng) for _ in range(512)]
        )
        with torch.no_grad():
            h = text(ids)[(ids != TOK.pad) & (ids != TOK.bos)]
        assert h.mean(0).abs().max() < (0.15 if loose else 1e-4)
        assert (h.std(0) - 1).abs().max() < (0.1 if loose else 1e-3)


def test_standardising_is_affine_so_no_word_is_lost():
    text, plain = text_tower(), text_tower()
    standardise_text(text, TOK)
    ids = TOK(["a red circle on a blue background", "a star"])
    with torch.no_grad():
        a, b = plain(ids).flatten(0, 1), text(ids).flatten(0, 1)
        scale = text.final_layer_norm.weight / plain.final_layer_norm.weight
        assert (b - (a - a[0]) * scale - b[0]).abs().max() < 1e-4


def test_from_a_step_on_two_objects_come_as_often_as_asked(stock):
    scenes, z = stock
    batch = latent_batches(scenes, z, Ids(), TOK, 1500, 0, 1000, pairs=(10, 0.7))
    two = torch.tensor([len(s.objects) == 2 for s in scenes])
    early, late = (two[batch(k)["x0"][:, 0, 0, 0].long()].float().mean() for k in (9, 10))
    assert (
        abs(early - two.float().mean()) < 0.05
        and abs(late - 0.7) < 0.05
        and two.float().mean() < 0.5
    )
    plain = latent_batches(scenes, z, Ids(), TOK, 20, 0, 1000)
    assert torch.equal(
        plain(3)["x0"], latent_batches(scenes, z, Ids(), TOK, 20, 0, 1000, pairs=(10, 0.7))(3)["x0"]
    )


class Told:
    """A pipe whose network errs by what its condition says, beyond the true noise of `shape_gain`
    at seed 5.
    """

    schedule, prediction, said = SCH, "eps", None

    def encode(self, image):
        return image[:, :, ::4, ::4]

    def embed(self, prompts):
        self.said = [*(self.said or []), prompts]
        error = 1.0 if len(self.said) == 1 else self.wrong
        return Cond(text=torch.full((len(prompts), 1, 1), error))

    def net(self, x_t, t, cond):
        assert (SCH.log_snr[t[0] + 1] + 1.5).abs() < 0.02
        return (
            torch.randn(x_t.shape, generator=torch.Generator().manual_seed(5))
            + cond.text[..., None]
        )


@pytest.mark.parametrize("wrong, gain", [(3**0.5, 200.0), (1.0, 0.0), (0.5, -75.0)])
def test_shape_gain_is_the_excess_error_of_the_wrong_word_in_percent(wrong, gain):
    pipe = Told()
    pipe.wrong = wrong  # squared errors 1 and wrong^2
    assert abs(shape_gain(pipe, n=8) - gain) < 0.1
    for a, b in zip(*pipe.said):
        changed = {*a.split()} ^ {*b.split()}
        assert len(changed) == 2 and changed <= set(shapes.SHAPES)


def test_binding_gain_swaps_the_two_shapes_and_leaves_every_word_in_the_caption():
    pipe = Told()
    pipe.wrong = 3**0.5
    assert abs(binding_gain(pipe, n=8) - 200) < 0.1
    for a, b in zip(*pipe.said):
        one, two = ([w for w in c.split() if w in shapes.SHAPES] for c in (a, b))
        assert len(one) == 2 and one == two[::-1] and sorted(a.split()) == sorted(b.split())


def test_a_share_of_the_times_is_drawn_evenly():
    """Of even times a tenth lies in the first tenth; of the others, sigmoid(N(.7, 1)), hardly
    any: P(N < logit(.1) - .7) = P(N < -2.90) = .002.
    """
    n = 40_000
    for even, expected in ((0.0, 0.0019), (0.5, 0.0509), (1.0, 0.1)):
        t = draw_times(np.random.default_rng(0), n, 1000, even=even)
        low = (t <= 100).float().mean().item()
        deviation = (expected * (1 - expected) / n) ** 0.5
        assert abs(low - expected) < 5 * deviation
        assert t.min() >= 1 and t.max() <= 1000
