"""pix2pix-zero: Zero-shot Image-to-Image Translation.

Gaurav Parmar, Krishna Kumar Singh, Richard Zhang, Yijun Li, Jingwan Lu, Jun-Yan Zhu, 2023,
arXiv 2302.03027.

"Cat to dog" is a direction in the space of sentences: the mean over many sentences about dogs minus
the mean over the same sentences about cats. Added to the picture's own caption it says what to
change, without a new prompt. To keep all else, the edit's cross-attention maps are held near those
of the source: not copied, but by a gradient step on the state.

    dE     = mean_k text(after_k) - mean_k text(before_k),    edit with text(source) + dE
    z_t   <- z_t - hold/n grad_z sum_layers |P(z_t, source + dE) - P(z*_t, source)|^2,
             then one guided DDIM step, n of them
    e     <- e - lambda grad L(e),    L = L_pair + L_kl: the inversion's noise is to look like noise
    L_pair   correlation of e with itself, shifted, over a pyramid of sizes, squared
    L_kl     draws (mean, variance) to (0, 1)

Try: `hold` 0, 2, 20; `whiten` 0 and 20, and look at the noise; a direction from one pair of
sentences and from a hundred.

Weakness: the map loss adds up over pixels, words and layers, so `hold` is a number per model, and a
gradient is bought with a backward pass per step. Noise that was made white is no longer where the
picture came from: `whiten` trades likeness for editability. So it is off by default here (the
authors' strength is 20). The reference maps are read at the inversion's own states, which belong to
the picture itself; the authors sample the picture again. And L_pair takes the mean over all shifts,
where they draw a few at random. The authors' pull is a number per step, .1 at their 50; here the
steps share it, so that more of them do not hold harder.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import step_pairs
from minidiff.core.process import ddim_step
from minidiff.core.taps import tap
from minidiff.pipe.checks import door, needs_text, prompt_each
from minidiff.pipe.maps import CROSS
from minidiff.pipe.pipe import Pipe

# ---- the direction -------------------------------------------------------------------------------


def phrases(tokenizer, source: str, target: str) -> tuple[list[str], list[str]]:
    """Sentences (before, after) for a direction: every
    beginning of the two prompts that holds all that differs.

    "a red circle on a wall" and "a red star on a wall" give ("a red circle", "a red star"), ("a red
    circle on", ...), ... Words keep their places, and a direction is taken token place by token
    place: cut at the front as well, the phrases would spread the difference over places where the
    picture's own prompt has other words.
    """
    a = tokenizer.words_of(source)
    b = tokenizer.words_of(target)
    head = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    tail = next(
        (i for i, (x, y) in enumerate(zip(a[head:][::-1], b[head:][::-1])) if x != y),
        min(len(a), len(b)) - head,
    )
    return tuple([" ".join(w[: len(w) - j]) for j in range(tail + 1)] for w in (a, b))


def direction(pipe: Pipe, before: list[str], after: list[str]) -> Tensor:
    """dE (1 n d): mean text states of the sentences `after`
    minus those of `before`, token place by token place.
    """
    if not before or not after:
        raise ValueError(
            f"{len(before)} sentences before and {len(after)} after: a direction needs some of each"
        )
    return (pipe.embed(after).text.mean(0) - pipe.embed(before).text.mean(0))[None]


# ---- inversion to noise that looks like noise ----------------------------------------------------


def pair_loss(e: Tensor, smallest: int = 4) -> Tensor:
    """(b,): how much e (b c h w) resembles its own shifts along
    either axis, at full size, half, ... down to `smallest`.
    """
    total = 0
    while True:
        for axis in (2, 3):
            shifts = range(1, max(e.shape[axis] // 2, 2))
            found = torch.stack([(e * e.roll(k, axis)).mean((2, 3)) ** 2 for k in shifts])  # k b c
            total = total + found.mean(0).sum(1)
        if min(e.shape[2:]) <= smallest:
            return total
        e = F.avg_pool2d(e, 2)


def kl_loss(e: Tensor) -> Tensor:
    """(b,): twice the divergence of a Gaussian with e's mean and variance from the unit one."""
    mean = e.mean((1, 2, 3))
    var = e.var((1, 2, 3), correction=0)
    return var + mean**2 - 1 - (var + 1e-7).log()


def whitened(e: Tensor, strength: float, rounds: int) -> Tensor:
    """e after `rounds` gradient steps on either loss, rows apart."""
    for _ in range(rounds if strength else 0):
        for loss in (pair_loss, kl_loss):
            with torch.enable_grad():
                e = e.detach().requires_grad_()
                e = e.detach() - strength * torch.autograd.grad(loss(e).sum(), e)[0]
    return e.detach()


@torch.no_grad()
def invert_white(
    pipe: Pipe,
    image: Tensor,
    prompt: str,
    *,
    steps: int = 50,
    whiten: float = 20.0,
    rounds: int = 5,
    progress: bool = False,
) -> list[Tensor]:
    """As `inversion.ddim.invert`, states from clean to noise, with every predicted noise made
    whiter before it is used.
    """
    xs = [pipe.encode(image)]
    cond = pipe.embed(prompt)
    for s, t in step_pairs(pipe.timesteps(steps)[::-1], progress):
        xs.append(
            ddim_step(
                pipe.schedule, xs[-1], whitened(pipe.eps(xs[-1], t, cond), whiten, rounds), s, t
            )
        )
    return xs


# ---- the edit ------------------------------------------------------------------------------------


def cross_maps(pipe: Pipe, x: Tensor, t: int, cond: Cond) -> list[Tensor]:
    """Cross-attention maps of every layer (b h n m each), with gradients if they are on."""
    seen = []
    with tap(pipe.net, CROSS, lambda probs, name: seen.append(probs)):
        pipe.eps(x, t, cond)
    return seen


def map_distance(maps: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """(b,): squared distance, summed over layers, pixels and tokens, averaged over heads."""
    return sum((p - q).square().sum((2, 3)).mean(1) for p, q in zip(maps, wanted))


@door
@torch.no_grad()
def pix2pix_zero(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    before: list[str] | None = None,
    after: list[str] | None = None,
    hold: float = 2.5,
    whiten: float = 0.0,
    rounds: int = 5,
    steps: int = 50,
    scale: float = 3.0,
    progress: bool = False,
) -> Tensor:
    """Pictures `image` (b 3 H W) in [-1, 1], described by
    `source`, moved along a direction of meaning: (b 3 H W).

    before   sentences about what is there; default: the beginnings of `source` and `target` that
             differ
    after    sentences about what is wanted, as many or not
    hold     sum of the step sizes of the pull towards the source's cross-attention maps: each of n
             steps pulls by hold/n; 0 is off
    whiten   strength of the whitening of the inversion's noise; 0 is plain inversion, the authors'
             is 20
    rounds   how often per step

    `target` only serves to make the sentences: with `before` and `after` given it is not read.
    Equal prompts give dE = 0, the picture's own replay. ValueError: negative strengths, sentences
    of one side only, a model that reads no text.
    """
    for name, value in (("hold", hold), ("whiten", whiten), ("rounds", rounds)):
        if value < 0:
            raise ValueError(f"{name}={value} is negative: it would push the wrong way; 0 is off")
    needs_text(pipe, "a direction of meaning")
    if (before is None) != (after is None):
        raise ValueError(
            "`before` and `after` go together: sentences about what is there, and about what is "
            "wanted"
        )
    b = len(image)
    sources = prompt_each(source, b, "source")
    targets = prompt_each(target, b, "target")
    if before is None:
        said = [phrases(pipe.tokenizer, p, q) for p, q in zip(sources, targets)]
    else:
        said = [(before, after)]
    dE = torch.cat([direction(pipe, *pair) for pair in said])  # 1 or b, n d
    old = pipe.embed(sources)
    new = old.replace(text=old.text + dE)
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    states = invert_white(
        pipe, image, source, steps=steps, whiten=whiten, rounds=rounds, progress=progress
    )
    x = states[-1]
    for i, (t, s) in enumerate(step_pairs(pipe.timesteps(steps), progress)):
        if hold:
            wanted = cross_maps(pipe, states[-1 - i], t, old)  # the source's maps
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                loss = map_distance(cross_maps(pipe, x, t, new), wanted).sum()  # rows apart
                x = x.detach() - hold / steps * torch.autograd.grad(loss, x)[0]
        x = ddim_step(pipe.schedule, x, denoise(x, t, new), t, s)
    return pipe.decode(x)
