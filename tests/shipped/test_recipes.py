"""The chain that makes the tiny models, in miniature: every stage runs, resumes, and fits the
next.
"""

import json
import math
import re

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
from minidiff.train.checkpoint import averaged_weights

QUICK = dict(batch=4, progress=False)


@pytest.fixture(scope="module", autouse=True)
def small():
    """The same recipes on fewer pictures."""
    with pytest.MonkeyPatch.context() as m:
        batches, twins, draw = recipes.image_batches, recipes.clip_batches, recipes.draw
        m.setattr(recipes, "image_batches", lambda size, *a, **kw: batches(min(size, 32), *a, **kw))
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
        assert (out / stage / "checkpoint.safetensors").exists()
    # 3 steps of 4 pictures
    assert [p.name for p in (out / "tiny/snapshots").iterdir()] == ["00000012.safetensors"]
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
    vae, x = run[1], recipes.image_batches(32, 1, recipes.LATENT, strange=0)(0)["image"]
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


BAD = {
    "budget=0": dict(budget=0),
    "budget=inf": dict(budget=math.inf),
    "budget=nan": dict(budget=math.nan),
    "seed=-1": dict(seed=-1),
    "device='nowhere'": dict(device="nowhere"),
    "device='meta'": dict(device="meta"),
    "optimiser='sgd'": dict(optimiser="sgd"),
    "prediction='epsilon'": dict(prediction="epsilon"),
    "tables='linaer'": dict(tables="linaer"),
    "tables='ve'": dict(tables="ve"),
    "start='tiny'": dict(start="tiny"),
}


@pytest.mark.parametrize("said", BAD)
def test_an_option_no_stage_could_use_is_refused_before_the_first_one(said, tmp_path):
    with pytest.raises(ValueError, match=re.escape(said)) as e:
        train_tiny(tmp_path / "new", **BAD[said])
    assert "\n" not in str(e.value) and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "said, option",
    [("batch=0", {"batch": 0}), ("steps=0", {"steps": 0}), ("data 'mnist'", {"data": "mnist"})],
)
def test_the_pixel_recipe_refuses_what_it_cannot_use(said, option, tmp_path):
    with pytest.raises(ValueError, match=said):
        recipes.train_tiny_pixel(tmp_path / "new", **option)
    assert not (tmp_path / "new").exists()


