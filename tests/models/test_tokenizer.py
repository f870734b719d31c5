"""Prompts to ids: CLIP's byte pairs against known ids and transformers, the word tokenizer against
its contract.
"""

import json
import random
import re
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
import torch

from minidiff.formats.merges import clip_tokenizer
from minidiff.models.bpe import START, STOP, BytePairs, byte_letters, clean, cut, join
from minidiff.models.tokenizer import SPACE, Tokenizer

MERGES = Path(__file__).parents[3] / "shared/data/clip/bpe_simple_vocab_16e6.txt.gz"
VOCAB = "a red blue circle square on background left of".split()
GOLDEN = {
    "a photo of a cat": "320 1125 539 320 2368",
    "sks dog": "48136 1929",
    "it's 2023": "585 568 273 271 273 274",
    "A Large RED circle, on a striped blue background!": "320 3638 736 7117 267 525 320 22192 1746 5994 256",
    "café ☃": "15304 1741 481",
    "don't": "847 713",
    "1234": "272 273 274 275",
    "😀": "7334",
    "hello   world\n": "3306 1002",
    "": "",
}


@pytest.fixture(scope="module")
def bpe():
    if not MERGES.is_file():
        pytest.skip(
            "CLIP's merge list bpe_simple_vocab_16e6.txt.gz is not here; it is not part of "
            "the repository"
        )
    return clip_tokenizer(MERGES)


@pytest.fixture
def words():
    return Tokenizer.words(VOCAB)


@pytest.fixture
def small_bpe():
    """A vocabulary of four merges, so that ids can be worked out by hand: merged symbols start at
    id 512.
    """
    return Tokenizer.bpe([("a", "b"), ("ab", "ab</w>"), ("b", "c</w>"), ("a", "b</w>")], context=8)


# ---- byte pairs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", GOLDEN)
def test_clip_ids_are_the_known_ones(bpe, text):
    assert " ".join(map(str, bpe.ids(text))) == GOLDEN[text]


def test_clip_vocabulary_has_49408_names_and_known_corners(bpe):
    names = bpe.speller.names
    assert len(bpe) == len(set(names)) == 49408
    assert (names[0], names[256], names[320], names[49406]) == (
        "!",
        "!</w>",
        "a</w>",
        "<|startoftext|>",
    )
    assert (bpe.bos, bpe.eos) == (49406, 49407)


def test_padding_is_the_end_token_for_sd1_and_zero_for_sd2(bpe):
    ids = [49406, 2368, 49407]
    zero = clip_tokenizer(MERGES, pad="zero")
    assert bpe("cat").tolist() == [ids + [49407] * 74]
    assert zero("cat").tolist() == [ids + [0] * 74]


def test_a_cut_prompt_ends_with_the_end_token_and_the_warning_names_what_was_lost(bpe):
    with pytest.warns(UserWarning, match=r"76 tokens, 75 fit; cut off: 'corgi'"):
        row = bpe("cat " * 75 + "corgi")[0]
    assert len(row) == 77 and row[75] == 2368 and row[76] == 49407


