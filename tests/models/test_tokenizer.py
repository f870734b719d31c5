"""Prompts to ids: CLIP's byte pairs against known ids and transformers, the word tokenizer against its contract."""
import gzip
import json
import random
import warnings
from pathlib import Path

import pytest
import torch

from minidiff.models.tokenizer import BytePairs, Tokenizer, byte_letters, clean, join

MERGES = Path(__file__).parents[3] / "shared/data/clip/bpe_simple_vocab_16e6.txt.gz"
VOCAB = "a red blue circle square on background left of".split()
GOLDEN = {
    "a photo of a cat": "320 1125 539 320 2368", "sks dog": "48136 1929", "it's 2023": "585 568 273 271 273 274",
    "A Large RED circle, on a striped blue background!": "320 3638 736 7117 267 525 320 22192 1746 5994 256",
    "café ☃": "15304 1741 481", "don't": "847 713", "1234": "272 273 274 275", "😀": "7334",
    "hello   world\n": "3306 1002", "": "",
}


@pytest.fixture(scope="module")
def bpe():
    if not MERGES.is_file():
        pytest.skip("CLIP's merge list bpe_simple_vocab_16e6.txt.gz is not here; it is not part of the repository")
    return Tokenizer.bpe(MERGES)


@pytest.fixture
def words():
    return Tokenizer.words(VOCAB)


@pytest.fixture
def small_bpe(tmp_path):
    """A vocabulary of four merges, so that ids can be worked out by hand: merged symbols start at id 512."""
    path = tmp_path / "merges.txt"
    path.write_text("#version: 0.2\na b\nab ab</w>\nb c</w>\na b</w>\n")
    return Tokenizer.bpe(path, context=8, merges=4)


# --- byte pairs -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", GOLDEN)
def test_clip_ids_are_the_known_ones(bpe, text):
    assert " ".join(map(str, bpe.ids(text))) == GOLDEN[text]


def test_clip_vocabulary_has_49408_names_and_known_corners(bpe):
    names = bpe.speller.names
    assert len(bpe) == len(set(names)) == 49408
    assert (names[0], names[256], names[320], names[49406]) == ("!", "!</w>", "a</w>", "<|startoftext|>")
    assert (bpe.bos, bpe.eos) == (49406, 49407)


def test_padding_is_the_end_token_for_sd1_and_zero_for_sd2(bpe):
    ids = [49406, 2368, 49407]
    zero = Tokenizer.bpe(MERGES, pad="zero")
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
    assert [i for _, at in spans for i in at] == list(range(1, bpe.length('a "Corgi", smiling - xylobrontosaurus') - 1))
    row = bpe('a "Corgi", smiling - xylobrontosaurus')[0]
    for word, at in spans:
        assert word in bpe.decode(row[at]).replace(" ", "")


def test_spans_never_point_beyond_the_frame(bpe):
    spans = bpe.token_spans("cat " * 74 + "xylobrontosaurus lost")
    assert spans[-1] == ("xylobrontosaurus", [75]) and len(spans) == 75


def test_decode_gives_the_words_back_whatever_the_padding(bpe):
    assert bpe.decode(bpe("A  café, it's ☃")[0]) == "a café , it 's ☃"
    assert Tokenizer.bpe(MERGES, pad="zero").decode(Tokenizer.bpe(MERGES, pad="zero")("cat")[0]) == "cat"


def test_a_new_word_gets_its_own_id_and_no_longer_word_contains_it(bpe):
    tok = Tokenizer.bpe(MERGES)
    before = tok.ids("a toymonster")
    assert tok.add("<my-cat>") == 49408 and tok.add("toymon") == 49409
    assert tok.ids("a <My-Cat>, toymon") == [320, 49408, 267, 49409]
    assert tok.ids("a toymonster") == before
    assert tok.ids("(<my-cat>)") == [*tok.ids("("), 49408, *tok.ids(")")]
    assert tok.ids("<my-cat>s") == [49408, *tok.ids("s")] and tok.add("<my-cat>s") == 49410
    assert tok.ids("<my-cat>s <my-cat>") == [49410, 49408]  # the longest name that fits
    assert tok.token_spans("a <my-cat>, sitting")[1] == ("<my-cat>", [2, 3])
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
        assert tok.read(ids).replace(" ", "") == text


