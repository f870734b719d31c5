"""Teaching CLIP's image tower the pictures on their way: what it is shown, and what stays."""

import numpy as np
import pytest
import torch

import minidiff
from minidiff.core.cond import Cond
from minidiff.core.process import q_sample
from minidiff.data import shapes
from minidiff.models.clip import CLIP
from minidiff.models.image_encoder import CLIPImage
from minidiff.models.text import CLIPText
from minidiff.shipped.noisy_clip import (
    expected_ends,
    half_denoised,
    noisy_clip_batches,
    train_noisy_clip,
)


@pytest.fixture(scope="module")
def pipe():
    return minidiff.build("tiny", seed=1)


def small_clip(pipe):
    torch.manual_seed(0)
    return CLIP(
        CLIPText(len(pipe.tokenizer), 32, 1, 4, 20, act="gelu", eos_id=2, project_dim=16),
        CLIPImage(64, 16, 32, 1, 4, 16, act="gelu"),
    )


def test_a_perfect_denoiser_expects_the_picture_itself(pipe, monkeypatch):
    rng = np.random.default_rng(0)
    images = shapes.render([shapes.scene(rng) for _ in range(3)])
    t = torch.tensor([1, 300, 999])
    eps = torch.randn(3, *pipe.shape, generator=torch.Generator().manual_seed(0))
    noisy = q_sample(pipe.schedule, pipe.encode(images), t, eps)

    def knows_the_noise(self, x_t, at, cond: Cond):
        assert torch.equal(x_t, noisy) and torch.equal(at, t)
        return eps

    monkeypatch.setattr(type(pipe), "eps", knows_the_noise)
    copies = pipe.decode(pipe.encode(images))
    ends = expected_ends(pipe, images, t, eps)
    # at t = 999 rounding is divided by alpha = .07
    assert (ends - copies).abs().max() < 1e-3


def test_twins_on_their_way_share_time_and_noise(pipe):
    pictures, captions = half_denoised(pipe, 4, seed=0, times=(1,))
    assert pictures.dtype == torch.uint8 and pictures.shape == (4, 3, 64, 64)
    assert captions[0] != captions[1] and len(captions[0].split()) == len(captions[1].split())
    again, _ = half_denoised(pipe, 4, seed=0, times=(1,))
    assert (again.int() - pictures.int()).abs().max() <= 1
    other, _ = half_denoised(pipe, 4, seed=0, times=(900,))
    assert (other.int() - pictures.int()).abs().float().mean() > 5


def test_a_batch_is_clean_noisy_and_half_denoised_in_equal_parts(pipe):
    pictures, captions = half_denoised(pipe, 6, seed=0, times=(400,))
    batch = noisy_clip_batches(pipe.tokenizer, pictures, captions, 12, seed=1)
    rows = batch(5)
    assert rows["image"].shape == (12, 3, 64, 64) and len(rows["ids"]) == 12
    known = [pictures[i].float() / 127.5 - 1 for i in range(6)]
    for row in range(8, 12):  # the last third comes from the pool, with its caption
        i = next(i for i in range(6) if torch.equal(rows["image"][row], known[i]))
        assert torch.equal(rows["ids"][row], pipe.tokenizer([captions[i]])[0])
    assert torch.equal(batch(5)["image"], rows["image"])
    assert not torch.equal(batch(6)["image"], rows["image"])


def test_only_the_image_tower_learns(pipe, tmp_path):
    clip = small_clip(pipe)
    before = {name: p.detach().clone() for name, p in clip.named_parameters()}
    train_noisy_clip(tmp_path, pipe, clip, steps=2, batch=12, pictures=8, peek=None, progress=False)
    for name, p in clip.named_parameters():
        moved = not torch.equal(p, before[name])
        assert moved == name.startswith("image."), name
