"""`Pipe`: everything one model needs, in one bundle, and the only place that knows about it all.

A technique sees pictures in [-1, 1], conditions, and `pipe.eps(x_t, t, cond)`; whether the model
works on latents or pixels, on words or classes, predicts eps or v, is a UNet or a transformer,
stays in here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from minidiff.core.cfg import cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise
from minidiff.core.denoise import noise as draw
from minidiff.core.process import to_eps
from minidiff.core.schedule import Schedule
from minidiff.samplers.ddim import ddim


@dataclass
class Pipe:
    """`net(x, t, cond)` raw network, t = network time (b,), one less than the schedule's index.

    `shape` of one sample the net works on (c, h, w); `vae` None: it works on pixels; `text` None:
    it knows the class names `classes` (or nothing) instead of prompts. `prediction` is one of eps,
    x0, v, flow.

    How the model is usually sampled: `spacing` and `end` of `Schedule.timesteps`, guidance `scale`;
    `literal` repeats diffusers' arithmetic where that departs from the papers (`fixed` in
    samplers/ddim.py, `extrapolate` in plms.py). Stable Diffusion's are "leading", 1, 7.5, True.
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
    spacing: str = "trailing"
    end: int = 0
    scale: float = 3.0
    literal: bool = False

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent; 1 for a model that works on pixels."""
        return self.vae.factor if self.vae else 1

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pictures it was trained on."""
        return self.shape[1] * self.factor, self.shape[2] * self.factor

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the latents of a picture. Latent UNets take every multiple of `factor`, other
        models their own size.
        """
        # a transformer knows its places
        free = self.vae is not None and not hasattr(self.net, "pos_embed")
        if (height, width) != self.image_size and not (
            free and all(n > 0 and n % self.factor == 0 for n in (height, width))
        ):
            sizes = f"sizes that are multiples of {self.factor}" if free else "that size only"
            raise ValueError(
                f"{height} x {width} pixels: {self.name or 'this model'} makes pictures of "
                f"{self.image_size[0]} x {self.image_size[1]} and takes {sizes}"
            )
        return height // self.factor, width // self.factor

    def to(self, device=None, dtype=None) -> "Pipe":
        """The same pipe elsewhere (modules are moved in place)."""
        move = lambda m: m.to(device=device, dtype=dtype) if m is not None else None  # noqa: E731
        return replace(self, net=move(self.net), vae=move(self.vae), text=move(self.text))

    @torch.no_grad()
    def embed(self, prompts: str | list[str]) -> Cond:
        """Prompts (or class names) -> Cond with one row each."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if self.text is not None:
            return Cond(text=self.text(self.tokenizer(prompts).to(self.device)))  # b n d
        if not self.classes:
            raise ValueError(f"{self.name or 'this model'} is unconditional: it takes no prompt")
        names = ("", *self.classes)
        for p in prompts:
            if p not in names:
                raise ValueError(
                    f"class {p!r} is unknown; choose one of: {', '.join(self.classes)}"
                )
        # last: no class
        index = [self.classes.index(p) if p else len(self.classes) for p in prompts]
        return Cond(label=torch.tensor(index, device=self.device))

    def null(self, n: int = 1) -> Cond:
        """The empty condition that guidance compares with, n rows."""
        return self.embed([""] * n) if self.text is not None or self.classes else Cond()

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Pictures (b 3 H W) in [-1, 1] -> scaled posterior means (b c h w); pixel models return
        the picture.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(
                f"picture of shape {tuple(image.shape)}: {self.name or 'this model'} takes "
                f"(b, 3, {self.image_size[0]}, {self.image_size[1]}) in [-1, 1]"
            )
        self.latent_size(*image.shape[2:])
        image = image.to(self.device, self.dtype)
        return self.vae.to_latent(image) if self.vae else image

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (b c h w) -> pictures in [-1, 1]."""
        return self.vae.to_image(z) if self.vae else z.clamp(-1, 1)

    def eps(self, x_t: Tensor, t: int | Tensor, cond: Cond | None) -> Tensor:
        """The noise in x_t at schedule index t (one int, or b of them): a `Denoise`, with gradients
        if they are on.
        """
        index = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        # network time: t - 1
        out = self.net(x_t, index - 1, cond.expand(len(x_t)) if cond is not None else None)
        # second half of a DiT: variance
        return to_eps(self.schedule, x_t, out[:, : x_t.shape[1]], t, self.prediction)

    def noise(self, n: int, seed: int = 0) -> Tensor:
        """Starting noise (n c h w) of the model's own size; row i depends on seed + i alone."""
        return draw((n, *self.shape), seed, self.device, self.dtype)

    def timesteps(self, steps: int, strength: float = 1.0) -> list[int]:
        """The model's own grid; of it, the share `strength` at the clean end, for a picture that is
        noised and redrawn.
        """
        if not 0 <= strength <= 1:
            raise ValueError(
                f"strength={strength} is outside 0..1 (0 returns the picture, 1 ignores it)"
            )
        ts = self.schedule.timesteps(steps, spacing=self.spacing, end=self.end)
        # cut off, not rounded: .58 of 50 are 28, as in diffusers
        return ts[steps - int(steps * strength) :]

    def solve(
        self,
        denoise: Denoise,
        x: Tensor,
        cond: Cond,
        *,
        steps: int,
        sampler: str = "ddim",
        eta: float = 0.0,
        seed: int = 0,
        progress: bool = False,
    ) -> Tensor:
        """From noise x (b c h w) at T to clean latents, on the model's own grid; `seed` is for eta
        > 0 (DDIM alone).
        """
        if sampler not in ("ddim", "plms", "dpm++") or (eta and sampler != "ddim"):
            raise ValueError(
                f"sampler={sampler!r} with eta={eta}: choose ddim, plms or dpm++; only ddim "
                "has an eta"
            )
        run = dict(steps=steps, spacing=self.spacing, progress=progress)
        if sampler == "dpm++":  # ends at clean whatever `end`: as in diffusers
            # late: most techniques bring a loop of their own
            from minidiff.samplers.dpm_solver import dpm_solver

            return dpm_solver(denoise, self.schedule, x, cond, **run)
        run |= dict(end=self.end, fixed=self.literal)
        if sampler == "plms":
            from minidiff.samplers.plms import plms

            v = self.literal and self.prediction == "v"
            return plms(denoise, self.schedule, x, cond, extrapolate="v" if v else "eps", **run)
        return ddim(denoise, self.schedule, x, cond, eta=eta, seed=seed, **run)

    def generate(
        self,
        prompts: str | list[str],
        *,
        steps: int = 50,
        scale: float | None = None,
        seed: int = 0,
        negative: str | list[str] = "",
        sampler: Literal["ddim", "plms", "dpm++"] = "ddim",
        eta: float = 0.0,
        interval: tuple[float, float] | None = None,
        height: int | None = None,
        width: int | None = None,
        noise: Tensor | None = None,
        denoise: Denoise | None = None,
        decode: bool = True,
        progress: bool = False,
    ) -> Tensor:
        """Pictures (b 3 H W) for prompts, with classifier-free guidance.

        scale     1 is none; default: the model's own
        negative  what to lead away from: one prompt, or one for each picture
        eta       0 to 1: noise on the way, for ddim
        interval  guide at times in (lo, hi] of 0..T alone, as 400 1000: what is asked for, but
                  nothing overdrawn
        height    of the pictures in pixels, as `width`; default: the size the model was trained on

        `noise` (b c h w), unit Gaussian, replaces that of `seed`; `denoise` the pipe's own `eps`,
        such as a ControlNet's `controlled(pipe, ...)`; `decode=False` returns the latents.
        """
        cond, (height0, width0) = self.embed(prompts), self.image_size
        shape = (len(cond), self.shape[0], *self.latent_size(height or height0, width or width0))
        if noise is not None and noise.shape != shape:
            raise ValueError(
                f"noise of shape {tuple(noise.shape)}: these {len(cond)} picture(s) start "
                f"from {shape}"
            )
        x = (
            draw(shape, seed, self.device, self.dtype)
            if noise is None
            else noise.to(self.device, self.dtype)
        )
        guided = cfg_batched(
            denoise or self.eps,
            self.embed(negative) if negative else self.null(),
            self.scale if scale is None else scale,
            interval=interval,
        )
        z = self.solve(
            guided, x, cond, steps=steps, sampler=sampler, eta=eta, seed=seed, progress=progress
        )
        return self.decode(z) if decode else z
