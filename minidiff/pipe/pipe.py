"""`Pipe`: everything one model needs, in one bundle, and the only place that knows about it all.

A technique sees pictures in [-1, 1], conditions, and `pipe.eps(x_t, t, cond)`; whether the model
works on latents or pixels, on words or classes, predicts eps or v, is a UNet or a transformer,
stays in here.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from minidiff.core.cfg import cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise
from minidiff.core.denoise import noise as draw
from minidiff.core.process import q_sample, to_eps
from minidiff.core.schedule import Schedule, times_of_strength
from minidiff.io import MAX_PIXELS, known_range
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.vae import VAE
from minidiff.pipe.checks import (
    check_count,
    check_number,
    check_pair,
    check_scale,
    check_seed,
    check_steps,
    prompt_each,
    prompts_of,
)
from minidiff.samplers import SAMPLERS
from minidiff.samplers import solve as run_sampler


@dataclass
class Pipe:
    """`net(x, t, cond)` raw network, t = network time (b,); what it is told as time is `clock`.

    `shape` of one sample the net works on (c, h, w); `vae` None: it works on pixels; `text` None:
    it knows the class names `classes` (or nothing) instead of prompts. `prediction` is one of eps,
    x0, v, flow.

    How the model is usually sampled: `spacing` and `end` of `Schedule.timesteps`, guidance `scale`;
    `literal` repeats diffusers' arithmetic where that departs from the papers (see
    samplers/ddim.py and plms.py). Stable Diffusion's are "leading", 1, 7.5, True.
    """

    net: nn.Module
    schedule: Schedule
    shape: tuple[int, int, int]
    prediction: str = "eps"
    vae: VAE | None = None
    text: nn.Module | None = None
    tokenizer: Tokenizer | None = None
    classes: tuple[str, ...] = ()
    name: str = ""
    spacing: str = "trailing"
    end: int = 0
    scale: float = 3.0
    literal: bool = False
    time: str = "index"

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
        """Size of the latents of a picture. Latent UNets take
        every multiple of `factor`, other models their own size.
        """
        if height * width > MAX_PIXELS:
            raise ValueError(
                f"{height} x {width} pixels are more than {MAX_PIXELS // 10**6} million, the most "
                "that is drawn"
            )
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

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Pipe":
        """The same pipe elsewhere (modules are moved in place)."""
        for part in (self.net, self.vae, self.text):
            if part is not None:
                part.to(device=device, dtype=dtype)
        return replace(self)

    # ---- what it is told -------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, prompts: str | list[str]) -> Cond:
        """Prompts (or class names) -> Cond with one row each."""
        prompts = prompts_of(prompts)
        if self.text is not None:
            assert self.tokenizer is not None, "a text tower comes with its tokenizer"
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

    # ---- pictures --------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Pictures (b 3 H W) in [-1, 1] -> scaled posterior
        means (b c h w); pixel models return the picture.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(
                f"picture of shape {tuple(image.shape)}: {self.name or 'this model'} takes (b, 3, "
                f"{self.image_size[0]}, {self.image_size[1]}) in [-1, 1]"
            )
        self.latent_size(*image.shape[2:])
        image = image.to(self.device, self.dtype)
        return self.vae.to_latent(image) if self.vae else image

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (b c h w) -> pictures in [-1, 1]."""
        return known_range(self.vae.to_image(z) if self.vae else z.clamp(-1, 1))

    # ---- time and noise --------------------------------------------------------------------------

    def clock(self, t: int | Tensor, like: Tensor) -> Tensor:
        """What the network is told as the time of index t: (b,) for the b rows of `like`.

        The field `time` says which: "index" is t - 1, since networks count from 0; "sigma" is
        sigma / alpha and "log_snr" 2 log(alpha / sigma), in `like`'s dtype.
        """
        t = torch.as_tensor(t, device=like.device).expand(len(like))
        if self.time == "index":
            return t - 1
        if self.time == "log_snr":
            return self.schedule.log_snr.to(like)[t]
        if self.time == "sigma":
            return (self.schedule.sigma / self.schedule.alpha).to(like)[t]
        raise ValueError(f"time={self.time!r} is unknown; choose one of index, sigma, log_snr")

    def eps(self, x_t: Tensor, t: int | Tensor, cond: Cond | None) -> Tensor:
        """The noise in x_t at schedule index t (one int, or b
        of them): a `Denoise`, with gradients if they are on.
        """
        cond = cond.expand(len(x_t)) if cond is not None else None
        out = self.net(x_t, self.clock(t, x_t), cond)
        out = out[:, : x_t.shape[1]]  # the second half of a DiT's output is a variance
        return to_eps(self.schedule, x_t, out, t, self.prediction)

    def noise(self, n: int, seed: int = 0) -> Tensor:
        """Unit Gaussian (n c h w) of the model's own size; row i depends on seed + i alone."""
        return draw((n, *self.shape), seed, self.device, self.dtype)

    @property
    def start_std(self) -> float:
        """Standard deviation of the state that sampling starts from: sigma_T where the tables
        explode (VE), else 1, as published for VP and flow.
        """
        return max(1.0, self.schedule.sigma[-1].item())

    def start(self, n: int, seed: int = 0, size: tuple[int, int] | None = None) -> Tensor:
        """The state that sampling starts from, (n c h w); row i depends on seed + i alone.

        `size`: (height, width) of the pictures in pixels; default: the model's own.
        """
        h, w = self.latent_size(*(size or self.image_size))
        return self.start_std * draw((n, self.shape[0], h, w), seed, self.device, self.dtype)

    def noised(self, z: Tensor, s: int, noise: Tensor) -> Tensor:
        """Clean latents z (b c h w) at time s of the model's own grid; at the grid's end, z itself.

        Stable Diffusion's grid ends at index 1, whose little noise it takes for none.
        """
        return q_sample(self.schedule, z, s, noise) if s > self.end else z

    def timesteps(self, steps: int, strength: float = 1.0, start: int | None = None) -> list[int]:
        """The model's own grid, from noise to clean: the only one that techniques use.

        strength  of the grid only this share, at the clean end: for a picture that is noised and
                  redrawn
        start     begin at this index instead of T
        """
        check_steps(steps)
        if not 0 <= strength <= 1:
            raise ValueError(
                f"strength={strength} is outside 0..1 (0 returns the picture, 1 ignores it)"
            )
        ts = self.schedule.timesteps(steps, start, self.spacing, self.end)
        kept = times_of_strength(ts, strength)
        if strength and len(kept) == 1:
            raise ValueError(
                f"strength={strength} of steps={steps} is less than one step: nothing would be "
                f"drawn; raise the strength to {1 / steps:.2g} or more, or the steps"
            )
        return kept

    # ---- sampling --------------------------------------------------------------------------------

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
        """From a starting state x (b c h w) to clean latents, on the model's own grid; `eta` and
        `seed` are for samplers that add noise on the way.
        """
        return run_sampler(
            sampler,
            denoise,
            self.schedule,
            x,
            cond,
            steps=steps,
            spacing=self.spacing,
            end=self.end,
            literal=self.literal,
            prediction=self.prediction,
            eta=eta,
            seed=seed,
            progress=progress,
        )

    def generate(
        self,
        prompts: str | list[str],
        *,
        steps: int = 50,
        scale: float | None = None,
        seed: int = 0,
        negative: str | list[str] = "",
        sampler: Literal[tuple(SAMPLERS)] = "ddim",  # type: ignore[valid-type]
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
        sampler   how it gets from noise to the picture: one of `samplers.SAMPLERS`
        eta       0 to 1: noise on the way, for ddim
        interval  guide at times in (lo, hi] of 0..T alone, as 400 1000: what is asked for, but
                  nothing overdrawn
        height    of the pictures in pixels; default: the size the model was trained on
        width     the same

        `noise` (b c h w), unit Gaussian, replaces that of `seed`; `denoise` the pipe's own `eps`,
        such as a ControlNet's `controlled(pipe, ...)`; `decode=False` returns the latents.
        """
        scale = self.scale if scale is None else scale
        check_steps(steps)
        check_scale(scale)
        check_seed(seed)
        seed = int(seed)  # numpy's whole numbers too
        check_number("eta", eta)
        if interval is not None:
            check_pair("interval", interval)
        cond = self.embed(prompts)
        null = self.null()
        if negative:
            null = self.embed(prompt_each(negative, len(cond), "negative"))
        guided = cfg_batched(denoise or self.eps, null, scale, interval=interval)
        own_height, own_width = self.image_size
        size = (
            own_height if height is None else height,
            own_width if width is None else width,
        )
        check_count("height", size[0])
        check_count("width", size[1])
        if noise is None:
            x = self.start(len(cond), seed, size)
        else:
            shape = (len(cond), self.shape[0], *self.latent_size(*size))
            if not noise.isfinite().all():
                raise ValueError("noise holds NaN or infinite numbers")
            if noise.shape != shape:
                raise ValueError(
                    f"noise of shape {tuple(noise.shape)}: these {len(cond)} picture(s) start from "
                    f"{shape}"
                )
            x = self.start_std * noise.to(self.device, self.dtype)
        z = self.solve(
            guided, x, cond, steps=steps, sampler=sampler, eta=eta, seed=seed, progress=progress
        )
        return self.decode(z) if decode else z
