"""The bench for other programs: what they are handed, and that pictures from anywhere are graded as
ours are.
"""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from minidiff.bench.bench import bench
from minidiff.bench.exchange import export, named_items, named_turns, run_lengths, score, told
from minidiff.bench.items import KINDS
from minidiff.cli import main as app
from minidiff.io import read_image, write_image

# what every entry of PIE-Bench's mapping_file.json has
PIE = {
    "image_path",
    "original_prompt",
    "editing_prompt",
    "editing_instruction",
    "editing_type_id",
    "blended_word",
    "mask",
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """An export of an item of every kind and a chain of five edits, with its truths."""
    folder = tmp_path_factory.mktemp("out") / "asked"
    export(folder, split="dev", n=1, chains=1, truth=True)
    return folder


def decoded(runs: list[int], size: int) -> np.ndarray:
    """The mask of PIE-Bench's pairs of start and length."""
    flat = np.zeros(size * size)
    for start, length in zip(runs[::2], runs[1::2]):
        flat[start : start + length] = 1
    return flat.reshape(size, size)


def test_what_is_handed_out_is_pie_bench_s_layout_and_words(asked):
    entries = json.loads((asked / "mapping_file.json").read_text())
    assert list(entries) == [f"{kind}_000" for kind in KINDS]
    for name, entry in entries.items():
        assert entry.keys() >= PIE
        source = read_image(asked / "annotation_images" / entry["image_path"])
        truth = read_image(asked / "truth" / f"{name}.png")
        mask = decoded(entry["mask"], 64)
        drawn = (read_image(asked / "masks" / f"{name}.png")[0, 0] > 0).numpy()
        assert (mask == drawn).all() and mask.any()
        changed = (source - truth).abs().amax(1)[0] > 6 / 255  # 8 bits each
        assert not (changed.numpy() & (mask == 0)).any()


def test_an_order_says_what_changes():
    small = {"at", "in", "on", "the", "of", "plain", "left", "right", "above", "below"}
    for item in named_items("dev", 4, KINDS, 64).values():
        order = set(item.instruction.split())
        source = set(item.source.split())
        target = set(item.target.split())
        assert target - source - small <= order, (item.instruction, item.target)
        assert item.kind != "delete" or source - target - small <= order | {"a"}


def test_run_lengths_are_starts_and_lengths():
    mask = torch.zeros(1, 1, 2, 4)
    mask[..., 0, 1:] = 1
    mask[..., 1, 0] = 1
    mask[..., 1, 3] = 1
    assert run_lengths(mask) == [1, 4, 7, 1]
    assert run_lengths(mask * 0) == []


@pytest.mark.parametrize("split", ["dev", "hard-dev"])
def test_a_larger_export_shows_the_same_and_its_mask_still_holds_every_change(split):
    item = named_items(split, 1, ("reshape",), 256)["reshape_000"]
    large = item.drawn(item.scene)
    assert large.shape == (1, 3, 256, 256)
    assert torch.equal(F.avg_pool2d(large, 4), item.image)
    changed = (large - item.drawn(item.truth)).abs().amax(1) > 4 / 255
    mask = item.mask.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, 0]
    outside = changed & (mask == 0)
    assert outside.sum() <= 0.01 * changed.sum()  # less than an average can show


def test_the_answer_of_a_turn_is_the_question_of_the_next():
    turns = named_turns("dev", 6, 64)
    for i in range(6):
        chain = [turns[f"chain_{i:03}_{turn}"] for turn in range(1, 6)]
        for one, two in pairwise(chain):
            assert one.truth == two.scene
        assert len({item.kind for item in chain}) == 5
    kinds = {item.kind for item in turns.values()}
    assert kinds == set(KINDS)


def test_the_turns_of_a_hard_chain_carry_the_same_nuisances():
    plain = named_turns("dev", 2, 64)
    hard = named_turns("hard-dev", 2, 64)
    for name, item in hard.items():
        assert item.scene == plain[name].scene
        assert item.nuisance == hard[name[:-1] + "1"].nuisance is not None


@pytest.mark.weights
def test_the_truths_score_one_and_the_sources_nothing(asked, pipe):
    shutil.copytree(asked / "truth", asked / "knows")
    right = score(pipe, asked / "knows", inputs="PS")
    assert right["score"] == right["T"] == right["K"] == 1
    assert set(right["by_kind"]) == set(KINDS) and list(right["chains"]) == [1, 2, 3, 4, 5]
    assert all(of_turn["score"] == 1 for of_turn in right["chains"].values())

    copies = asked / "lazy"
    copies.mkdir()
    for name in (asked / "truth").iterdir():
        source = name.name[:9] + ".png" if name.name.startswith("chain") else name.name
        shutil.copy(asked / "annotation_images" / source, copies / name.name)
    wrong = score(pipe, copies, inputs="PS")
    assert wrong["score"] == wrong["T"] == 0 and wrong["K"] == 1
    assert "knows" in told(right) and "after turn" in told(right)

    facts = bench(None, report=asked / "scores", split="dev")
    assert [line["method"] for line in facts["methods"]] == ["knows", "lazy"]


