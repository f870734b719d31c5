"""MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent Image Synthesis and Editing.

Mingdeng Cao, Xintao Wang, Zhongang Qi, Ying Shan, Xiaohu Qie, Yinqiang Zheng, 2023,
arXiv 2304.08465.

In attention, queries ask and keys and values answer. The early steps lay a picture out. They are
left to the new prompt, so that things may move. The later steps fill in what it looks like. From
then on the edit's self-attention keeps its own queries, but looks up the keys and values of the
SOURCE. So the new layout is painted with the old picture's parts. Prompt-to-prompt and
plug-and-play do the opposite: they hold the layout and change the paint.

    rows: [source at z*_t, null at z_t, target at z_t]
    Attention(Q_target, K_target, V_target) -> Attention(Q_target, K_source, V_source)
        in steps i >= S, self-attention layers l >= L
    with masks: logits - inf where query and key are not both object, or both ground

The masks come from the cross-attention maps of a word of either prompt, averaged over the steps so
far (in the authors' code over the layers of one step).

Try: `start` 0 to 1 (1: plain re-prompting of the inverted noise); `layer=0`, where the encoder's
layout is copied, too; `words=("circle", "star")`; image=None, where the source is drawn, not
inverted.

The authors' code has four rows, and pairs them: the edit's conditional row looks at the source's
conditional row, its unconditional row at the source's unconditional one. Here the source has one
row. With `both` the unconditional row looks at that one too, which is the authors' way if the
source prompt is empty and near it otherwise. Left alone, as by default, it does not know the
source. Then guidance, the difference of the rows, pushes towards the source's looks: on the tiny
model more of them are kept.

Weakness: nothing is taken that the source does not show, so a new colour cannot come, and where the
new object has no counterpart, ground may be painted over it. Masks answer the second, as far as the
maps are sharp.
"""

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.core.cfg import cfg_batched, guide
from minidiff.core.cond import Cond
from minidiff.core.denoise import step_pairs, trace
from minidiff.core.process import ddim_step
from minidiff.core.taps import tap, tap_names
from minidiff.inversion.ddim import invert
from minidiff.pipe.checks import check_share, door, needs_text, prompt_each, prompts_of
from minidiff.pipe.maps import CROSS, Maps, map_size, positions
from minidiff.pipe.pipe import Pipe


def layers(net: nn.Module, share: float) -> str:
    """Pattern of the self-attention layers behind the first
    `share` of them, without the tap's name: "(a|b)\\.".
    """
    # encoder, middle, decoder
    names = [n.rpartition(".")[0] for n in tap_names(net, r"\.(attn1|attn)\.q$")]
    return f"^({'|'.join(names[min(int(share * len(names)), len(names) - 1) :])})\\."


def look_at_source(b: int, on: bool, both: bool = False):
    """fn for the taps k and v, rows [source, null, target]:
    the source's in place of the target's, while `on`.
    """

    def fn(x, name):
        return torch.cat([x[:b], x[:b] if both else x[b : 2 * b], x[:b]]) if on else None

    return fn


def same_side(keys: Tensor, queries: Tensor, latent: tuple[int, int], both: bool = False):
    """fn for the tap logits, rows [source, null, target]: the target's ground may not look at the
    object, nor its object at the ground. keys, queries: masks (b 1 h w) of the object in the source
    and in the edit; `latent` is the (H, W) of the state, `both` as above.
    """

    def fn(logits, name):
        size = map_size(logits.shape[-1], latent)
        k = F.interpolate(keys, size).flatten(2)  # b 1 n
        q = F.interpolate(queries, size).flatten(2)
        apart = (q.transpose(1, 2) != k)[:, None]  # b 1 n m
        wall = torch.zeros_like(apart, dtype=logits.dtype).masked_fill(
            apart, torch.finfo(logits.dtype).min / 2
        )
        free = torch.zeros_like(wall)
        return logits + torch.cat([free, wall if both else free, wall])

    return fn


