"""`Pipe`: everything one model needs, in one bundle, and the only place that knows about it all.

A technique sees pictures in [-1, 1], conditions, and `pipe.eps(x_t, t, cond)`; whether the model works on latents or
pixels, on words or classes, predicts eps or v, is a UNet or a transformer, stays in here.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from minidiff.core.cond import Cond
from minidiff.core.denoise import noise
from minidiff.core.process import to_eps
from minidiff.core.schedule import Schedule
from minidiff.guidance.cfg import cfg_batched
from minidiff.samplers.ddim import ddim


@dataclass
class Pipe:
    """`net(x, t, cond)` raw network, t = network time (b,), one less than the schedule's index.

    `shape` of one sample the net works on (c, h, w); `vae` None: it works on pixels; `text` None: it knows the class
    names `classes` (or nothing) instead of prompts. `prediction` is one of eps, x0, v, flow.
    """
    net: nn.Module
    schedule: Schedule
    shape: tuple[int, int, int]
    prediction: str = "eps"
    vae: nn.Module | None = None
    text: nn.Module | None = None
    tokenizer: Callable | None = None
    classes: tuple[str, ...] = ()
    name: str = ""

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        f = self.vae.factor if self.vae else 1
        return self.shape[1] * f, self.shape[2] * f

    def to(self, device=None, dtype=None) -> "Pipe":
        """The same pipe elsewhere (modules are moved in place)."""
        move = lambda m: m.to(device=device, dtype=dtype) if m is not None else None  # noqa: E731
        return replace(self, net=move(self.net), vae=move(self.vae), text=move(self.text))

    @torch.no_grad()
    def embed(self, prompts: str | list[str]) -> Cond:
        """Prompts (or class names) -> Cond with one row each."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if self.text is not None:
            return Cond(text=self.text(self.tokenizer(prompts).to(self.device)))                   # b n d
        if not self.classes:
            raise ValueError(f"{self.name or 'this model'} is unconditional: it takes no prompt")
        names = ("", *self.classes)
        for p in prompts:
            if p not in names:
                raise ValueError(f"class {p!r} is unknown; choose one of: {', '.join(self.classes)}")
        index = [self.classes.index(p) if p else len(self.classes) for p in prompts]               # last: no class
        return Cond(label=torch.tensor(index, device=self.device))

    def null(self, n: int = 1) -> Cond:
        """The empty condition that guidance compares with, n rows."""
        return self.embed([""] * n) if self.text is not None or self.classes else Cond()

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Pictures (b 3 H W) in [-1, 1] -> scaled posterior means (b c h w); pixel models return the picture."""
        if image.ndim != 4 or image.shape[1] != 3 or tuple(image.shape[2:]) != self.image_size:
            raise ValueError(f"picture of shape {tuple(image.shape)}: {self.name or 'this model'} takes "
                             f"(b, 3, {self.image_size[0]}, {self.image_size[1]}) in [-1, 1]")
        image = image.to(self.device, self.dtype)
        return self.vae.to_latent(image) if self.vae else image

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (b c h w) -> pictures in [-1, 1]."""
        return self.vae.to_image(z) if self.vae else z.clamp(-1, 1)

    def eps(self, x_t: Tensor, t: int | Tensor, cond: Cond | None) -> Tensor:
        """The noise in x_t at schedule index t (one int, or b of them): a `Denoise`, with gradients if they are on."""
        index = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        out = self.net(x_t, index - 1, cond.expand(len(x_t)) if cond is not None else None)        # network time: t - 1
        return to_eps(self.schedule, x_t, out[:, :x_t.shape[1]], t, self.prediction)    # second half of a DiT: variance

    def noise(self, n: int, seed: int = 0) -> Tensor:
        """Starting noise (n c h w); row i depends on seed + i alone."""
        return noise((n, *self.shape), seed, self.device, self.dtype)

    def generate(self, prompts: str | list[str], *, steps: int = 50, scale: float = 3., seed: int = 0,
                 negative: str = "", eta: float = 0., progress: bool = False) -> Tensor:
        """Pictures (b 3 H W) for prompts, by DDIM with classifier-free guidance (scale 1 = none)."""
        cond = self.embed(prompts)
        guided = cfg_batched(self.eps, self.embed(negative) if negative else self.null(), scale)
        return self.decode(ddim(guided, self.schedule, self.noise(len(cond), seed), cond, steps=steps, eta=eta,
                                seed=seed, spacing="trailing", progress=progress))
