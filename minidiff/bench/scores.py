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
    N   dB to the true picture where nuisances show, outside the mask: what of a hard picture no
        caption names (light, marks, outlines) is still there. Items without nuisances have none
        Nn = (N - Nplain) / (Nvae - Nplain) in 0..1, Nplain that of the truth drawn without them
    Q   likeness to the target caption by the tiny CLIP, Q1 whole, Q2 inside the mask; methods may
        optimise it, so it is for information only

    EditScore = T (K Bn (1/2 + Cn/2))^(1/3)

Bvae and Cvae are those of decode(encode(truth)): what the autoencoder costs is not the method's
fault. B0 is what one gets who knows the target caption but never saw the source: the upper quartile
over sixteen renders with all that the caption leaves open drawn anew (at least 15 dB, and 10 below
Bvae). Copying the source scores 0, for T is 0; drawing the prompt anew about a tenth, for Bn is 0
mostly; the truth scores 1. (With a fixed B0 of 15 dB drawing anew scored a third: plain grounds
agree by chance, and a cube root makes much of little.)

N is beside EditScore, not in it: B has its part of the same harm already. The oracles are told the
nuisances and read without them (taken_off.py), so that T and K do not ask for them. B0 knows the
caption alone, so its renders have none. Larger pictures are averaged to 64 pixels before they are
graded.

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
from minidiff.data.attributes import canonical
from minidiff.data.shapes import Scene
from minidiff.evaluate.find_objects import see
from minidiff.evaluate.metrics import eight_bit, masked_psnr
from minidiff.evaluate.oracle import oracle
from minidiff.evaluate.taken_off import taken_off

FLOOR_B = 15.0  # dB
FLOOR_C = 10.0  # dB
CAP = 50.0  # dB
REDRAWS = 16  # renders for B0
RANGE = 10.0  # dB that Bn spans at least
HALF_CELL = 6.5  # px; the five places of one object are 13 apart
SHOWS = 0.2  # of [-1, 1]: by how much nuisances must change a pixel to be asked for by N
VERSION = 5  # of this file's arithmetic: rows of another one are not reused
LOOKS = ("shape", "color", "size")
GROUND = ("background", "texture")
# of two objects, by their relation
PLACES = {"left": ("left", "right"), "above": ("top", "bottom")}


# ---- what is asked -------------------------------------------------------------------------------


def questions(item: Item) -> tuple[set[str], set[str]]:
    """(what must have changed, what must not have): names of the verdicts of `verdict`."""
    before = item.scene
    after = item.truth
    if item.kind == "add":  # the size of what is added is not said, so it is free
        changed = {"count", "position", "1.shape", "1.color"}
        return changed, {"0.shape", "0.color", "0.size", *GROUND}
    looks = {f"{k}.{look}" for k in range(len(after.objects)) for look in LOOKS}
    if item.kind == "delete":
        return {"count", "gone"}, looks | {"position", *GROUND}
    changed = {what for what in ("position", *GROUND) if _differ(before, after, what)}
    for k, (old, new) in enumerate(zip(before.objects, after.objects)):
        changed |= {f"{k}.{look}" for look in LOOKS if _differ(old, new, look)}
    everything = looks | {"count", "position", *GROUND}
    return changed, everything - changed


def _differ(a, b, field: str) -> bool:
    return getattr(a, field) != getattr(b, field)


def verdict(found: dict, item: Item) -> dict[str, bool]:
    """What an oracle found against the item's truth: {"count", "position", "background", "texture",
    "0.shape", ...: bool}.

    The objects found are paired with the true ones so that most shapes and colours fit; objects
    that swapped places are right in everything but the position. "gone": nothing looks like the
    object that was to be deleted.
    """
    truth = item.truth
    seen = found["objects"]
    n = len(truth.objects)
    unswapped = (1, 0) if n == 2 and canonical(truth) != truth else tuple(range(n))
    slots = _pairing(seen, truth, unswapped)
    paired = [seen[slot] if slot < len(seen) else None for slot in slots]
    out = {}
    for k, (read, true) in enumerate(zip(paired, truth.objects)):
        for look in LOOKS:
            out[f"{k}.{look}"] = read is not None and read[look] == getattr(true, look)
    out["count"] = len(seen) == n
    for what in GROUND:
        out[what] = found[what] == getattr(truth, what)
    if n == 1:
        out["position"] = paired[0] is not None and place(found, slots[0]) == truth.position
    else:
        same_place = found["position"] == canonical(truth).position
        out["position"] = slots == unswapped and same_place
    if item.kind == "delete":
        lost = item.scene.objects[1]
        out["gone"] = (lost.shape, lost.color) not in [(o["shape"], o["color"]) for o in seen]
    if item.kind == "move" and out["position"] and "x" in paired[0]:
        # the oracle that draws also measures: within half a cell of the truth
        ((x, y),) = shapes.centers(truth)
        off = max(abs(paired[0]["x"] - x), abs(paired[0]["y"] - y))
        out["position"] = off <= HALF_CELL
    return out


