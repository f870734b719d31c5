"""Prompt-to-Prompt image editing with cross-attention control.

Amir Hertz, Ron Mokady, Jay Tenenbaum, Kfir Aberman, Yael Pritch, Daniel Cohen-Or, 2022,
arXiv 2208.01626.

Which pixel attends to which word decides where things are. So draw the source and the edit side by
side from the same noise, and in the edit's row use the source's attention maps: the layout stays
while the words, and so the values that are mixed, change.

    P_edit <- a_i (alpha (P_source M) + (1 - alpha) P_edit) + (1 - a_i) P_edit,    then times c
    M        which source token each target token corresponds to: "replace" by place, "refine" by
             alignment; alpha is 1 where there is one
    a_i      1 in the first `cross` of the steps
    c        the weight of a word ("reweight")
    self     the same for self-attention (pixel to pixel) in the first `self_` of the steps
    blend    outside the region where the blend word's maps are strong, the latents are the source's

Two things differ from the authors' work. The paper re-weights the source's maps, and its code
does so only while cross-attention is injected; here a weight acts in every step, after the
injection on the edit's own maps. The code shares self-attention maps of up to 16x16 pixels (32x32
in the notebook for given pictures); here the limit is 16x16 too for Stable Diffusion, and the tiny
models have no larger ones, so that all of theirs are shared. The defaults, cross-attention for .8
of the steps and self-attention for .4, are those of most of the code's examples.

Try: `cross` and `self_` from 0 (plain re-prompting) to 1; `weights={"striped": 2}`;
blend=("circle", "circle").

Weakness: layout is kept by how long maps are injected, a number to tune per edit; moving things is
impossible by design. And captions that say everything leave attention nothing to preserve. Both are
shown in the tutorial as figures.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.cfg import guide
from minidiff.core.cond import Cond
from minidiff.core.denoise import step_pairs
from minidiff.core.process import ddim_step
from minidiff.core.taps import tap
from minidiff.inversion.ddim import Inverted
from minidiff.pipe.checks import check_share, door, needs_text, prompts_of
from minidiff.pipe.maps import CROSS, SELF, Maps, map_size, positions
from minidiff.pipe.pipe import Pipe

# ---- which token is which ------------------------------------------------------------------------


def align(source: list, target: list) -> list[int]:
    """For each target token the index of its source partner,
    or -1 (Needleman-Wunsch: match 1, mismatch -1, gap 0).
    """
    n = len(source)
    m = len(target)
    score = [[0] * (m + 1) for _ in range(n + 1)]
    for i in range(n):
        for j in range(m):
            same = score[i][j] + (1 if source[i] == target[j] else -1)
            score[i + 1][j + 1] = max(score[i + 1][j], score[i][j + 1], same)
    partner = [-1] * m
    i = n
    j = m
    while i and j:  # insertion first, then deletion, then a pair
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i = i - 1
            j = j - 1
            partner[j] = i
    return partner


def span_map(source: list[list[int]], target: list[list[int]], n: int) -> Tensor:
    """M (n n) for words given as lists of token positions: M[i, j] is the share of source token i
    in target token j.

    Word k of the source stands for word k of the target: token by token if they have equally many,
    else every target token gets the mean over the source word's. Other columns are 0.
    """
    M = torch.zeros(n, n)
    for a, b in zip(source, target):
        if len(a) == len(b):
            M[a, b] = 1.0
        else:
            M[torch.tensor(a)[:, None], torch.tensor(b)] = 1 / len(a)
    return M


def token_map(tokenizer, source: str, target: str, kind: str) -> tuple[Tensor, Tensor]:
    """(M, alpha): M (n n) with columns that sum to 1 or 0,
    alpha (n,) 1 where a target token has source tokens.

    "replace" pairs word with word by place (equal word counts needed); "refine" aligns tokens, new
    ones stay their own. Start, end and padding correspond one to one, counted from the two sentence
    ends.
    """
    n = tokenizer.context
    pairs: list[tuple[list[int], list[int]]] = [([0], [0])]
    if kind == "replace":
        spans_s = tokenizer.token_spans(source)
        spans_t = tokenizer.token_spans(target)
        if len(spans_s) != len(spans_t):
            raise ValueError(
                f"'replace' needs equally many words, got {len(spans_s)} and {len(spans_t)}; use "
                "'refine'"
            )
        pairs += [(a, b) for (_, a), (_, b) in zip(spans_s, spans_t)]
    elif kind == "refine":
        room = n - 2  # what does not fit between start and end is cut off
        partner = align(tokenizer.ids(source)[:room], tokenizer.ids(target)[:room])
        pairs += [([i + 1], [j + 1]) for j, i in enumerate(partner) if i >= 0]
    else:
        raise ValueError(
            f"kind={kind!r}: expected 'replace', 'refine' or None (chosen by the number of words)"
        )
    end_s = min(tokenizer.length(source), n) - 1
    end_t = min(tokenizer.length(target), n) - 1
    pairs += [([min(end_s + k, n - 1)], [end_t + k]) for k in range(n - end_t)]
    M = span_map([a for a, _ in pairs], [b for _, b in pairs], n)
    return M, (M.sum(0) > 0).float()


def kind_of(tokenizer, source: str, target: str) -> str:
    """ "replace" for prompts of equally many words, else "refine"."""
    equal = len(tokenizer.words_of(source)) == len(tokenizer.words_of(target))
    return "replace" if equal else "refine"


def token_maps(
    pipe: Pipe, sources: list[str], targets: list[str], kind: str | None
) -> tuple[Tensor, Tensor]:
    """(M, alpha) of b pairs of prompts, shaped to fit attention maps: b 1 n n and b 1 1 n."""
    tok = pipe.tokenizer
    found = [token_map(tok, a, b, kind or kind_of(tok, a, b)) for a, b in zip(sources, targets)]
    M = torch.stack([m for m, _ in found])[:, None]
    alpha = torch.stack([a for _, a in found])[:, None, None]
    return M.to(pipe.device, pipe.dtype), alpha.to(pipe.device, pipe.dtype)


# ---- the two things done to attention ------------------------------------------------------------


def edited_maps(
    source: Tensor, edit: Tensor, M: Tensor, alpha: Tensor, inject: Tensor | float, weight: Tensor
) -> Tensor:
    """The edit's attention maps (b h n m): those of `source` carried over by M (.. m m) where alpha
    (.. m) is 1 and `inject` is 1, then times the weight (.. m) of each word.
    """
    mixed = alpha * (source @ M) + (1 - alpha) * edit
    edit = inject * mixed + (1 - inject) * edit
    return edit * weight  # in every step; the rows are not renormalised


def edit_cross(M: Tensor, alpha: Tensor, inject: Tensor, weight: Tensor):
    """fn for a cross-attention tap, rows [sources, edits]: the box of the module docstring. M (.. n
    n), the others (.. n), with .. to fit (b h); `inject`: a_i of this step.
    """

    def fn(probs, name):
        source, edit = probs.chunk(2)  # b h n m each
        return torch.cat([source, edited_maps(source, edit, M, alpha, inject, weight)])

    return fn


def edit_self(latent: tuple[int, int], limit: int):
    """fn for a self-attention tap: the source's map in both rows, for maps whose shorter side is at
    most `limit` pixels; `latent` is the (H, W) of the state.
    """

    def fn(probs, name):
        if min(map_size(probs.shape[-2], latent)) > limit:
            return None
        source, _ = probs.chunk(2)
        return torch.cat([source, source])

    return fn


def blend_mask(
    maps: Tensor, words: tuple[list[int], list[int]], size: tuple[int, int], threshold: float = 0.3
) -> Tensor:
    """(1 1 h w) of 0 and 1: where the blend word of the source
    or of the edit is attended to. maps (2 tokens h' w').
    """
    m = torch.stack([maps[row, w].sum(0) for row, w in enumerate(words)])[:, None]  # 2 1 h' w'
    m = F.interpolate(F.max_pool2d(m, 3, 1, 1), size)
    strong = m / m.amax((2, 3), keepdim=True) > threshold
    return strong.any(0, keepdim=True).to(maps.dtype)


# ---- the edit ------------------------------------------------------------------------------------


@door
@torch.no_grad()
def prompt_to_prompt(
    pipe: Pipe,
    source: str,
    target: str,
    *,
    kind: str | None = None,
    cross: float | None = 0.8,
    self_: float = 0.4,
    weights: dict[str, float] | None = None,
    blend: tuple[str, str] | list[tuple[str, str] | None] | None = None,
    blend_from: float = 0.2,
    inverted: Inverted | None = None,
    self_side: int | None = None,
    steps: int = 50,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Pictures (2 3 H W): the source and its edit. Of two lists
    of b prompts: (2b 3 H W), all sources, then all edits.

    kind        "replace", "refine", or None: replace if the prompts have equally many words
    cross       share of the steps in which cross-attention is the source's; None: measured
                (`auto_cross`)
    self_       the same for self-attention (.9 suits recolouring; to change a shape give the edit
                more freedom, .2)
    weights     {target word: factor}, to say a word louder or softer
    blend       (word of source, word of target): edit only where these are, after `blend_from` of
                the steps; or a list, with such a pair or None for every pair of prompts
    self_side   shorter side of the largest self-attention map that is shared, in pixels; default: a
                quarter of the latent, at least 16, which is every size the tiny models have

    `inverted`: the way of a given picture to noise, in `steps` steps; editing/real_pictures.py
    makes them. ValueError: shares outside 0..1, words that are not there, unequal numbers of
    prompts.
    """
    check_share("self_", self_)
    check_share("blend_from", blend_from)
    if cross is not None:
        check_share("cross", cross)
    needs_text(pipe, "prompt-to-prompt")
    sources = prompts_of(source, "source")
    targets = prompts_of(target, "target")
    if len(sources) != len(targets):
        raise ValueError(
            f"{len(sources)} source prompts and {len(targets)} targets: expected a pair for each "
            "picture"
        )
    if inverted and len(inverted.states) != steps + 1:
        raise ValueError(
            f"steps={steps}, but the picture was inverted in {len(inverted.states) - 1}; give "
            "equal numbers"
        )
    M, alpha = token_maps(pipe, sources, targets, kind)
    weight = word_weights(pipe, targets, weights or {}, alpha)
    blended = blend_tokens(pipe, sources, targets, blend)
    x = inverted.states[-1] if inverted else pipe.start(len(sources), seed)
    latent = tuple(x.shape[2:])
    shared = self_side or max(min(latent) // 4, 16)
    maps = Maps(latent)
    if cross is None:
        ends = [
            auto_cross(pipe, a, b, x[i : i + 1], steps=steps, scale=scale)
            for i, (a, b) in enumerate(zip(sources, targets))
        ]
    else:
        ends = [cross] * len(sources)
    ends = torch.tensor(ends).to(alpha)[:, None, None, None]  # b 1 1 1

    x = torch.cat([x, x])  # rows: [sources, edits]
    cond = pipe.embed(sources + targets)
    for i, (t, s) in enumerate(step_pairs(pipe.timesteps(steps), progress)):
        null = null_of_step(pipe, inverted, i, len(x))
        e_null = pipe.eps(x, t, null)
        inject = (i < ends * steps).to(alpha)  # a_i
        limit = shared if i < self_ * steps else 0
        with (
            tap(pipe.net, CROSS, edit_cross(M, alpha, inject, weight)),
            tap(pipe.net, CROSS, maps.look),
            tap(pipe.net, SELF, edit_self(latent, limit)),
        ):
            e_cond = pipe.eps(x, t, cond)
        eps = guide(e_null, e_cond, scale)
        if inverted and inverted.eta:
            x = ddim_step(pipe.schedule, x, eps, t, s, inverted.eta, torch.zeros_like(x))
        else:
            x = ddim_step(pipe.schedule, x, eps, t, s)
        if inverted:
            x = inverted.follow(x, i)  # the source row keeps its path
        if any(blended) and i >= blend_from * steps:
            pairs = maps.read().unflatten(0, (2, -1))  # 2 b tokens h w
            before, after = x.clone().chunk(2)
            for k, words in enumerate(blended):
                if words is not None:
                    m = blend_mask(pairs[:, k], words, latent)[0]
                    after[k] = before[k] + m * (after[k] - before[k])
            x = torch.cat([before, after])
    return pipe.decode(x)


def blend_tokens(pipe: Pipe, sources: list[str], targets: list[str], blend) -> list:
    """For every pair of prompts the token positions of its two blend words, or None. `blend`: one
    pair of words for all, or a list with one pair, or None, for each.
    """
    for_all = blend is None or isinstance(blend[0], str)
    each = [blend] * len(sources) if for_all else list(blend)
    if len(each) != len(sources):
        raise ValueError(f"{len(each)} pairs of blend words for {len(sources)} pairs of prompts")
    found = []
    for source, target, words in zip(sources, targets, each):
        if words is None:
            found.append(None)
        else:
            before = positions(pipe.tokenizer, source, words[0])
            after = positions(pipe.tokenizer, target, words[1])
            found.append((before, after))
    return found


def word_weights(pipe: Pipe, targets: list[str], weights: dict[str, float], like: Tensor) -> Tensor:
    """The factor of every token, shaped as `like` (b 1 1 n): 1, but for the words in `weights`."""
    factors = torch.ones_like(like)
    for word, factor in weights.items():
        for row, prompt in zip(factors, targets):
            row[..., positions(pipe.tokenizer, prompt, word)] = factor
    return factors


def null_of_step(pipe: Pipe, inverted: Inverted | None, i: int, rows: int) -> Cond:
    """What guidance compares with in step i: what the
    inversion learned for it, or the empty prompt.
    """
    if inverted is None or not inverted.nulls:
        return pipe.null(rows)
    own = inverted.nulls[i].expand(rows // 2)
    return Cond.cat([own, own])


@torch.no_grad()
def auto_cross(
    pipe: Pipe,
    source: str,
    target: str,
    x_T: Tensor,
    *,
    steps: int = 50,
    scale: float = 5.0,
    agree: float = 0.7,
) -> float:
    """The share of the steps after which source and edit look
    at their changed words in the same places by themselves.

    Both are drawn freely from x_T (1 c h w). At each step the pixels that look at the changed words
    more than half as much as the one that looks most are compared: the first step at which the two
    regions overlap by `agree` (IoU) is where injection may end. 1 if there is none, 0 for equal
    prompts. Costs that many steps of a pair.
    """
    tok = pipe.tokenizer
    partner = align(tok.ids(source), tok.ids(target))
    new = [j + 1 for j, i in enumerate(partner) if i < 0]
    old = [i + 1 for i in range(len(tok.ids(source))) if i not in partner]
    if not new and not old:
        return 0.0
    x = x_T.expand(2, -1, -1, -1)
    cond = pipe.embed([source, target])
    null = pipe.null(2)
    for i, (t, s) in enumerate(step_pairs(pipe.timesteps(steps))):
        maps = Maps(x.shape[2:])
        with tap(pipe.net, CROSS, maps.look):
            e_cond = pipe.eps(x, t, cond)
        found = maps.read()
        m = torch.stack([found[0, old or new].sum(0), found[1, new or old].sum(0)])  # 2 h w
        a, b = m > m.amax((1, 2), keepdim=True) / 2
        if (a & b).sum() >= agree * (a | b).sum():
            return i / steps
        e_null = pipe.eps(x, t, null)
        x = ddim_step(pipe.schedule, x, guide(e_null, e_cond, scale), t, s)
    return 1.0


@torch.no_grad()
def word_maps(
    pipe: Pipe,
    prompt: str,
    *,
    steps: int = 50,
    scale: float | None = None,
    seed: int = 0,
    side: int | None = None,
) -> tuple[Tensor, list[str], Tensor]:
    """(picture (1 3 H W), words, maps (words H W) in [0, 1]): where each word of the prompt was
    looked at. `side`: shorter side of the maps that are read.
    """
    scale = pipe.scale if scale is None else scale
    x = pipe.start(1, seed)
    cond = pipe.embed(prompt)
    null = pipe.null()
    maps = Maps(x.shape[2:], side)
    for t, s in step_pairs(pipe.timesteps(steps)):
        e_null = pipe.eps(x, t, null)
        with tap(pipe.net, CROSS, maps.look):
            e_cond = pipe.eps(x, t, cond)
        x = ddim_step(pipe.schedule, x, guide(e_null, e_cond, scale), t, s)
    spans = pipe.tokenizer.token_spans(prompt)
    m = torch.stack([maps.read()[0, span].sum(0) for _, span in spans])[:, None]  # words 1 h w
    m = F.interpolate(m, pipe.image_size, mode="bicubic", antialias=True).clamp(min=0)[:, 0]
    return pipe.decode(x), [w for w, _ in spans], m / m.amax((1, 2), keepdim=True)
