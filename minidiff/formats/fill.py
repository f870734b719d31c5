"""Weights from a file into one of our networks, with an account of every tensor.

    our name  --keymaps-->  names in the file  --ops-->  our tensor

Every tensor of ours is filled once, with one of its shape whose numbers are finite. Every tensor of
the file is used, or dropped for a reason that is told; else the file is refused, for a name that
nobody knows belongs to a network that nobody knows. All this is settled by headers, before a number
is read.

The network is built on the meta device, without memory, and is given tensors that are mapped from
the file. So 4 GB load without being copied, and a page comes from the disk when a layer needs it,
or, before that, to see that it is finite.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minidiff.control.controlnet import ControlNet
from minidiff.control.t2i_adapter import T2IAdapter
from minidiff.formats.family import Family, dropped, part_names
from minidiff.formats.keymaps import Theirs, alias, ema_name, source_names
from minidiff.formats.mapped import TensorFile, all_finite, finite, short
from minidiff.formats.ops import gather
from minidiff.models.dit import DiT, position_embedding
from minidiff.models.text import CLIPText
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE
from minidiff.pipe.offload import let_go

CLASSES = {
    "unet": UNet,
    "dit": DiT,
    "vae": VAE,
    "text": CLIPText,
    "controlnet": ControlNet,
    "t2i": T2IAdapter,
}
LARGE = 1 << 18  # bytes; all smaller tensors of Stable Diffusion 1 have 3 MB together
PLAIN = "the plain weights, where the running average is taken"
Rows = dict[str, tuple[Theirs, str]]  # our name -> (name or names in a file, op)


@dataclass(frozen=True)
class Coverage:
    """What became of a file's tensors. `used` and `dropped` {name: why} are names in the file,
    `filled` ours, `part.name`; `unknown` would be names in the file without a place: `coverage`
    refuses the file for them.
    """

    used: tuple[str, ...]
    dropped: dict[str, str]
    filled: tuple[str, ...]
    unknown: tuple[str, ...] = ()


class Blank(TorchFunctionMode):
    """Leaves out random initialisation: without memory it is
    idle, and PyTorch would import its compiler for it (2 s).
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init" or func in (
            Tensor.normal_,
            Tensor.uniform_,
        ):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build(part: str, args: dict) -> nn.Module:
    """A network without memory (on the meta device), to be filled by `read`."""
    try:
        with torch.device("meta"), Blank():
            return CLASSES[part](**args)
    except (TypeError, ValueError, KeyError, ArithmeticError, RuntimeError) as e:
        raise ValueError(f"no {part} can be built of {args} ({str(e).splitlines()[0]})") from e


def read(
    file: TensorFile,
    family: Family,
    part: str,
    module: nn.Module,
    dtype: torch.dtype | None = None,
    ema: bool = False,
    rows: Rows | None = None,
) -> Coverage:
    """Fill `module` (from `build`) with one part of a
    file, in `dtype` (None: float32), ready for inference.

    Tensors are assigned, and mapped from the file where it has that dtype already. `ema`: of the
    UNet, the running average. `rows`: what `sources` says, if that is known. ValueError naming the
    file: tensors missing, of another shape, of integers, NaN or infinite (also where `dtype` cannot
    hold them); then the module is as it was.
    """
    own = module.state_dict()
    dtype = dtype or torch.float32
    rows = rows or sources(file, family, part, own, ema)
    module.load_state_dict(
        {k: take(file, row, own[k].shape, dtype) for k, row in rows.items()}, assign=True
    )
    module.requires_grad_(False).eval()
    return Coverage(used(rows), {}, tuple(f"{part}.{k}" for k in rows))


def coverage(
    file: TensorFile, family: Family, modules: Mapping[str, nn.Module], ema: bool = False
) -> Coverage:
    """What `read` makes of a whole file, from headers alone.
    ValueError: as `read`, or tensors that have no place.
    """
    return account(file, family, all_sources(file, family, modules, ema), ema)


def all_sources(
    file: TensorFile, family: Family, modules: Mapping[str, nn.Module], ema: bool = False
) -> dict[str, Rows]:
    """`sources` of every part."""
    return {
        part: sources(file, family, part, module.state_dict(), ema)
        for part, module in modules.items()
    }


