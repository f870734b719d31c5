"""The scores of one edit in ShapesEditBench: was the thing done, was the rest left alone, and how
near is the true picture.

    T   the edit is there: all that should have changed reads as wanted, by both oracles
    K   share of what should not have changed that reads as before, by both oracles
    B   dB to the true picture outside the mask grown by 2 pixels, per kept pixel
        Bn = (B - B0) / (Bvae - B0) in 0..1
    C   dB to the true picture inside it
        Cn = (C - 10) / (Cvae - 10) in 0..1
    P   perceptual distance to the true picture, by the learned oracle's maps
    D   structure distance to the source, by the same maps
    Q   likeness to the target caption by the tiny CLIP, Q1 whole, Q2 inside the mask; methods may
        optimise it, so it is for information only

    EditScore = T (K Bn (1/2 + Cn/2))^(1/3)

Bvae and Cvae are those of decode(encode(truth)): what the autoencoder costs is not the method's
fault. B0 is what one gets who knows the target caption but never saw the source: the upper quartile
over sixteen renders with all that the caption leaves open drawn anew (at least 15 dB, and 10 below
Bvae). Copying the source scores 0, for T is 0; drawing the prompt anew about a tenth, for Bn is 0
mostly; the truth scores 1. (With a fixed B0 of 15 dB drawing anew scored a third: plain grounds
agree by chance, and a cube root makes much of little.)

Where a caption leaves something open there are several right answers: it does not say how large the
added object is. B is then taken where all of them agree, and C is that of the nearest one.

Weakness: the learned oracle must choose from a list and calls half a star a star; the drawing one
refuses fragments (sight.py), so T does too.
"""

from dataclasses import replace
from functools import cache
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.bench.items import SAID, Item
from minidiff.data import shapes
from minidiff.data.shapes import SIZES, Scene
from minidiff.evaluate.find_objects import see
from minidiff.evaluate.metrics import eight_bit, masked_psnr
from minidiff.evaluate.oracle import oracle
from minidiff.models.attribute_net import canonical

FLOOR_B, FLOOR_C, CAP = 15.0, 10.0, 50.0  # dB
REDRAWS, RANGE = 16, 10.0  # renders for B0; dB that Bn spans at least
HALF_CELL = 6.5  # px; the five places of one object are 13 apart
VERSION = 3  # of this file's arithmetic: rows of another one are not reused
GROUND = ("background", "texture")
# of two objects, by their relation
PLACES = {"left": ("left", "right"), "above": ("top", "bottom")}


# ---- what is asked -------------------------------------------------------------------------------


def questions(item: Item) -> tuple[set[str], set[str]]:
    """(what must have changed, what must not have): names of the verdicts of `verdict`."""
    a, b = item.scene, item.truth
    look = {f"{k}.{what}" for k in range(len(b.objects)) for what in ("shape", "color", "size")}
    if item.kind == "add":  # its size is not said, so it is free
        return {"count", "position", "1.shape", "1.color"}, {
            f"0.{w}" for w in ("shape", "color", "size")
        } | {*GROUND}
    if item.kind == "delete":
        return {"count", "gone"}, look | {"position", *GROUND}
    every = look | {"count", "position", *GROUND}
    changed = {
        f"{k}.{what}"
        for k, (x, y) in enumerate(zip(a.objects, b.objects))
        for what in ("shape", "color", "size")
        if getattr(x, what) != getattr(y, what)
    }
    changed |= {w for w in ("position", *GROUND) if getattr(a, w) != getattr(b, w)}
    return changed, every - changed


