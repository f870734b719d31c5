"""Where a tokenizer comes from: folders in every published layout, files, the cache, one fetch;
what is refused.
"""

import gzip
import hashlib
import json
import sys
from pathlib import Path

import pytest

from minidiff.formats import merges as room
from minidiff.formats.merges import cache, clip_tokenizer, read_merges
from minidiff.models.bpe import START, STOP
from minidiff.models.tokenizer import Tokenizer

MERGES = Path(__file__).parents[3] / "shared/data/clip/bpe_simple_vocab_16e6.txt.gz"
PAIRS = [("a", "b"), ("ab", "ab</w>"), ("b", "c</w>"), ("a", "b</w>")]
LIST = "#version: 0.2\na b\nab ab</w>\nb c</w>\na b</w>\n"
SETTINGS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "added_tokens.json",
)


@pytest.fixture
def make(tmp_path):
    """make(file stem = its JSON content, ...) writes a tokenizer folder of four merges; None leaves
    a file out.
    """

    def write(merges: str | None = LIST, **files) -> Path:
        folder = tmp_path / "tokenizer"
        folder.mkdir(exist_ok=True)
        files = {"vocab": Tokenizer.bpe(PAIRS).speller.id, **files}
        if merges is not None:
            (folder / "merges.txt").write_text(merges, encoding="utf-8")
        for name, content in files.items():
            if content is not None:
                (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        return folder

    return write


@pytest.fixture
def small(monkeypatch):
    """CLIP's list has four merges for the length of a test."""
    monkeypatch.setattr(room, "COUNT", 4)


def token(name: str, normalized: bool, **more) -> dict:
    return {
        "content": name,
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
        "normalized": normalized,
        **more,
    }


def refused(source, kind=ValueError, **options) -> str:
    with pytest.raises(kind) as e:
        clip_tokenizer(source, **options)
    assert "\n" not in str(e.value) and str(source) in str(e.value), str(e.value)
    return str(e.value)


# ---- folders -------------------------------------------------------------------------------------


def test_a_folder_spells_by_its_merges_and_frames_with_its_padding(make):
    tok = clip_tokenizer(make(special_tokens_map={"pad_token": STOP}), context=8)
    assert tok("abab bc").tolist() == [[516, 513, 514, 517, 517, 517, 517, 517]]
    tok = clip_tokenizer(make(special_tokens_map={"pad_token": "!"}), context=8)
    assert tok("abab bc").tolist() == [[516, 513, 514, 517, 0, 0, 0, 0]]


def test_the_padding_of_stable_diffusion_2_is_in_the_map_and_its_config_says_otherwise(make):
    folder = make(tokenizer_config={"pad_token": STOP}, special_tokens_map={"pad_token": "!"})
    assert clip_tokenizer(folder).pad == 0
    # a newer config stands alone
    folder = make(tokenizer_config={"pad_token": STOP, "added_tokens_decoder": {}})
    assert clip_tokenizer(folder).pad == 517


def test_the_padding_can_be_told_and_is_the_end_token_where_nobody_says(make, small):
    folder = make(special_tokens_map={"pad_token": "!"})
    assert clip_tokenizer(folder, pad="eos").pad == 517
    assert (
        clip_tokenizer(folder / "merges.txt").pad == 517
        and clip_tokenizer(folder / "merges.txt", pad="zero").pad == 0
    )
    with pytest.raises(ValueError, match="pad is 'left'; expected \"eos\""):
        clip_tokenizer(folder, pad="left")


@pytest.mark.parametrize("as_text", [True, False])
def test_the_one_file_that_newer_versions_write_says_the_same(make, as_text):
    vocab = Tokenizer.bpe(PAIRS).speller.id
    whole = {
        "model": {"vocab": vocab, "merges": [" ".join(p) for p in PAIRS] if as_text else PAIRS},
        "added_tokens": [
            token(START, True, id=516),
            token(STOP, False, id=517),
            token("<cat>", True, id=518),
        ],
    }
    tok = clip_tokenizer(
        make(None, vocab=None, tokenizer=whole, tokenizer_config={"pad_token": "!"})
    )
    assert tok.pad == 0 and tok.ids("abab <Cat> bc") == [513, 518, 514]
    assert tok.ids("<|STARTOFTEXT|>") == [516] and 517 not in tok.ids("<|ENDOFTEXT|>")


@pytest.mark.parametrize("place", ["added_tokens", "tokenizer_config", "tokenizer"])
def test_added_words_are_found_wherever_the_folder_lists_them(make, place):
    words = {"<dog>": 520, "<cat>": 518, "<cat>_1": 519}
    content = {
        "added_tokens": words,
        "tokenizer_config": {
            "added_tokens_decoder": {str(i): token(n, True) for n, i in words.items()}
        },
        "tokenizer": {"added_tokens": [token(n, True, id=i) for n, i in words.items()]},
    }
    tok = clip_tokenizer(make(**{place: content[place]}))
    # <cat> is a word of two tokens
    assert len(tok) == 521 and tok.ids("<CAT> <dog>") == [518, 519, 520]


def test_one_word_named_in_capitals_is_found_in_any_case(make):
    assert clip_tokenizer(make(added_tokens={"<Cat-Toy>": 518})).ids("a <cat-toy>")[-1] == 518


def test_names_of_the_frame_count_in_any_case_only_where_the_folder_says_so(make):
    names = {
        "bos_token": token(START, True),
        "eos_token": token(STOP, True),
        "unk_token": token(STOP, True),
    }
    # Stable Diffusion 1: the padding's own
    tok = clip_tokenizer(make(special_tokens_map={**names, "pad_token": STOP}))
    # entry comes last
    assert tok.ids("<|StartOfText|>") == [516] and 517 not in tok.ids("<|EndOfText|>")
    tok = clip_tokenizer(make(special_tokens_map={**names, "pad_token": "!"}))
    assert tok.ids("<|EndOfText|>") == [517]


@pytest.mark.oracle
@pytest.mark.parametrize("pad", [STOP, "!"], ids=["sd1", "sd2"])
def test_what_transformers_saves_is_read_back_as_it_reads_it(tmp_path, make, pad):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (development extra)"
    )
    folder = make(
        special_tokens_map={
            "bos_token": token(START, True),
            "eos_token": token(STOP, True),
            "pad_token": pad,
        },
        tokenizer_config={
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "pad_token": STOP,
        },
    )
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    theirs.add_tokens(["<cat>", "<Dog>"])
    theirs.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved/merges.txt").exists()
    again, ours = (
        transformers.CLIPTokenizer.from_pretrained(tmp_path / "saved"),
        clip_tokenizer(tmp_path / "saved"),
    )
    texts = [
        "abab bc!",
        "a <CAT>, <dog>s",
        f"<|STARTOFTEXT|> <|ENDOFTEXT|>! {STOP}{START}",
        "cab " * 90,
        "",
    ]
    for text in texts[:3] + texts[4:]:
        assert [ours.bos, *ours.ids(text), ours.eos] == again(text)["input_ids"], text
    with pytest.warns(UserWarning, match="75 fit"):
        rows = ours(texts)
    assert (
        rows.tolist()
        == again(texts, padding="max_length", truncation=True, max_length=77)["input_ids"]
    )


