"""CIFAR-10: every accepted place, every kind of damage, and pickles that want more than to be
data.
"""

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from minidiff.data import cifar
from minidiff.data.cifar import cifar10, to_float

NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
UNPACK = Path(__file__).parents[3] / "shared/tools/unpack_cifar10.py"


def pixels(seed, n):
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def official(n=4):
    """File name -> pickled bytes: five training batches of n pictures and a test batch, in the
    archive's layout.
    """
    files = {}
    for i, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        entry = {
            b"batch_label": name.encode(),
            b"labels": [(i + j) % 10 for j in range(n)],
            b"data": pixels(i, n),
            b"filenames": [b"x.png"] * n,
        }
        files[name] = pickle.dumps(entry, protocol=2)
    files["batches.meta"] = pickle.dumps(
        {b"label_names": [c.encode() for c in NAMES], b"num_vis": 3072}, protocol=2
    )
    return files


def folder(root, files):
    (root / "cifar-10-batches-py").mkdir(parents=True)
    for name, raw in files.items():
        (root / "cifar-10-batches-py" / name).write_bytes(raw)
    return root


def archive(path, files, prefix="cifar-10-batches-py/"):
    with tarfile.open(path, "w:gz") as tar:
        for name, raw in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path


@pytest.fixture
def root(tmp_path):
    return folder(tmp_path / "data", official())


# ---- what is read --------------------------------------------------------------------------------


def test_pictures_labels_and_names_come_in_the_official_order(root):
    images, labels, names = cifar10(root)
    assert (
        images.shape == (20, 3, 32, 32)
        and images.dtype == torch.uint8
        and labels.dtype == torch.int64
    )
    # red, green, blue plane; row by row
    want = np.concatenate([pixels(i, 4) for i in range(5)]).reshape(-1, 3, 32, 32)
    assert np.array_equal(images.numpy(), want)
    assert labels.tolist() == [(i + j) % 10 for i in range(5) for j in range(4)]
    assert names == NAMES
    images[0] = 0  # the tensor is ours to change


def test_test_split_is_the_test_batch_alone(root):
    images, labels, _ = cifar10(root, "test")
    assert np.array_equal(images.numpy().reshape(4, -1), pixels(5, 4)) and labels.tolist() == [
        5,
        6,
        7,
        8,
    ]
    images[0] = 0


def test_all_four_places_give_the_same(root, tmp_path):
    packed = archive(tmp_path / "cifar-10-python.tar.gz", official())
    want = cifar10(root)[0]
    for place in (root / "cifar-10-batches-py", packed, tmp_path, str(root)):
        assert torch.equal(cifar10(place)[0], want)


def test_archive_with_dot_prefix_is_read(root, tmp_path):
    packed = archive(tmp_path / "x.tar.gz", official(), prefix="./cifar-10-batches-py/")
    assert torch.equal(cifar10(packed)[0], cifar10(root)[0])


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_pickles_of_every_age_are_read(protocol, root):
    entry = {b"labels": [1, 2], b"data": pixels(7, 2), b"filenames": [b""]}
    (root / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(entry, protocol))
    assert np.array_equal(cifar10(root, "test")[0].numpy().reshape(2, -1), pixels(7, 2))


def test_the_pickle_dialect_of_python_2_is_read():
    """The official files spell strings as Python 2's str and numpy by its old module names."""
    raw = (
        b"\x80\x02}(U\x06labels](K\x03eU\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        b"U\x01b\x87R(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00" + pixels(3, 1).tobytes() + b"tbu."
    )
    images, labels = cifar.batch(raw, "batch")
    assert np.array_equal(images.reshape(1, -1), pixels(3, 1)) and labels.tolist() == [3]


def test_to_float_spans_minus_one_to_one():
    x = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert x.dtype == torch.float32 and (x - torch.tensor([-1.0, -0.6, 1.0])).abs().max() < 1e-6
    with pytest.raises(ValueError, match=r"torch.float32; expected uint8"):
        to_float(torch.zeros(3))


def test_real_photographs_are_read(tmp_path):
    if not UNPACK.is_file():
        pytest.skip(
            "the CIFAR-10 pictures and their unpacking tool are not here; they are not part "
            "of the repository"
        )
    subprocess.run(
        [sys.executable, UNPACK, tmp_path, "--train", "60", "--test", "20", "--tar"],
        check=True,
        capture_output=True,
    )
    (images, labels, names), (test, _, _) = (
        cifar10(tmp_path),
        cifar10(tmp_path / cifar.ARCHIVE, "test"),
    )
    assert images.shape == (60, 3, 32, 32) and test.shape == (20, 3, 32, 32) and names == NAMES
    assert len(labels.unique()) > 5
    x = to_float(images)
    step = (x[..., 1:] - x[..., :-1]).abs().mean() / (
        x - x.mean(dim=(0, 2, 3), keepdim=True)
    ).abs().mean()
    # neighbours resemble each other only if planes and rows are where we think they are
    assert step < 0.5


# ---- damage --------------------------------------------------------------------------------------


def one_line(error, *parts):
    text = str(error.value)
    assert "\n" not in text and all(p in text for p in parts), text


def test_nothing_there_is_said_with_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError) as e:
        cifar10(tmp_path)
    one_line(e, str(tmp_path), "download=True", cifar.URL)