def verdict(found: dict, item: Item) -> dict[str, bool]:
    """What an oracle found against the item's truth: {"count", "position", "background", "texture",
    "0.shape", ...: bool}.

    The objects found are paired with the true ones so that most shapes and colours fit; objects
    that swapped places are right in everything but the position. "gone": nothing looks like the
    object that was to be deleted.
    """
    s, seen, n = item.truth, found["objects"], len(item.truth.objects)
    # slot of true object k, not swapped
    straight = (0,) if n == 1 else (0, 1) if canonical(s) == s else (1, 0)

    def fit(p):
        return sum(
            j < len(seen) and seen[j][w] == getattr(o, w)
            for j, o in zip(p, s.objects)
            for w in ("shape", "color")
        )

    # the first of equals: not swapped
    pairing = max([straight, *permutations(range(max(len(seen), n)), n)], key=fit)
    mine = [seen[j] if j < len(seen) else None for j in pairing]
    out = {
        f"{k}.{w}": mine[k] is not None and mine[k][w] == getattr(o, w)
        for k, o in enumerate(s.objects)
        for w in ("shape", "color", "size")
    }
    out |= {
        "count": len(seen) == n,
        **{w: found[w] == getattr(s, w) for w in GROUND},
        "position": pairing == straight and found["position"] == canonical(s).position,
    }
    if n == 1:
        out["position"] = mine[0] is not None and place(found, pairing[0]) == s.position
    if item.kind == "delete":
        lost = item.scene.objects[1]
        out["gone"] = not any((o["shape"], o["color"]) == (lost.shape, lost.color) for o in seen)
    # O1 measures: within half a cell of the truth
    if item.kind == "move" and out["position"] and "x" in mine[0]:
        ((x, y),) = shapes.centers(s)
        out["position"] = max(abs(mine[0]["x"] - x), abs(mine[0]["y"] - y)) <= HALF_CELL
    return out


def place(found: dict, slot: int) -> str | None:
    """Where one of the objects found is: a key of POSITIONS, also beside a second object."""
    many = len(found["objects"])
    return (
        found["position"] if many == 1 else PLACES[found["position"]][slot] if many == 2 else None
    )


def admissible(item: Item) -> list[Scene]:
    """All true answers, the item's own first: an added object may have any size."""
    if item.kind != "add":
        return [item.truth]
    o, (kept, new) = item.truth, item.truth.objects
    return [o, *[replace(o, objects=(kept, replace(new, size=s))) for s in SIZES if s != new.size]]


# ---- scores of pictures --------------------------------------------------------------------------


def edit_score(t, k, b, c, b_floor, b_vae, c_vae) -> dict[str, float]:
    """{"Bn", "Cn", "score"}. Where nothing is kept (b is nan) Bn is 1: no harm could be done."""

    def share(v, floor, top):
        return 1.0 if v != v else min(max((v - floor) / max(top - floor, 1.0), 0.0), 1.0)

    bn, cn = share(b, b_floor, b_vae), share(c, FLOOR_C, c_vae)
    return {"Bn": bn, "Cn": cn, "score": t * (k * bn * (0.5 + 0.5 * cn)) ** (1 / 3)}


def redrawn(item: Item, n: int = REDRAWS) -> list[Scene]:
    """The item's target caption as others might draw it: scenes with all that it leaves open drawn
    anew.
    """
    s, said, rng, out = item.truth, SAID.get(item.kind), np.random.default_rng(item.seed), []
    for _ in range(n):
        f = shapes.scene(rng, objects=len(s.objects))
        objects = tuple(
            replace(new, shape=o.shape, color=o.color, size=o.size if said == "size" else new.size)
            for new, o in zip(f.objects, s.objects)
        )
        out.append(
            replace(
                f,
                objects=objects,
                background=s.background,
                position=s.position if len(objects) == 2 or said == "position" else f.position,
                texture=s.texture if said == "texture" else f.texture,
            )
        )
    return out


def floor_of_b(item: Item, region: Tensor, b_vae: float) -> float:
    """B0 in dB: the likeness outside `region` that three of four who know the caption alone do not
    reach.
    """
    found = masked_psnr(
        shapes.render(redrawn(item)), item.answer.expand(REDRAWS, -1, -1, -1), 1 - region, CAP
    )
    good = found.quantile(0.75).item()
    return FLOOR_B if good != good else max(min(good, b_vae - RANGE), FLOOR_B)


def distances(image: Tensor, truths: Tensor, region: Tensor) -> tuple[float, float, float]:
    """(B, C, B as PIE-Bench averages it) of one picture (1 3 h w): `region` (1 1 h w) is 1 where it
    may change. C is that of the nearest of the true pictures (n 3 h w); B that of the first, for
    outside they agree.
    """
    keep = 1 - region
    b = masked_psnr(image, truths[:1], keep, CAP).item()
    c = masked_psnr(image.expand_as(truths), truths, region, CAP).max().item()
    blank = (eight_bit(image) - eight_bit(truths[:1])) * keep  # zeros inside count as agreement
    return b, c, min(-10 * (blank**2).mean().clamp_min(1e-300).log10().item(), CAP)


