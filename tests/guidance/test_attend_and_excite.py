"""Attend-and-Excite: what it measures on the maps, which way its gradient points, and when it
stops.
"""

import pytest
import torch

import minidiff
from minidiff.core.taps import tap_names
from minidiff.guidance import attend_and_excite as module
from minidiff.guidance.attend_and_excite import (
    attend_and_excite,
    content,
    excite,
    smooth,
    word_maxima,
)
from minidiff.pipe.maps import positions

A, B = "a red circle left of a green star on a blue background", "a red square on a blue background"
WORDS = ("circle", "star")


@pytest.fixture(scope="module", params=["tiny", "tiny-dit"])
def pipe(request, awake):
    return awake(request.param)


def look(pipe, prompts, words):
    tok = pipe.tokenizer
    return dict(
        tokens=[[i for w in ws for i in positions(tok, p, w)] for p, ws in zip(prompts, words)],
        ends=[tok.length(p) - 1 for p in prompts],
        side=8,
    )


# ---- the maps ----


def test_the_gaussian_sums_to_one_and_is_the_closed_form():
    m = torch.zeros(1, 1, 5, 5)
    m[..., 2, 2] = 1
    out, g = smooth(m), torch.exp(torch.tensor(-1 / (2 * 0.25)))
    assert out.sum().isclose(torch.tensor(1.0)) and out[0, 0, 2, 2].isclose(1 / (1 + 2 * g) ** 2)
    assert out[0, 0, 2, 3].isclose(g / (1 + 2 * g) ** 2) and smooth(torch.ones(2, 4, 4)).allclose(
        torch.ones(2, 4, 4)
    )


def test_a_word_that_is_looked_at_alone_has_maximum_one(monkeypatch, pipe):
    """Planted maps: all pixels at the start token but one, which looks at word 3."""

    def planted(x, t, cond):
        for n in tap_names(pipe.net, r"attn2\.probs$"):
            probs = torch.zeros(1, 4, 64, 20)
            probs[..., 0] = 1
            probs[0, :, 27, 0], probs[0, :, 27, 3] = 0, 1
            pipe.net.get_submodule(n)(probs)

    stub = type("P", (), {"net": pipe.net, "eps": staticmethod(planted)})
    top = word_maxima(
        stub, torch.zeros(1, 4, 16, 16), 500, None, tokens=[[3, 4]], ends=[12], side=8
    )
    one = torch.exp(torch.tensor(-2.0))
    peak, rest = 1 / (1 + 2 * one) ** 2, 1 / 11  # elsewhere the 11 words share evenly
    assert top[0, 0].isclose(peak + (1 - peak) * rest, atol=1e-5)
    assert top[0, 1] < rest + 1e-6  # the other word has only its share


def test_start_end_and_padding_do_not_count(pipe):
    """The softmax is over the words of the prompt: their maps sum to 1, whatever the padding
    takes.
    """
    n = pipe.tokenizer.length(B) - 2
    with torch.no_grad():
        top = word_maxima(
            pipe, pipe.noise(1), 500, pipe.embed(B), **look(pipe, [B], [tuple(B.split()[1:3])])
        )
    assert top.shape == (1, 2) and (top > 0).all() and (top < 1).all() and (top > 0.5 / n).all()


def test_rows_with_fewer_words_are_filled_with_one(pipe):
    with torch.no_grad():
        top = word_maxima(
            pipe, pipe.noise(2), 500, pipe.embed([A, B]), **look(pipe, [A, B], [WORDS, ("square",)])
        )
    assert top.shape == (2, 2) and top[1, 1] == 1 and (top[0] < 1).all()


def test_a_missing_map_size_is_told(pipe):
    with pytest.raises(ValueError, match="side"):
        attend_and_excite(pipe, A, WORDS, side=7, steps=2)


# ---- the gradient ----


def test_the_gradient_is_right():
    """Against finite differences, in float64."""
    p = minidiff.build("tiny", seed=0).to(dtype=torch.float64)
    x, y = p.noise(1), p.noise(1, seed=7)
    args = (p, 500, p.embed(A))
    loss = lambda v: (1 - word_maxima(args[0], v, *args[1:], **look(p, [A], [WORDS]))).amax(1)  # noqa: E731
    moved, before = excite(p, x, 500, p.embed(A), 1.0, **look(p, [A], [WORDS]))
    slope = ((x - moved) * y).sum()
    with torch.no_grad():
        numeric = (loss(x + 1e-5 * y) - loss(x - 1e-5 * y)) / 2e-5
        assert loss(x).isclose(before)
    assert abs(slope - numeric) < 1e-5 * max(1e-3, abs(numeric)) and slope != 0


def test_the_neglected_word_gains(pipe):
    x, cond, here = pipe.noise(1), pipe.embed(A), look(pipe, [A], [WORDS])
    moved, before = excite(pipe, x, 500, cond, 1.0, **here)
    _, after = excite(pipe, moved, 500, cond, 1.0, **here)
    assert after < before