@pytest.mark.parametrize("gone", ["data_batch_3", "batches.meta"])
def test_a_missing_file_is_named(root, tmp_path, gone):
    files = official()
    del files[gone]
    (root / "cifar-10-batches-py" / gone).unlink()
    for place in (root, root / "cifar-10-batches-py", archive(tmp_path / "x.tar.gz", files)):
        with pytest.raises(FileNotFoundError) as e:
            cifar10(place)
        one_line(e, f"lacks {gone}")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95, 0.9999])
def test_an_archive_cut_anywhere_is_refused(tmp_path, part):
    packed = archive(tmp_path / "x.tar.gz", official())
    whole = packed.read_bytes()
    packed.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match="truncated") as e:
        cifar10(packed)
    one_line(e, str(packed))


def test_one_wrong_byte_in_the_archive_is_noticed(tmp_path):
    packed = archive(tmp_path / "x.tar.gz", official())
    whole = bytearray(packed.read_bytes())
    whole[len(whole) // 2] ^= 1  # random pixels are stored as they are: only the checksum can tell
    packed.write_bytes(whole)
    with pytest.raises(ValueError, match=r"truncated|corrupt"):
        cifar10(packed)


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match="no tar archive"):
        cifar10(tmp_path)


def test_a_batch_cut_short_is_named(root):
    path = root / "cifar-10-batches-py/data_batch_2"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError) as e:
        cifar10(root)
    one_line(e, "data_batch_2", "truncated")


@pytest.mark.parametrize(
    "entry, message",
    [
        (
            {b"labels": [1, 2], b"data": pixels(0, 3)},
            r"shape \(3, 3072\), expected u1 of \(2, 3072\)",
        ),
        ({b"labels": [1], b"data": pixels(0, 1)[:, :3000]}, "expected u1"),
        ({b"labels": [1], b"data": pixels(0, 1).astype(np.float32)}, "data is f4"),
        ({b"labels": [1, 2], b"data": np.asfortranarray(pixels(0, 2))}, "expected u1"),
        ({b"labels": [10], b"data": pixels(0, 1)}, "whole numbers 0..9"),
        ({b"labels": ["cat"], b"data": pixels(0, 1)}, "whole numbers 0..9"),
        ({b"fine_labels": [1], b"data": pixels(0, 1)}, "no data and labels"),
        ({b"labels": [1], b"data": [0] * 3072}, "no data and labels"),
        ([1, 2], "holds a list"),
    ],
)
def test_wrong_content_is_named(root, entry, message):
    (root / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(entry, protocol=2))
    with pytest.raises(ValueError, match=message) as e:
        cifar10(root, "test")
    one_line(e, "test_batch")


def test_wrong_class_names_are_refused(root):
    (root / "cifar-10-batches-py/batches.meta").write_bytes(
        pickle.dumps({b"label_names": [b"cat"] * 100})
    )
    with pytest.raises(ValueError, match="CIFAR-100"):
        cifar10(root)


def test_an_unknown_split_is_refused(root):
    with pytest.raises(ValueError, match='\'valid\'; expected "train" or "test"'):
        cifar10(root, "valid")


# ---- malice --------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `fn(*args)`, which an ordinary unpickler performs."""

    def __init__(self, fn, *args):
        self.fn, self.args = fn, args

    def __reduce__(self):
        return self.fn, self.args