def _pairing(seen: list[dict], truth: Scene, unswapped: tuple[int, ...]) -> tuple[int, ...]:
    """For each true object the slot among those seen that fits it, so that most words agree; of
    equals `unswapped` is taken. A slot beyond those seen stands for a missing object.
    """

    def agreeing(slots: tuple[int, ...]) -> int:
        words = 0
        for slot, true in zip(slots, truth.objects):
            if slot < len(seen):
                words += seen[slot]["shape"] == true.shape
                words += seen[slot]["color"] == true.color
        return words

    n = len(truth.objects)
    every = permutations(range(max(len(seen), n)), n)
    return max([unswapped, *every], key=agreeing)  # the first of equals


def place(found: dict, slot: int) -> str | None:
    """Where one of the objects found is: a key of POSITIONS, also beside a second object."""
    many = len(found["objects"])
    if many == 1:
        return found["position"]
    if many == 2:
        return PLACES[found["position"]][slot]
    return None


# ---- scores of pictures --------------------------------------------------------------------------


def share(value: float, floor: float, top: float) -> float:
    """Where a value lies between a floor (0) and a top (1), cut to 0..1; 1 for nan."""
    if value != value:
        return 1.0
    return min(max((value - floor) / max(top - floor, 1.0), 0.0), 1.0)


def edit_score(t, k, b, c, b_floor, b_vae, c_vae) -> dict[str, float]:
    """{"Bn", "Cn", "score"}. Where nothing is kept (b is nan) Bn is 1: no harm could be done."""
    bn = share(b, b_floor, b_vae)
    cn = share(c, FLOOR_C, c_vae)
    return {"Bn": bn, "Cn": cn, "score": t * (k * bn * (0.5 + 0.5 * cn)) ** (1 / 3)}


def redrawn(item: Item, n: int = REDRAWS) -> list[Scene]:
    """The item's target caption as others might draw it: scenes with all that it leaves open drawn
    anew.
    """
    truth = item.truth
    said = SAID.get(item.kind)  # what this kind's captions say beside shape and colour
    rng = np.random.default_rng(item.seed)
    out = []
    for _ in range(n):
        fresh = shapes.scene(rng, objects=len(truth.objects))
        objects = []
        for new, true in zip(fresh.objects, truth.objects):
            size = true.size if said == "size" else new.size
            objects.append(replace(new, shape=true.shape, color=true.color, size=size))
        place_said = said == "position" or len(objects) == 2
        again = replace(
            fresh,
            objects=tuple(objects),
            background=truth.background,
            position=truth.position if place_said else fresh.position,
            texture=truth.texture if said == "texture" else fresh.texture,
        )
        out.append(again)
    return out


def floor_of_b(item: Item, region: Tensor, b_vae: float) -> float:
    """B0 in dB: the likeness outside `region` that three of four who know the caption alone do not
    reach.
    """
    answers = item.answer.expand(REDRAWS, -1, -1, -1)
    reached = masked_psnr(shapes.render(redrawn(item)), answers, 1 - region, CAP)
    quartile = reached.quantile(0.75).item()
    if quartile != quartile:  # nothing is kept
        return FLOOR_B
    return max(min(quartile, b_vae - RANGE), FLOOR_B)


def nuisances_kept(image: Tensor, item: Item, region: Tensor, ceiling: Tensor) -> dict[str, float]:
    """{"N", "Nn", "N_vae", "N_plain"} of one picture (1 3 64 64), as in the module's docstring; nan
    for an item without nuisances, or whose nuisances show nowhere outside the region.
    """
    if item.nuisance is None:
        return dict.fromkeys(("N", "Nn", "N_vae", "N_plain"), float("nan"))
    plain = replace(item, nuisance=None).answer
    differs = (item.answer - plain).abs().amax(1, keepdim=True) > SHOWS
    where = differs.float() * (1 - region)
    n, top, floor = (
        masked_psnr(picture, item.answer, where, CAP).item() for picture in (image, ceiling, plain)
    )
    nn = share(n, floor, top) if n == n else n
    return {"N": n, "Nn": nn, "N_vae": top, "N_plain": floor}


