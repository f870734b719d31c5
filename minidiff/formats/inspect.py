"""What a file of weights is, from its headers: a second for 4 GB, and nothing in it is run.

    python -m minidiff inspect v1-5.ckpt

Tells the family and by which names and shapes it was told, the parts with their parameters and
dtypes, what the network predicts if that can be known, what loading would leave out and why, and
what would keep the file from being loaded. For a LoRA also rank, alpha and base model, for an
embedding the width of its vectors.

Try: a LoRA and the model it is to be merged into; the same width of text states must stand in both.
Weakness: headers say what a tensor is called and how large it is. Whether its numbers are any good,
only loading shows.
"""

import re
from collections import Counter
from pathlib import Path

from minidiff.formats.convert import reasons
from minidiff.formats.family import Family, dropped, part_names, unsupported
from minidiff.formats.files import sha256 as digest
from minidiff.formats.fill import build, coverage
from minidiff.formats.layouts import Source, naming, open_model
from minidiff.formats.lora import BASES
from minidiff.formats.mapped import TensorFile, short
from minidiff.formats.schedulers import instead, sampling

RANK = re.compile(
    r".*(lora_down\.weight|lora_A(\.\w+)?\.weight|lora(_linear_layer)?\.down\.weight|:down|hada_w1_b|"
    r"lokr_w[12]_b)"
)
TELLING = re.compile(
    r"ss_(network_(dim|alpha|module|args)|base_model_version|sd_model_name|v2|output_name|clip_skip)|"
    r"modelspec\..*|global_step|epoch|step|unwrapped|sd_checkpoint(_name)?|name|lora_adapter_metadata|minidiff"
)


def inspect(path: str | Path, *, sha256: bool = False, drop: tuple[str, ...] = ()) -> dict:
    """Everything that headers tell about a file or folder, as a dictionary that JSON can hold;
    `table` puts it in words.

    sha256   also the hash of every file, which reads all of it
    drop     patterns of names to leave out, as loading can

    A family that is recognised and not supported is an answer, under `unsupported`. ValueError,
    FileNotFoundError: no weights file, damaged, or of no known family.
    """
    source = open_model(path, drop)
    file = source.file
    family = source.family
    files = sorted({e.path for e in file.values() if e.path} or {source.path})
    prediction, why = source.prediction()
    report = dict(
        path=str(path),
        container=file.kind,
        bytes=sum(f.stat().st_size for f in files),
        tensors=len(file),
        parameters=sum(e.numel for e in file.values()),
        dtypes=_dtypes(file, file),
        family=family.kind,
        why=family.why,
        layout="minidiff" if source.facts else family.layout,
        variant=family.variant,
        in_channels=family.in_channels,
        context=family.context,
        base=BASES.get(family.context),
        prediction=prediction,
        prediction_why=why,
        sampler=instead(source),
        dropped=reasons(dropped(file)),
        parts={part: _part(file, family, part) for part in family.parts},
        ignored=[short(n) for n in file.ignored],
        unsupported=unsupported(family),
        problem=None,
        metadata={k: v[:300] for k, v in file.metadata.items() if TELLING.fullmatch(k)},
    )
    if family.kind == "lora":
        report["rank"], report["alpha"] = _lora(file)
    if family.parts and not report["unsupported"]:
        report["problem"] = _problem(source)
    if sha256:
        report["sha256"] = {str(f): digest(f) for f in files}
    return report


def _part(file: TensorFile, family: Family, part: str) -> dict:
    """One part: how it is named, and how much of it there is."""
    others = tuple(
        p
        for q, p in family.parts.items()
        if q != part and p and not family.parts[part].startswith(p)
    )
    mine = [
        n
        for n in part_names(file, family, part).values()
        if family.parts[part] or not n.startswith(others)
    ]
    return dict(
        prefix=family.parts[part],
        layout=family.names[part],
        tensors=len(mine),
        parameters=sum(file[n].numel for n in mine),
        dtypes=_dtypes(file, mine),
    )


def _dtypes(file: TensorFile, names) -> dict[str, int]:
    return dict(Counter(str(file[n].dtype).removeprefix("torch.") for n in names).most_common())


def _lora(file: TensorFile) -> tuple[list[int], list[float]]:
    """(ranks, alphas) that occur. Alphas are single
    numbers in the file, the only ones that are read.
    """
    ranks = {file[n].shape[0] for n in file if RANK.fullmatch(n) and file[n].shape}
    alphas = {float(file.tensor(n)) for n in file if n.endswith(".alpha") and file[n].numel == 1}
    return sorted(ranks), sorted(round(a, 4) for a in alphas)


def _problem(source: Source) -> str | None:
    """What would keep a supported file from being
    loaded: the message that loading would end with.
    """

    def trial(heads: dict[str, int] | None) -> str | None:
        try:
            with naming(source.path):
                modules = {part: build(part, a) for part, a in source.args(heads).items()}
                coverage(source.file, source.family, modules)
                if {"unet", "dit"} & modules.keys():
                    sampling(source, source.prediction()[0] or "eps")
        except ValueError as e:
            return str(e)

    first = trial(None)
    # the number of heads is the least of it
    return first and (trial(dict.fromkeys(source.family.parts, 1)) or first)


# ---- in words ------------------------------------------------------------------------------------


def table(report: dict) -> str:
    """The report as lines of a name and what there is to say."""
    r = report
    rows = [
        (
            "file",
            f"{r['path']}, {size(r['bytes'])}, {r['container']}, {r['tensors']} tensors, "
            f"{r['parameters']:,} parameters ({_count(r['dtypes'])})",
        ),
        ("family", f"{r['family']}: {r['why']}"),
        ("layout", r["layout"]),
        ("variant", r["variant"]),
        ("width", r["context"] and f"{r['context']}{' (' + r['base'] + ')' if r['base'] else ''}"),
        ("rank", _list(r, "rank")),
        ("alpha", _list(r, "alpha")),
    ]
    rows += [
        (
            part,
            f"{p['tensors']} tensors, {p['parameters']:,} parameters ({_count(p['dtypes'])}), "
            f"{p['layout']} names behind {short(p['prefix'])}",
        )
        for part, p in r["parts"].items()
    ]
    rows += [
        (
            "prediction",
            f"{r['prediction'] or 'unknown'}: {r['prediction_why']}" if r["parts"] else None,
        )
    ]
    rows += [("sampler", r["sampler"])]
    rows += [
        ("dropped", f"{row['tensors']} such as {row['like']}: {why}")
        for why, row in r["dropped"].items()
    ]
    rows += [("not read", ", ".join(r["ignored"][:8]) + (" ..." if r["ignored"][8:] else ""))]
    rows += [(k, short(v)) for k, v in r["metadata"].items()]
    rows += [("unsupported", r["unsupported"]), ("problem", r["problem"])]
    rows += [("sha256", f"{hashed} {name}") for name, hashed in r.get("sha256", {}).items()]
    return "\n".join(f"{name:12} {text}" for name, text in rows if text)


def size(n: int) -> str:
    """Bytes as people say them."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= one:
            return f"{n / one:.2f} {unit}"
    return f"{n} bytes"


def _count(dtypes: dict[str, int]) -> str:
    return ", ".join(
        f"{dtype}" if len(dtypes) == 1 else f"{n} {dtype}" for dtype, n in dtypes.items()
    )


def _list(report: dict, key: str) -> str:
    return ", ".join(f"{x:g}" for x in report.get(key, ()))