def test_a_prompt_that_just_fits_is_not_cut(bpe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (bpe("cat " * 75)[0, 1:76] == 2368).all()
    assert bpe.length("cat " * 75) == 77


def test_spans_name_all_pieces_of_a_word_and_trim_punctuation(bpe):
    spans = bpe.token_spans('a "Corgi", smiling - xylobrontosaurus')
    assert [w for w, _ in spans] == ["a", "corgi", "smiling", "-", "xylobrontosaurus"]
    assert [i for _, at in spans for i in at] == list(
        range(1, bpe.length('a "Corgi", smiling - xylobrontosaurus') - 1)
    )
    row = bpe('a "Corgi", smiling - xylobrontosaurus')[0]
    for word, at in spans:
        assert word in bpe.decode(row[at]).replace(" ", "")


def test_spans_never_point_beyond_the_frame(bpe):
    spans = bpe.token_spans("cat " * 74 + "xylobrontosaurus lost")
    assert spans[-1] == ("xylobrontosaurus", [75]) and len(spans) == 75


def test_decode_gives_the_words_back_whatever_the_padding(bpe):
    assert bpe.decode(bpe("A  café, it's ☃")[0]) == "a café , it 's ☃"
    assert (zero := clip_tokenizer(MERGES, pad="zero")).decode(zero("cat")[0]) == "cat"


def test_a_new_word_gets_its_own_id_and_no_longer_word_contains_it(bpe):
    tok = clip_tokenizer(MERGES)
    before = tok.ids("a toymonster")
    assert tok.add("<my-cat>") == 49408 and tok.add("toymon") == 49409
    assert tok.ids("a <My-Cat>, toymon") == [320, 49408, 267, 49409]
    assert tok.ids("a toymonster") == before
    assert tok.ids("(<my-cat>)") == [*tok.ids("("), 49408, *tok.ids(")")]
    assert tok.ids("<my-cat>s") == [49408, *tok.ids("s")] and tok.add("<my-cat>s") == 49410
    assert tok.ids("<my-cat>s <my-cat>") == [49410, 49408]  # the longest name that fits
    assert tok.token_spans("a <my-cat>, sitting")[1] == ("<my-cat>", [2, 3])
    assert tok.words_of("toymonster <my-cat>s") == ["toymonster", "<my-cat>s"]
    with pytest.raises(ValueError, match="taken"):
        tok.add("cat")


def test_lowest_rank_wins_and_every_occurrence_is_merged(small_bpe):
    last = {"c": small_bpe.speller.id["c</w>"], "a": small_bpe.speller.id["a</w>"]}
    assert small_bpe.ids("ab") == [515]  # "a b</w>", since the last symbol carries the word's end
    assert small_bpe.ids("abc") == [512, last["c"]]  # "a b" (rank 0) goes before "b c</w>" (rank 2)
    assert small_bpe.ids("ababa") == [512, 512, last["a"]]
    assert small_bpe.ids("abab") == [513]
    assert small_bpe.ids("bc") == [514]


def test_overlapping_pairs_merge_left_to_right():
    assert join(list("aaaab"), ("a", "a")) == ["aa", "aa", "b"]
    assert join(list("aaa"), ("a", "a")) == ["aa", "a"]


def test_byte_letters_are_256_distinct_printable_letters():
    letters = byte_letters()
    assert sorted(letters) == list(range(256)) and len(set(letters.values())) == 256
    assert all(c.isprintable() and not c.isspace() for c in letters.values())
    assert list(letters)[:3] == [33, 34, 35] and letters[32] == "Ġ"


def test_any_text_is_spelled_and_read_back_without_merges():
    tok = BytePairs([])
    for text in ("naïve", "日本語", "x²", "Ⅷ", "a_b", "🦊"):
        (ids,) = tok.spell([text])
        assert tok.read(ids).replace(" ", "") == clean(text)


def test_cleaning_composes_and_lowers_each_character_alone():
    assert clean("Cafe\u0301") == "caf\u00e9"
    assert clean("ΟΔΟΣ ΣΑΣ") == "οδοσ σασ" != "ΟΔΟΣ ΣΑΣ".lower()
    assert clean("&amp; İ") == "&amp; i\u0307"


def test_python_tells_letters_digits_and_spaces_apart_as_unicode_does():
    every = list(map(chr, range(sys.maxunicode + 1)))
    kinds = [unicodedata.category(c)[0] for c in every]
    assert [c.isalpha() for c in every] == [k == "L" for k in kinds]
    assert [c.isalnum() for c in every] == [k in "LN" for k in kinds]
    assert "".join(SPACE.findall("x".join(every))) == "".join(
        c for c in every if c.isspace() and not "\x1c" <= c <= "\x1f"
    )


def test_names_are_cut_out_leftmost_then_longest_and_letters_never_from_a_word():
    assert cut("a<x><x>s", ["<x>", "<x>s"]) == ["a", "<x>", "<x>s"]
    assert cut("toymonster toymon", ["toymon"]) == ["toymonster ", "toymon"]
    assert cut("abc", []) == ["abc"]


def test_the_frame_can_be_typed_but_only_as_it_is_written_unless_asked(bpe):
    assert bpe.ids(f"a{STOP}b {START}") == [320, 49407, 321, 49406]
    loud = bpe.ids("a<|EndOfText|>!")
    assert 49407 not in loud and len(loud) == 8  # a < | endof text | > !
    assert Tokenizer.bpe(list(bpe.speller.rank), anycase=[STOP]).ids("a<|EndOfText|>!") == [
        320,
        49407,
        256,
    ]


def test_where_an_exclamation_mark_pads_one_in_a_prompt_is_the_padding(bpe):
    zero = clip_tokenizer(MERGES, pad="zero")
    assert bpe.ids("wow! cat!!") == [2781, 256, 2368, 748]
    assert zero.ids("wow! cat!!") == [2781, 0, 2368, 0, 0]
    assert zero.words_of("wow! cat!!") == ["wow", "cat"] and zero.decode(zero("wow!")[0]) == "wow !"


def test_a_word_of_several_tokens_is_spelled_as_all_of_them_wherever_it_stands(small_bpe, words):
    for tok in (small_bpe, words):
        before = tok.ids("a")
        first = tok.add("<cat>", 3)
        assert (
            tok.ids("a <cat>,<Cat> a")[:7]
            == [*before, first, first + 1, first + 2]
            + (tok.ids(",") + [first, first + 1, first + 2])[:3]
        )
        assert tok.ids("<cat>_1 <cat>_2") == [first + 1, first + 2]
        assert tok.token_spans("a <cat>")[1] == ("<cat>", [2, 3, 4])
        size = len(tok)
        with pytest.raises(ValueError, match="taken"):
            tok.add("<cat>_1")
        with pytest.raises(ValueError, match="'<cat>_2' is taken"):
            tok.add("<cat>_2", 1)
        assert len(tok) == size == first + 3


def test_a_word_that_cannot_be_added_whole_adds_nothing(small_bpe):
    small_bpe.add("<dog>_2")
    size = len(small_bpe)
    with pytest.raises(ValueError, match="'<dog>_2' is taken"):
        small_bpe.add("<dog>", 3)
    assert len(small_bpe) == size and size - 1 not in small_bpe.ids("<dog>")


def test_a_word_spelled_before_is_spelled_anew_after_something_was_added(small_bpe):
    assert len(small_bpe.ids("(toy)")) == 5
    new = small_bpe.add("toy")
    assert small_bpe.ids("(toy)")[1] == new


@pytest.mark.parametrize("kind", ["bpe", "words"])
def test_half_a_character_is_refused(kind, small_bpe, words):
    with pytest.raises(ValueError, match="lone surrogate") as e:
        (small_bpe if kind == "bpe" else words)("a \ud83d cat")
    assert "\n" not in str(e.value) and str(e.value).isprintable()


def test_a_prompt_of_200_tokens_keeps_75_and_the_warning_says_the_other_125(bpe):
    prompt = [
        f"{a} {b}"
        for a in ("red", "blue", "green", "small", "large")
        for b in ("cat", "dog", "car", "tree") * 5
    ]
    with pytest.warns(UserWarning, match="200 tokens, 75 fit") as caught:
        row = bpe(" ".join(prompt))[0]
    assert row[1:76].tolist() == bpe.ids(" ".join(prompt))[:75] and row[76] == 49407
    assert (
        re.search("cut off: '(.*)'", str(caught[0].message))[1].split()
        == " ".join(prompt).split()[75:]
    )
    assert caught[0].filename == __file__


WORDS = (
    "a photo of cat corgi xylobrontosaurus it's don't WE'LL they've I'm he'd 'tis x's's '''s "
    "''ll 's s' O'REILLY'S rock'n'roll 2023 1,234.5 3d x² ½ Ⅷ viii ٣٤ _under_ snake_case __ "
    "... !? wow! !! -- “quoted” ‘single’ naïve café CAFÉ cafe\u0301 \u0301 e\u0301\u0323 "
    ">\u0338 Å ﬁne ŉ Straße ΟΔΟΣ İstanbul ǅ 日本語 一二三 한국어 \u1112\u1161\u11ab привет שלום हिन्दी "
    "ไทย αβγ 😀 🦊 👩\u200d🚀 👨\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 👍🏽 🇫🇷 1\ufe0f\u20e3 c++ "
    "#tag @user a/b 100% $5 ~ ^ `code` (brackets) {y} <b> & &amp; &amp;lt; &#39; \u200b "
    "\ufeff \u00ad \u202e \x00 \x07 \x1c \x1f \x7f <|startoftext|> <|endoftext|>!! "
    "(<|endoftext|> a<|startoftext|>b <|STARTOFTEXT|> <|EndOfText|>?! <|endoftext <cat-toy> "
    "pneumonoultramicroscopicsilicovolcanoconiosis"
).split(" ")
SPACES = [
    *"    ",
    "",
    "",
    ", ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "\x0b",
    "\x85",
    "\xa0",
    "\u2003",
    "\u2028",
    "\u3000",
]


def settled(c: str) -> bool:
    """A character, and if it is a combining mark, one old enough that every table knows where it
    belongs.
    """
    known = unicodedata.category(c) not in ("Cn", "Cs")
    return known and not (unicodedata.combining(c) and unicodedata.ucd_3_2_0.category(c) == "Cn")


def strings(seed: int = 0, n: int = 2000) -> list[str]:
    """Mixtures of the words above and of random characters, of one to two hundred tokens; every
    word alone.
    """
    rng = random.Random(seed)
    kinds = [
        [c for c in map(chr, range(a, b)) if settled(c)]
        for a, b in ((1, 128), (128, 0x3000), (0x3000, 0x20000))
    ]

    def part():
        return (
            rng.choice(WORDS)
            if rng.random() < 0.7
            else "".join(rng.choice(rng.choice(kinds)) for _ in range(rng.randint(1, 6)))
        )

    mixed = [
        "".join(part() + rng.choice(SPACES) for _ in range(rng.choice([1, 2, 4, 8, 40])))
        for _ in range(n - len(WORDS) - 4)
    ]
    return [*mixed, *WORDS, "", " \n", "word " * 200, "ab" * 500]


def published(folder: Path, speller: BytePairs, pad: str) -> Path:
    """A tokenizer folder with the files of a published Stable Diffusion: pad <|endoftext|> is 1,
    pad ! is 2.
    """

    def token(name):
        return {
            "content": name,
            "lstrip": False,
            "normalized": True,
            "rstrip": False,
            "single_word": False,
        }

    names = {"bos_token": token(START), "eos_token": token(STOP), "unk_token": token(STOP)}
    typed = {k: {"__type": "AddedToken", **v} for k, v in names.items()}
    merges = "\n".join(["#version: 0.2", *(" ".join(p) for p in speller.rank)]) + "\n"
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "pad_token": STOP,
        **typed,
    }
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(speller.id), encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({**names, "pad_token": pad}))
    return folder


