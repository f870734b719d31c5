"""A model from one layout into another, tensor by tensor, with an account of every one.

    names in the file  --keymaps, ops-->  our tensor  --ops, keymaps-->  tensors of the other layout

What is to be written is settled by headers; then each tensor is read, renamed, written and
forgotten (`writer.py`). Without `dtype` no number changes: there and back gives equal tensors, to
the bit. NaN and infinite numbers are not passed on.

Try: `convert("v1-5.ckpt", "sd15", to="diffusers")`, and the same back. Weakness: the original
layout has no place for what no tensor shows (heads, the scale of latents). Where a reader will take
another number for it than the right one, `notes` says so.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minidiff.formats.fields import numbers
from minidiff.formats.fill import Coverage, build, coverage, meta, read, sources, take, used
from minidiff.formats.layouts import Source, contents, destination, naming, open_model
from minidiff.formats.mapped import Entry, short
from minidiff.formats.ops import scatter
from minidiff.formats.writer import replacing, write_safetensors

__all__ = ["Coverage", "build", "convert", "coverage", "read", "report"]

PROJECTION = "text_projection.weight"
CHOICES = {
    "to": ("minidiff", "original", "diffusers"),
    "dtype": (None, "float32", "float16", "bfloat16"),
    "prediction": (None, "eps", "v", "x0", "flow"),
}


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    to: Literal["minidiff", "original", "diffusers"] = "minidiff",
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    prediction: Literal["eps", "v", "x0", "flow"] | None = None,
    ema: bool = False,
    heads: dict[str, int | tuple[int, ...]] | None = None,
    drop: tuple[str, ...] = (),
    force: bool = False,
    progress: bool = False,
) -> dict:
    """Write a model in another layout, as safetensors;
    returns what was done (`report` puts it in words).

    to          the layout: one file, or with diffusers a folder
    dtype       of what is written; without it every tensor keeps its own
    prediction  what the model predicts, where the source cannot tell (Stable Diffusion 2)
    ema         take the running average of the UNet, out of a training checkpoint
    heads       their number in a part of a width that was never released, such as unet=4; of a
                UNet one number, or one for each level
    drop        patterns of names to leave out: tensors that belong to no network
    force       overwrite what is there

    Nothing is written unless everything is. ValueError, FileNotFoundError, OSError: one line that
    names the file.
    """
    for name, value in (("to", to), ("dtype", dtype), ("prediction", prediction)):
        if value not in CHOICES[name]:
            raise ValueError(
                f"{name}={value!r} is unknown; choose one of: "
                f"{', '.join(filter(None, CHOICES[name]))}"
            )
    source = open_model(src, drop)
    if not source.family.parts:
        raise ValueError(
            f"{src} is a file of kind {source.family.kind}, no network ({source.family.why}): use "
            f"it as it is"
        )
    if to != "diffusers" and Path(dst).suffix != ".safetensors":
        raise ValueError(f"cannot write {dst}: the name must end in .safetensors")
    if Path(dst).resolve() in Path(src).resolve().parents:
        raise ValueError(f"cannot write {dst}: {src} is inside it; choose another name")
    heads = heads or {}
    for part in heads:
        if part not in source.family.parts:
            raise ValueError(
                f"heads: {part} is no part of {src}; there are: {', '.join(source.family.parts)}"
            )
        numbers(heads, part)
    args = source.args(heads)
    # the file may hold the model it is for too
    if (kind := source.family.kind) in ("controlnet", "t2i"):
        args = {kind: args[kind]}
    known, why = source.prediction(prediction)
    notes = [f"not read: {', '.join(source.file.ignored[:5])}"] if source.file.ignored else []
    with naming(src):
        modules = {part: build(part, a) for part, a in args.items()}
        seen = coverage(source.file, source.family, modules, ema)
        jobs = {
            part: Job(
                source, module, part, args, to, getattr(torch, dtype) if dtype else None, ema, notes
            )
            for part, module in modules.items()
        }
        weights, texts = contents(
            source, to, args, {part: job.entries for part, job in jobs.items()}, known, notes
        )
    with (
        replacing(dst, force, folder=to == "diffusers") as beside,
        tqdm(
            total=sum(len(job.rows) for job in jobs.values()),
            disable=not progress,
            desc=f"writing {dst}",
        ) as bar,
    ):
        for name, (some, metadata) in weights.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            write_safetensors(
                beside / name,
                {n: e for part in some for n, e in jobs[part].entries.items()},
                (piece for part in some for piece in jobs[part].pieces(bar)),
                {"format": "pt", **metadata},
            )
        for name, content in texts.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            (beside / name).write_text(json.dumps(content, indent=2) + "\n")
        if to == "diffusers" and (source.path / "tokenizer").is_dir():
            shutil.copytree(source.path / "tokenizer", beside / "tokenizer")
    return dict(
        source=str(src),
        kind=kind,
        why=source.family.why,
        to=to,
        written=str(dst),
        parts={part: job.counts() for part, job in jobs.items()},
        dropped=reasons(seen.dropped),
        prediction=known,
        prediction_why=why,
        notes=notes,
    )


class Job:
    """One part on its way: where our tensors come from (`rows`), and what is written of them
    (`entries`, in `groups` of our names that share tensors there).
    """

    def __init__(
        self,
        source: Source,
        module: nn.Module,
        part: str,
        args: dict,
        to: str,
        dtype: torch.dtype | None,
        ema: bool,
        notes: list[str],
    ):
        own = module.state_dict()
        self.file = source.file
        if to == "original" and len(args) > 1 and own.pop(PROJECTION, None) is not None:
            notes.append(
                f"{PROJECTION} of the text tower is left out: in this layout nothing reads it"
            )
        self.rows = sources(source.file, source.family, part, own, ema)
        self.groups = {}
        stored = {
            k: meta(self.file, row).dtype for k, row in self.rows.items() if row[1] != "computed"
        }
        usual = next(iter(stored.values()))
        self.ours = {
            k: v.new_empty(v.shape, dtype=dtype or stored.get(k, usual)) for k, v in own.items()
        }
        for name, row in destination(part, own, to, args[part], len(args) == 1).items():
            self.groups.setdefault(row[0], {})[name] = row
        theirs = {
            n: x for group in self.groups.values() for n, x in scatter(group, self.ours).items()
        }
        self.entries = {n: Entry(tuple(x.shape), x.dtype) for n, x in theirs.items()}

    def pieces(self, bar: tqdm) -> Iterator[dict[str, Tensor]]:
        """{name there: tensor}, group by group."""
        for group in self.groups.values():
            ours = {k: self.take(self.rows[k], k) for k in group}
            for name, row in group.items():
                x = ours[name].float()
                rounding = max(0.001, torch.finfo(ours[name].dtype).eps)
                if (
                    row[1] == "computed"
                    and (x - self.take(row, name).float()).abs().max() > rounding
                ):
                    raise ValueError(
                        f"{self.file.path}: {name} is not what the formula gives, and the other "
                        "layout has no place for it; convert to minidiff"
                    )
            yield scatter(group, ours)
            bar.update(len(group))

    def take(self, row: tuple, name: str) -> Tensor:
        return take(self.file, row, self.ours[name].shape, self.ours[name].dtype, copy=True)

    def counts(self) -> dict:
        return dict(
            read=len(used(self.rows)),
            filled=len(self.rows),
            written=len(self.entries),
            parameters=sum(x.numel() for x in self.ours.values()),
            dtypes=sorted({str(e.dtype).removeprefix("torch.") for e in self.entries.values()}),
        )


def reasons(gone: dict[str, str]) -> dict[str, dict]:
    """{why: {"tensors": how many, "like": one of them}}."""
    found = {}
    for name, why in gone.items():
        found.setdefault(why, {"tensors": 0, "like": short(name)})["tensors"] += 1
    return found


def report(facts: dict) -> str:
    """What `convert` did, in words."""
    lines = [f"{facts['source']}: {facts['kind']}, {facts['why']}"]
    lines += [
        f"{part:12} {p['read']} tensors read, {p['filled']} of ours filled, {p['written']} "
        f"written; {p['parameters']:,} parameters, {', '.join(p['dtypes'])}"
        for part, p in facts["parts"].items()
    ]
    lines += [
        f"{'dropped':12} {row['tensors']} such as {row['like']}: {why}"
        for why, row in facts["dropped"].items()
    ]
    lines += [f"{'prediction':12} {facts['prediction'] or 'unknown'}: {facts['prediction_why']}"]
    return "\n".join(
        [*lines, *(f"{'note':12} {note}" for note in facts["notes"]), facts["written"]]
    )
