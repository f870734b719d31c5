import pytest
import torch

import minidiff
from minidiff.core.taps import tap
from minidiff.guidance.paint_with_words import (
    box_mask,
    paint,
    paint_with_words,
    painted,
    regions_of,
)

SAID = "a red circle above a blue star on a white background"
LAYOUT = "red circle: top-left; blue star: right"


@pytest.fixture(scope="module")
def tiny():
    return minidiff.build("tiny", seed=0)


def painting(tiny):
    boxes = regions_of(LAYOUT)
    return paint(tiny, SAID, {p: box_mask(b, tiny.shape[1:]) for p, b in boxes.items()})


def test_no_strength_is_the_denoiser_itself(tiny):
    x, cond = tiny.start(1), tiny.embed(SAID)
    off = painted(tiny.eps, tiny.net, tiny.schedule, painting(tiny), 0.0)
    assert torch.equal(off(x, 500, cond), tiny.eps(x, 500, cond))


def test_scores_rise_by_the_published_amount_inside_the_region_and_nowhere_else(tiny):
    plain, raised = {}, {}
    x, cond, t = tiny.start(1), tiny.embed(SAID), 700
    with tap(tiny.net, r"attn2\.logits$", lambda v, name: plain.update({name: v.clone()})):
        tiny.eps(x, t, cond)
    first = next(iter(plain))

    def inside(x_t, t, c):
        listener = lambda v, name: raised.update({name: v.clone()})  # noqa: E731
        with tap(tiny.net, r"attn2\.logits$", listener):
            return tiny.eps(x_t, t, c)

    on = painting(tiny)
    painted(inside, tiny.net, tiny.schedule, on, 0.5)(x, t, cond)
    alpha, sigma = tiny.schedule.at(t)
    before = plain[first]
    h = w = int(before.shape[2] ** 0.5)
    amount = 0.5 * torch.log1p(torch.tensor(sigma / alpha)) * before.amax((2, 3), keepdim=True)
    want = before + amount.clamp(min=0) * on.at(h, w)
    assert (raised[first] - want).abs().max() < 1e-4
    assert 0 < (on.at(h, w) > 0).float().mean() < 0.5


def test_the_pull_fades_with_the_noise(tiny):
    x, cond = tiny.start(1), tiny.embed(SAID)
    on = painted(tiny.eps, tiny.net, tiny.schedule, painting(tiny), 0.5)
    late = (on(x, 1, cond) - tiny.eps(x, 1, cond)).abs().max()
    early = (on(x, 900, cond) - tiny.eps(x, 900, cond)).abs().max()
    assert late < early / 5


def test_phrases_find_their_tokens_and_regions_keep_their_size_when_coarse(tiny):
    on = painting(tiny)
    words = [w for w, _ in tiny.tokenizer.token_spans(SAID)]
    assert on.tokens.sum(1).tolist() == [2, 2] and words[1:3] == ["red", "circle"]
    side = tiny.shape[1]
    fine, coarse = on.at(side, side), on.at(side // 4, side // 4)
    assert torch.allclose(fine.mean(0), coarse.mean(0), atol=1e-6)
    tiny_box = box_mask((0, 0, 1 / side, 1 / side), (side, side))
    dot = paint(tiny, SAID, {"star": tiny_box})
    assert dot.at(2, 2).max() > 0  # never lost


def test_without_strength_it_is_plain_sampling(tiny):
    plain = tiny.generate(SAID, steps=2, seed=3)
    assert (
        paint_with_words(tiny, SAID, layout=LAYOUT, strength=0.0, steps=2, seed=3) - plain
    ).abs().max() < 1e-4


def test_a_prompt_without_the_phrase_is_refused_before_the_first_is_drawn(tiny):
    def network(*args):
        raise AssertionError("the network was asked")

    handle = tiny.net.register_forward_pre_hook(network)
    try:
        with pytest.raises(ValueError, match="does not stand in the prompt 'a red circle'"):
            paint_with_words(tiny, [SAID, "a red circle"], layout=LAYOUT, steps=2)
    finally:
        handle.remove()


def test_pictures_are_drawn_one_for_each_prompt(tiny):
    out = paint_with_words(tiny, [SAID, SAID], layout=LAYOUT, steps=2)
    one = paint_with_words(tiny, SAID, layout=LAYOUT, steps=2, seed=1)
    assert out.shape == (2, 3, 64, 64) and (out[1:] - one).abs().max() < 1e-4


@pytest.mark.parametrize(
    "kw, says",
    [
        (dict(layout=""), "layout is empty"),
        (dict(layout="red circle: attic"), "a place of left"),
        (dict(layout="red circle"), "expected PHRASE: PLACE"),
        (dict(layout="green circle: left"), "does not stand in the prompt"),
        (dict(layout=LAYOUT, strength=-1.0), "strength=-1.0"),
    ],
)
def test_bad_layouts_are_refused(tiny, kw, says):
    with pytest.raises(ValueError, match=says):
        paint_with_words(tiny, SAID, steps=2, **kw)


def test_a_model_without_words_is_refused():
    with pytest.raises(ValueError, match="reads no words"):
        paint_with_words(minidiff.build("tiny-pixel", seed=0), "red circle", layout=LAYOUT, steps=2)
