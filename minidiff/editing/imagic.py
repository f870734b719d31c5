"""Imagic: text-based real image editing with diffusion models.

Bahjat Kawar, Shiran Zada, Oran Lang, Omer Tov, Huiwen Chang, Tali Dekel, Inbar Mosseri, Michal
Irani, 2022, arXiv 2210.09276.

Imagic changes a picture by words alone, in three stages. It starts at the wanted words' vector and
looks near it for one that already says the given picture. Then it teaches the network that this
vector means exactly this picture. Last, it walks from that vector towards the words.

    A   e_opt  = argmin_e E_{t,n} |eps(z_t, t, e) - n|^2    from e = text(target), the network
                                                            fixed
    B   theta* = argmin_theta of the same at e_opt          a few weights, e_opt fixed
    C   e(eta) = eta text(target) + (1 - eta) e_opt         sample with theta*; eta 0 is the
                                                            picture, 1 the words

Try: eta from 0 to 1.2 with one seed; `net_updates=0`, and the picture is lost; `inverted=False`,
the paper's random start.

Weakness: minutes per picture, and one number, eta, to find by eye. Here only keys and values of
cross-attention learn, each update sees all noise levels, and sampling starts from the picture's own
noise: 120 updates in place of 1,500. And eta is looked for: of pictures along the walk, the one
where a small CLIP sees most of the words for the least change of structure. Where CLIP sees no gain
anywhere, a warning says so, and the choice means nothing.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import sample
from minidiff.inversion.ddim import ddim_invert
from minidiff.models.clip import CLIP
from minidiff.pipe.checks import door, needs_text, prompt_each
from minidiff.pipe.pipe import Pipe
from minidiff.train.finetune import READS_TEXT, fit_picture, in_float32, tuned
from minidiff.weights.store import load_clip

GOLDEN = (5**0.5 - 1) / 2
STILL = 0.5  # of what moved; at 1 sudden changes gain nothing
ETAS = (0.0, 0.25, 0.5, 0.75, 1.0)  # where the walk is looked at first
GAIN = 0.03  # of CLIP's cosine: less is no edit it can see


@dataclass
class Walk:
    """From a picture to the words, once both stages are
    done: `walk([0, .5, 1])` draws pictures (n 3 H W).
    """

    pipe: Pipe
    x: Tensor  # where every sampling starts, 1 c h w
    e_opt: Tensor  # 1 n d
    e_target: Tensor
    steps: int
    scale: float
    losses: tuple[list[float], list[float]]  # of stages A and B, update by update

    @torch.no_grad()
    def __call__(self, etas) -> Tensor:
        # stage C: between the picture's vector and the words'
        text = torch.cat([eta * self.e_target + (1 - eta) * self.e_opt for eta in etas])
        denoise = cfg_batched(self.pipe.eps, self.pipe.null(), self.scale)
        ts = times(self.pipe, self.steps)
        x = self.x.expand(len(text), -1, -1, -1)  # one start for all, or the path would jump
        return self.pipe.decode(sample(denoise, self.pipe.schedule, x, ts, Cond(text=text)))


def times(pipe: Pipe, steps: int) -> list[int]:
    return pipe.timesteps(steps)


@contextmanager
def learned(
    pipe: Pipe,
    image: Tensor,
    target: str,
    *,
    text_updates: int = 60,
    net_updates: int = 60,
    text_lr: float = 1e-2,
    lr: float = 1e-3,
    batch: int = 8,
    inverted: bool = True,
    steps: int = 25,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Iterator[Walk]:
    """Stages A and B for one picture (1 3 H W): the `Walk`,
    valid inside the block; then the network is as it was.
    """
    scale = pipe.scale if scale is None else scale
    with in_float32(pipe):
        z = pipe.encode(image)
        e_target = pipe.embed(target).text
        sch = pipe.schedule
        # the same times and noises in both stages
        run = dict(batch=batch, seed=seed, progress=progress)
        e_opt = e_target.clone().requires_grad_()
        # stage A: the vector that says this picture
        loss_a = fit_picture(pipe, z, e_opt, [e_opt], updates=text_updates, lr=text_lr, **run)
        e_opt = e_opt.detach()
        with tuned(pipe.net, READS_TEXT) as weights:
            # stage B: the network that takes it for this picture
            loss_b = fit_picture(pipe, z, e_opt, weights, updates=net_updates, lr=lr, **run)
            x = (
                ddim_invert(pipe.eps, sch, z, Cond(text=e_opt), steps=steps)[-1]
                if inverted
                else pipe.start(1, seed)
            )
            yield Walk(pipe, x, e_opt, e_target, steps, scale, (loss_a, loss_b))


def said_and_moved(
    clip: CLIP, images: Tensor, before: Tensor, words: Tensor
) -> tuple[Tensor, Tensor]:
    """(n,) cosines of pictures to the words' vector (1 e),
    and (n,) how far their patches are from the picture's.
    """
    with torch.no_grad():
        # n p d, 1 p d
        patches, own = (clip.image.hidden(x.to(words))[:, 1:] for x in (images, before))
        moved = 1 - F.cosine_similarity(patches, own.expand_as(patches), dim=-1).mean(1)
        return (clip.embed_image(images.to(words)) @ words.T)[:, 0], moved


def choose_eta(measure: Callable[[list[float]], tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """(eta, gain): the knee of the walk, most said for the least
    moved, and how much more is said anywhere than at eta 0.

    measure(etas) -> (said, moved), (n,) each. Five points, then two golden-section steps between
    the best's neighbours.
    """
    said, moved = measure(list(ETAS))
    unit = [(v[0].item(), (v.max() - v.min()).clamp_min(1e-6).item()) for v in (said, moved)]

    def knee(s: Tensor, m: Tensor) -> list[float]:
        return ((s - unit[0][0]) / unit[0][1] - STILL * (m - unit[1][0]) / unit[1][1]).tolist()

    score = dict(zip(ETAS, knee(said, moved)))
    best = max(ETAS, key=score.get)
    lo = max(best - 0.25, 0.0)
    hi = min(best + 0.25, 1.0)
    for _ in range(2):
        # in the longer part
        new = best + (1 - GOLDEN) * ((lo if best - lo > hi - best else hi) - best)
        score |= dict(zip([new], knee(*measure([new]))))
        if score[new] > score[best]:
            lo, hi, best = (lo, best, new) if new < best else (best, hi, new)
        else:
            lo, hi = (new, hi) if new < best else (lo, new)
    return best, (said.max() - said[0]).item()


@door
def imagic(
    pipe: Pipe,
    image: Tensor,
    target: str,
    *,
    eta: float | None = None,
    text_updates: int = 60,
    net_updates: int = 60,
    text_lr: float = 1e-2,
    lr: float = 1e-3,
    batch: int = 8,
    inverted: bool = True,
    steps: int = 25,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Edit pictures `image` (b 3 H W) in [-1, 1] towards
    `target`; returns (b 3 H W). Each picture is learned alone.

    eta           how far to walk: 0 the picture, 1 the words; default: looked for, with a small
                  CLIP
    text_updates  of stage A, the words' vector
    net_updates   of stage B, the weights
    text_lr       learning rate of stage A
    lr            learning rate of stage B
    batch         noise levels seen by each update
    inverted      start from the picture's own inverted noise; off, as in the paper: from the noise
                  of `seed`

    Warns (UserWarning) when no eta shows CLIP more of the words. ValueError: a model without text,
    an eta outside 0..1.5, unequal numbers of pictures and prompts.
    """
    needs_text(pipe, "Imagic")
    if eta is not None and not 0 <= eta <= 1.5:
        raise ValueError(
            f"eta={eta}: 0 is the picture, 1 the words, up to 1.5 beyond them; None looks for one"
        )
    times(pipe, steps)
    targets = prompt_each(target, len(image), "target")
    clip = load_clip().to(pipe.device) if eta is None else None
    out = []
    for i, prompt in enumerate(targets):
        before = image[i : i + 1]
        own = eta
        with learned(
            pipe,
            before,
            prompt,
            text_updates=text_updates,
            net_updates=net_updates,
            text_lr=text_lr,
            lr=lr,
            batch=batch,
            inverted=inverted,
            steps=steps,
            scale=scale,
            seed=seed + i,
            progress=progress,
        ) as walk:
            if clip:
                words = clip.embed_text(pipe.tokenizer(prompt).to(pipe.device))
                own, gain = choose_eta(lambda etas: said_and_moved(clip, walk(etas), before, words))  # noqa: B023
                if gain < GAIN:
                    warnings.warn(
                        f"Imagic: CLIP sees no more of {prompt!r} anywhere on the walk (gain "
                        f"{gain:.3f}); eta {own:.2f} means nothing, choose one by eye",
                        stacklevel=2,
                    )
            out.append(walk([own]))
    return torch.cat(out).to(pipe.dtype)