def test_damaged_and_foreign_folders_are_refused_in_one_line(make, tmp_path):
    good = Tokenizer.bpe(PAIRS).speller.id
    one = token("<cat>", True)
    cases = [
        (
            {"merges": LIST.replace("b c</w>\n", "")},
            "has 518 tokens, its merges make 517; they differ at 'bc</w>'",
        ),
        ({"vocab": {**good, "bc</w>": 3}}, "differ at 'bc</w>': id 3, expected 514"),
        ({"vocab": {**good, "new": 518}}, "has 519 tokens, its merges make 518"),
        ({"vocab": None}, "4 merges, CLIP has 48894"),
        ({"merges": "<!doctype html>\n<html>"}, "no '#version'"),
        ({"merges": LIST + "a b c\n"}, "'a b c' is no pair"),
        ({"special_tokens_map": {"pad_token": "<pad>"}}, "pads with '<pad>'"),
        ({"special_tokens_map": {"bos_token": "<s>"}}, "frames with '<s>'"),
        ({"special_tokens_map": {"pad_token": 3}}, "pads with 3"),
        ({"special_tokens_map": {"pad_token": {}}}, "content"),
        ({"added_tokens": {"<cat>": 519}}, "gaps: '<cat>' 519"),
        ({"added_tokens": {"<cat>": 518, "<dog>": 518}}, "gaps"),
        ({"added_tokens": {"<cat>": "x"}}, "no readable tokenizer folder"),
        ({"added_tokens": {"two words": 518}}, "'two words' must be"),
        ({"added_tokens": {"<CAT>": 518, "<cat>": 519}}, "'<cat>' is taken"),
        ({"tokenizer_config": {"added_tokens_decoder": [one]}}, "no readable tokenizer folder"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"x": one}}},
            "no readable tokenizer folder",
        ),
        (
            {"merges": None, "vocab": None, "tokenizer": {"model": {}}},
            "no readable tokenizer folder",
        ),
        (
            {
                "merges": None,
                "vocab": None,
                "tokenizer": {"model": {"merges": [["a"]], "vocab": good}},
            },
            "no pair",
        ),
    ]
    for content, expected in cases:
        folder = make(**content)
        with pytest.raises(ValueError, match=expected) as e:
            clip_tokenizer(folder)
        assert "\n" not in str(e.value) and str(folder) in str(e.value), content
        for name in (*SETTINGS, "merges.txt"):
            (folder / name).unlink(missing_ok=True)
    folder.joinpath("merges.txt").write_text(LIST)
    folder.joinpath("vocab.json").write_text("<html>")
    assert "vocab.json is no readable JSON file" in refused(folder)