def object_mask(maps: Tensor, tokens: list[list[int]], threshold: float) -> Tensor:
    """(b 1 s s) of 0 and 1 from maps (b tokens s s): where each
    row's word is looked at, from its own least to its most.
    """
    m = torch.stack([row[w].mean(0) for row, w in zip(maps, tokens)])[:, None]
    low = m.amin((2, 3), keepdim=True)
    high = m.amax((2, 3), keepdim=True)
    return ((m - low) / (high - low).clamp_min(1e-8) > threshold).to(maps)


@door
@torch.no_grad()
def masactrl(
    pipe: Pipe,
    image: Tensor | None,
    source: str,
    target: str,
    *,
    start: float = 0.1,
    layer: float = 0.625,
    both: bool = False,
    words: tuple[str, str] | None = None,
    threshold: float = 0.3,
    steps: int = 50,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Pictures `image` (b 3 H W) in [-1, 1], described
    by `source`, with the layout of `target`: (b 3 H W).

    start      share of the steps that the edit goes alone, before it looks at the source (the
               paper's S)
    layer      share of the self-attention layers, first ones first, that never do (its L: 10 of
               Stable Diffusion's 16)
    both       the unconditional row looks at the source's row, too; the authors' looks at an
               unconditional row of the source
    words      a word of `source` and one of `target`: object looks at object and ground at ground,
               by their maps
    threshold  where a map, stretched to 0..1, counts as object (the authors' code: .1)

    `image` None: the source is drawn from `source` with `seed`, the edit from the same noise, and
    no inversion is needed; with a picture nothing is random. ValueError: a share outside 0..1,
    words that are not there, sizes that do not fit.
    """
    check_share("start", start)
    check_share("layer", layer)
    check_share("threshold", threshold)
    if image is None:
        b = max(len(prompts_of(source, "source")), len(prompts_of(target, "target")))
    else:
        b = len(image)
    sources = prompt_each(source, b, "source")
    targets = prompt_each(target, b, "target")
    if words is not None and (isinstance(words, str) or len(words) != 2):
        raise ValueError(f"words={words!r}: a word of the source and one of the target")
    if words:
        needs_text(pipe, "an object found by its word")
        in_source = [positions(pipe.tokenizer, p, words[0]) for p in sources]
        in_target = [positions(pipe.tokenizer, p, words[1]) for p in targets]
    old = pipe.embed(sources)
    new = pipe.embed(targets)
    null = pipe.null(b)
    sch = pipe.schedule
    ts = pipe.timesteps(steps)
    where = layers(pipe.net, layer)
    if image is None:
        guided = cfg_batched(pipe.eps, null, scale)
        states = trace(guided, sch, pipe.start(b, seed), ts, old)[::-1]
    else:
        states = invert(pipe, image, sources, steps=steps)  # clean to noise
    x = states[-1]
    latent = tuple(x.shape[2:])
    cond = Cond.cat([old, null, new])
    maps = Maps(latent)
    for i, (t, s) in enumerate(step_pairs(ts, progress)):
        on = i >= start * steps
        rows = torch.cat([states[-1 - i], x, x])  # rows: [source, null, target]
        with ExitStack() as looking:
            looking.enter_context(tap(pipe.net, where + "[kv]$", look_at_source(b, on, both)))
            if words and on and maps.looks:
                seen = maps.read()
                keys = object_mask(seen[:b], in_source, threshold)
                queries = object_mask(seen[-b:], in_target, threshold)
                apart = same_side(keys, queries, latent, both)
                looking.enter_context(tap(pipe.net, where + "logits$", apart))
            if words:
                looking.enter_context(tap(pipe.net, CROSS, maps.look))
            e = pipe.eps(rows, t, cond)
        _, e_null, e_new = e.chunk(3)
        x = ddim_step(sch, x, guide(e_null, e_new, scale), t, s)
    return pipe.decode(x)
