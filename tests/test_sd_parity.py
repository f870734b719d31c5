"""Our pipe against diffusers' Stable Diffusion pipelines: the same random weights, the same noise,
the same latents.

Everything is small (four text tokens' width, 8 x 8 latents) but nothing is left out: text tower,
guidance, grid, sampler, end of the schedule, autoencoder.
"""

from dataclasses import replace

import pytest
import torch

from minidiff.core import schedule
from minidiff.editing.inpaint import inpaint
from minidiff.editing.instruct_pix2pix import instruct_pix2pix
from minidiff.editing.sdedit import sdedit
from minidiff.models.text import CLIPText
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE
from minidiff.pipe.pipe import Pipe

pytestmark = pytest.mark.oracle
PROMPTS, NEGATIVE, EOS, CONTEXT = ["a red fox", "two boats at sea"], "blurry snow", 49, 12
SIDE = 8  # of the latents; pictures have 16 pixels
BETAS = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
)
SAMPLERS = {
    "ddim": ("DDIMScheduler", dict(clip_sample=False, set_alpha_to_one=False)),
    "plms": ("PNDMScheduler", dict(skip_prk_steps=True, set_alpha_to_one=False)),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
}
EULER = ("EulerDiscreteScheduler", {})
PREDICTION = {"eps": "epsilon", "v": "v_prediction"}


class Words:
    """A stand-in for CLIP's tokenizer, called by diffusers and by us: a number for each word,
    filled up with the end.
    """

    model_max_length, added_tokens_encoder = CONTEXT, ()
    tokenize = staticmethod(str.split)

    def __call__(self, prompts, **_):
        prompts = [prompts] if isinstance(prompts, str) else prompts
        rows = [[0, *(1 + sum(map(ord, word)) % 48 for word in p.split())] for p in prompts]
        ids = torch.tensor([(r + [EOS] * CONTEXT)[:CONTEXT] for r in rows])
        return type("Tokens", (), {"input_ids": ids, "attention_mask": None})()