@pytest.mark.oracle
@pytest.mark.parametrize("pad", [STOP, "!"], ids=["sd1", "sd2"])
def test_bpe_equals_transformers_clip_tokenizer_on_2000_nasty_strings(bpe, tmp_path, pad):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (development extra)"
    )
    folder = published(tmp_path / "tokenizer", bpe.speller, pad)
    theirs, ours = transformers.CLIPTokenizer.from_pretrained(folder), clip_tokenizer(folder)
    texts = strings()
    assert len(texts) == 2000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = ours(texts).tolist()
    expected = theirs(texts, padding="max_length", truncation=True, max_length=77)["input_ids"]
    wrong = [(t, ours.ids(t)) for t, a, b in zip(texts, rows, expected) if a != b]
    assert not wrong, wrong[:2]
    assert sum(len(ours.ids(t)) > 75 for t in texts) > 100  # many were cut


@pytest.mark.oracle
def test_characters_of_every_script_are_spelled_as_transformers_does(bpe, tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (development extra)"
    )
    theirs = transformers.CLIPTokenizer.from_pretrained(
        published(tmp_path / "tokenizer", bpe.speller, STOP)
    )
    points = [*range(1, 0x3100), *range(0x3100, 0x110000, 197)]
    known = [chr(i) for i in points if settled(chr(i))]
    lines = [
        " ".join(f"{c}x{c}'s1{c}" for c in known[i : i + 20]) for i in range(0, len(known), 20)
    ]
    expected = theirs(lines, add_special_tokens=False)["input_ids"]
    assert [t for t, ids in zip(lines, expected) if bpe.ids(t) != ids] == []


