"""Prompt-to-Prompt: mappers, identity cases on both
backbones, and what each knob may and may not touch.
"""

from dataclasses import replace

import pytest
import torch

import minidiff
from minidiff.core.cfg import cfg
from minidiff.core.denoise import sample
from minidiff.core.taps import tap, tap_names
from minidiff.data.shapes import VOCAB
from minidiff.editing.prompt_to_prompt import (
    align,
    auto_cross,
    blend_mask,
    edit_cross,
    prompt_to_prompt,
    token_map,
    word_maps,
)
from minidiff.inversion.ddim import Inverted
from minidiff.models.tokenizer import Tokenizer
from minidiff.pipe.maps import CROSS, SELF, Maps, positions

A, B = "a red circle on a blue background", "a green circle on a blue background"
LONG = "a red circle on a striped blue background"
TOK = Tokenizer.words(VOCAB)


@pytest.fixture(scope="module", params=["tiny", "tiny-dit"])
def pipe(request, awake):
    return awake(request.param)


# ---- mappers ----


def test_replace_of_equal_prompts_is_the_identity():
    M, alpha = token_map(TOK, A, A, "replace")
    assert torch.equal(M, torch.eye(20)) and alpha.all()


def test_refine_has_alpha_one_exactly_on_the_old_words():
    M, alpha = token_map(TOK, A, LONG, "refine")
    new = positions(TOK, LONG, "striped")
    assert alpha[new] == 0 and alpha.sum() == 19 and M[:, alpha.bool()].sum(0).eq(1).all()


def test_refine_maps_words_behind_an_insertion_to_their_old_place():
    M, _ = token_map(TOK, A, LONG, "refine")
    assert M[positions(TOK, A, "blue"), positions(TOK, LONG, "blue")] == 1


def test_columns_sum_to_one_when_a_word_has_more_tokens_than_its_partner():
    class Spelled:  # one word of two tokens against one, as byte pairs do it
        context = 8

        def __init__(self, spans):
            self.spans = spans

        def token_spans(self, text):
            return self.spans[text]

        def length(self, text):
            return 2 + sum(len(s) for _, s in self.spans[text])

    tok = Spelled({"x": [("cat", [1, 2]), ("dog", [3])], "y": [("owl", [1]), ("dog", [2])]})
    for a, b in (("x", "y"), ("y", "x")):
        M, alpha = token_map(tok, a, b, "replace")
        assert torch.allclose(M.sum(0), torch.ones(8)) and alpha.all()
    M, _ = token_map(tok, "y", "x", "replace")
    assert M[2, 3] == 1 and M[3, 4] == 1  # the tail is shifted, counted from the sentence ends


def test_alignment_keeps_order_and_leaves_replaced_words_alone():
    assert align([1, 2, 3], [1, 9, 3]) == [0, -1, 2]
    assert align([1, 2], [5, 1, 2]) == [-1, 0, 1]
    assert align([], [1]) == [-1] and align([1], []) == []


def test_replace_of_unequal_prompts_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match="refine"):
        token_map(TOK, A, LONG, "replace")


def test_unknown_word_lists_the_words_there_are():
    with pytest.raises(ValueError, match="red, circle"):
        positions(TOK, A, "square")


# ---- the edit of one map ----


def test_edit_cross_moves_columns_and_scales_them():
    probs = torch.rand(2, 3, 4, 20).softmax(-1)
    M, alpha = token_map(TOK, A, A, "replace")
    weight = torch.ones(20)
    weight[2] = 3
    out = edit_cross(M, alpha, torch.ones(20), weight)(probs, "")
    assert torch.equal(out[0], probs[0])
    assert torch.allclose(out[1, ..., 2], 3 * probs[0, ..., 2]) and torch.equal(
        out[1, ..., 3], probs[0, ..., 3]
    )
    off = edit_cross(M, alpha, torch.zeros(20), torch.ones(20))(probs, "")
    assert torch.equal(off, probs)


