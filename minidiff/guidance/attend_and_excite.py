"""Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image Diffusion Models.

Hila Chefer, Yuval Alaluf, Yael Vinker, Lior Wolf, Daniel Cohen-Or, 2023, arXiv 2301.13826.

A word that no pixel looks at is not in the picture. In the first half of sampling, look at the
cross-attention map of every word that must not be lost, find the one whose strongest pixel is
weakest, and move the state so that it looks harder.

    A       maps averaged over heads and layers, start token dropped, softmax(100 A) over the rest,
            then a 3x3 Gaussian
    L       max over words of (1 - max over pixels of A_word)
    z_t <-  z_t - alpha_t grad_z L,    alpha_t from `strength` to strength / sqrt 2 over the run
    refine  at a few steps: repeat until every word's maximum has reached a level that rises from
            step to step

Try: `words` with the nouns, with the colours too; `strength` 0 (plain sampling with the same seed),
5, 20; `most=5`.

Weakness: one gradient is a backward pass through the network, and a refinement up to twenty of
them; too large a step leaves the states the model knows, so pictures break before words appear. A
word attended to is not yet bound to its neighbour: "red" may be looked at by the wrong object.
Refinement broke the tiny transformer's pictures, so it is off unless asked for (`most`); then each
row decides on its own when to stop, and a budget ends it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import step_pairs
from minidiff.core.process import ddim_step
from minidiff.core.taps import tap
from minidiff.pipe.checks import check_share, door, needs_text, prompts_of
from minidiff.pipe.maps import CROSS, map_size, positions, usual_side
from minidiff.pipe.pipe import Pipe

REFINE = {
    0: 0.05,
    0.2: 0.5,
    0.4: 0.8,
}  # share of the steps: what every word's maximum must reach there
SMALL = set("a an the of on in at to and with left right above below".split())


def content(tokenizer, prompt: str) -> tuple[str, ...]:
    """The words of a prompt that name something: all but articles and prepositions."""
    return tuple(dict.fromkeys(w for w in tokenizer.words_of(prompt) if w not in SMALL))


def smooth(maps: Tensor, sigma: float = 0.5) -> Tensor:
    """Maps (.. h w) after a 3x3 Gaussian with mirrored edges."""
    g = torch.exp(-(torch.tensor([-1.0, 0.0, 1.0]) ** 2) / (2 * sigma**2)).to(maps)
    kernel = torch.outer(g, g) / g.sum() ** 2
    flat = F.pad(maps.flatten(0, -3)[:, None], (1,) * 4, mode="reflect")
    return F.conv2d(flat, kernel[None, None])[:, 0].view_as(maps)


def word_maxima(
    pipe: Pipe, x: Tensor, t: int, cond: Cond, tokens: list[list[int]], ends: list[int], side: int
) -> Tensor:
    """(b, words): the largest value of each word's smoothed
    map; rows with fewer words are filled up with 1.

    tokens: positions of each row's words; ends: each row's end token, where its text is over.
    """
    seen = []
    sizes = []

    def look(probs, name):
        size = map_size(probs.shape[-2], x.shape[2:])
        if min(size) == side:
            seen.append(probs.mean(1))  # b n m
            sizes.append(size)

    with tap(pipe.net, CROSS, look):
        pipe.eps(x, t, cond)
    if not seen:
        raise ValueError(
            f"no cross-attention map with a shorter side of {side} pixels in this network: give "
            "another `side`"
        )
    mean = torch.stack(seen).mean(0)
    out = []
    for row, words, end in zip(mean, tokens, ends):
        told = (100 * row[:, 1:end]).softmax(-1)  # n words: without start and rest
        maps = smooth(told.T.unflatten(1, sizes[0]))  # words h w
        out.append(maps[[w - 1 for w in words]].amax((1, 2)))
    return torch.nn.utils.rnn.pad_sequence(out, batch_first=True, padding_value=1.0)


def excite(pipe: Pipe, x: Tensor, t: int, cond: Cond, step: float, **look) -> tuple[Tensor, Tensor]:
    """(x after one gradient step, loss (b,) before it)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = (1 - word_maxima(pipe, x, t, cond, **look)).amax(1)
        grad = torch.autograd.grad(loss.sum(), x)[0]  # rows do not mix
    return x.detach() - step * grad, loss.detach()


@door
@torch.no_grad()
def attend_and_excite(
    pipe: Pipe,
    prompt: str,
    words: tuple[str, ...] | None = None,
    *,
    strength: float = 2.0,
    until: float = 0.5,
    refine: dict[float, float] | None = None,
    most: int = 0,
    side: int | None = None,
    steps: int = 50,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Pictures (b 3 H W) of `prompt` in which none of `words`
    is forgotten; row i starts from the noise of seed + i.

    words     words of the prompt, for a list of prompts a list of tuples; default: all but articles
              and prepositions
    strength  step size of the first gradient; 0 is plain sampling; the paper takes 20 for Stable
              Diffusion
    until     share of the steps in which the state is moved
    most      gradient steps per refinement, at most (the authors': 20; 0 is none)
    side      of the maps that are looked at (default: a quarter of the latent, at least 8)

    `refine`: {share of the steps: level} for `most` > 0 (default: .05 at once, .5 after a fifth, .8
    after two fifths). ValueError: shares outside 0..1, a negative strength, a word that is not in
    the prompt.
    """
    refine = REFINE if refine is None else refine
    check_share("until", until)
    for share, level in refine.items():
        check_share("refine", share)
        check_share("refine", level)
    if strength < 0 or most < 0:
        raise ValueError(f"strength={strength}, most={most}: negative; 0 is plain sampling")
    needs_text(pipe, "attend-and-excite")
    tok = pipe.tokenizer
    prompts = prompts_of(prompt, "prompt")
    if words is None:
        lists = [content(tok, p) for p in prompts]
    elif isinstance(prompt, str):
        lists = [words]
    else:
        lists = list(words)
    if len(prompts) != len(lists) or not all(lists) or any(isinstance(w, str) for w in lists):
        raise ValueError(
            f"{len(prompts)} prompts and words {words!r}: expected a tuple of words for each prompt"
        )
    x = pipe.start(len(prompts), seed)
    look = dict(
        tokens=[[i for w in ws for i in positions(tok, p, w)] for p, ws in zip(prompts, lists)],
        ends=[min(tok.length(p), tok.context) - 1 for p in prompts],
        side=side or usual_side(x.shape[2:]),
    )
    cond = pipe.embed(prompts)
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    levels = {int(share * steps): level for share, level in refine.items()}
    ts = pipe.timesteps(steps)
    for i, (t, s) in enumerate(step_pairs(ts, progress)):
        if strength and i < until * steps:
            alpha_t = strength * (1 - 0.5 * i / max(steps - 1, 1)) ** 0.5
            for _ in range(most if i in levels else 0):
                y, loss = excite(pipe, x, t, cond, alpha_t, **look)
                short = loss > 1 - levels[i]  # rows that go on
                if not short.any():
                    break
                x = torch.where(short[:, None, None, None], y, x)
            x, _ = excite(pipe, x, t, cond, alpha_t, **look)
        x = ddim_step(pipe.schedule, x, denoise(x, t, cond), t, s)
    return pipe.decode(x)