def test_nothing_there_is_said_with_what_was_expected(tmp_path):
    assert "merges.txt" in refused(tmp_path, FileNotFoundError)
    assert "expected a tokenizer folder" in refused(tmp_path / "absent", FileNotFoundError)


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_list_may_be_packed_have_any_name_and_line_ending_and_go_on_after_what_clip_uses(
    tmp_path, small, packed, ending
):
    raw = (LIST + "c d\n" * 3).replace("\n", ending).encode()
    (tmp_path / "list").write_bytes(gzip.compress(raw) if packed else raw)
    assert read_merges(tmp_path / "list") == PAIRS
    assert clip_tokenizer(tmp_path / "list").ids("abab") == [513]


def test_broken_lists_are_refused_in_one_line(tmp_path):
    head, line = b"#version: 0.2\n", b"a b\n"
    cases = {
        "cut.gz": (gzip.compress(head + line * 50_000)[:-40], "no readable merge list"),
        "short.txt": (head + line, "holds 1 merges, CLIP has 48894"),
        "odd.txt": (head + line + b"a b c\n" * 48_894, "'a b c' is no pair"),
        "head.txt": (line * 48_895, "'#version'"),
        "empty": (b"", "'#version'"),
        "latin": (head + b"\xe9 b\n", "can't decode"),
        "bomb.gz": (gzip.compress(bytes(9 << 20)), "more than"),
    }
    for name, (raw, expected) in cases.items():
        (tmp_path / name).write_bytes(raw)
        assert expected in refused(tmp_path / name), name