def test_the_command_says_a_bad_option_in_one_line(tmp_path, capsys):
    out = tmp_path / "new"
    assert main(["train", "tiny", "--out", str(out), "--tables", "linaer"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "tables='linaer'" in told and "cosine" in told
    assert not out.exists()


def test_another_recipe_in_the_same_folder_is_refused_and_relabels_nothing(run):
    out, vae, _, text, _ = run
    manifest = (out / "tiny/manifest.json").read_bytes()
    same = dict(steps=3, scenes=64, pairs=(1, 0.5), **QUICK)
    for option, value in {"prediction": "eps", "tables": "linear", "start": "shipped"}.items():
        with pytest.raises(ValueError, match="holds a training with"):
            train_denoiser("tiny", out, vae, text, **same | {option: value})
    with pytest.raises(ValueError, match="with steps 3, and steps 2 was asked for"):
        train_denoiser("tiny", out, vae, text, **same | {"steps": 2})
    assert (out / "tiny/manifest.json").read_bytes() == manifest


def test_another_recipe_is_refused_before_the_first_stage(run, monkeypatch):
    monkeypatch.setattr(recipes, "_first_stages", None)  # would be a TypeError
    monkeypatch.setitem(recipes.STEPS, "tiny", 3)
    with pytest.raises(ValueError, match="prediction 'v', and prediction 'eps' was asked for"):
        train_tiny(run[0], prediction="eps")


def test_a_stage_of_another_length_is_refused_before_the_first_stage(run, monkeypatch):
    monkeypatch.setattr(recipes, "train_vae", None)
    for stage in ("vae", "clip", "words"):
        monkeypatch.setitem(recipes.STEPS, stage, 2 if stage != "words" else 1)
    with pytest.raises(ValueError, match="words holds a training with steps 2, and steps 1 was"):
        recipes._first_stages(run[0], 1.0, 0, None)


def test_a_training_goes_on_from_the_weights_of_a_folder(run, tmp_path, monkeypatch):
    out, vae, _, text, _ = run
    given = []

    def taken(net, *args, **options):
        given.append({name: value.clone() for name, value in net.state_dict().items()})
        return net

    monkeypatch.setattr(recipes, "fit", taken)
    options = dict(steps=1, scenes=64, pairs=None, start=str(out / "tiny"), **QUICK)
    train_denoiser("tiny", tmp_path, vae, text, **options)
    kept = recipes.start_weights(str(out / "tiny"), "unet")
    fresh = minidiff.build("tiny").net.state_dict()
    assert all(torch.equal(given[0][name], value) for name, value in kept.items())
    assert any(not torch.equal(fresh[name], value) for name, value in kept.items())
    with pytest.raises(ValueError, match="no shipped weights called 'dit'"):
        recipes.start_weights(str(out / "tiny"), "dit")


class Reached(Exception):
    """Raised in place of a training, with what it was asked for."""


def reach(*args, **options):
    raise Reached(options)


def test_the_chain_hands_every_option_to_the_denoiser(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "_first_stages", lambda *a: (None, None))
    monkeypatch.setattr(recipes, "train_denoiser", reach)
    asked = dict(optimiser="adamw", prediction="eps", tables="linear", start="shipped", seed=5)
    with pytest.raises(Reached) as e:
        train_tiny(tmp_path, budget=0.5, device="cpu", **asked)
    told = e.value.args[0]
    assert asked.items() <= told.items() and told["steps"] == recipes.STEPS["tiny"] // 2
    assert told["stock"] == 0.65 and told["pairs"] is None
    with pytest.raises(Reached) as e:
        recipes.train_tiny_dit(tmp_path, seed=5)
    assert e.value.args[0]["pairs"] is None and e.value.args[0]["seed"] == 5


def test_the_denoiser_hands_its_options_to_the_batches_and_the_loop(run, tmp_path, monkeypatch):
    _, vae, _, text, _ = run
    asked = []

    def batches(*args, **options):
        asked.append(options)

    def encoded(vae, n, seed, path, pairs):
        asked.append((n, seed, path.name, pairs))
        return (None, None)

    monkeypatch.setattr(recipes, "encoded_scenes", encoded)
    monkeypatch.setattr(recipes, "latent_batches", batches)
    monkeypatch.setattr(recipes, "fit", reach)
    options = dict(
        pairs=(7, 0.25), stock=0.6, even=0.75, optimiser="adamw", lr=0.5, muon_lr=0.25, seed=5
    )
    with pytest.raises(Reached) as e:
        train_denoiser("tiny", tmp_path, vae, text, steps=2, scenes=16, batch=4, **options)
    assert asked == [(16, 16, "latents_60.safetensors", 0.6), {"pairs": (7, 0.25), "even": 0.75}]
    told = e.value.args[0]
    assert {k: told[k] for k in ("optimiser", "lr", "muon_lr", "seed", "steps")} == {
        "optimiser": "adamw",
        "lr": 0.5,
        "muon_lr": 0.25,
        "seed": 5,
        "steps": 2,
    }


def test_batches_of_words_follow_the_seed(run, tmp_path, monkeypatch):
    """The seed, the step, and not those that test the tower."""
    asked = []

    def words(tokenizer, size, seed, step):
        asked.append((size, seed, step))
        raise Reached

    monkeypatch.setattr(recipes, "word_batch", words)
    with pytest.raises(Reached):
        train_words(tmp_path, text_tower(run[2]), steps=2, batch=4, seed=9, progress=False)
    assert asked == [(4, 14, 0)]


def test_only_the_first_of_several_processes_keeps_the_model(run, tmp_path, monkeypatch):
    pipe = run[-1]
    monkeypatch.setattr(recipes, "process_group", lambda device: (1, 2))
    recipes.finished(pipe, tmp_path / "second")
    assert not (tmp_path / "second").exists()
    monkeypatch.setattr(recipes, "process_group", lambda device: (0, 2))
    recipes.finished(pipe, tmp_path / "first")
    assert (tmp_path / "first/manifest.json").exists()


def test_an_interrupted_run_draws_with_its_averaged_weights_and_says_how_far_it_is(run, tmp_path):
    _, vae, _, text, _ = run
    setup = dict(steps=3, scenes=64, pairs=None, prediction="eps", tables="linear")
    train_denoiser("tiny", tmp_path, vae, text, stop_at=2, save_every=1, **setup, **QUICK)
    folder = tmp_path / "tiny"
    with pytest.warns(UserWarning, match=r"tiny is not finished: weights after 2 of 3 steps"):
        pipe = minidiff.load(folder)
    assert (pipe.prediction, pipe.schedule.name) == ("eps", "linear")
    want = averaged_weights(folder)
    assert all(torch.equal(v, want[k]) for k, v in pipe.net.state_dict().items())
    assert torch.equal(pipe.vae.quant_conv.bias, vae.quant_conv.bias)
    out = tmp_path / "x.png"
    with pytest.warns(UserWarning, match="2 of 3"):
        code = main(
            ["generate", "a red star", "--model", str(folder), "--steps", "1"] + ["--out", str(out)]
        )
    assert code == 0 and out.exists()


def test_a_run_in_pixels_can_be_looked_at_too(tmp_path):
    recipes.train_tiny_pixel(tmp_path, steps=1, batch=2, progress=False)
    folder = tmp_path / "tiny-pixel"
    for name in ("manifest.json", "pixel.safetensors"):
        (folder / name).unlink()
    with pytest.warns(UserWarning, match="1 of 1 steps"):
        pipe = minidiff.load(folder)
    assert pipe.generate("red circle", steps=1).isfinite().all()


def test_the_pixel_model_trains_on_classes(tmp_path):
    pipe = recipes.train_tiny_pixel(tmp_path, steps=1, batch=2, progress=False)
    image = pipe.generate("red circle", steps=1)
    assert image.shape == (1, 3, 32, 32) and image.isfinite().all()
    assert sorted(p.name for p in (tmp_path / "tiny-pixel").iterdir()) == [
        ".lock",
        "checkpoint.safetensors",
        "log.jsonl",
        "manifest.json",
        "pixel.safetensors",
        "samples",
    ]
    assert torch.equal(
        minidiff.load(tmp_path / "tiny-pixel").generate("red circle", steps=1), image
    )