def test_blend_mask_is_where_the_word_is():
    maps = torch.zeros(2, 20, 8, 8)
    maps[0, 3, 2, 2] = maps[1, 3, 6, 6] = 1
    m = blend_mask(maps, ([3], [3]), (16, 16))
    assert (
        m.shape == (1, 1, 16, 16)
        and m[0, 0, 4, 4] == 1
        and m[0, 0, 13, 13] == 1
        and m[0, 0, 4, 13] == 0
    )


# ---- the whole edit, on UNet and DiT ----


def test_both_backbones_have_the_taps(pipe):
    assert tap_names(pipe.net, CROSS) and tap_names(pipe.net, SELF)
    assert not set(tap_names(pipe.net, CROSS)) & set(tap_names(pipe.net, SELF))


@pytest.mark.parametrize("cross, self_", [(0.0, 0.0), (0.8, 0.4), (1.0, 1.0)])
def test_identical_prompts_give_identical_pictures(pipe, cross, self_):
    source, edit = prompt_to_prompt(pipe, A, A, cross=cross, self_=self_, steps=4)
    assert torch.equal(source, edit)


def test_without_injection_the_edit_is_plain_sampling_of_the_target(pipe):
    edit = prompt_to_prompt(pipe, A, B, cross=0, self_=0, steps=4, seed=3)[1:]
    plain = pipe.generate(B, steps=4, seed=3)
    assert (edit - plain).abs().max() < 1e-4


def test_the_source_row_is_never_touched(pipe):
    source = prompt_to_prompt(
        pipe, A, B, steps=4, seed=3, weights={"green": 2.0}, cross=0.5, self_=0.5
    )[:1]
    assert (source - pipe.generate(A, steps=4, seed=3)).abs().max() < 1e-4


def test_injection_changes_the_edit(pipe):
    free, held = (prompt_to_prompt(pipe, A, B, cross=c, self_=c, steps=4)[1] for c in (0.0, 1.0))
    assert (free - held).abs().max() > 1e-3


def test_every_pair_of_prompts_may_have_blend_words_of_its_own_or_none(pipe):
    words = ("circle", "circle")
    how = dict(blend_from=0, steps=2, seed=5)
    both = prompt_to_prompt(pipe, [A, A], [B, B], blend=[words, None], **how)[2:]
    first = prompt_to_prompt(pipe, A, B, blend=words, blend_from=0, steps=2, seed=5)[1:]
    second = prompt_to_prompt(pipe, A, B, blend_from=0, steps=2, seed=6)[1:]
    assert (both - torch.cat([first, second])).abs().max() < 1e-4
    with pytest.raises(ValueError, match="1 pairs of blend words for 2"):
        prompt_to_prompt(pipe, [A, A], [B, B], blend=[words], **how)
    with pytest.raises(ValueError, match="blend="):
        prompt_to_prompt(pipe, A, B, blend=[("circle",)], **how)


def test_blending_keeps_latents_outside_the_mask(pipe, monkeypatch):
    from minidiff.editing import prompt_to_prompt as module

    monkeypatch.setattr(module, "blend_mask", lambda maps, words, size: torch.zeros(1, 1, *size))
    source, edit = prompt_to_prompt(pipe, A, B, blend=("circle", "circle"), blend_from=0, steps=4)
    assert torch.equal(source, edit)


def test_an_inverted_picture_needs_as_many_steps(pipe):
    states = [pipe.noise(1, i) for i in range(4)]
    with pytest.raises(ValueError, match="3"):
        prompt_to_prompt(pipe, A, B, inverted=Inverted(states), steps=4)
    assert prompt_to_prompt(pipe, A, B, inverted=Inverted(states), steps=3).isfinite().all()


def test_what_an_inversion_hands_over_is_used_step_by_step(pipe):
    states, asked = [pipe.noise(1, i) for i in range(4)], []
    nulls, eps = [pipe.embed(p) for p in ("red", "green", "blue")], pipe.eps
    spy = replace(pipe)
    spy.eps = lambda x, t, cond: asked.append((x, cond)) or eps(x, t, cond)
    out = prompt_to_prompt(spy, A, B, inverted=Inverted(states, nulls, share=1.0), steps=3)
    # by its step
    assert all(torch.equal(row, nulls[i].text[0]) for i in range(3) for row in asked[2 * i][1].text)
    assert all(torch.equal(asked[2 * i][0][:1], states[-1 - i]) for i in range(3))
    assert (out[:1] - pipe.decode(states[0])).abs().max() < 1e-5