def distances(image: Tensor, truths: Tensor, region: Tensor) -> tuple[float, float, float]:
    """(B, C, B as PIE-Bench averages it) of one picture (1 3 h w): `region` (1 1 h w) is 1 where it
    may change. C is that of the nearest of the true pictures (n 3 h w); B that of the first, for
    outside they agree.
    """
    keep = 1 - region
    b = masked_psnr(image, truths[:1], keep, CAP).item()
    c = masked_psnr(image.expand_as(truths), truths, region, CAP).max().item()
    blanked = (eight_bit(image) - eight_bit(truths[:1])) * keep  # zeros inside count as agreement
    error = (blanked**2).mean().clamp_min(1e-300)
    return b, c, min(-10 * error.log10().item(), CAP)


@torch.no_grad()
def maps(images: Tensor) -> list[Tensor]:
    """The learned oracle's feature maps (b c h w), 32 to 4 pixels a side, channels normalised."""
    net = oracle().net
    h = F.relu(net.conv_in(images.float()))
    out = [h]
    for stage in net.stages:
        h = stage(h)
        out.append(h)
    return [F.normalize(m, dim=1) for m in out]


def perceptual(a: Tensor, b: Tensor) -> Tensor:
    """(b,): squared distance of the normalised maps, averaged over places and layers. 0 for equal
    pictures, at most 4.
    """
    layers = [((x - y) ** 2).sum(1).mean((1, 2)) for x, y in zip(maps(a), maps(b))]
    return torch.stack(layers).mean(0)


def structure(a: Tensor, b: Tensor) -> Tensor:
    """(b,): mean squared difference of the two pictures' self-similarities, cosine between all
    places of the 8x8 map (PIE-Bench takes DINO's keys): what is like what, whatever its colour.
    """
    return ((_self_similarity(a) - _self_similarity(b)) ** 2).mean((1, 2))


def _self_similarity(images: Tensor) -> Tensor:
    places = F.normalize(maps(images)[2].flatten(2), dim=1)  # b c 64
    return places.transpose(1, 2) @ places  # b 64 64


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
    source = torch.cat([item.image for item in items])
    truth = torch.cat([item.answer for item in items])
    targets = [item.target for item in items]
    regions = [region(item) for item in items]
    mask = torch.cat(regions)
    inside = images * mask + (mask - 1)  # black outside
    with torch.no_grad():
        p = perceptual(images, truth).tolist()
        d = structure(images, source).tolist()
        q1 = likeness(images, targets).tolist()
        q2 = likeness(inside, targets).tolist()
    readable = taken_off(images, [item.nuisance for item in items])
    drawn = see(readable)
    learned = oracle().read(readable)
    rows = []
    for n, item in enumerate(items):
        row = _answers(drawn[n], learned[n], item)
        picture = images[n : n + 1]
        ceiling = ceilings[n : n + 1].cpu()
        b, c, b_pie = distances(picture, item.truths, regions[n])
        b_vae, c_vae, _ = distances(ceiling, item.truths, regions[n])
        row |= {"B": b, "C": c, "P": p[n], "D": d[n], "Q1": q1[n], "Q2": q2[n]}
        row |= {"B_vae": b_vae, "C_vae": c_vae, "B_pie": b_pie, "broken": broken[n]}
        row |= nuisances_kept(picture, item, regions[n], ceiling)
        row["B_floor"] = floor_of_b(item, regions[n], b_vae)
        row |= edit_score(row["T"], row["K"], b, c, row["B_floor"], b_vae, c_vae)
        rows.append(row)
    return rows


def _answers(drawn: dict, learned: dict, item: Item) -> dict:
    """T, K and what they are made of, from what the drawing and the learned oracle found."""
    changed, kept = questions(item)
    one = verdict(drawn, item)
    two = verdict(learned, item)
    t1 = all(one[name] for name in changed)
    t2 = all(two[name] for name in changed)
    missed = sorted(name for name in kept if not (one[name] and two[name]))
    return {
        "T": float(t1 and t2),
        "K": 1 - len(missed) / len(kept),
        "T1": float(t1),
        "T2": float(t2),
        "disagree": float(t1 != t2),
        "missed": missed,
    }


def region(item: Item) -> Tensor:
    """(1 1 64 64): 1 where any of the true answers differs from the source, grown by 2 pixels
    beyond the mask.
    """
    masks = shapes.mask_between(item.image.expand_as(item.truths), item.truths)
    return F.max_pool2d(masks.amax(0, keepdim=True), 5, 1, 2)