@pytest.mark.oracle
def test_what_differs_from_transformers_is_what_the_docstring_says(bpe, tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (development extra)"
    )
    theirs = transformers.CLIPTokenizer.from_pretrained(
        published(tmp_path / "tokenizer", bpe.speller, STOP)
    )
    their_ids = lambda text: theirs(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    # marks of Unicode 10; the second is their order
    typed, ordered = "x\u1dfc\u0d3b", "x\u0d3b\u1dfc"
    assert unicodedata.normalize("NFC", typed) == ordered
    assert bpe.ids(typed) == bpe.ids(ordered) == their_ids(ordered) != their_ids(typed)
    young = "\U00010d4a"  # a letter of Unicode 16
    if unicodedata.category(young) == "Cn":
        assert bpe.ids(f"a{young}a") != their_ids(f"a{young}a")
    ours = clip_tokenizer(tmp_path / "tokenizer")
    ours.add("toymon"), theirs.add_tokens("toymon")
    assert ours.ids("a toymon, Toymon") == their_ids("a toymon, Toymon") == [320, 49408, 267, 49408]
    assert ours.ids("toymonster") == bpe.ids("toymonster") and their_ids("toymonster") == [
        49408,
        *bpe.ids("ster"),
    ]


# ---- whole words ---------------------------------------------------------------------------------


def test_word_ids_follow_the_vocabulary_after_pad_bos_eos(words):
    assert words(["A red circle,", ""]).tolist() == [[1, 3, 4, 6, 2] + [0] * 15, [1, 2] + [0] * 18]
    assert words("red").dtype == torch.int64 and words("red").shape == (1, 20)
    assert len(words) == 3 + len(VOCAB) + 2


def test_unknown_words_are_named_all_at_once_with_the_known_ones(words):
    with pytest.raises(
        ValueError, match=r"unknown words: dog purple; this tokenizer knows: .*circle"
    ) as e:
        words("a purple dog on a red background")
    assert "\n" not in str(e.value)


def test_frame_tokens_cannot_be_typed(words):
    for text in ("a <pad> circle", "<eos>", "red <bos>"):
        with pytest.raises(ValueError, match="unknown words"):
            words(text)


def test_a_prompt_too_long_for_words_is_an_error(words):
    assert words("red " * 18).shape == (1, 20)
    with pytest.raises(ValueError, match="19 tokens, 18 fit"):
        words("red " * 19)


def test_reserved_new_words_are_the_last_two_ids(words):
    assert words.ids("a <new1>, <NEW2>") == [3, len(words) - 2, len(words) - 1]
    assert words.token_spans("a <new1>, red")[1] == ("<new1>", [2])


def test_word_spans_cover_each_position_once_and_skip_lone_punctuation(words):
    text = "a red-circle, left of - a (blue) square"
    assert words.token_spans(text) == [
        ("a", [1]),
        ("red-circle", [2, 3]),
        ("left", [4]),
        ("of", [5]),
        ("a", [6]),
        ("blue", [7]),
        ("square", [8]),
    ]
    assert words.words_of(text) == [w for w, _ in words.token_spans(text)]
    assert words.length(text) == 10


def test_words_survive_the_round_trip(words):
    assert (
        words.decode(words("Red circle LEFT of a blue square")[0])
        == "red circle left of a blue square"
    )


def test_an_added_word_is_known_from_then_on(words):
    new = words.add("dog")
    assert new == len(words) - 1 and words.ids("a red dog") == [3, 4, new]
    with pytest.raises(ValueError, match="taken"):
        words.add("dog")
    with pytest.raises(ValueError, match="lower case without spaces"):
        words.add("Two Words")


def test_bad_vocabularies_contexts_and_prompts_are_refused():
    for vocab in (["red", "red"], ["Red"], ["two words"], ["semi-colon"]):
        with pytest.raises(ValueError, match="vocabulary must be"):
            Tokenizer.words(vocab)
    with pytest.raises(ValueError, match="at least 3"):
        Tokenizer.words(["red"], context=2)
    with pytest.raises(TypeError, match="must be a str, got int"):
        Tokenizer.words(["red"])(["red", 3])