@pytest.mark.skipif(
    not MERGES.is_file(), reason="CLIP's merge list is not here; it is not part of the repository"
)
def test_the_published_list_is_clips_whole_vocabulary_and_has_the_published_hash(tmp_path):
    assert hashlib.sha256(MERGES.read_bytes()).hexdigest() == room.SHA256
    tok = clip_tokenizer(MERGES)
    assert len(tok) == 49408 and tok("a photo of a cat")[0, :8].tolist() == [
        49406,
        320,
        1125,
        539,
        320,
        2368,
        49407,
        49407,
    ]


# ---- the cache and the one fetch (from file:// addresses; no network) ----------------------------


@pytest.fixture
def served(tmp_path, monkeypatch, small):
    """A list of four merges at an address, whose hash is the right one; an empty cache."""
    there = tmp_path / "served/bpe_simple_vocab_16e6.txt.gz"
    there.parent.mkdir()
    there.write_bytes(gzip.compress(LIST.encode(), mtime=0))
    monkeypatch.setattr(room, "SHA256", hashlib.sha256(there.read_bytes()).hexdigest())
    monkeypatch.setattr(room, "URLS", (there.as_uri(), (tmp_path / "mirror.gz").as_uri()))
    monkeypatch.setenv("MINIDIFF_CACHE", str(tmp_path / "own/cache"))
    return there


def test_the_list_is_fetched_once_and_then_taken_from_the_cache(served, tmp_path):
    assert clip_tokenizer().ids("abab") == [513]
    assert [p.name for p in (tmp_path / "own/cache").iterdir()] == [served.name]
    served.unlink()
    assert clip_tokenizer(pad="zero").ids("abab") == [513]


def test_the_second_address_helps_out_when_the_first_is_gone_or_wrong(served, tmp_path):
    served.rename(tmp_path / "mirror.gz")
    assert clip_tokenizer().ids("abab") == [513]
    (tmp_path / "own/cache" / served.name).unlink()
    served.write_text("<html>Please log in</html>")
    assert clip_tokenizer().ids("abab") == [513]


def test_without_network_one_line_says_where_to_put_the_file(served, tmp_path):
    served.unlink()
    with pytest.raises(OSError, match="could not download") as e:
        clip_tokenizer()
    text = str(e.value)
    assert "\n" not in text and all(url in text for url in room.URLS)
    assert f"put {served.name} into {tmp_path / 'own/cache'} by hand" in text
    assert list((tmp_path / "own/cache").iterdir()) == []


def test_what_comes_with_another_hash_is_not_kept(served, tmp_path):
    served.write_bytes(served.read_bytes() + b"x")
    with pytest.raises(OSError, match=r"came with SHA-256 \w{64}, expected"):
        clip_tokenizer()
    assert list((tmp_path / "own/cache").iterdir()) == []


def test_a_damaged_file_in_the_cache_is_named(served, tmp_path):
    clip_tokenizer()
    path = tmp_path / "own/cache" / served.name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is not CLIP's merge list") as e:
        clip_tokenizer()
    assert str(path) in str(e.value)


def test_the_cache_is_where_the_variable_or_the_system_says(monkeypatch):
    for name in ("MINIDIFF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for system, usual in (
        ("linux", ".cache"),
        ("darwin", "Library/Caches"),
        ("win32", "AppData/Local"),
    ):
        monkeypatch.setattr(sys, "platform", system)
        assert cache() == Path.home() / usual / "minidiff"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache() == Path("/x/minidiff")
    monkeypatch.setenv("MINIDIFF_CACHE", "~/y")
    assert cache() == Path.home() / "y"


def test_the_public_addresses_and_the_hash_are_the_default():
    assert (
        room.URLS[0]
        == "https://openaipublic.blob.core.windows.net/clip/bpe_simple_vocab_16e6.txt.gz"
    )
    assert all(
        url.startswith("https://") and url.endswith("/bpe_simple_vocab_16e6.txt.gz")
        for url in room.URLS
    )
    assert (
        room.SHA256 == "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
        and room.COUNT == 48_894
    )
