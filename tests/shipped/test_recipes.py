"""The chain that makes the tiny models, in miniature: every stage runs, resumes, and fits the
next.
"""

import json

import pytest
import torch

import minidiff
from minidiff.cli.main import main
from minidiff.data import shapes
from minidiff.shipped import recipes
from minidiff.shipped.recipes import (
    held_out_images,
    text_tower,
    train_clip,
    train_denoiser,
    train_tiny,
    train_vae,
    train_words,
)

QUICK = dict(batch=4, progress=False)


@pytest.fixture(scope="module", autouse=True)
def small():
    """The same recipes on fewer pictures."""
    with pytest.MonkeyPatch.context() as m:
        batches, twins, draw = recipes.image_batches, recipes.clip_batches, recipes.draw
        m.setattr(recipes, "image_batches", lambda size, *a: batches(min(size, 32), *a))
        m.setattr(
            recipes, "clip_batches", lambda tok, size, *a, **kw: twins(tok, min(size, 16), *a, **kw)
        )
        m.setattr(recipes, "draw", lambda pipe, prompts, path: draw(pipe, prompts[:1], path))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    vae, clip = train_vae(out, steps=2, **QUICK), train_clip(out, steps=2, **QUICK)
    text = train_words(out, text_tower(clip), steps=2, **QUICK)
    pipe = train_denoiser("tiny", out, vae, text, steps=3, scenes=64, pairs=(1, 0.5), **QUICK)
    return out, vae, clip, text, pipe


def test_the_chain_ends_in_a_pipe_that_draws(run):
    _, vae, _, text, pipe = run
    image = pipe.generate("a red circle on a blue background", steps=2, seed=0)
    assert image.shape == (1, 3, 64, 64) and image.isfinite().all() and image.std() > 1e-3
    assert pipe.vae is vae and pipe.text is text and pipe.name == "tiny"
    assert (
        not any(p.requires_grad for m in (pipe.net, vae, text) for p in m.parameters())
        and not pipe.net.training
    )


def test_what_was_trained_is_loaded_from_its_folder_and_draws_the_same(run, tmp_path):
    out, *_, pipe = run
    again, prompt = minidiff.load(out / "tiny"), "a red circle on a blue background"
    assert again.name == str(out / "tiny") and not any(
        p.requires_grad for p in again.net.parameters()
    )
    assert torch.equal(again.generate(prompt, steps=2), pipe.generate(prompt, steps=2))
    assert (
        main(
            [
                "generate",
                prompt,
                "--model",
                str(out / "tiny"),
                "--steps",
                "1",
                "--out",
                str(tmp_path / "x.png"),
            ]
        )
        == 0
    )


def test_every_stage_keeps_its_log_and_its_figures(run):
    out = run[0]
    figures = {
        "vae": {"psnr"},
        "clip": {"top1", "twin", "nearest_shapes", "distance"},
        "words": {"shape", "place", "texture"},
        "tiny": {"images", "gain", "binding"},
    }
    for stage, names in figures.items():
        rows = [json.loads(r) for r in (out / stage / "log.jsonl").read_text().splitlines()]
        last = {k: v for r in rows for k, v in r.items()}
        assert names <= set(last) and last["step"] == (3 if stage == "tiny" else 2)
        assert (out / stage / "checkpoint.pt").exists()
    # 3 steps of 4 pictures
    assert [p.name for p in (out / "tiny/snapshots").iterdir()] == ["00000012.pt"]
    assert [p.name for p in (out / "tiny/samples").iterdir()] == ["00000012.png"]


def test_a_finished_stage_is_read_back_not_trained_again(run, monkeypatch):
    out, vae, clip, *_ = run
    monkeypatch.setattr(recipes, "autoencoder_loss", None)
    monkeypatch.setattr(recipes, "clip_loss", None)
    for first, again in (
        (vae, train_vae(out, steps=2, **QUICK)),
        (clip, train_clip(out, steps=2, **QUICK)),
    ):
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())


def test_latents_come_out_standardised(run):
    vae, x = run[1], recipes.image_batches(32, 1, recipes.LATENT)(0)["image"]
    with torch.no_grad():
        z = vae.to_latent(x)
    assert z.mean((0, 2, 3)).abs().max() < 1e-3 and (z.std((0, 2, 3)) - 1).abs().max() < 1e-2


def test_the_text_tower_is_clips_without_projection_and_with_its_own_scale(run):
    clip = run[2]
    text = text_tower(clip)
    ours, theirs = text.state_dict(), clip.text.state_dict()
    assert set(theirs) - set(ours) == {"text_projection.weight"}
    assert {k for k in ours if not torch.equal(ours[k], theirs[k])} == {
        "final_layer_norm.weight",
        "final_layer_norm.bias",
    }


def test_the_transformer_trains_on_the_same_latents_and_its_positions_stay(run):
    out, vae, _, text, _ = run
    start = recipes.build("tiny-dit", seed=0).net
    pipe = train_denoiser(
        "tiny-dit", out, vae, text, steps=1, scenes=64, prediction="eps", tables="cosine", **QUICK
    )
    again = minidiff.load(out / "tiny-dit")
    assert all(p.prediction == "eps" and p.schedule.name == "cosine" for p in (pipe, again))
    assert torch.equal(again.schedule.alpha, pipe.schedule.alpha)
    assert torch.equal(pipe.net.pos_embed, start.pos_embed) and pipe.text is text
    assert not torch.equal(pipe.net.final_layer.linear.weight, start.final_layer.linear.weight)


def test_pictures_for_testing_are_of_held_out_scenes():
    x = held_out_images(6)
    assert x.shape == (6, 3, 64, 64) and torch.equal(x, held_out_images(6))
    assert not torch.equal(x, held_out_images(6, seed=1)) and held_out_images(2, size=32).shape == (
        2,
        3,
        32,
        32,
    )
    with pytest.MonkeyPatch.context() as m:
        seen = []
        m.setattr(shapes, "render", lambda scenes, size: seen.extend(scenes))
        held_out_images(20, objects=1)
    assert all(map(shapes.held_out, seen)) and {len(s.objects) for s in seen} == {1}


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="budget=0"):
        train_tiny(budget=0)
    with pytest.raises(ValueError, match="data 'mnist': expected 'shapes' or 'cifar'"):
        recipes.train_tiny_pixel(data="mnist")


def test_the_pixel_model_trains_on_classes(tmp_path):
    pipe = recipes.train_tiny_pixel(tmp_path, steps=1, batch=2, progress=False)
    image = pipe.generate("red circle", steps=1)
    assert image.shape == (1, 3, 32, 32) and image.isfinite().all()
    assert sorted(p.name for p in (tmp_path / "tiny-pixel").iterdir()) == [
        "checkpoint.pt",
        "log.jsonl",
        "manifest.json",
        "pixel.safetensors",
        "samples",
    ]
    assert torch.equal(
        minidiff.load(tmp_path / "tiny-pixel").generate("red circle", steps=1), image
    )