def test_a_hostile_pickle_leaves_no_trace(root, tmp_path):
    marker = tmp_path / "was-here"
    calls = {
        "system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "open": Call(open, str(marker), "w"),
        "getattr": Call(getattr, "text", "upper"),
        "load": Call(np.load, str(marker)),
        "fromfile": Call(np.fromfile, str(marker)),
    }
    for name, call in calls.items():
        raw = pickle.dumps({b"labels": [1], b"data": call}, protocol=2)
        (root / "cifar-10-batches-py/test_batch").write_bytes(raw)
        with pytest.raises(ValueError, match=rf"asks for [\w.]+\.{name}") as e:
            cifar10(root, "test")
        one_line(e, "test_batch")
    assert not marker.exists()
    pickle.loads(pickle.dumps(calls["open"]))  # the marker does appear where nobody watches
    assert marker.exists()


def test_hostile_class_names_leave_no_trace(root, tmp_path):
    marker = tmp_path / "was-here"
    raw = pickle.dumps({b"label_names": Call(open, str(marker), "w")})
    (root / "cifar-10-batches-py/batches.meta").write_bytes(raw)
    with pytest.raises(ValueError, match="asks for"):
        cifar10(root)
    assert not marker.exists()


def test_dotted_names_do_not_reach_through_an_allowed_one(root):
    raw = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    (root / "cifar-10-batches-py/test_batch").write_bytes(raw)
    with pytest.raises(ValueError, match=r"asks for numpy\.ndarray\.tofile"):
        cifar10(root, "test")


def test_no_member_of_the_archive_is_ever_written(tmp_path):
    place = tmp_path / "in" / "deep"
    place.mkdir(parents=True)
    packed = archive(place / "x.tar.gz", official() | {"../../escaped": b"x"})
    before = sorted(tmp_path.rglob("*"))
    cifar10(packed)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_in_place_of_a_batch_is_not_followed(tmp_path):
    files = official()
    secret = tmp_path / "secret"
    secret.write_bytes(files.pop("test_batch"))
    packed = archive(tmp_path / "x.tar", files)
    with tarfile.open(tmp_path / "y.tar", "w") as tar, tarfile.open(packed) as old:
        for member in old:
            tar.addfile(member, old.extractfile(member))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("cifar-10-batches-py/test_batch")
            info.type, info.linkname = kind, str(secret)
            tar.addfile(info)
    with pytest.raises(FileNotFoundError, match="lacks test_batch"):
        cifar10(tmp_path / "y.tar", "test")


def test_a_member_of_absurd_size_is_not_unpacked(tmp_path, monkeypatch):
    packed = archive(tmp_path / "x.tar.gz", official())
    monkeypatch.setattr(cifar, "LARGEST", 12_000)  # a batch of four pictures has more
    with pytest.raises(FileNotFoundError, match="lacks test_batch"):
        cifar10(packed, "test")


# ---- download (from a file:// address; no network) -----------------------------------------------


@pytest.fixture
def served(tmp_path, monkeypatch):
    packed = archive(tmp_path / "served.tar.gz", official())
    monkeypatch.setattr(cifar, "URL", packed.as_uri())
    monkeypatch.setattr(cifar, "MD5", hashlib.md5(packed.read_bytes()).hexdigest())
    return packed


def test_download_happens_once_and_leaves_only_the_archive(served, tmp_path, root):
    home = tmp_path / "fresh" / "data"
    images, _, _ = cifar10(home, download=True, progress=False)
    assert torch.equal(images, cifar10(root)[0])
    assert [p.name for p in home.iterdir()] == ["cifar-10-python.tar.gz"]
    served.unlink()
    assert torch.equal(cifar10(home, download=True, progress=False)[0], images)


def test_a_wrong_checksum_keeps_nothing(served, tmp_path):
    served.write_bytes(served.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"MD5 \w+, expected"):
        cifar10(tmp_path / "fresh", download=True, progress=False)
    assert list((tmp_path / "fresh").iterdir()) == []


def test_a_failed_download_says_what_to_do_and_keeps_nothing(served, tmp_path):
    served.unlink()
    with pytest.raises(OSError, match="could not download") as e:
        cifar10(tmp_path / "fresh", download=True, progress=False)
    one_line(e, "pass its path as root")
    assert list((tmp_path / "fresh").iterdir()) == []


def test_progress_is_shown_only_when_asked_for(served, tmp_path, capsys):
    cifar10(tmp_path / "a", download=True, progress=False)
    assert capsys.readouterr().err == ""
    cifar10(tmp_path / "b", download=True)
    assert "CIFAR-10" in capsys.readouterr().err


def test_the_published_address_and_checksum_are_the_default():
    assert cifar.URL == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert cifar.MD5 == "c58f30108f718f92721af3b95e74349a"
