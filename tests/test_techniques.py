"""What every technique owes its user: names that mean the same everywhere, clear refusals, Stable
Diffusion's networks.
"""

import inspect

import pytest
import torch

import minidiff
from minidiff.bench.items import given, items
from minidiff.cli.options import Parser, arguments
from minidiff.core import schedule
from minidiff.data import shapes
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE
from minidiff.pipe.pipe import Pipe
from minidiff.techniques import TECHNIQUES
from minidiff.weights.store import load_clip

LATENT = [name for name, technique in TECHNIQUES.items() if not technique.apart]


def parameters(name):
    return inspect.signature(TECHNIQUES[name].load()).parameters


def call(pipe, name, **more):
    """The technique on a small recolouring, in as few steps as it takes."""
    technique = TECHNIQUES[name]
    fn = technique.load()
    item = items("dev", 1, ("recolour",))[0]
    told = given(fn, item, changed=item.answer) | {"steps": 4} | technique.cheap | more
    return fn(pipe, **{k: v for k, v in told.items() if k in parameters(name) or k in more})


@pytest.fixture(scope="module")
def sd15():
    """The block plan of SD 1 at a tenth of its width, its grid and its guidance; latents of 8 x 8
    are 64 x 64 pixels.
    """
    torch.manual_seed(0)
    words = Tokenizer.words(shapes.VOCAB)
    net, vae = UNet(channels=(32, 64, 128, 128)), VAE(channels=(32, 32, 64, 64))
    text = CLIPText(len(words), 768, 1, 12, 20, mlp_ratio=1, eos_id=2)
    for m in (net, vae, text):
        m.eval().requires_grad_(False)
    return Pipe(
        net,
        schedule.scaled_linear(),
        (4, 8, 8),
        vae=vae,
        text=text,
        tokenizer=words,
        name="narrow sd15",
        spacing="leading",
        end=1,
        scale=7.5,
        literal=True,
    )


@pytest.mark.parametrize("name", TECHNIQUES)
def test_arguments_are_named_alike_and_can_be_typed(name):
    asked = parameters(name)
    assert next(iter(asked)) == "pipe" and "progress" in asked
    assert asked.keys() & {"image", "source", "prompt"}
    assert not asked.keys() & {
        "img",
        "init_image",
        "num_steps",
        "guidance_scale",
        "strengths",
        "src",
        "tgt",
    }
    parser = Parser(prog=name)
    typed = arguments(parser, TECHNIQUES[name].load(), skip=("pipe", "progress"))
    assert "steps" in typed or name in ("diffusion-clip", "delta-denoising")
    assert len(parser.format_help()) > 200


def test_every_edit_has_a_proof_or_is_proved_by_another():
    without = {name for name, technique in TECHNIQUES.items() if not technique.proof}
    # no tiny weights of eight channels; see null-text; see direct inversion and edit-friendly noise
    assert without <= {"instruct-pix2pix", "negative-prompt", "p2p-edit-friendly"}


@pytest.mark.weights
@pytest.mark.parametrize("name", LATENT)
def test_it_runs_unchanged_on_stable_diffusions_networks(sd15, name):
    out = call(sd15, name, **{"clip": load_clip()} if name == "semantic-guidance" else {})
    assert (
        out.shape[1:] == (3, 64, 64)
        and out.isfinite().all()
        and not any(p.requires_grad for p in sd15.net.parameters())
    )


@pytest.mark.parametrize("name", ["prompt-to-prompt", "masactrl", "plug-and-play", "pix2pix-zero"])
def test_attention_edits_run_on_a_transformer(name):
    out = call(minidiff.build("tiny-dit"), name)
    assert out.shape[1:] == (3, 64, 64) and out.isfinite().all()


@pytest.mark.parametrize("name", [n for n in LATENT if "steps" in parameters(n)])
def test_no_steps_are_refused(name):
    with pytest.raises(ValueError, match="step"):
        call(minidiff.build("tiny"), name, steps=0)


@pytest.mark.parametrize("name", [n for n in LATENT if "mask" in parameters(n)])
def test_masks_that_do_not_fit_are_refused_and_an_empty_one_changes_nothing(name):
    pipe, item = minidiff.build("tiny"), items("dev", 1, ("recolour",))[0]
    for bad in (
        torch.ones(1, 1, 32, 32),
        torch.ones(1, 3, 64, 64),
        torch.full((1, 1, 64, 64), 0.5),
    ):
        with pytest.raises(ValueError, match="mask"):
            call(pipe, name, mask=bad)
    assert torch.equal(call(pipe, name, mask=torch.zeros(1, 1, 64, 64))[-1:], item.image)


@pytest.mark.weights
@pytest.mark.parametrize(
    "name",
    [n for n in LATENT if {"image", "target"} <= parameters(n).keys()],
)
def test_foreign_pictures_and_prompts_of_other_lengths_are_edited_without_complaint(name):
    told = {
        "source": "a ring",
        "target": "a small cyan ring left of a red square on a striped blue background",
    }
    told = {k: v for k, v in told.items() if k in parameters(name)}
    out = call(
        minidiff.build("tiny"),
        name,
        image=torch.rand(1, 3, 64, 64, generator=torch.manual_seed(0)) * 2 - 1,
        **told,
    )
    assert out.isfinite().all() and out.shape[1:] == (3, 64, 64)


@pytest.mark.weights
@pytest.mark.parametrize("name", ["asyrp", "boundary", "diffusion-clip"])
def test_what_learns_does_not_learn_from_a_neighbour(name):
    """Two edits in one batch: each is the edit that its picture gets alone."""
    pipe = minidiff.load("tiny")
    its = items("dev", 2, ("recolour",))
    fn, cheap = TECHNIQUES[name].load(), TECHNIQUES[name].cheap | {"steps": 4}
    both = fn(pipe, **given(fn, its) | cheap | {"seed": 7})
    alone = fn(pipe, **given(fn, its[1]) | cheap | {"seed": 8})
    assert both.shape == (2, 3, 64, 64) and (both[1:] - alone).abs().max() < 1e-4


GRID = (
    "prompt-to-prompt plug-and-play masactrl pix2pix-zero null-text direct-inversion "
    "negative-prompt ddib edict edit-friendly sdedit ddib flowedit diffedit inpaint ilvr"
).split()


@pytest.mark.parametrize("name", sorted(set(GRID)))
def test_every_time_asked_is_of_the_models_own_grid(sd15, name):
    """On Stable Diffusion's settings 4 steps are the network times 751, 501, 251, 1."""
    asked = set()
    hook = sd15.net.register_forward_hook(lambda net, args, out: asked.update(args[1].tolist()))
    try:
        call(sd15, name)
    finally:
        hook.remove()
    mask = {499}  # where DiffEdit compares its prompts
    assert asked and asked <= {t - 1 for t in sd15.timesteps(4)} | mask


def test_prompt_to_prompt_without_injection_is_generation_on_stable_diffusions_settings(sd15):
    a, b = "a red circle on a blue background", "a green circle on a blue background"
    pair = TECHNIQUES["prompt-to-prompt"].load()(sd15, a, b, cross=0, self_=0, steps=4, seed=3)
    plain = sd15.generate([a, b], steps=4, seed=3)
    assert (pair[:1] - plain[:1]).abs().max() < 1e-3
    assert (pair[1:] - sd15.generate(b, steps=4, seed=3)).abs().max() < 1e-3
