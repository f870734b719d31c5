"""Maps know the latent they were made from; words are read once, by the tokenizer."""

import pytest
import torch

from minidiff.core.taps import tap
from minidiff.data import shapes
from minidiff.editing.masactrl import masactrl
from minidiff.editing.prompt_to_prompt import token_map
from minidiff.editing.real_pictures import direct_inversion
from minidiff.guidance.attend_and_excite import content
from minidiff.models.tokenizer import Tokenizer
from minidiff.pipe.maps import CROSS, Maps, map_size, positions, usual_side

A, B = "a red circle on a blue background", "a green circle on a blue background"
MERGES = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]


@pytest.fixture(scope="module")
def pipe(awake):
    return awake("tiny")


@pytest.mark.parametrize(
    "pixels, latent, size",
    [
        (64, (16, 16), (8, 8)),
        (256, (8, 32), (8, 32)),
        (64, (8, 32), (4, 16)),
        (96, (16, 24), (8, 12)),
        (15, (9, 5), (5, 3)),
        (1, (7, 5), (1, 1)),
    ],
)
def test_a_map_is_folded_as_its_latent_was_laid_out(pixels, latent, size):
    assert map_size(pixels, latent) == size


def test_a_map_of_another_latent_is_refused():
    with pytest.raises(ValueError, match="was not made from"):
        map_size(60, (16, 16))


def test_maps_average_what_is_of_their_size_and_no_other():
    maps = Maps((8, 32), side=4)
    small = torch.rand(1, 2, 64, 5)
    maps.look(small)
    maps.look(torch.rand(1, 2, 256, 5))  # 8 x 32: not asked for
    maps.look(3 * small)
    found = maps.read()
    assert found.shape == (1, 5, 4, 16)
    assert torch.allclose(found[0, 2].flatten(), 2 * small.mean(1)[0, :, 2], atol=1e-6)


def test_maps_that_saw_nothing_say_so():
    with pytest.raises(ValueError, match="shorter side of 5"):
        Maps((16, 16), side=5).read()


def test_the_usual_side_is_a_quarter_of_the_shorter_one_and_at_least_8():
    assert [usual_side(s) for s in ((64, 64), (64, 96), (16, 16), (8, 32))] == [16, 16, 8, 8]


def test_what_a_network_shows_is_folded_by_its_own_latent(pipe):
    x = torch.randn(1, 4, 16, 24)
    maps = Maps(x.shape[2:])
    with tap(pipe.net, CROSS, maps.look):
        pipe.eps(x, 500, pipe.embed(A))
    assert maps.read().shape[2:] == (8, 12)


@pytest.mark.parametrize("height, width", [(64, 96), (32, 128)])
def test_attention_edits_take_pictures_that_are_not_square(pipe, height, width):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, height, width, generator=generator) * 2 - 1
    out = direct_inversion(
        pipe, image, A, B, steps=2, blend=("circle", "circle"), blend_from=0.0, cross=None
    )
    free = masactrl(pipe, image, A, B, steps=2, start=0.0)
    bound = masactrl(pipe, image, A, B, steps=2, start=0.0, words=("circle", "circle"))
    assert out.shape == free.shape == image.shape and out.isfinite().all()
    assert (free - bound).abs().max() > 0  # words are not ignored


# ---- words ----


def bpe(context=12):
    return Tokenizer.bpe(MERGES, context=context)


@pytest.mark.parametrize("word", ["cat", "Cat", "dog"])
def test_punctuation_and_case_belong_to_no_word(word):
    assert positions(bpe(), "a cat, a DOG!", word)


def test_words_to_excite_are_the_tokenizers_words():
    assert content(bpe(), "a cat, a dog") == ("cat", "dog")


def test_a_letter_of_two_parts_is_the_letter():
    assert positions(bpe(), "a cafe\u0301", "caf\u00e9") == positions(
        bpe(), "a caf\u00e9", "cafe\u0301"
    )


@pytest.mark.filterwarnings("ignore:prompt has")
def test_a_prompt_past_the_context_is_aligned_as_far_as_it_is_read():
    tok = bpe(context=6)
    long = "a cat a dog a cat a dog a cat"
    for source, target in ((long, "dog " + long), ("a cat", long), (long, "a cat")):
        M, alpha = token_map(tok, source, target, "refine")
        assert set(M.sum(0).tolist()) <= {0.0, 1.0} and torch.equal(M.sum(0), alpha)


def test_a_prompt_without_a_word_is_told_to_be_empty():
    words = Tokenizer.words(shapes.VOCAB)
    with pytest.warns(UserWarning, match="counts as the empty prompt"):
        assert torch.equal(words("..."), words(""))
