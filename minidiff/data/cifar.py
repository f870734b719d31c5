"""CIFAR-10: 60,000 photographs of 32x32 pixels in ten classes, read from the Python archive.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images" (technical report,
University of Toronto). It is the data set of the pixel-space papers (DDPM, DDIM, EDM): small enough
for a laptop, real enough to be hard.

The archive is a tar of pickles, and a pickle may run any program when it is opened. So nothing in
it is trusted: members are read in place (never extracted, so no path can escape), and the unpickler
below knows seven names, each answered by a harmless stand-in of ours that keeps bytes. Anything
else is refused by name.

Try: `images, labels, names = cifar10("data", download=True)` and plot `images[labels == 3][:16]`.
Weakness: 32x32 pictures carry little to edit; here they serve unconditional and class-conditional
training.
"""

import io
import pickle
import tarfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minidiff.data.download import download

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
META = "batches.meta"
SPLITS = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
LARGEST = 64 * 2**20  # bytes; a real batch has 31 million


def cifar10(root: str | Path, split: str = "train", download: bool = False, progress: bool = True):
    """(images uint8 (n 3 32 32), labels int64 (n), the ten class names) of `split` "train" or
    "test".

    `root`: a folder that holds `cifar-10-batches-py` or `cifar-10-python.tar.gz`, that inner
    folder, or the archive. With `download` a missing archive is fetched into the folder `root` (170
    MB, MD5 checked). Raises FileNotFoundError for what is missing and ValueError for what is
    broken, saying which file.
    """
    if split not in SPLITS:
        raise ValueError(f'split is {split!r}; expected "train" or "test"')
    source = find(Path(root)) or (fetch(Path(root), progress) if download else None)
    if source is None:
        raise FileNotFoundError(
            f"no CIFAR-10 at {root}: expected {FOLDER}/ or {ARCHIVE}; pass download=True or put "
            f"{URL} there"
        )
    files = read_files(source, [META, *SPLITS[split]])
    batches = [batch(files[name], f"{source}: {name}") for name in SPLITS[split]]
    images = torch.from_numpy(np.concatenate([pixels for pixels, _ in batches]))
    labels = torch.from_numpy(np.concatenate([numbers for _, numbers in batches]))
    return images, labels, class_names(files[META], f"{source}: {META}")


def to_float(images: Tensor) -> Tensor:
    """uint8 pictures 0..255 -> float32 in [-1, 1]."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}; expected uint8 in 0..255")
    return images.float() / 127.5 - 1


def find(root: Path) -> Path | None:
    """The folder of batches or the archive that `root` names or holds."""
    if root.is_file() or any((root / n).is_file() for n in (META, "test_batch", "data_batch_1")):
        return root
    return next((p for p in (root / FOLDER, root / ARCHIVE) if p.exists()), None)


def fetch(root: Path, progress: bool = True) -> Path:
    """Download the archive into `root`. It appears under its name only when complete and right."""
    try:
        return download(URL, root / ARCHIVE, MD5, title="CIFAR-10", progress=progress)
    except OSError as e:
        raise OSError(f"{e}; fetch it by other means and pass its path as root") from e


def read_files(source: Path, names: list[str]) -> dict[str, bytes]:
    """Contents of the named files of a folder or an archive. Nothing is written anywhere."""
    if source.is_dir():
        files = {n: (source / n).read_bytes() for n in names if (source / n).is_file()}
    else:
        files = read_archive(source, names)
    missing = [n for n in names if n not in files]
    if missing:
        raise FileNotFoundError(
            f"{source} lacks {', '.join(missing)}; expected the official layout, fetch {URL} again"
        )
    return files


def read_archive(source: Path, names: list[str]) -> dict[str, bytes]:
    """Only plain files `cifar-10-batches-py/NAME` of sane size are looked at; links and other paths
    are passed over.
    """
    wanted = {f"{FOLDER}/{name}": name for name in names}
    files = {}
    try:
        with tarfile.open(source, "r:*") as tar:
            for member in tar:
                name = wanted.get(member.name.removeprefix("./"))
                if name and member.isreg() and member.size <= LARGEST:
                    files[name] = tar.extractfile(member).read()
            # to the very end: only there does gzip compare its checksum
            while tar.fileobj.read(2**20):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as e:
        raise ValueError(
            f"{source} is truncated or no tar archive ({e}); delete it and fetch {URL} again"
        ) from e
    return files


def batch(raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n 3 32 32) and labels (n) of one pickled batch, checked."""
    entry = unpickle(raw, where)
    data = entry.get(b"data")
    labels = entry.get(b"labels")
    if not isinstance(data, Array) or not isinstance(labels, list):
        raise ValueError(
            f"{where} has no data and labels; expected a batch of the Python version of CIFAR-10"
        )
    if not all(type(v) is int and 0 <= v <= 9 for v in labels):
        raise ValueError(f"{where}: labels must be whole numbers 0..9; is this CIFAR-100?")
    pixels = data.uint8((len(labels), 3072), where)
    # rows are red, green, blue planes
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def class_names(raw: bytes, where: str) -> list[str]:
    names = unpickle(raw, where).get(b"label_names")
    ten = isinstance(names, list) and len(names) == 10
    if not ten or not all(isinstance(name, bytes) for name in names):
        raise ValueError(f"{where}: expected ten label_names; is this CIFAR-100?")
    return [name.decode() for name in names]


