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

Three things differ from the authors' work. The paper re-weights the source's maps, and its code
does so only while cross-attention is injected; here a weight acts in every step, after the
injection on the edit's own maps. The code shares self-attention maps of up to 16x16 pixels (32x32
in the notebook for given pictures); here the limit is 16x16 too for Stable Diffusion, and the tiny
models have no larger ones, so that all of theirs are shared. The code's examples mostly inject
cross-attention for .8 of the steps and self-attention for .4; the defaults here, .3 and .9, are
what tuning found for recolouring on the tiny model.

Try: `cross` and `self_` from 0 (plain re-prompting) to 1; `weights={"striped": 2}`;
blend=("circle", "circle").

Weakness: layout is kept by how long maps are injected, a number to tune per edit; moving things is
impossible by design. And captions that say everything leave attention nothing to preserve. Both are
shown in the tutorial as figures.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import moves
from minidiff.core.process import ddim_step
from minidiff.core.taps import tap
from minidiff.inversion.ddim import Inverted, invert
from minidiff.pipe.pipe import Pipe

CROSS, SELF = r"attn2\.probs$", r"(attn1|attn)\.probs$"  # the same names in UNet and DiT


# ---- which token is which ------------------------------------------------------------------------


def align(source: list, target: list) -> list[int]:
    """For each target token the index of its source partner, or -1 (Needleman-Wunsch: match 1,
    mismatch -1, gap 0).
    """
    n, m = len(source), len(target)
    score = [[0] * (m + 1) for _ in range(n + 1)]
    for i in range(n):
        for j in range(m):
            same = score[i][j] + (1 if source[i] == target[j] else -1)
            score[i + 1][j + 1] = max(score[i + 1][j], score[i][j + 1], same)
    partner, i, j = [-1] * m, n, m
    while i and j:  # insertion first, then deletion, then a pair
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            partner[j] = i
    return partner


def token_map(tokenizer, source: str, target: str, kind: str) -> tuple[Tensor, Tensor]:
    """(M, alpha): M (n n) with columns that sum to 1 or 0, alpha (n,) 1 where a target token has
    source tokens.

    "replace" pairs word with word by place (equal word counts needed); "refine" aligns tokens, new
    ones stay their own. Start, end and padding correspond one to one, counted from the two sentence
    ends.
    """
    n, spans_s, spans_t = (
        tokenizer.context,
        tokenizer.token_spans(source),
        tokenizer.token_spans(target),
    )
    pairs: list[tuple[list[int], list[int]]] = [([0], [0])]
    if kind == "replace":
        if len(spans_s) != len(spans_t):
            raise ValueError(
                f"'replace' needs equally many words, got {len(spans_s)} and {len(spans_t)}; "
                "use 'refine'"
            )
        for (_, a), (_, b) in zip(spans_s, spans_t):
            pairs += [([i], [j]) for i, j in zip(a, b)] if len(a) == len(b) else [(a, b)]
    elif kind == "refine":
        partner = align(tokenizer.ids(source), tokenizer.ids(target))
        pairs += [([i + 1], [j + 1]) for j, i in enumerate(partner) if i >= 0]
    else:
        raise ValueError(
            f"kind={kind!r}: expected 'replace', 'refine' or None (chosen by the number of words)"
        )
    end_s, end_t = (min(tokenizer.length(p), n) - 1 for p in (source, target))
    pairs += [([min(end_s + k, n - 1)], [end_t + k]) for k in range(n - end_t)]
    M = torch.zeros(n, n)
    for a, b in pairs:
        M[torch.tensor(a)[:, None], torch.tensor(b)] = 1 / len(a)
    return M, (M.sum(0) > 0).float()


def kind_of(tokenizer, source: str, target: str) -> str:
    """ "replace" for prompts of equally many words, else "refine"."""
    return (
        "replace"
        if len(tokenizer.words_of(source)) == len(tokenizer.words_of(target))
        else "refine"
    )


def positions(tokenizer, prompt: str, word: str) -> list[int]:
    """Token positions of a word of the prompt; ValueError names the words there are."""
    spans = tokenizer.token_spans(prompt)
    found = [i for w, span in spans if w == word.lower() for i in span]
    if not found:
        raise ValueError(
            f"word {word!r} is not in {prompt!r}; its words are: {', '.join(w for w, _ in spans)}"
        )
    return found


# ---- the two things done to attention ------------------------------------------------------------


@dataclass
class Maps:
    """Running sum of cross-attention maps of one side, averaged over heads and layers when read;
    rows as the batch's.
    """

    side: int
    total: list[Tensor] = field(default_factory=list)

    def look(self, probs: Tensor, name: str = "") -> None:
        if probs.shape[-2] == self.side**2:
            self.total.append(probs.detach().mean(1))  # b n m, one per layer and step

    def read(self) -> Tensor:
        """(b tokens side side), averaged over layers, heads and steps."""
        mean = torch.stack(self.total).mean(0)  # b n m
        return mean.transpose(1, 2).unflatten(2, (self.side, self.side))