def test_rows_do_not_move_each_other(pipe):
    x, cond, here = pipe.noise(2), pipe.embed([A, B]), look(pipe, [A, B], [WORDS, ("square",)])
    both, _ = excite(pipe, x, 500, cond, 5.0, **here)
    one, _ = excite(pipe, x[1:], 500, cond[1], 5.0, **look(pipe, [B], [("square",)]))
    assert (both[1:] - one).abs().max() < 1e-4


# ---- the whole run ----


def test_strength_zero_is_plain_sampling(pipe):
    out = attend_and_excite(pipe, [A, B], [WORDS, ("square",)], strength=0, steps=3, seed=5)
    assert torch.equal(out, pipe.generate([A, B], steps=3, seed=5))


def test_strength_changes_the_picture_and_until_zero_does_not(pipe):
    plain = pipe.generate(A, steps=4, seed=5)
    assert torch.equal(attend_and_excite(pipe, A, WORDS, until=0, steps=4, seed=5), plain)
    assert (
        attend_and_excite(pipe, A, WORDS, refine={}, steps=4, seed=5) - plain
    ).abs().max() > 1e-5


def count(monkeypatch, pipe, loss, **knobs):
    """How often the state is moved, in each step, when every loss is `loss`."""
    seen = []

    def fake(pipe, x, t, cond, step, **look):
        seen.append((t, step))
        return x, torch.full((len(x),), loss)

    monkeypatch.setattr(module, "excite", fake)
    attend_and_excite(pipe, A, WORDS, steps=10, **knobs)
    return seen


def test_it_refines_at_the_papers_steps_and_only_while_needed(pipe, monkeypatch):
    hard = count(monkeypatch, pipe, 1.0, most=3)
    times = [t for t, _ in hard]
    # steps 0, 2, 4 of 10; half
    assert [times.count(t) for t in sorted(set(times), reverse=True)] == [4, 1, 4, 1, 4]
    easy = count(monkeypatch, pipe, 0.0, most=3)
    assert [[t for t, _ in easy].count(t) for t in sorted(set(times), reverse=True)] == [
        2,
        1,
        2,
        1,
        2,
    ]


def test_the_step_size_shrinks_as_the_square_root(pipe, monkeypatch):
    sizes = [s for _, s in count(monkeypatch, pipe, 0.0, refine={}, until=1.0, strength=20.0)]
    assert len(sizes) == 10 and sizes[0] == 20 and abs(sizes[-1] - 20 / 2**0.5) < 1e-9


def test_only_rows_that_fall_short_go_on(pipe, monkeypatch):
    def fake(pipe, x, t, cond, step, **look):
        return x + (0 if step < 0 else 1), torch.tensor([1.0, 0.0])

    monkeypatch.setattr(module, "excite", fake)
    moved = []
    monkeypatch.setattr(module, "ddim_step", lambda sch, x, e, t, s: moved.append(x.clone()) or x)
    attend_and_excite(pipe, [A, B], [WORDS, ("square",)], refine={0.0: 0.5}, most=3, steps=2)
    start = pipe.noise(2)
    # three rounds and the step itself
    assert (moved[0][0] - start[0]).allclose(torch.tensor(4.0), atol=1e-5)
    assert (moved[0][1] - start[1]).allclose(torch.tensor(1.0), atol=1e-5)  # the step alone


def test_by_default_words_are_those_that_name_something(pipe):
    assert content(minidiff.build("tiny").tokenizer, A) == (
        "red",
        "circle",
        "green",
        "star",
        "blue",
        "background",
    )
    a, b = (
        attend_and_excite(pipe, B, w, steps=2, most=1)
        for w in (None, ("red", "square", "blue", "background"))
    )
    assert torch.equal(a, b)


def test_row_i_has_the_noise_of_seed_plus_i(pipe):
    both = attend_and_excite(pipe, [B, A], [("square",), WORDS], steps=3, most=2, seed=4)
    alone = attend_and_excite(pipe, A, WORDS, steps=3, most=2, seed=5)
    assert (both[1:] - alone).abs().max() < 1e-3


def test_taps_are_gone_and_weights_have_no_gradients(pipe):
    attend_and_excite(pipe, A, WORDS, steps=2, most=1)
    assert not any(pipe.net.get_submodule(n).fns for n in tap_names(pipe.net))
    assert all(w.grad is None for w in pipe.net.parameters())


@pytest.mark.parametrize(
    "bad",
    [
        dict(until=1.5),
        dict(strength=-1.0),
        dict(most=-1),
        dict(refine={0.0: 2.0}),
        dict(refine={-1.0: 0.5}),
        dict(steps=0),
        dict(words=("dog",)),
        dict(words=()),
        dict(prompt=[A, B]),
        dict(prompt=[A], words=("circle",)),
    ],
)
def test_bad_arguments_are_refused(pipe, bad):
    with pytest.raises(ValueError):
        attend_and_excite(pipe, **{"prompt": A, "words": WORDS} | bad)


def test_models_that_read_no_text_are_refused():
    with pytest.raises(ValueError, match="text"):
        attend_and_excite(minidiff.build("tiny-pixel"), "red circle", ("red",))