class Array:
    """Stand-in for a pickled numpy array: it keeps shape, dtype and bytes, and runs no code."""

    shape = dtype = fortran = raw = None

    def __setstate__(self, state):
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def uint8(self, shape: tuple[int, int], where: str) -> np.ndarray:
        """The array, if it is uint8 of the given shape."""
        kind = self.dtype.name if isinstance(self.dtype, DType) else None
        if self.shape != shape or kind not in ("u1", "|u1", "uint8") or self.fortran:
            raise ValueError(
                f"{where}: data is {kind} of shape {self.shape}, expected u1 of {shape}; "
                "fetch it again"
            )
        if not isinstance(self.raw, bytes) or len(self.raw) != shape[0] * shape[1]:
            raise ValueError(f"{where}: the pixels are incomplete; fetch {URL} again")
        return np.frombuffer(self.raw, dtype=np.uint8).reshape(shape)


class DType:
    """Stand-in for a pickled numpy dtype."""

    def __init__(self, name, *_):
        self.name = name.decode() if isinstance(name, bytes) else name

    def __setstate__(self, state):
        pass


def stand_in(module: str, name: str):
    """What the pickle gets when it asks for `module.name`; KeyError for anything it has no business
    with.
    """

    def rebuild(*_) -> Array:  # (type, shape, type code): the content comes with __setstate__
        return Array()

    return {
        ("numpy.core.multiarray", "_reconstruct"): rebuild,
        ("numpy._core.multiarray", "_reconstruct"): rebuild,
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): lambda *arguments: DType(*arguments),
        # how Python 3 writes old-style bytes
        ("_codecs", "encode"): lambda text, code: text.encode("latin1"),
        ("__builtin__", "bytes"): lambda: b"",
        ("builtins", "bytes"): lambda: b"",
    }[module, name]


class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return stand_in(module, name)
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which CIFAR-10 has no use for"
            ) from None


def unpickle(raw: bytes, where: str) -> dict:
    """The dictionary of one pickle, with bytes for its keys. Nothing outside this file can be
    called by it.
    """
    try:
        entry = Unpickler(io.BytesIO(raw), encoding="bytes").load()
    except Exception as e:  # a broken pickle can fail in any way
        raise ValueError(f"{where} is corrupt, truncated or unsafe ({e}); fetch {URL} again") from e
    if not isinstance(entry, dict):
        raise ValueError(f"{where} holds a {type(entry).__name__}; expected a dictionary")
    return entry