def edit_cross(M: Tensor, alpha: Tensor, on: Tensor, weight: Tensor):
    """fn for a cross-attention tap, rows [sources, edits]: the box of the module docstring. M (.. n
    n), the others (.. n), with .. to fit (b h); `on`: a_i of this step.
    """

    def fn(probs, name):
        source, edit = probs.chunk(2)  # b h n m each
        mixed = alpha * (source @ M) + (1 - alpha) * edit
        # re-weighted in every step; the rows are not renormalised
        return torch.cat([source, (on * mixed + (1 - on) * edit) * weight])

    return fn


def edit_self(limit: int):
    """fn for a self-attention tap: the source's map in both rows, for maps of at most limit x limit
    pixels.
    """

    def fn(probs, name):
        return probs.chunk(2)[0].repeat(2, 1, 1, 1) if probs.shape[-2] <= limit**2 else None

    return fn


def blend_mask(
    maps: Tensor, words: tuple[list[int], list[int]], size: tuple[int, int], threshold: float = 0.3
) -> Tensor:
    """(1 1 h w) of 0 and 1: where the blend word of the source or of the edit is attended to. maps
    (2 tokens s s).
    """
    m = torch.stack([maps[row, w].sum(0) for row, w in enumerate(words)])[:, None]  # 2 1 s s
    m = F.interpolate(F.max_pool2d(m, 3, 1, 1), size)
    return (m / m.amax((2, 3), keepdim=True) > threshold).any(0, keepdim=True).to(maps.dtype)


# ---- the edit ------------------------------------------------------------------------------------