def test_cleaning_resolves_entities_twice_and_composes_accents():
    assert clean("  A &amp;amp; B&nbsp;\tC ") == "a & b c"
    assert clean("cafe\u0301") == "caf\u00e9"


def test_broken_merge_lists_are_refused_in_one_line(tmp_path):
    whole = gzip.compress(b"#version: 0.2\n" + b"a b\n" * 50_000)
    head, line = b"#version: 0.2\n", b"a b\n"
    cases = {"cut.gz": (whole[:-40], "no readable"), "short.txt": (head + line, "holds 1 lines"),
             "odd.txt": (head + b"a b c\n" * 48_894, "48894 pairs"), "head.txt": (line * 48_895, "#version")}
    for name, (raw, message) in cases.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(ValueError, match=message) as e:
            Tokenizer.bpe(tmp_path / name)
        assert "\n" not in str(e.value)
    with pytest.raises(FileNotFoundError, match="no merge list"):
        Tokenizer.bpe(tmp_path / "absent")


def strings(seed: int = 0, n: int = 300) -> list[str]:
    """Prompts, contractions, digits, punctuation, scripts, symbols and random mixtures of them."""
    rng = random.Random(seed)
    parts = ("a photo of cat corgi xylobrontosaurus it's don't WE'LL they've I'm he'd 'tis 2023 1,234.5 3d x² ½ Ⅷ ٣٤ "
             "_under_ snake_case ... !? -- “quoted” ‘single’ naïve café CAFÉ Straße 日本語 привет мир שלום αβγ ñ 😀 🦊 "
             "👩\u200d🚀 c++ #tag @user a/b 100% $5 ~ ^ `code` (brackets) [x] {y} <b> & é <|endoftext|> Ünïcödé ﬁne "
             "'''s ''ll s' 's").split()
    space = [" ", " ", " ", "  ", "\n", "\t", "", ", "]
    mixed = ["".join(rng.choice(parts) + rng.choice(space) for _ in range(rng.randint(1, 24))) for _ in range(n)]
    return mixed + parts + ["", " ", "word " * 90]


@pytest.mark.oracle
def test_bpe_equals_transformers_clip_tokenizer(bpe, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (development extra)")
    speller = bpe.speller
    (tmp_path / "vocab.json").write_text(json.dumps(speller.id), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *(" ".join(p) for p in speller.rank)])
    (tmp_path / "merges.txt").write_text(merges + "\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    for text in strings():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = bpe(text)[0].tolist()
        ids = theirs(text, padding="max_length", truncation=True, max_length=77)["input_ids"]
        assert ours == ids, text


# --- whole words ------------------------------------------------------------------------------------------------------

def test_word_ids_follow_the_vocabulary_after_pad_bos_eos(words):
    assert words(["A red circle,", ""]).tolist() == [[1, 3, 4, 6, 2] + [0] * 15, [1, 2] + [0] * 18]
    assert words("red").dtype == torch.int64 and words("red").shape == (1, 20)
    assert len(words) == 3 + len(VOCAB) + 2


def test_unknown_words_are_named_all_at_once_with_the_known_ones(words):
    with pytest.raises(ValueError, match=r"unknown words: dog purple; this tokenizer knows: .*circle") as e:
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
    assert words.token_spans(text) == [("a", [1]), ("red-circle", [2, 3]), ("left", [4]), ("of", [5]), ("a", [6]),
                                       ("blue", [7]), ("square", [8])]
    assert words.words_of(text) == [w for w, _ in words.token_spans(text)]
    assert words.length(text) == 10


def test_words_survive_the_round_trip(words):
    assert words.decode(words("Red circle LEFT of a blue square")[0]) == "red circle left of a blue square"


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
