"""One set of classes in several sizes: flat arguments, by
the name of the model. `tiny` and `sd15` differ here only.

Each entry: the denoiser by its name in `BACKBONES`, maybe `vae`, `text`, `image` (CLIP's image
tower), the `schedule` builder with its arguments, what the network predicts, the shape of a sample,
and the guidance `scale` that the model is usually sampled with (tiny: chosen on prompts of the dev
split; Stable Diffusion and DiT: that of the papers' figures).
"""

SD = dict(schedule="scaled_linear", prediction="eps", scale=7.5)
LINEAR = dict(schedule="linear", prediction="eps")

SD_VAE = dict(channels=(128, 256, 512, 512), layers=2, groups=32, patch=1, scale=0.18215)
CLIP_L = dict(
    vocab_size=49408, width=768, layers=12, heads=12, context=77, act="quick_gelu", eos_id=49407
)
CLIP_H = dict(
    vocab_size=49408, width=1024, layers=23, heads=16, context=77, act="gelu", eos_id=49407
)
CLIP_L_IMAGE = dict(
    image_size=224, patch=14, width=1024, layers=24, heads=16, project_dim=768, act="quick_gelu"
)
CLIP_H_IMAGE = dict(
    image_size=224, patch=14, width=1280, layers=32, heads=16, project_dim=1024, act="gelu"
)

TINY_VAE = dict(channels=(32, 64), layers=1, groups=8, patch=2, scale=1.0)
TINY_TEXT = dict(
    vocab_size=44, width=128, layers=3, heads=4, context=20, act="gelu", eos_id=2, project_dim=128
)
TINY_IMAGE = dict(image_size=64, patch=8, width=128, layers=3, heads=4, project_dim=128, act="gelu")
TINY_UNET = dict(
    channels=(48, 96), layers=1, attention=("cross", "cross"), heads=4, context=128, groups=8
)
TINY = dict(
    vae=TINY_VAE,
    text=TINY_TEXT | dict(causal=False),
    image=TINY_IMAGE,
    schedule="scaled_linear",
    prediction="v",
    shape=(4, 16, 16),
)


def _dit(dim: int, depth: int, heads: int, patch: int = 2) -> dict:
    return dict(
        dit=dict(size=32, patch=patch, dim=dim, depth=depth, heads=heads, classes=1000),
        vae=SD_VAE,
        shape=(4, 32, 32),
        scale=4.0,
        **LINEAR,
    )


SIZES = {
    "tiny": dict(
        unet=TINY_UNET,
        scale=2.0,
        **TINY,
    ),
    "tiny-dit": dict(
        dit=dict(
            size=16,
            patch=2,
            dim=160,
            depth=6,
            heads=5,
            classes=None,
            context=128,
            learn_sigma=False,
            local=True,
        ),
        scale=3.0,
        **TINY,
    ),
    "tiny-pixel": dict(
        unet=dict(
            in_channels=3,
            out_channels=3,
            channels=(32, 64, 96),
            layers=1,
            groups=8,
            heads=4,
            attention=(None, "self", "self"),
            mid="self",
            context=None,
            classes=56,
        ),
        schedule="cosine",
        prediction="v",
        scale=3.0,
        shape=(3, 32, 32),
    ),
    "tiny-attention-unet": dict(attention_unet=TINY_UNET, scale=2.0, **TINY),
    "tiny-r2unet": dict(r2unet=TINY_UNET | dict(recurrence=2), scale=2.0, **TINY),
    "tiny-dual-unet": dict(dual_attention_unet=TINY_UNET | dict(ratio=8), scale=2.0, **TINY),
    "sd15": dict(unet=dict(), vae=SD_VAE, text=CLIP_L, image=CLIP_L_IMAGE, shape=(4, 64, 64), **SD),
    "sd21": dict(
        unet=dict(heads=(5, 10, 20, 20), context=1024, linear=True),
        vae=SD_VAE,
        text=CLIP_H,
        image=CLIP_H_IMAGE,
        schedule="scaled_linear",
        prediction="v",
        shape=(4, 96, 96),
        scale=7.5,
    ),
    "dit-s-2": _dit(384, 12, 6),
    "dit-b-2": _dit(768, 12, 12),
    "dit-l-2": _dit(1024, 24, 16),
    "dit-xl-2": _dit(1152, 28, 16),
    "ddpm-cifar10": dict(
        unet=dict(
            in_channels=3,
            out_channels=3,
            channels=(128, 256, 256, 256),
            layers=2,
            heads=1,
            attention=(None, "self", None, None),
            mid="self",
            context=None,
            eps=1e-6,
            dropout=0.1,
            cos_first=False,
            shift=1,
            pad=0,
        ),
        shape=(3, 32, 32),
        scale=1.0,
        **LINEAR,
    ),
}
