"""Editing in the attention layers."""

from itertools import pairwise, product
from math import log

import torch
from by_hand import Reader, Stack, guided, look, move, near, picture, rand, slope, small, stack

from minidiff.core.process import ddim_step
from minidiff.core.taps import tap
from minidiff.editing.masactrl import look_at_source, masactrl, same_side
from minidiff.editing.pix2pix_zero import direction, invert_white, pix2pix_zero, whitened
from minidiff.editing.plug_and_play import plug_and_play
from minidiff.editing.prompt_to_prompt import edit_cross
from minidiff.inversion.ddim import invert
from minidiff.models.attention import Attention

SOURCE, TARGET = "a red circle on a blue background", "a red star on a blue background"
TIMES = [1000, 750, 500, 250, 0]


def test_prompt_to_prompt_maps():
    h, n, m = 2, 4, 3
    probs, M = rand(2, h, n, m).softmax(-1), rand(m, m, seed=1).abs()
    alpha, weight = torch.tensor([1.0, 0.0, 1.0]).double(), torch.tensor([1.0, 2.0, 0.5]).double()
    for a in (0.0, 1.0):
        got = edit_cross(M, alpha, torch.tensor(a), weight)(probs, "")
        near(got[0], probs[0])
        for i, j, k in product(range(h), range(n), range(m)):
            moved = sum(probs[0, i, j, q] * M[q, k] for q in range(m))
            own = probs[1, i, j, k]
            near(
                got[1, i, j, k],
                (a * (alpha[k] * moved + (1 - alpha[k]) * own) + (1 - a) * own) * weight[k],
            )


def replayed(pipe, image, borrowed, a=lambda i: 0.0, w=2.0):
    """By hand: an edit of four steps in which the rows of the new prompt and of the empty one (and
    of the old, whose share of the empty one's place is a(i)) get from the source what `borrowed(i)`
    names: {row: [(layer, what)]}.
    """
    states, null = invert(pipe, image, SOURCE, steps=4), pipe.null()
    old, new, x = pipe.embed(SOURCE), pipe.embed(TARGET), states[-1]
    for i, (t, s) in enumerate(pairwise(TIMES)):
        seen, eps = stack(pipe, states[-1 - i], t, old)[1], {}
        for row, cond in (("null", null), ("new", new), ("old", old)):
            eps[row] = stack(pipe, x, t, cond, {k: seen[k] for k in borrowed(i)[row]})[0]
        base = (1 - a(i)) * eps["null"] + a(i) * eps["old"]
        x = move(pipe.schedule, x, base + w * (eps["new"] - base), t, s)
    return pipe.decode(x)


def test_masactrl_attention():
    """Keys and values of layers 1 and 2 from the second half on; then the wall B in one layer."""
    pipe, image, run = small(Stack()), picture(), dict(steps=4, scale=2.0)
    mine = [(layer, kind) for layer in (1, 2) for kind in "kv"]
    got = masactrl(pipe, image, SOURCE, TARGET, start=0.5, layer=0.5, **run)
    near(
        got,
        replayed(pipe, image, lambda i: {"null": [], "old": [], "new": mine if i >= 2 else []}),
        1e-8,
    )
    assert (got - masactrl(pipe, image, SOURCE, TARGET, start=1.0, **run)).abs().max() > 0.01

    layer, x, (keys, queries) = (
        Attention(4, 2).double(),
        rand(3, 16, 4),
        (rand(2, 1, 1, 4, 4, seed=1) > 0).double(),
    )
    with (
        tap(layer, "[kv]$", look_at_source(1, True)),
        tap(layer, "logits$", same_side(keys, queries, (4, 4))),
    ):
        got = layer(x)
    q, k, v = (getattr(layer, f"to_{kind}")(x) for kind in "qkv")
    want = torch.zeros(16, 4, dtype=torch.float64)
    for n, part in product(range(16), (slice(0, 2), slice(2, 4))):  # two heads
        walls = [0.0 if queries.flatten()[n] == side else -torch.inf for side in keys.flatten()]
        logits = [(q[2, n, part] * k[0, m, part]).sum() / 2**0.5 + walls[m] for m in range(16)]
        total = sum(z.exp() for z in logits)
        want[n, part] = sum(z.exp() / total * v[0, m, part] for m, z in enumerate(logits)).detach()
    near(got[2], layer.to_out[0](want), 1e-8)
    near(got[1], look(layer, x[1], x[1], 0, {}, {}), 1e-8)


