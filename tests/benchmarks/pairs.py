"""Our networks and diffusers' or transformers', at Stable Diffusion's sizes or a share of their
width, sharing weights.

The weights are random, since what is compared is what is computed. Norms and biases are moved off 1
and 0: at their usual start a forgotten norm does not show. Their networks are built without memory
and are given our tensors themselves, so a pair costs as much as one network.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import torch
import transformers
from torch import nn

from minidiff.models.sizes import SIZES
from minidiff.models.text import CLIPText
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE

for log in (diffusers.utils.logging, transformers.utils.logging):
    log.set_verbosity_error()
    log.disable_progress_bar()
CLASSES, END = {"unet": UNet, "vae": VAE, "text": CLIPText}, 49407


def arguments(size: str = "sd15", width: float = 1.0) -> dict[str, dict]:
    """{part: arguments of our network}; channels in multiples of 32, which the norms' groups ask
    for.
    """
    spec = SIZES[size]
    unet = dict(channels=(320, 640, 1280, 1280), heads=8) | spec["unet"]
    heads = spec["text"]["heads"]
    text = heads * max(4, round(spec["text"]["width"] / heads * width))

    def share(channels: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(32, round(c * width / 32) * 32) for c in channels)

    if width != 1 and not isinstance(unet["heads"], int):  # SD 2: 64 channels a head
        unet["heads"] = tuple(max(1, c // 32) for c in share(unet["channels"]))
    return {
        "unet": unet | dict(channels=share(unet["channels"]), context=text),
        "vae": spec["vae"] | dict(channels=share(spec["vae"]["channels"])),
        "text": spec["text"] | dict(width=text),
    }


def pairs(
    args: dict[str, dict], parts: tuple[str, ...] = ("unet", "vae", "text"), seed: int = 0
) -> dict[str, tuple]:
    """{part: (ours, theirs)}, both ready for inference, on shared random weights."""
    out = {}
    for part in parts:
        with torch.device("meta"):
            ours, theirs = CLASSES[part](**args[part]), THEIRS[part](args[part])
        ours = randomize(ours, seed)
        prefix = (
            "text_model." if any(k.startswith("text_model.") for k in theirs.state_dict()) else ""
        )
        theirs.load_state_dict({prefix + k: v for k, v in ours.state_dict().items()}, assign=True)
        out[part] = ours, theirs.eval().requires_grad_(False)
    return out


@torch.no_grad()
def randomize(net: nn.Module, seed: int = 0) -> nn.Module:
    """Memory and weights for a network on meta; activations keep their range through it."""
    net, g = (
        net.to_empty(device="cpu").eval().requires_grad_(False),
        torch.Generator().manual_seed(seed),
    )
    for name, p in net.named_parameters():
        if p.ndim == 1:
            p.normal_(float("norm" in name and name.endswith("weight")), 0.2, generator=g)
        else:
            p.uniform_(-1, 1, generator=g).mul_((1.5 / p[0].numel()) ** 0.5)
    return net


def their_unet(a: dict) -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=64,
        block_out_channels=a["channels"],
        cross_attention_dim=a["context"],
        attention_head_dim=a["heads"],
        use_linear_projection=a.get("linear", False),
    )


def their_vae(a: dict) -> nn.Module:
    return diffusers.AutoencoderKL(
        block_out_channels=a["channels"],
        layers_per_block=a["layers"],
        latent_channels=4,
        scaling_factor=a["scale"],
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def their_text(a: dict) -> nn.Module:
    net = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=a["vocab_size"],
            hidden_size=a["width"],
            intermediate_size=4 * a["width"],
            hidden_act=a["act"],
            num_hidden_layers=a["layers"],
            num_attention_heads=a["heads"],
            max_position_embeddings=a["context"],
            bos_token_id=END - 1,
            eos_token_id=END,
            pad_token_id=END,
        )
    )
    for name, table in list(net.named_buffers()):  # 0 .. n - 1: not among the weights
        owner, _, last = name.rpartition(".")
        net.get_submodule(owner).register_buffer(
            last, torch.arange(table.shape[-1], device="cpu")[None], persistent=False
        )
    return net


THEIRS = {"unet": their_unet, "vae": their_vae, "text": their_text}