@torch.no_grad()
def prompt_to_prompt(
    pipe: Pipe,
    source: str,
    target: str,
    *,
    kind: str | None = None,
    cross: float | None = 0.3,
    self_: float = 0.9,
    weights: dict[str, float] | None = None,
    blend: tuple[str, str] | None = None,
    blend_from: float = 0.2,
    image: Tensor | None = None,
    inverted: Inverted | None = None,
    self_side: int | None = None,
    steps: int = 50,
    scale: float = 5.0,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Pictures (2 3 H W): the source and its edit. Of two lists of b prompts: (2b 3 H W), all
    sources, then all edits.

    kind        "replace", "refine", or None: replace if the prompts have equally many words
    cross       share of the steps in which cross-attention is the source's; None: measured
                (`auto_cross`)
    self_       the same for self-attention (.9 suits recolouring; to change a shape give the edit
                more freedom, .2)
    weights     {target word: factor}, to say a word louder or softer
    blend       (word of source, word of target): edit only where these are, after `blend_from` of
                the steps
    image       (b 3 H W) given pictures: inverted first (scale 1), and the source rows follow their
                inversion exactly
    inverted    the same, inverted before: by any of null-text, negative-prompt, direct inversion,
                in `steps` steps
    self_side   largest self-attention map that is shared, in pixels a side; default: a quarter of
                the latent, at least 16, which is every size the tiny models have
    """
    for name, value in (("cross", cross), ("self_", self_), ("blend_from", blend_from)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: a share of the steps, 0..1, was expected")
    tok, sch, ts = pipe.tokenizer, pipe.schedule, pipe.schedule.timesteps(steps, spacing="trailing")
    if tok is None:
        raise ValueError(
            f"{pipe.name or 'this model'} reads no text: prompt-to-prompt needs a "
            "text-to-image model"
        )
    sources, targets = ([p] if isinstance(p, str) else list(p) for p in (source, target))
    if len(sources) != len(targets):
        raise ValueError(
            f"{len(sources)} source prompts and {len(targets)} targets: expected a pair for "
            "each picture"
        )
    M, alpha = zip(
        *[token_map(tok, a, b, kind or kind_of(tok, a, b)) for a, b in zip(sources, targets)]
    )
    M = torch.stack(M)[:, None].to(pipe.device, pipe.dtype)  # b 1 tokens tokens
    alpha = torch.stack(alpha)[:, None, None].to(M)  # b 1 1 tokens
    weight = torch.ones_like(alpha)
    for word, factor in (weights or {}).items():
        for row, b in zip(weight, targets):
            row[..., positions(tok, b, word)] = factor
    words = blend and [
        (positions(tok, a, blend[0]), positions(tok, b, blend[1])) for a, b in zip(sources, targets)
    ]
    side = self_side or max(min(pipe.shape[1:]) // 4, 16)
    maps = Maps(max(min(pipe.shape[1:]) // 4, 8))

    if image is not None and inverted is None:
        inverted = Inverted(
            invert(pipe, image, sources, steps=steps), share=0.0
        )  # direct inversion
    if inverted and len(inverted.states) != steps + 1:
        raise ValueError(
            f"steps={steps}, but the picture was inverted in {len(inverted.states) - 1}; "
            "give equal numbers"
        )
    x = inverted.states[-1] if inverted else pipe.noise(len(sources), seed)
    ends = torch.tensor(
        [
            auto_cross(pipe, a, b, x[i : i + 1], steps=steps, scale=scale)
            if cross is None
            else cross
            for i, (a, b) in enumerate(zip(sources, targets))
        ]
    ).to(alpha)[:, None, None, None]
    # rows: [sources, edits]
    x, cond, null = torch.cat([x, x]), pipe.embed(sources + targets), pipe.null(2 * len(sources))
    for i, (t, s) in enumerate(moves(ts, progress)):
        on = (i < ends * steps).to(alpha)  # a_i
        away = (
            Cond.cat([inverted.nulls[i].expand(len(x) // 2)] * 2)
            if inverted and inverted.nulls
            else null
        )
        e_null = pipe.eps(x, t, away)
        with (
            tap(pipe.net, CROSS, edit_cross(M, alpha, on, weight)),
            tap(pipe.net, CROSS, maps.look),
            tap(pipe.net, SELF, edit_self(side if i < self_ * steps else 0)),
        ):
            e_cond = pipe.eps(x, t, cond)
        x = ddim_step(sch, x, e_null + scale * (e_cond - e_null), t, s)
        x = inverted.follow(x, i) if inverted else x  # the source row keeps its path
        if words and i >= blend_from * steps:
            pairs = maps.read().unflatten(0, (2, -1))  # 2 b tokens s s
            m = torch.cat([blend_mask(pairs[:, k], w, x.shape[2:]) for k, w in enumerate(words)])
            before, after = x.chunk(2)
            x = torch.cat([before, before + m * (after - before)])
    return pipe.decode(x)


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
    """The share of the steps after which source and edit look at their changed words in the same
    places by themselves.

    Both are drawn freely from x_T (1 c h w). At each step the pixels that look at the changed words
    more than half as much as the one that looks most are compared: the first step at which the two
    regions overlap by `agree` (IoU) is where injection may end. 1 if there is none, 0 for equal
    prompts. Costs that many steps of a pair.
    """
    tok, sch, ts = pipe.tokenizer, pipe.schedule, pipe.schedule.timesteps(steps, spacing="trailing")
    partner = align(tok.ids(source), tok.ids(target))
    new = [j + 1 for j, i in enumerate(partner) if i < 0]
    old = [i + 1 for i in range(len(tok.ids(source))) if i not in partner]
    if not new and not old:
        return 0.0
    x, cond, null = x_T.expand(2, -1, -1, -1), pipe.embed([source, target]), pipe.null(2)
    for i, (t, s) in enumerate(moves(ts)):
        maps = Maps(max(min(pipe.shape[1:]) // 4, 8))
        with tap(pipe.net, CROSS, maps.look):
            e_cond = pipe.eps(x, t, cond)
        found = maps.read()
        m = torch.stack([found[0, old or new].sum(0), found[1, new or old].sum(0)])  # 2 s s
        a, b = m > m.amax((1, 2), keepdim=True) / 2
        if (a & b).sum() >= agree * (a | b).sum():
            return i / steps
        e_null = pipe.eps(x, t, null)
        x = ddim_step(sch, x, e_null + scale * (e_cond - e_null), t, s)
    return 1.0


@torch.no_grad()
def word_maps(
    pipe: Pipe,
    prompt: str,
    *,
    steps: int = 50,
    scale: float = 3.0,
    seed: int = 0,
    side: int | None = None,
) -> tuple[Tensor, list[str], Tensor]:
    """(picture (1 3 H W), words, maps (words H W) in [0, 1]): where each word of the prompt was
    looked at.
    """
    maps = Maps(side or max(min(pipe.shape[1:]) // 4, 8))
    sch, x, cond, null = pipe.schedule, pipe.noise(1, seed), pipe.embed(prompt), pipe.null()
    for t, s in moves(sch.timesteps(steps, spacing="trailing")):
        e_null = pipe.eps(x, t, null)
        with tap(pipe.net, CROSS, maps.look):
            e_cond = pipe.eps(x, t, cond)
        x = ddim_step(sch, x, e_null + scale * (e_cond - e_null), t, s)
    spans = pipe.tokenizer.token_spans(prompt)
    m = torch.stack([maps.read()[0, span].sum(0) for _, span in spans])  # words s s
    m = F.interpolate(m[:, None], pipe.image_size, mode="bicubic", antialias=True)[:, 0].clamp(
        min=0
    )
    return pipe.decode(x), [w for w, _ in spans], m / m.amax((1, 2), keepdim=True)