def perturb(module, seed=0):
    """Norms and biases off their start, where a forgotten one would not show."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn(p.shape, generator=g))
    return module.eval()


def networks(channels):
    """(theirs, ours): UNet, autoencoder and text tower with equal weights, as diffusers and as we
    write them.
    """
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers is not installed (development extra)"
    )
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (development extra)"
    )
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=channels,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=2 * SIDE,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            hidden_act="quick_gelu",
            bos_token_id=0,
            eos_token_id=EOS,
            pad_token_id=EOS,
        )
    )
    theirs = [perturb(m, i) for i, m in enumerate((unet, vae, text))]
    ours = [
        UNet(
            channels,
            channels=(16, 32),
            layers=1,
            attention=("cross", None),
            heads=4,
            context=32,
            groups=8,
        ),
        VAE(channels=(8, 16), layers=1, groups=4),
        CLIPText(50, 32, 2, 4, CONTEXT, eos_id=EOS),
    ]
    for a, b in zip(ours, theirs):
        a.load_state_dict({k.removeprefix("text_model."): v for k, v in b.state_dict().items()})
    with torch.no_grad():  # pictures are encoded to a sample there, to the mean here: make them one
        for m in (theirs[1], ours[1]):
            m.quant_conv.weight[4:], m.quant_conv.bias[4:] = 0, -30
    return theirs, [m.eval().requires_grad_(False) for m in ours]


@pytest.fixture(scope="module")
def nets():
    return networks(4)


def scheduler(sampler, spacing, prediction):
    import diffusers

    name, kw = EULER if sampler == "euler" else SAMPLERS[sampler]
    return getattr(diffusers, name)(
        **BETAS,
        **kw,
        timestep_spacing=spacing,
        steps_offset=1,
        prediction_type=PREDICTION[prediction],
    )


def reference(nets, kind="", sampler="ddim", spacing="leading", prediction="eps"):
    """diffusers' pipeline around their networks."""
    import diffusers

    unet, vae, text = nets[0]
    more = {} if kind == "InstructPix2Pix" else {"image_encoder": None}
    pipe = getattr(diffusers, f"StableDiffusion{kind}Pipeline")(
        unet=unet,
        vae=vae,
        text_encoder=text,
        tokenizer=Words(),
        scheduler=scheduler(sampler, spacing, prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **more,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def own(nets, spacing="leading", prediction="eps", **kw):
    """Our pipe around our networks."""
    unet, vae, text = nets[1]
    return Pipe(
        net=unet,
        vae=vae,
        text=text,
        tokenizer=lambda p: Words()(p).input_ids,
        schedule=schedule.scaled_linear(),
        shape=(4, SIDE, SIDE),
        prediction=prediction,
        spacing=spacing,
        end=1,
        scale=7.5,
        literal=True,
        **kw,
    )


def start(shape=(2, 4, SIDE, SIDE), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generators(n=2, seed=3):
    """One stream a picture, as our seeds: ours with seed 3 are theirs with these."""
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


def agree(got, want, tolerance=2e-5):
    """Equal up to fp32's rounding, relative to the spread: random weights leave latents as wide as
    1 / alpha_T = 15.
    """
    assert got.shape == want.shape and want.std() > 0.5
    assert (got - want).abs().max() <= tolerance * max(1, want.std())


# PLMS multiplies rounding by its weights, up to 59 / 24, on top of guidance 7.5
ROUNDING = {"plms": 5e-5}


CASES = [
    (5, sampler, spacing, p)
    for sampler in SAMPLERS
    for spacing in schedule.SPACINGS
    for p in PREDICTION
]
CASES += [
    (20, sampler, spacing, "eps") for sampler in SAMPLERS for spacing in ("leading", "linspace")
]
CASES += [(50, "ddim", "leading", "v"), *((50, sampler, "leading", "eps") for sampler in SAMPLERS)]


@pytest.mark.parametrize("steps, sampler, spacing, prediction", CASES)
@torch.no_grad()
def test_generated_latents_equal_diffusers(nets, steps, sampler, spacing, prediction):
    z, negative = start(), NEGATIVE if steps == 20 else ""
    want = reference(nets, "", sampler, spacing, prediction)(
        PROMPTS,
        latents=z,
        num_inference_steps=steps,
        guidance_scale=7.5,
        output_type="latent",
        negative_prompt=[negative] * 2 if negative else None,
    ).images
    agree(
        own(nets, spacing, prediction).generate(
            PROMPTS, steps=steps, negative=negative, sampler=sampler, noise=z, decode=False
        ),
        want,
        ROUNDING.get(sampler, 2e-5),
    )


@pytest.mark.parametrize("steps", [4, 20, 50])
@torch.no_grad()
def test_eulers_scheduler_is_ddim_without_its_departures(nets, steps):
    """What loading a folder with Euler's scheduler says: the same steps in other symbols. With
    DDIM's departures the latents are several times further off.
    """
    z, kw = start(), dict(num_inference_steps=steps, guidance_scale=7.5, output_type="latent")
    pipe = reference(nets, "", "euler", "linspace")
    want = pipe(PROMPTS, latents=z.clone(), **kw).images
    ours = replace(own(nets, "linspace"), end=0, literal=False)
    got = ours.generate(PROMPTS, steps=steps, noise=z, decode=False)
    assert (got - want).std() < 0.01 * want.std()
    literal = replace(ours, literal=True)
    off = literal.generate(PROMPTS, steps=steps, noise=z, decode=False) - want
    assert off.std() > 4 * (got - want).std()


@torch.no_grad()
def test_every_convention_counts(nets):
    """What the comparison above would notice: each change moves the latents a thousand times
    further than rounding.
    """
    z, pipe = start(), own(nets)
    base, spread = pipe.generate(PROMPTS, steps=5, noise=z, decode=False), 2e-2
    for other in (
        replace(pipe, end=0),
        replace(pipe, spacing="trailing"),
        replace(pipe, spacing="linspace"),
        replace(pipe, scale=7.0),
        replace(pipe, schedule=schedule.linear()),
    ):
        assert (other.generate(PROMPTS, steps=5, noise=z, decode=False) - base).abs().max() > spread
    assert (
        pipe.generate(PROMPTS, steps=5, noise=z, decode=False, negative=NEGATIVE) - base
    ).abs().max() > spread
    for sampler, case in (
        ("ddim", replace(pipe, spacing="linspace")),
        ("plms", replace(pipe, prediction="v")),
    ):
        literal, ours = (
            replace(case, literal=flag).generate(
                PROMPTS, steps=5, noise=z, sampler=sampler, decode=False
            )
            for flag in (True, False)
        )
        assert (literal - ours).abs().max() > spread  # diffusers' own departures from the papers


@torch.no_grad()
def test_seeds_negatives_sizes_and_pictures_equal_diffusers(nets):
    """A size of one's own, a negative for each picture, noise from seeds, decoded."""
    want = reference(nets)(
        PROMPTS,
        height=24,
        width=40,
        num_inference_steps=3,
        guidance_scale=4.0,
        output_type="pt",
        negative_prompt=[NEGATIVE, "grass"],
        generator=generators(),
    ).images
    got = own(nets).generate(
        PROMPTS, height=24, width=40, steps=3, scale=4.0, negative=[NEGATIVE, "grass"], seed=3
    )
    assert got.shape == want.shape == (2, 3, 24, 40) and want.std() > 0.05
    assert (got - (2 * want - 1)).abs().max() <= 1e-4


def picture(seed=5):
    return (
        torch.rand((1, 3, 2 * SIDE, 2 * SIDE), generator=torch.Generator().manual_seed(seed)) * 2
        - 1
    )


def window():
    """A mask along the borders of latents, so that sampling and maximum agree on it."""
    m = torch.zeros(1, 1, 2 * SIDE, 2 * SIDE)
    m[..., 4:12, 2:10] = 1
    return m


@pytest.mark.parametrize(
    "spacing, steps, strength",
    [
        ("leading", 5, 1.0),
        ("leading", 7, 0.5),
        ("leading", 50, 0.58),
        ("trailing", 5, 1.0),
        ("trailing", 10, 0.55),
    ],
)
@torch.no_grad()
def test_image_to_image_equals_diffusers(nets, spacing, steps, strength):
    """.58 of 50 steps are 28 in floating point, not 29. The guide's latents are handed over: there
    they would be drawn.

    Trailing steps must divide 1000 here: `sdedit` keeps to its grid, diffusers' moves are T //
    steps long.
    """
    pipe = own(nets, spacing)
    want = reference(nets, "Img2Img", "ddim", spacing)(
        PROMPTS[0],
        image=pipe.encode(picture()),
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=7.5,
        generator=generators(1),
        output_type="pt",
    ).images
    got = sdedit(pipe, picture(), PROMPTS[0], strength=strength, steps=steps, scale=7.5, seed=3)
    assert (got - (2 * want - 1)).abs().max() <= 1e-4 and want.std() > 0.05


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("channels", [4, 9])
@torch.no_grad()
def test_inpainting_equals_diffusers_with_either_network(nets, channels, strength):
    nets = nets if channels == 4 else networks(9)
    pipe = own(nets)
    kw = dict(
        num_inference_steps=5,
        strength=strength,
        guidance_scale=7.5,
        negative_prompt=NEGATIVE,
        output_type="latent",
    )
    hole = pipe.encode(picture() * (1 - window()))
    want = reference(nets, "Inpaint")(
        PROMPTS[0],
        image=pipe.encode(picture()),
        mask_image=window(),
        height=2 * SIDE,
        width=2 * SIDE,
        masked_image_latents=hole,
        generator=generators(1),
        **kw,
    ).images
    got = inpaint(
        pipe,
        picture(),
        PROMPTS[0],
        mask=window(),
        strength=strength,
        steps=5,
        negative=NEGATIVE,
        seed=3,
        decode=False,
    )
    agree(got, want)


@pytest.mark.parametrize("sampler", SAMPLERS)
@torch.no_grad()
def test_editing_by_instruction_equals_diffusers(sampler):
    nets = networks(8)
    want = reference(nets, "InstructPix2Pix", sampler)(
        "make it red",
        image=picture() / 2 + 0.5,
        num_inference_steps=5,
        guidance_scale=7.5,
        image_guidance_scale=1.4,
        generator=generators(1),
        output_type="latent",
    ).images
    got = instruct_pix2pix(
        own(nets),
        picture(),
        "make it red",
        steps=5,
        scale=7.5,
        image_scale=1.4,
        sampler=sampler,
        seed=3,
        decode=False,
    )
    agree(got, want)