def test_plug_and_play_rows():
    """Features of layer 1 in the first half, queries and keys of layers 1 and 2 in three quarters:
    of both other rows.
    """
    pipe, image = small(Stack()), picture()
    maps = [(layer, kind) for layer in (1, 2) for kind in "qk"]

    def borrowed(i):
        here = [(1, "out")] * (i < 2) + maps * (i < 3)
        return {"null": here, "new": here, "old": []}

    got = plug_and_play(
        pipe, image, SOURCE, TARGET, features=0.5, attention=0.75, steps=4, scale=2.0
    )
    near(got, replayed(pipe, image, borrowed), 1e-8)


def test_plug_and_play_away():
    pipe, image = small(Stack()), picture()
    want = replayed(
        pipe,
        image,
        lambda i: {"null": [], "new": [], "old": []},
        a=lambda i: (0.0, 0.2, 0.4, 0.6)[i],
    )
    near(
        plug_and_play(
            pipe, image, SOURCE, TARGET, features=0.0, attention=0.0, away=0.6, steps=4, scale=2.0
        ),
        want,
        1e-8,
    )


def said(pipe, prompt):
    return [pipe.text.weight[i].tolist() for i in pipe.tokenizer(prompt)[0].tolist()]


def test_pix2pix_zero_direction():
    pipe, before, after = (
        small(),
        ["a red circle", "a circle on a star", "circle"],
        [TARGET, "a star"],
    )
    got, old = direction(pipe, before, after), pipe.embed(SOURCE).text
    for n, d in product(range(20), range(3)):
        means = [
            sum(said(pipe, p)[n][d] for p in prompts) / len(prompts) for prompts in (before, after)
        ]
        near(got[0, n, d], means[1] - means[0])
        near((old + got)[0, n, d], said(pipe, SOURCE)[n][d] + means[1] - means[0])


def test_pix2pix_zero_pull():
    pipe, image, hold = small(Stack()), picture(), 0.3
    states, old = invert(pipe, image, SOURCE, steps=2), pipe.embed(SOURCE)
    pairs = [
        (
            f"a red {end}"
            for end in (f"{w} on a blue background", f"{w} on a blue", f"{w} on a", f"{w} on", w)
        )
        for w in ("circle", "star")
    ]
    dE = sum(pipe.embed(b).text - pipe.embed(a).text for a, b in zip(*pairs)) / 5
    new = old.replace(text=old.text + dE)

    def maps(x, t, cond):
        seen = stack(pipe, x, t, cond)[1]
        return {
            k: p
            for k, p in seen.items()
            if k[1] == "probs" and k[0] in [(i, "text") for i in range(3)]
        }

    x = states[-1]
    for i, (t, s) in enumerate(((1000, 500), (500, 0))):
        wanted = maps(states[-1 - i], t, old)

        def distance(x, t=t, wanted=wanted):  # two heads: half of each one's squares
            return sum(((p - wanted[k]) ** 2).sum().item() / 2 for k, p in maps(x, t, new).items())

        assert len(wanted) == 6 and next(iter(wanted.values())).shape == (16, 20)
        x = x - hold / 2 * slope(distance, x)  # two steps
        x = move(pipe.schedule, x, guided(pipe, x, t, new, 2.0), t, s)
    got = pix2pix_zero(pipe, image, SOURCE, TARGET, hold=hold, steps=2, scale=2.0)
    near(got, pipe.decode(x), 1e-6)
    assert (
        got - pix2pix_zero(pipe, image, SOURCE, TARGET, hold=0.0, steps=2, scale=2.0)
    ).abs().max() > 1e-3


def test_pix2pix_zero_white():
    """Correlations by Fourier transforms, slopes by differences."""

    def pair(e):
        total = 0.0
        for size in (8, 4):
            # each half as large as the one before
            e = e if size == 8 else e.view(2, 4, 2, 4, 2).mean((2, 4))
            for axis in (1, 2):
                with_itself = torch.fft.ifft(torch.fft.fft(e, dim=axis).abs() ** 2, dim=axis).real
                shifts = with_itself.mean(3 - axis)[:, 1 : size // 2] / size
                total += (shifts**2).mean(1).sum().item()
        return total

    def kl(e):
        mu = e.mean().item()
        var = ((e - mu) ** 2).mean().item()
        return var + mu**2 - 1 - log(var)

    start, lam, rounds = rand(2, 2, 8, 8) * 0.8 + 0.3, 2.0, 2
    got = whitened(start, lam, rounds)
    for row, e in zip(got, start):
        for loss in (pair, kl) * rounds:
            e = e - lam * slope(loss, e)
        near(row, e, 1e-5)
    pipe, image = small(Reader()), picture()
    near(
        invert_white(pipe, image, SOURCE, steps=4, whiten=lam, rounds=rounds)[1],
        ddim_step(
            pipe.schedule,
            1.5 * image,
            whitened(pipe.eps(1.5 * image, 250, pipe.embed(SOURCE)), lam, rounds),
            0,
            250,
        ),
    )