@pytest.mark.weights
def test_large_pictures_are_graded_from_the_command_line_and_kept_once(
    tmp_path, monkeypatch, capsys, pipe
):
    from minidiff.weights import store

    monkeypatch.setattr(store, "load", lambda *args, **kw: pipe)
    monkeypatch.chdir(tmp_path)
    line = "bench export big --split hard-dev --n 1 --size 256 --kinds recolour --truth"
    assert app.main(line.split()) == 0
    shutil.copytree("big/truth", "big/mine")
    assert app.main("bench score big/mine --json out.json".split()) == 0
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["Bn"] == facts["Cn"] == facts["Nn"] == 1
    assert "| mine |" in capsys.readouterr().out
    rows = (tmp_path / "big/scores/mine.jsonl").read_text()
    assert app.main("bench score big/mine".split()) == 0  # the same pictures again
    assert (tmp_path / "big/scores/mine.jsonl").read_text() == rows


def spoiled(asked, tmp_path, how: str):
    """A folder of edits with one thing wrong, beside a copy of the manifest."""
    shutil.copy(asked / "manifest.json", tmp_path)
    folder = tmp_path / "mine"
    shutil.copytree(asked / "truth", folder)
    first = folder / "recolour_000.png"
    if how == "missing":
        first.unlink()
    elif how == "size":
        write_image(torch.zeros(3, 32, 32), first)
    elif how == "alpha":
        Image.open(first).convert("RGBA").save(first)
    elif how == "name":
        shutil.copy(first, folder / "recolour_001.png")
    elif how == "text":
        first.write_text("no picture")
    return folder


@pytest.mark.parametrize(
    "how, said",
    [
        ("missing", "recolour_000.png is missing .* hand in the source"),
        ("size", "is 32x32 pixels .* this export is 64x64"),
        ("alpha", "alpha channel; save it without"),
        ("name", "recolour_001.png .* is no item of this export"),
        ("text", "no picture of a kind that is read"),
    ],
)
def test_a_folder_with_a_fault_is_refused_in_one_sentence_before_any_work(
    asked, tmp_path, how, said
):
    folder = spoiled(asked, tmp_path, how)
    with pytest.raises(ValueError, match=said) as refusal:
        score(None, folder)  # no pipe: nothing was encoded
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "scores").exists()


def test_names_letters_and_places_are_checked_first(asked, tmp_path):
    for name, said in (("sdedit", "rename the folder"), ("a@b", "rename the folder")):
        with pytest.raises(ValueError, match=said):
            score(None, asked / name)
    with pytest.raises(ValueError, match="letters P, S, M, I, F"):
        score(None, asked / "mine", inputs="X")
    with pytest.raises(ValueError, match="no folder of edits"):
        score(None, asked / "nowhere")
    with pytest.raises(ValueError, match=r"there is no folder"):
        score(None, tmp_path / "mine")


def test_an_export_of_other_items_is_refused(asked, tmp_path):
    facts = json.loads((asked / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(facts | {"sha256": "0", "items": 1}))
    with pytest.raises(ValueError, match=r"of other items .* export them again"):
        score(None, tmp_path / "mine")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is not what `minidiff bench export` writes"):
        score(None, tmp_path / "mine")


SEED = 58201734466120


@pytest.mark.weights
def test_hidden_scenes_are_graded_by_whoever_has_their_seed(tmp_path, pipe):
    folder = tmp_path / "challenge"
    export(folder, n=1, kinds=("move", "add"), chains=1, truth=True, seed=SEED)
    written = [path.read_bytes() for path in folder.rglob("*.json")]
    assert written and not any(str(SEED).encode() in text for text in written)
    shutil.copytree(folder / "truth", folder / "team7")
    with pytest.raises(ValueError, match="is of hidden scenes: give the --seed"):
        score(None, folder / "team7")
    with pytest.raises(ValueError, match="was not made with seed 3"):
        score(None, folder / "team7", seed=3)
    assert score(pipe, folder / "team7", seed=SEED)["score"] == 1


def test_a_seed_of_ones_own_gives_other_scenes_from_the_same_split(asked):
    own = named_items("test", 2, KINDS, 64)
    hidden = named_items("test", 2, KINDS, 64, SEED)
    assert own.keys() == hidden.keys()
    assert not any(own[name].scene == item.scene for name, item in hidden.items())
    first, second = (named_turns("test", 1, 64, seed) for seed in (0, SEED))
    assert first["chain_000_1"].scene != second["chain_000_1"].scene
    with pytest.raises(ValueError, match="leave --seed away"):
        score(None, asked / "mine", seed=SEED)


@pytest.mark.parametrize(
    "line, said",
    [
        ("bench export full", "is not an empty folder"),
        ("bench export full/file", "is not an empty folder"),
        ("bench export new --split train", "invalid choice: 'train'"),
        ("bench export new --size 100", "invalid choice: 100"),
        ("bench export new --n 0", "expected 1 to 999"),
        ("bench export new --kinds repaint", "'repaint' is unknown"),
        ("bench score full", "holds no manifest.json"),
    ],
)
def test_the_command_line_refuses_in_one_line_and_writes_nothing(
    tmp_path, monkeypatch, capsys, line, said
):
    from minidiff.weights import store

    monkeypatch.setattr(store, "load", lambda *args, **kw: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert app.main(line.split()) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
