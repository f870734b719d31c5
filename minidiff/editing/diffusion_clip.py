"""DiffusionCLIP: text-guided diffusion models for robust image manipulation.

Gwanghyun Kim, Taesung Kwon, Jong Chul Ye, 2021, arXiv 2110.02711.

Invert a picture most of the way to noise; the deterministic sampler leads from there back to the
picture. Now tune the NETWORK until the same road leads elsewhere: to where CLIP says that the
picture has moved as the words say. The loss is on the finished picture, so its gradient runs back
through every sampling step. What was learned is the edit, not the picture: it also works on
pictures it has not seen.

    d    = cos( E_image(x') - E_image(x),  E_text(target) - E_text(source) )
           the direction, not the place; x' is sampled with the tuned weights from the noise
    loss = - clip log((1 + d) / 2) + keep |x' - x|_1

    eps  = sum_i gamma_i(t) eps_i,  sum gamma = 1
           several tuned networks at once, the untouched one included

Try: `updates` 0 (the copy) to 40; `degree` .5, half tuned and half untouched; `strength` .3;
`examples`, to tune on some pictures and edit others; `mixed` of "red" and "striped".

Weakness: the published code keeps the activations of all steps and so trains through at most 6 of
them. Here they are recomputed, one step at a time (samplers/differentiable.py): 50 steps train in
the memory of 6. What stays: CLIP must know the change, and the tiny one is easily pleased; the L1
term keeps the rest only as far as it is asked to.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, sample, step_pairs
from minidiff.inversion.ddim import invert_step
from minidiff.models.clip import CLIP
from minidiff.pipe.checks import door, needs_text, one_by_one
from minidiff.pipe.pipe import Pipe
from minidiff.samplers.differentiable import sample_with_gradients
from minidiff.train.finetune import in_float32, tuned
from minidiff.weights.store import load_clip

Style = dict[str, Tensor]  # tuned weights by name; {}: the network as it is


# ---- the two losses ------------------------------------------------------------------------------


def direction(clip: CLIP, tokenizer, source: str | list[str], target: str | list[str]) -> Tensor:
    """Unit vectors (b e) from what the source prompts say to what the target prompts say."""
    e = [clip.embed_text(tokenizer(p).to(clip.logit_scale.device)) for p in (target, source)]
    return F.normalize(e[0] - e[1], dim=-1)


def clip_loss(clip: CLIP, out: Tensor, before: Tensor, way: Tensor) -> Tensor:
    """(b,) minus log of (1 + cosine) / 2, between the pictures'
    move (from CLIP's `before`, b e) and the words' `way`.
    """
    cos = F.cosine_similarity(clip.embed_image(out) - before, way.expand(len(out), -1))
    return -((1 + cos) / 2).clamp(min=1e-4).log()  # log 0 has no slope


# ---- tuning --------------------------------------------------------------------------------------


def times(pipe: Pipe, strength: float, steps: int) -> list[int]:
    """steps + 1 even times from `strength` of the way to noise, down to clean."""
    if not 0 < strength <= 1:
        raise ValueError(
            f"strength={strength}: how far to noise the pictures go, above 0, at most 1; .5 to .8 "
            "is usual"
        )
    return pipe.timesteps(steps, start=max(1, round(strength * pipe.schedule.T)))


@torch.no_grad()
def invert_to(pipe: Pipe, image: Tensor, cond: Cond, ts: list[int]) -> Tensor:
    """Pictures (b 3 H W) inverted to ts[0] along the times ts, which end clean."""
    x = pipe.encode(image)
    for s, t in step_pairs(ts[::-1]):
        x = invert_step(pipe.eps, pipe.schedule, x, s, t, cond)
    return x


def tune(
    pipe: Pipe,
    image: Tensor,
    source: str | list[str],
    target: str | list[str],
    *,
    strength: float = 0.8,
    train_steps: int = 6,
    updates: int = 30,
    lr: float = 1e-3,
    clip: float = 3.0,
    keep: float = 1.0,
    batch: int = 4,
    weights: str = "",
    seed: int = 0,
    judge: CLIP | None = None,
    progress: bool = False,
) -> Style:
    """Learn an edit from pictures (b 3 H W); returns the
    tuned weights by name, and leaves the pipe as it was.

    The options are those of `diffusion_clip`; `weights` is a pattern of those that learn, `judge`
    the CLIP that grades.
    """
    with in_float32(pipe):
        judge = (judge or load_clip()).to(pipe.device)
        sch = pipe.schedule
        ts = times(pipe, strength, train_steps)
        cond = pipe.embed(source).expand(len(image))
        x = invert_to(pipe, image, cond, times(pipe, strength, 25))
        image = image.to(pipe.device, pipe.dtype)
        before = judge.embed_image(image)
        way = direction(judge, pipe.tokenizer, source, target).expand(len(image), -1)
        g = torch.Generator().manual_seed(seed)
        with tuned(pipe.net, weights) as chosen:
            optimizer = torch.optim.Adam(chosen, lr=lr)
            for _ in tqdm(range(updates), disable=not progress, leave=False):
                i = torch.randperm(len(image), generator=g)[:batch]
                z = sample_with_gradients(pipe.eps, sch, x[i], ts, cond[i], chosen)
                out = pipe.vae.to_image(z) if pipe.vae else z  # `decode` has no gradient
                loss = clip * clip_loss(judge, out, before[i], way[i]) + keep * (
                    out - image[i]
                ).abs().mean((1, 2, 3))
                optimizer.zero_grad()
                loss.mean().backward()  # through decoder and all steps
                optimizer.step()
            style = {
                n: p.detach().clone() for n, p in pipe.net.named_parameters() if p.requires_grad
            }
    return {name: learned.to(pipe.dtype) for name, learned in style.items()}


# ---- drawing with what was learned ---------------------------------------------------------------


class _Worn(nn.Module):
    """`pipe.eps` as a module, so that `functional_call` can run it with other weights."""

    def __init__(self, pipe: Pipe):
        super().__init__()
        self.net = pipe.net
        self.pipe = pipe

    def forward(self, *args) -> Tensor:
        return self.pipe.eps(*args)


def mixed(
    pipe: Pipe, styles: Sequence[Style], gamma: Sequence[float] | Callable[[int], Sequence[float]]
) -> Denoise:
    """The denoiser sum_i gamma_i eps_i of several tuned
    networks; the style {} is the network as it is.

    gamma: one weight for each style, or a function of the time t that returns them; they are
    divided by their sum. One of weight 0 is not asked. ValueError (when called): another number of
    weights, a sum that is not positive.
    """
    worn = _Worn(pipe)
    named = [{f"net.{n}": v for n, v in s.items()} for s in styles]

    def eps(x_t, t, cond):
        w = gamma(t) if callable(gamma) else gamma
        if len(w) != len(styles) or not sum(w) > 0:
            raise ValueError(
                f"weights {tuple(w)} for {len(styles)} networks: one for each, with a positive sum"
            )
        # the paper's noise combination
        return sum(
            g / sum(w) * functional_call(worn, s, (x_t, t, cond)) for g, s in zip(w, named) if g
        )

    return eps


@torch.no_grad()
def restyle(
    pipe: Pipe,
    image: Tensor,
    source: str | list[str],
    denoise: Denoise,
    *,
    strength: float = 0.8,
    steps: int = 25,
    progress: bool = False,
) -> Tensor:
    """Pictures (b 3 H W) inverted by the pipe's own network
    and drawn again by `denoise`, such as a `mixed` one.
    """
    ts = times(pipe, strength, steps)
    cond = pipe.embed(source).expand(len(image))
    return pipe.decode(
        sample(
            denoise, pipe.schedule, invert_to(pipe, image, cond, ts), ts, cond, progress=progress
        )
    )


@door
def diffusion_clip(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    examples: Tensor | None = None,
    updates: int = 30,
    train_steps: int = 6,
    strength: float = 0.8,
    degree: float = 1.0,
    lr: float = 1e-3,
    clip: float = 3.0,
    keep: float = 1.0,
    batch: int = 4,
    steps: int = 25,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Change pictures `image` (b 3 H W) in [-1, 1] as the
    words change from `source` to `target`; returns (b 3 H W).

    examples     pictures (n 3 H W) of `source` to learn the change from, once for all; default:
                 every picture learns from itself
    updates      of the network's weights; 0 gives the copy that inversion and sampling give
    train_steps  sampling steps the loss is sent back through; memory does not grow with them
    strength     how far to noise pictures are taken; more lets more change
    degree       1 the tuned network, 0 the one as it was, between: their mixture
    lr           learning rate of Adam
    clip         weight of the direction in CLIP's space
    keep         weight of the L1 distance to the picture before
    batch        pictures in an update
    steps        of the sampling in the end

    Identical prompts name no direction: no update is made. ValueError: a model without text,
    options out of range.
    """
    needs_text(pipe, "DiffusionCLIP")
    if updates < 0 or not 0 <= degree <= 1:
        raise ValueError(
            f"updates={updates}, degree={degree}: expected 0 or more updates and a degree in 0..1"
        )
    if examples is None and len(image) > 1:
        options = dict(
            updates=updates,
            train_steps=train_steps,
            strength=strength,
            degree=degree,
            lr=lr,
            clip=clip,
            keep=keep,
            batch=batch,
            steps=steps,
            progress=progress,
        )
        return one_by_one(diffusion_clip, pipe, image, source, target, seed=seed, **options)
    pupils = image if examples is None else examples
    if examples is not None and not (isinstance(source, str) and isinstance(target, str)):
        raise ValueError("with examples one edit is learned: give one source and one target prompt")
    times(pipe, strength, steps)
    style = tune(
        pipe,
        pupils,
        source,
        target,
        strength=strength,
        train_steps=train_steps,
        lr=lr,
        clip=clip,
        keep=keep,
        updates=0 if source == target else updates,
        batch=batch,
        seed=seed,
        progress=progress,
    )
    return restyle(
        pipe,
        image,
        source,
        mixed(pipe, [{}, style], [1 - degree, degree]),
        strength=strength,
        steps=steps,
        progress=progress,
    )