@torch.no_grad()
def maps(images: Tensor) -> list[Tensor]:
    """The learned oracle's feature maps (b c h w), 32 to 4 pixels a side, channels normalised."""
    net = oracle().net
    h, out = F.relu(net.conv_in(images.float())), []
    out.append(h)
    for stage in net.stages:
        h = stage(h)
        out.append(h)
    return [F.normalize(m, dim=1) for m in out]


def perceptual(a: Tensor, b: Tensor) -> Tensor:
    """(b,): squared distance of the normalised maps, averaged over places and layers. 0 for equal
    pictures, at most 4.
    """
    return torch.stack([((x - y) ** 2).sum(1).mean((1, 2)) for x, y in zip(maps(a), maps(b))]).mean(
        0
    )


def structure(a: Tensor, b: Tensor) -> Tensor:
    """(b,): mean squared difference of the two pictures' self-similarities, cosine between all
    places of the 8x8 map (PIE-Bench takes DINO's keys): what is like what, whatever its colour.
    """
    one, two = (F.normalize(m.flatten(2), dim=1) for m in (maps(a)[2], maps(b)[2]))
    return ((one.transpose(1, 2) @ one - two.transpose(1, 2) @ two) ** 2).mean((1, 2))


@cache
def clip_and_words():
    """The tiny CLIP and its tokenizer."""
    from minidiff.models.tokenizer import Tokenizer
    from minidiff.weights.store import load_clip

    return load_clip(), Tokenizer.words(shapes.VOCAB)


def likeness(images: Tensor, captions: list[str]) -> Tensor:
    """(b,): cosine of each picture and its caption in the tiny CLIP's space, with gradients if they
    are on.
    """
    clip, words = clip_and_words()
    return (clip.embed_image(images) * clip.embed_text(words(captions))).sum(1)


# ---- all of it -----------------------------------------------------------------------------------


def grade(images: Tensor, items: list[Item], ceilings: Tensor) -> list[dict]:
    """One dict of scores for each picture (b 3 64 64), an edit of its item; `ceilings` (b 3 64 64):
    the truths through the autoencoder. A picture with NaN in it is graded as grey.
    """
    broken = [not x.isfinite().all().item() for x in images]
    images = (eight_bit(torch.nan_to_num(images.detach().cpu().float())) * 2 - 1).float()
    source, truth = torch.cat([i.image for i in items]), torch.cat([i.answer for i in items])
    regions = [region(i) for i in items]
    inside = torch.cat([x * m + (m - 1) for x, m in zip(images[:, None], regions)])  # black outside
    with torch.no_grad():
        q1, q2 = (likeness(x, [i.target for i in items]).tolist() for x in (images, inside))
        p, d = perceptual(images, truth).tolist(), structure(images, source).tolist()
    rows = []
    for n, (i, one, two) in enumerate(zip(items, see(images), oracle().read(images))):
        changed, kept = questions(i)
        one, two = verdict(one, i), verdict(two, i)
        t = [all(v[w] for w in changed) for v in (one, two)]
        truths = shapes.render(admissible(i))
        (b, c, pie), (b_vae, c_vae, _) = (
            distances(x[n : n + 1].cpu(), truths, regions[n]) for x in (images, ceilings)
        )
        missed = sorted(w for w in kept if not (one[w] and two[w]))
        row = {
            "T": float(all(t)),
            "K": 1 - len(missed) / len(kept),
            "B": b,
            "C": c,
            "P": p[n],
            "D": d[n],
            "Q1": q1[n],
            "Q2": q2[n],
            "B_vae": b_vae,
            "C_vae": c_vae,
            "B_pie": pie,
            "T1": float(t[0]),
            "T2": float(t[1]),
            "disagree": float(t[0] != t[1]),
            "missed": missed,
            "broken": broken[n],
            "B_floor": floor_of_b(i, regions[n], b_vae),
        }
        rows.append(row | edit_score(row["T"], row["K"], b, c, row["B_floor"], b_vae, c_vae))
    return rows


def region(item: Item) -> Tensor:
    """(1 1 64 64): 1 where any of the true answers differs from the source, grown by 2 pixels
    beyond the mask.
    """
    masks = torch.cat([shapes.edit_mask(item.scene, s) for s in admissible(item)]).amax(
        0, keepdim=True
    )
    return F.max_pool2d(masks, 5, 1, 2)
