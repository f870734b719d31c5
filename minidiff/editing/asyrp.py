"""Asyrp: the semantic space inside a frozen diffusion model.

Mingi Kwon, Jaeseok Jeong, Youngjung Uh, "Diffusion Models already have a Semantic Latent Space",
2022, arXiv 2210.10960.

In the middle of the UNet, where the picture is smallest, sits its h-space. The paper finds that a
vector added to h there means the same in every picture and at every time. So add one, but use the
changed answer only where a step predicts the clean picture. In "the direction pointing to x_t" the
old answer stays; with the new one in both places the two changes nearly cancel.

    x_s = alpha_s x0(x_t, eps(x_t | h + dh_t)) + sigma_s eps(x_t | h)    while t > t_edit;
                                                                         then plain DDIM steps
    What one step moves, per unit of change in eps:
        here            alpha_s sigma_t / alpha_t
        in both places  sigma_s - alpha_s sigma_t / alpha_t

dh_t from two sets of pictures: the difference of their mean h at every t (`mean_shift`, nothing is
trained). Or a small network f(h, t), which can say something else at every place (`learned_shift`).
The paper has CLIP teach it; a model that reads text can teach it as well, by what it would itself
have predicted for the other prompt.

Try: `strength` -1 to 2, which should turn one attribute up evenly; `symmetric`, to see the edit
fade; `until` 0 to .7; `learn=0`; two shifts at once, delta=lambda h, t: a(h, t) + b(h, t).

Weakness: the skips are not edited, and whatever a picture hands past the bottleneck cannot be
reached: the shallower the UNet, the less is in h. In the tiny one, of two levels, it is the
ground's texture and places, but no colour and no shape (the tutorial measures it). And a model that
reads text is told what the picture is while h says otherwise. So the words are left out
(row="null": inversion and edit with the empty prompt), or kept (row="source").
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from minidiff.core.cond import Cond
from minidiff.core.denoise import noise, noises, step_pairs
from minidiff.core.process import ddim_step, eps_to_x0, q_sample
from minidiff.core.taps import tap, tap_names
from minidiff.inversion.ddim import invert
from minidiff.models.blocks import timestep_embedding
from minidiff.pipe.checks import check_share, door, one_by_one, prompts_of
from minidiff.pipe.pipe import Pipe
from minidiff.train.finetune import in_float32

H = r"^h$"  # the tap at the bottleneck
LESSONS = 8  # steps in which a shift is learned
Shift = Callable[[Tensor, int], Tensor]  # (h (b c y x), t) -> what is added to it


def check_bottleneck(pipe: Pipe) -> None:
    """ValueError for a network without a bottleneck, such as a transformer."""
    if not tap_names(pipe.net, H):
        raise ValueError(
            f"{pipe.name or 'this model'} has no bottleneck: h-space is the middle of a UNet, such "
            "as tiny's"
        )


# ---- the asymmetric step -------------------------------------------------------------------------


def both_eps(pipe: Pipe, x: Tensor, t: int, cond: Cond, shift: Shift) -> tuple[Tensor, Tensor]:
    """The noise in x (b c h w) as the network sees it,
    and as it sees it with h shifted. One call, 2b rows.
    """

    def fn(h, name):
        plain, edited = h.chunk(2)  # rows: [plain, edited]
        return torch.cat([plain, edited + shift(edited, t)])

    with tap(pipe.net, H, fn):
        return pipe.eps(torch.cat([x, x]), t, Cond.cat([cond, cond])).chunk(2)


def drift(
    pipe: Pipe, x: Tensor, t: int, s: int, cond: Cond, shift: Shift, symmetric: bool = False
) -> Tensor:
    """x_s (b c h w) from x_t with the bottleneck shifted: the box of the module docstring."""
    eps, edited = both_eps(pipe, x, t, cond, shift)
    # the asymmetric step: the changed answer predicts x0, the old one points to x_t
    return ddim_step(pipe.schedule, x, edited, t, s, eps_dir=edited if symmetric else eps)


# ---- where to: two sets of pictures, or CLIP -----------------------------------------------------


@torch.no_grad()
def bottleneck(pipe: Pipe, x: Tensor, t: int, cond: Cond) -> Tensor:
    """h (b c y x) of noisy states x at time t."""
    seen = []
    with tap(pipe.net, H, lambda h, name: seen.append(h)):
        pipe.eps(x, t, cond)
    return seen[0]


def mean_shift(
    pipe: Pipe,
    before: Tensor,
    after: Tensor,
    conds: tuple[Cond, Cond],
    ts: list[int],
    seed: int = 0,
) -> Shift:
    """The shift from latents `before` to latents `after` (n c h w each):
    the difference of their mean h, for every time of ts. Both sets get the
    same noises, so that pictures drawn in pairs differ in what differs.
    """
    n = noise(before.shape, seed, before.device, before.dtype)

    def mean(z, t, cond):
        return bottleneck(pipe, q_sample(pipe.schedule, z, t, n), t, cond.expand(len(z))).mean(0)

    table = {t: mean(after, t, conds[1]) - mean(before, t, conds[0]) for t in ts}  # c y x each
    return lambda h, t: table[t].expand_as(h)


def drawn(
    pipe: Pipe, prompts: str | list[str], n: int, *, steps: int = 20, seed: int = 0
) -> Tensor:
    """Latents (n c h w) that the model itself draws for
    prompts, in turn; the same noise for the same seed.
    """
    prompts = prompts_of(prompts)
    return pipe.generate(
        [prompts[i % len(prompts)] for i in range(n)],
        steps=min(steps, pipe.schedule.T),
        seed=seed,
        decode=False,
    )


class DeltaBlock(nn.Module):
    """f(h, t): two 1x1 convolutions with the time between them. It starts at 0: no edit."""

    def __init__(self, c: int, groups: int = 8):
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 1)
        self.time = nn.Linear(c, c)
        self.norm = nn.GroupNorm(groups, c)
        self.conv2 = nn.Conv2d(c, c, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, h: Tensor, t: int) -> Tensor:
        when = self.time(
            timestep_embedding(torch.tensor([t], device=h.device), h.shape[1]).to(h.dtype)
        )
        return self.conv2(F.silu(self.norm(self.conv1(h) + when[:, :, None, None])))


def by_clip(
    pipe: Pipe, image: Tensor, source: str | list[str], target: str | list[str], keep: float = 1.0
):
    """Loss (x, t, x0 before, x0 after) -> scalar: CLIP's
    direction, and the L1 distance to the unedited prediction.
    """
    from minidiff.editing.diffusion_clip import clip_loss, direction
    from minidiff.weights.store import load_clip

    judge = load_clip().to(pipe.device)
    with torch.no_grad():
        before = judge.embed_image(image.to(pipe.device))
        way = direction(judge, pipe.tokenizer, source, target)

    def loss(x, t, old, new):
        out = pipe.vae.to_image(new) if pipe.vae else new  # `decode` has no gradient
        # the paper's loss: CLIP's direction, and an L1 distance to the unedited guess
        return (
            clip_loss(judge, out, before, way) + keep * (new - old).abs().mean((1, 2, 3))
        ).mean()

    return loss


def by_prompt(
    pipe: Pipe, image: Tensor, source: str | list[str], target: str | list[str], scale: float = 1.0
):
    """The same from the network: x0 is to move `scale` times
    as far as it moves between the two prompts, at the same x.
    """
    conds = [pipe.embed(p).expand(len(image)) for p in (source, target)]

    def loss(x, t, old, new):
        with torch.no_grad():
            a, b = (eps_to_x0(pipe.schedule, x, pipe.eps(x, t, c), t) for c in conds)
        return (new - old - scale * (b - a)).square().mean()

    return loss


def learned_shift(
    pipe: Pipe,
    image: Tensor,
    source: str | list[str],
    target: str | list[str],
    *,
    rounds: int = 10,
    until: float = 0.1,
    lr: float = 0.01,
    teacher: str = "prompt",
    row: str = "null",
    steps: int = LESSONS,
    seed: int = 0,
    progress: bool = False,
) -> DeltaBlock:
    """Teach a DeltaBlock on pictures (b 3 H W): each step's
    clean picture is to move as the words do, and little else.

    Every step is a lesson of its own: the states it starts from carry no gradient. `teacher`:
    `by_clip` or `by_prompt`.
    """
    with in_float32(pipe):
        sch = pipe.schedule
        ts = pipe.timesteps(steps)
        cond, x_T = inverted(pipe, image, source, row, steps)
        loss = (by_clip if teacher == "clip" else by_prompt)(pipe, image, source, target)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            f = DeltaBlock(bottleneck(pipe, x_T[:1], ts[0], cond[0]).shape[1]).to(pipe.device)
        optimizer = torch.optim.Adam(f.parameters(), lr=lr)
        for _ in tqdm(range(rounds), disable=not progress, leave=False):
            x = x_T
            for t, s in step_pairs(ts):
                if t <= until * sch.T:
                    break
                eps, edited = both_eps(pipe, x, t, cond, f)
                old = eps_to_x0(sch, x, eps.detach(), t)
                new = eps_to_x0(sch, x, edited, t)
                optimizer.zero_grad()
                loss(x, t, old, new).backward()
                optimizer.step()
                x = ddim_step(sch, x, edited.detach(), t, s, eps_dir=eps.detach())
    return f.to(pipe.dtype).requires_grad_(False)


# ---- the edit ------------------------------------------------------------------------------------


def inverted(
    pipe: Pipe, image: Tensor, source: str | list[str], row: str, steps: int
) -> tuple[Cond, Tensor]:
    """(the condition that inversion and edit share, with
    b rows; the inverted noise of pictures (b 3 H W)).
    """
    if row not in ("null", "source"):
        raise ValueError(
            f"row={row!r}: expected 'null' (edit with the empty prompt) or 'source' (with the "
            "picture's own)"
        )
    check_bottleneck(pipe)
    prompt = source if row == "source" else ""
    return pipe.embed(prompt).expand(len(image)), invert(pipe, image, prompt, steps=steps)[-1]


@door
@torch.no_grad()
def asyrp(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    strength: float = 1.0,
    until: float = 0.1,
    symmetric: bool = False,
    boost: float = 0.0,
    row: Literal["null", "source"] = "null",
    pictures: int = 8,
    learn: int = 10,
    teacher: Literal["prompt", "clip"] = "prompt",
    delta: Shift | None = None,
    steps: int = 50,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Change pictures `image` (b 3 H W) in [-1, 1] in
    h-space, as from `source` to `target`; returns (b 3 H W).

    strength   factor on the shift: 0 rebuilds the picture, negative goes the other way. In n steps
               each adds 8/n of it, 8 being the steps it is learned in, so that n changes no edit
    until      edit down to this share of the noise scale; below it plain steps draw details
    symmetric  the control: the changed noise in both terms, which does next to nothing
    boost      below this share of the noise scale fresh noise is added (eta 1), as the paper does
               against blur
    row        condition of inversion and edit: null, the empty prompt, or source
    learn      rounds in which a small network is taught the shift, on the pictures themselves; 0:
               difference of means
    teacher    of that network: the model's own answer to `target`, or CLIP
    pictures   that the model draws for each prompt where means are asked for

    `delta`: a ready shift (h, t) -> dh, such as `mean_shift` of pictures of your own; it serves
    pictures it was not made from, all rows share it, and every step adds all of it. Without one
    every picture learns its own.
    Identical prompts: no shift, the picture is rebuilt. ValueError: options out of range, a network
    without a bottleneck.
    """
    check_share("until", until)
    check_share("boost", boost)
    if pictures < 1 or learn < 0 or teacher not in ("prompt", "clip"):
        raise ValueError(
            f"pictures={pictures}, learn={learn}, teacher={teacher!r}: expected at least 1 "
            "picture, 0 or more rounds, and prompt or clip"
        )
    if delta is None and len(image) > 1:
        options = dict(
            strength=strength,
            until=until,
            symmetric=symmetric,
            boost=boost,
            row=row,
            pictures=pictures,
            learn=learn,
            teacher=teacher,
            steps=steps,
            progress=progress,
        )
        return one_by_one(asyrp, pipe, image, source, target, seed=seed, **options)
    sch = pipe.schedule
    ts = pipe.timesteps(steps)
    cond, x = inverted(pipe, image, source, row, steps)
    # the authors' code: steps while learning / steps while editing
    share = LESSONS / steps if delta is None else 1.0
    edited = [t for t in ts[:-1] if t > until * sch.T]
    if delta is None and (source == target or strength == 0):
        edited = []
    elif delta is None and learn:
        with torch.enable_grad():
            delta = learned_shift(
                pipe,
                image,
                source,
                target,
                rounds=learn,
                until=until,
                teacher=teacher,
                row=row,
                seed=seed,
                progress=progress,
            )
    elif delta is None:
        names = [prompts_of(p) for p in (source, target)]
        conds = [
            pipe.embed([p[i % len(p)] if row == "source" else "" for i in range(pictures)])
            for p in names
        ]
        delta = mean_shift(
            pipe, *(drawn(pipe, p, pictures, seed=seed) for p in names), conds, edited, seed
        )
    fresh = noises(x, seed)
    for t, s in step_pairs(ts, progress):
        if t in edited:
            # the paper's editing interval: h is shifted
            x = drift(pipe, x, t, s, cond, lambda h, t: strength * share * delta(h, t), symmetric)
        else:
            eta = float(t <= boost * sch.T)
            # below it plain moves, with fresh noise near the end ("quality boosting")
            x = ddim_step(sch, x, pipe.eps(x, t, cond), t, s, eta, next(fresh) if eta else None)
    return pipe.decode(x)