def test_taps_are_gone_afterwards_even_when_it_fails(pipe):
    with pytest.raises(ValueError):
        prompt_to_prompt(pipe, A, B, weights={"circle": 2.0}, blend=("star", "circle"), steps=2)
    prompt_to_prompt(pipe, A, B, steps=2)
    assert not any(pipe.net.get_submodule(n).fns for n in tap_names(pipe.net))


def test_only_looking_changes_nothing(pipe):
    ts, cond = pipe.schedule.timesteps(3, spacing="trailing"), pipe.embed(A)
    denoise = cfg(pipe.eps, pipe.null(), 3.0)
    plain = sample(denoise, pipe.schedule, pipe.noise(1), ts, cond)
    with tap(pipe.net, CROSS, Maps((16, 16)).look):
        looked = sample(denoise, pipe.schedule, pipe.noise(1), ts, cond)
    assert (plain - looked).abs().max() < 1e-4


def test_word_maps_have_one_picture_per_word(pipe):
    image, words, maps = word_maps(pipe, A, steps=2)
    assert (
        words == A.split()
        and maps.shape == (7, 64, 64)
        and maps.amax() <= 1 + 1e-6
        and image.shape == (1, 3, 64, 64)
    )


@pytest.mark.parametrize(
    "bad",
    [dict(cross=1.5), dict(self_=-1), dict(steps=0), dict(kind="swap"), dict(weights={"dog": 2})],
)
def test_bad_arguments_are_refused(pipe, bad):
    with pytest.raises(ValueError):
        prompt_to_prompt(pipe, A, B, **bad)


def test_models_without_text_are_refused():
    with pytest.raises(ValueError, match="text"):
        prompt_to_prompt(minidiff.build("tiny-pixel"), "red circle", "green circle")


def test_the_measured_threshold_is_the_first_step_at_which_the_words_agree(pipe, monkeypatch):
    counted = []

    def read(self):  # the two words look apart in the first two steps
        maps = torch.zeros(2, TOK.context, 8, 8)
        maps[0, :, 0, 0] = maps[1, :, 0, 0 if len(counted) > 2 else 5] = 1
        return maps

    # one collection per step
    monkeypatch.setattr(Maps, "__init__", lambda self, side: counted.append(side))
    monkeypatch.setattr(Maps, "look", lambda self, probs, name="": None)
    monkeypatch.setattr(Maps, "read", read)
    assert auto_cross(pipe, A, B, pipe.noise(1), steps=4) == 0.5


def test_the_measured_threshold_of_equal_prompts_is_none_at_all(pipe):
    assert auto_cross(pipe, A, A, pipe.noise(1), steps=2) == 0
    assert auto_cross(pipe, A, B, pipe.noise(1), steps=2, agree=0) == 0
    assert auto_cross(pipe, A, B, pipe.noise(1), steps=2, agree=1.1) == 1


def test_a_threshold_that_is_not_given_is_measured(pipe):
    image = prompt_to_prompt(pipe, A, B, cross=None, steps=2)
    cross = auto_cross(pipe, A, B, pipe.noise(1), steps=2)
    assert torch.equal(image, prompt_to_prompt(pipe, A, B, cross=cross, steps=2))


def test_a_list_of_pairs_is_edited_as_each_pair_alone(pipe):
    sources, targets = [A, LONG], [B, "a red circle on a dotted yellow background"]
    both = prompt_to_prompt(
        pipe, sources, targets, steps=3, seed=5, weights={"circle": 2.0}, blend=("circle", "circle")
    )
    for i in range(2):
        alone = prompt_to_prompt(
            pipe,
            sources[i],
            targets[i],
            steps=3,
            seed=5 + i,
            weights={"circle": 2.0},
            blend=("circle", "circle"),
        )
        assert (both[i::2] - alone).abs().max() < 1e-3


def test_lists_of_unequal_length_are_refused(pipe):
    with pytest.raises(ValueError, match="a pair for each"):
        prompt_to_prompt(pipe, [A, A], [B], steps=2)
