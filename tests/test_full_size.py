"""Every network at its real size against diffusers and transformers, on random weights: `make
test-full` (minutes, 8 GB).

The ordinary suite compares the same classes at reduced width, where some mistakes do not show:
groups, heads and widths that only differ at full size. Latents are small (16 x 16), which changes
no weight. A pair shares its weights. The bound is that of rounding: 1e-5 of the spread of the
output.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minidiff.control.controlnet import ControlNet
from minidiff.control.t2i_adapter import T2IAdapter
from minidiff.core.cond import Cond
from minidiff.formats.family import detect
from minidiff.formats.fill import read
from minidiff.formats.keymaps import source_names
from minidiff.formats.mapped import memory_file
from minidiff.formats.ops import scatter
from minidiff.models.dit import DiT

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.full, pytest.mark.timeout(3000)]
SIZES, PREFIX = ["sd15", "sd21"], {"unet": "model.diffusion_model.", "vae": "first_stage_model."}


@pytest.fixture(scope="module")
def bench():
    """tests/benchmarks/pairs.py: networks in pairs."""
    pytest.importorskip("diffusers", reason="diffusers is not installed (development extra)")
    sys.path.insert(0, str(ROOT / "tests/benchmarks"))
    try:
        import pairs

        yield pairs
    finally:
        sys.path.remove(str(ROOT / "tests/benchmarks"))


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def apart(ours, theirs):
    """Largest difference over the spread; the spread must be that of a network that does
    something.
    """
    assert ours.shape == theirs.shape and 0.01 < theirs.std() < 100
    return ((ours - theirs).abs().max() / theirs.std()).item()


def from_layout(part, ours, layout, new):
    """The same network again, by way of tensors under the names and in the shapes of a public
    file.
    """
    own, prefix = ours.state_dict(), PREFIX[part] if layout == "original" else ""
    file = memory_file(
        {prefix + k: v for k, v in scatter(source_names(part, own, layout=layout), own).items()}
    )
    with torch.device("meta"):
        net = new()
    read(file, detect(file), part, net)
    return net


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_the_unet_equals_diffusers_from_both_layouts(bench, size):
    args = bench.arguments(size)
    ours, theirs = bench.pairs(args, ("unet",))["unet"]
    x, t, text = (
        noise(2, 4, 16, 16),
        torch.tensor([7, 801]),
        noise(2, 77, args["unet"]["context"], seed=2),
    )
    want = theirs(x, t, text).sample
    assert apart(ours(x, t, Cond(text=text)), want) <= 1e-5
    for layout in ("original", "diffusers"):
        again = from_layout("unet", ours, layout, lambda: type(ours)(**args["unet"]))
        assert apart(again(x, t, Cond(text=text)), want) <= 1e-5, layout


def test_the_autoencoder_equals_diffusers_from_both_layouts(bench):
    """The lean decoder is held to 1e-4 of a picture's range: its convolutions add up in another
    order.
    """
    args = bench.arguments()
    ours, theirs = bench.pairs(args, ("vae",))["vae"]
    x, z = noise(1, 3, 128, 128).clamp(-1, 1), noise(1, 4, 16, 16)
    with torch.no_grad():
        q, want = theirs.encode(x).latent_dist, theirs.decode(z).sample
        lean = ours.decode(z)
    for layout in ("original", "diffusers"):
        net = from_layout("vae", ours, layout, lambda: type(ours)(**args["vae"]))
        got = net.encode(x)
        assert apart(got.mean, q.mean) <= 1e-5 and (got.logvar - q.logvar).abs().max() <= 1e-4
        assert apart(net.decode(z), want) <= 1e-5  # gradients on: the plain path
    assert (lean - want).abs().max() <= 1e-4


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_the_text_tower_equals_transformers(bench, size):
    ours, theirs = bench.pairs(bench.arguments(size), ("text",))["text"]
    ids = torch.randint(49406, (2, 77), generator=torch.Generator().manual_seed(3))
    ids[:, -1] = 49407
    assert apart(ours(ids), theirs(ids).last_hidden_state) <= 1e-5


@torch.no_grad()
def test_dit_xl_2_equals_diffusers(bench):
    import diffusers

    with torch.device("meta"):
        ours = DiT()
        theirs = diffusers.DiTTransformer2DModel(out_channels=8, norm_eps=1e-6)
    positions = DiT(depth=0).pos_embed  # a formula, not a weight
    ours = bench.randomize(ours)
    ours.pos_embed.copy_(positions)
    own = ours.state_dict()
    theirs.load_state_dict(
        scatter(source_names("dit", own, layout="diffusers"), own), strict=False, assign=True
    )
    theirs.pos_embed = patches = type(theirs.pos_embed)(
        height=32, width=32, patch_size=2, in_channels=4, embed_dim=1152
    )
    patches.proj.load_state_dict(ours.x_embedder.proj.state_dict())
    assert not [k for k, v in theirs.named_parameters() if v.is_meta]
    for block in theirs.transformer_blocks:  # its frequencies end at 1 / 10000; the paper's do not
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    x, t, label = noise(2, 4, 32, 32), torch.tensor([7, 801]), torch.tensor([207, 1000])
    assert (
        apart(ours(x, t, Cond(label=label)), theirs.eval()(x, t, class_labels=label).sample) <= 1e-5
    )


@torch.no_grad()
def test_the_controlnet_equals_diffusers(bench):
    import diffusers

    with torch.device("meta"):
        ours, theirs = ControlNet(), diffusers.ControlNetModel(cross_attention_dim=768)
    ours = bench.randomize(ours)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    x, t, text = noise(2, 4, 16, 16), torch.tensor([7, 801]), noise(2, 77, 768, seed=2)
    hint = noise(2, 3, 128, 128).sigmoid()
    down, middle = theirs.eval()(x, t, text, hint, return_dict=False)
    found = ours(x, t, Cond(text=text), hint)
    assert (
        len(found) == 13
        and max(apart(a, b) for a, b in zip(found.values(), [*down, middle])) <= 1e-5
    )


@torch.no_grad()
def test_the_t2i_adapter_equals_diffusers(bench):
    import diffusers

    with torch.device("meta"):
        ours, theirs = (
            T2IAdapter(),
            diffusers.T2IAdapter(in_channels=3, adapter_type="full_adapter"),
        )
    ours = bench.randomize(ours)
    theirs.load_state_dict({f"adapter.{k}": v for k, v in ours.state_dict().items()}, assign=True)
    hint = noise(1, 3, 128, 128).sigmoid()
    found, want = ours(hint), theirs.eval()(hint)
    found = list(found.values()) if isinstance(found, dict) else found
    assert len(found) == 4 and max(apart(a, b) for a, b in zip(found, want)) <= 1e-5


SMALL_MACHINE = """
import sys, torch, minidiff
from minidiff.models.tokenizer import Tokenizer
from minidiff.pipe.offload import offload
pipe = minidiff.load(sys.argv[1], tokenizer=Tokenizer.words(["circle"]))
with offload(pipe):
    image = pipe.generate("circle", steps=1, scale=1.)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak >> 10, *image.shape, image.std().item())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")
def test_a_picture_of_512_pixels_is_made_in_4_gb(bench, tmp_path):
    """The whole process: 4.2 GB of float32 weights in files, loaded, offloaded, one step,
    decoded.
    """
    import diffusers

    (_, unet), (_, vae), (_, text) = bench.pairs(bench.arguments()).values()
    parts = (
        vae,
        text,
        None,
        unet,
        diffusers.DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            clip_sample=False,
            set_alpha_to_one=False,
        ),
    )
    diffusers.StableDiffusionPipeline(
        *parts, None, None, requires_safety_checker=False
    ).save_pretrained(tmp_path)
    del unet, vae, text, parts
    done = subprocess.run(
        [sys.executable, "-c", SMALL_MACHINE, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    peak, *shape, std = done.stdout.split()
    assert shape == ["1", "3", "512", "512"] and float(std) > 0.01 and int(peak) < 4096