def account(
    file: TensorFile, family: Family, rows: Mapping[str, Rows], ema: bool = False
) -> Coverage:
    """What becomes of every tensor of a file whose parts are filled by these rows. ValueError:
    tensors that have no place.
    """
    taken = {n for r in rows.values() for n in used(r)}
    gone = dropped(file)
    for part, prefix in family.parts.items():
        if prefix and part not in rows:
            gone |= {
                n: f"part of the {part}, which is not wanted here"
                for n in file
                if n.startswith(prefix)
            }
    if ema:
        gone |= dict.fromkeys(part_names(file, family, "unet").values(), PLAIN)
    unknown = tuple(n for n in file if n not in taken and n not in gone)
    if unknown:
        raise ValueError(
            f"{file.path}: {len(unknown)} of {len(file)} tensor(s) have no place in a network of "
            f"family {family.kind}: {_few(list(map(short, unknown)))}"
        )
    return Coverage(
        tuple(n for n in file if n in taken),
        {n: why for n, why in gone.items() if n not in taken},
        tuple(f"{part}.{k}" for part, r in rows.items() for k in r),
    )


def sources(
    file: TensorFile, family: Family, part: str, own: Mapping[str, Tensor], ema: bool = False
) -> Rows:
    """{our name: (name or names in the file, op)}, all of them
    there, floats, and of the shapes of `own`, a state dict.
    """
    have = part_names(file, family, part)
    rows = {}
    missing = []
    wrong = []
    if ema and not family.has_ema:
        raise ValueError(
            f"{file.path} holds no running average (model_ema.*); load its plain weights"
        )
    for name, (theirs, op) in source_names(part, own, layout=family.names[part]).items():
        full = tuple(have.get(alias(n), family.parts[part] + n) for n in names(theirs))
        if ema and part == "unet":
            full = tuple(map(ema_name, full))
        rows[name] = (full[0] if isinstance(theirs, str) else full, op)
        lost = [short(n) for n in full if n not in file]
        missing += lost
        if not lost and op != "computed":
            wrong += _wrong(file, rows[name], tuple(own[name].shape))
    for label, found in (("missing", missing), ("not as expected", wrong)):
        if found:
            raise ValueError(
                f"{file.path}: {len(found)} tensor(s) of the {part} {label}: {_few(found)}"
            )
    return rows


def take(
    file: TensorFile,
    row: tuple[Theirs, str],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    copy: bool = False,
) -> Tensor:
    """One of our tensors, finite, in `dtype`. `copy`:
    read, so that no pages of a mapping stay in memory.
    """
    theirs, op = row
    if op == "computed":
        return position_embedding(shape[2], isqrt(shape[1])).to(dtype)
    first = short(names(theirs)[0])
    try:
        x = gather(theirs, op, lambda n: file.tensor(n, copy=copy or file[n].dtype != dtype))
    except ValueError as e:
        raise ValueError(f"{file.path}: {first}: {e}") from e
    y = x.to(dtype).contiguous()
    if not all_finite(y):
        finite(x, names(theirs)[0], file.path)
        raise ValueError(
            f"{file.path}: {first} reaches {x.abs().max().item():.3g}, more than {dtype} can hold"
        )
    if y.nbytes >= LARGE:
        let_go(y)  # of a mapped file: the check alone should not fill the memory
    return y


def _wrong(file: TensorFile, row: tuple[Theirs, str], shape: tuple[int, ...]) -> list[str]:
    first = short(names(row[0])[0])
    theirs, op = row
    try:
        found = file[theirs] if op == "same" else meta(file, row)
    except (ValueError, RuntimeError, IndexError) as e:
        return [f"{first} ({str(e).splitlines()[0]})"]
    if not found.dtype.is_floating_point:
        return [f"{first} is {found.dtype}, expected floating-point numbers"]
    return (
        []
        if tuple(found.shape) == shape
        else [f"{first} gives {tuple(found.shape)}, expected {shape}"]
    )


def meta(file: TensorFile, row: tuple[Theirs, str]) -> Tensor:
    """One of our tensors without its numbers: shape and dtype as the file has them."""
    return gather(*row, lambda n: torch.empty(file[n].shape, dtype=file[n].dtype, device="meta"))


def names(theirs: Theirs) -> tuple[str, ...]:
    return (theirs,) if isinstance(theirs, str) else theirs


def used(rows: Rows) -> tuple[str, ...]:
    """Every name in the file that is read, once."""
    return tuple(dict.fromkeys(n for theirs, _ in rows.values() for n in names(theirs)))


def _few(texts: list[str]) -> str:
    return ", ".join(texts[:3]) + (" ..." if texts[3:] else "")
