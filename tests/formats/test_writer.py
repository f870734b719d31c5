"""A safetensors file written tensor by tensor, and names that change hands only when all is
well.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from minidiff.formats.files import open_tensors
from minidiff.formats.mapped import DTYPES, Entry
from minidiff.formats.writer import header, replacing, write_safetensors

TENSORS = {
    f"{code}.{i}": (torch.arange(n) % 2).to(dtype).view(shape)
    for code, dtype in DTYPES.items()
    for i, (n, shape) in enumerate([(6, (2, 3)), (1, ()), (0, (0, 4)), (3, (3,))])
}
ENTRIES = {k: Entry(tuple(v.shape), v.dtype) for k, v in TENSORS.items()}


def pieces(tensors):
    """One at a time, in an order that is not the file's."""
    return ({k: tensors[k]} for k in reversed(list(tensors)))


def test_every_dtype_and_shape_is_read_back_by_the_package_and_by_us(tmp_path):
    write_safetensors(
        tmp_path / "a.safetensors", ENTRIES, pieces(TENSORS), {"format": "pt", "é": "☃"}
    )
    theirs, ours = load_file(tmp_path / "a.safetensors"), open_tensors(tmp_path / "a.safetensors")
    assert theirs.keys() == set(ours) == TENSORS.keys() and ours.metadata == {
        "format": "pt",
        "é": "☃",
    }
    for k, v in TENSORS.items():
        assert (
            torch.equal(theirs[k], v)
            and torch.equal(ours.tensor(k), v)
            and theirs[k].dtype == v.dtype
        )
        assert ours[k].begin % v.element_size() == 0  # so that it can be mapped


def test_the_order_of_arrival_does_not_change_the_file(tmp_path):
    write_safetensors(tmp_path / "a", ENTRIES, pieces(TENSORS))
    write_safetensors(tmp_path / "b", ENTRIES, [TENSORS])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_package_writes_the_same_numbers_in_the_same_place(tmp_path):
    floats = {k: v for k, v in TENSORS.items() if v.is_floating_point() and v.numel()}
    write_safetensors(tmp_path / "a", {k: ENTRIES[k] for k in floats}, [floats])
    save_file(floats, tmp_path / "b")
    size = sum(ENTRIES[k].nbytes for k in floats)
    assert (tmp_path / "a").read_bytes()[-size:] == (tmp_path / "b").read_bytes()[-size:]
    assert len(header({k: ENTRIES[k] for k in floats}, {})[0]) % 8 == 0


def test_strided_tensors_are_written_dense(tmp_path):
    x = torch.arange(12.0).view(3, 4).T
    write_safetensors(tmp_path / "a.safetensors", {"x": Entry((4, 3), torch.float32)}, [{"x": x}])
    assert torch.equal(load_file(tmp_path / "a.safetensors")["x"], x)


@pytest.mark.parametrize(
    "sent, words",
    [
        ([], r"1 tensor\(s\) were announced and never came, 'x' among them"),
        ([{"x": torch.ones(2)}], r"'x' is \(2,\)"),
        ([{"x": torch.ones(3).half()}], r"torch.float16; expected \(3,\) torch.float32"),
    ],
)
def test_what_was_not_announced_is_refused(tmp_path, sent, words):
    with pytest.raises(ValueError, match=words):
        write_safetensors(tmp_path / "a", {"x": Entry((3,), torch.float32)}, sent)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("folder", [False, True])
def test_an_error_leaves_neither_parts_nor_new_folders(tmp_path, error, folder):
    with pytest.raises(type(error)), replacing(tmp_path / "new/deep/x", folder=folder) as beside:
        (beside / "a" if folder else beside).write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_the_place_of_the_old_one_whole(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/model_index.json").write_text("{}")
    (tmp_path / "x/old").write_text("old")
    with replacing(tmp_path / "x", force=True, folder=True) as beside:
        (beside / "new").write_text("new")
        assert (tmp_path / "x/old").exists()  # until all is written
    assert [p.name for p in tmp_path.rglob("*")] == ["x", "new"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/x: "), replacing(tmp_path / "file/x"):
        pass
