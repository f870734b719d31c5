"""A whole model on the disk, whatever the layout: its
tensors as one table, and their names in every layout.

    original    one file, each part behind a prefix (ORIGINAL, TOWERS). What no tensor shows is as
                in the released models; sometimes the metadata have modelspec.prediction_type
    diffusers   a folder for each part (FOLDERS), or one folder for a part alone. What no tensor
                shows is in config.json and scheduler/scheduler_config.json
    minidiff    one file, our names behind prefixes (MINIDIFF). What no tensor shows is in the
                metadata's "minidiff": JSON with our arguments

    source = open_model(path)
    source.family.why
    source.args()  # {"unet": {"channels": ...}, ...}

Public format: the config files of diffusers and transformers; ModelSpec
(github.com/Stability-AI/ModelSpec). Try: `open_model("folder").args()["unet"]` after editing a
number in its unet/config.json.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as attribute
from pathlib import Path

from minidiff.formats import configs
from minidiff.formats.configs import FOLDERS, PREDICTIONS
from minidiff.formats.family import Family, detect, dropped, unsupported
from minidiff.formats.fields import field, read_json
from minidiff.formats.files import open_tensors
from minidiff.formats.keymaps import Theirs, source_names
from minidiff.formats.mapped import Entry, TensorFile, refusing, short
from minidiff.formats.plans import networks

ORIGINAL = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "controlnet": "control_model.",
}
TOWERS = {"diffusers": "cond_stage_model.transformer.", "original": "cond_stage_model.model."}
MINIDIFF = {"unet": "unet.", "dit": "dit.", "vae": "vae.", "text": "text."}
BESIDE = ("tokenizer", "scheduler")  # folders that hold no weights and are read or copied
# files to which the config.json beside them belongs
WHOLE = ("diffusion_pytorch_model", "pytorch_model", "model")
MINE = ("eps", "v", "x0", "flow")
# arguments that no tensor shows
TOLD = {"groups": int, "eps": float, "scale": float, "act": str, "eos_id": int, "factor": int}
UNSEEN = ("heads", *TOLD)


@dataclass(frozen=True, eq=False)
class Source:
    """A model that was opened: `file` has all tensors, `family` says what
    it is; `configs` by part, `scheduler` the scheduler's config, `facts`
    what a minidiff file says of itself; each empty where there is none.
    """

    path: Path
    file: TensorFile
    family: Family
    configs: dict[str, dict] = attribute(default_factory=dict)
    scheduler: dict = attribute(default_factory=dict)
    facts: dict = attribute(default_factory=dict)

    def args(self, heads: Mapping[str, int | tuple[int, ...]] | None = None) -> dict[str, dict]:
        """{part: arguments of its class}. `heads` by part, where neither file nor config nor a
        released width tells. ValueError: unsupported, incomplete, or contradicting itself.
        """
        if why := unsupported(self.family):
            raise ValueError(f"{self.path}: {why}")
        told = {
            part: {k: tuple(v) if isinstance(v, list) else v for k, v in args.items()}
            for part, args in self.facts.get("args", {}).items()
        }
        known = {part: args["heads"] for part, args in told.items() if "heads" in args}
        folded = {
            part: {"downscale_factor": args["factor"]}
            for part, args in told.items()
            if "factor" in args
        }
        with naming(self.path):
            for args in told.values():
                for name, kind in TOLD.items():
                    field(args, name, kind, above=None if kind is str else 0)
            seen = networks(
                self.file, self.family, self.configs | folded, heads=known | dict(heads or {})
            )
        for part, args in told.items():
            for name, value in args.items():
                if name not in UNSEEN and (part not in seen or seen[part].get(name) != value):
                    raise ValueError(
                        f"{self.path}: its metadata say that {name} of the {part} is {value!r}, "
                        f"its tensors show {seen.get(part, {}).get(name)!r}"
                    )
            seen[part] |= {
                name: value for name, value in args.items() if name in UNSEEN and name != "heads"
            }
        return seen

    def prediction(self, said: str | None = None) -> tuple[str | None, str]:
        """(what the network predicts: eps, v, x0, flow or None,
        why that is known or not). `said` overrules the rest.
        """
        if said is not None:
            return said, "you said so"
        if self.facts.get("prediction"):
            return self.facts["prediction"], "the file's metadata say so"
        if self.scheduler:
            # older configs have only one kind
            with naming(self.path):
                kind = field(self.scheduler, "prediction_type", str, "epsilon")
            flow = str(self.scheduler.get("_class_name")).startswith("FlowMatch")
            if not flow and kind not in PREDICTIONS:
                raise ValueError(
                    (
                        f"{self.path}: its scheduler's prediction_type is {short(kind)}; expected "
                        "one of: "
                    )
                    + ", ".join(PREDICTIONS)
                )
            return "flow" if flow else PREDICTIONS[kind], "its scheduler config says so"
        spec = self.file.metadata.get("modelspec.prediction_type")
        if spec in ("epsilon", "v"):
            return PREDICTIONS.get(spec, spec), "the file's metadata say so (modelspec)"
        return self.family.prediction, self.family.prediction_why


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """A ValueError that does not name the file yet, does so when it leaves the block."""
    try:
        yield
    except ValueError as e:
        raise ValueError(str(e) if str(path) in str(e) else f"{path}: {e}") from e


# ---- reading -------------------------------------------------------------------------------------


def open_model(path: str | Path, drop: Iterable[str] = ()) -> Source:
    """A file or folder of any layout, from headers alone, less the tensors whose names match a
    pattern of `drop`. ValueError, FileNotFoundError: one line that names the file.
    """
    path = Path(path)
    index = read_json(path / "model_index.json")
    parts = [part for part, sub in FOLDERS.items() if (path / sub).is_dir()]
    named = [
        sub for sub in FOLDERS.values() if isinstance(row := index.get(sub), list) and any(row)
    ]
    lost = [sub for sub in named if not (path / sub).is_dir()]
    if lost:
        raise FileNotFoundError(
            f"{path / lost[0]} is missing, which model_index.json names; fetch it"
        )
    if parts:
        file = _merge(path, parts).without(drop)
        configs = {part: read_json(path / FOLDERS[part] / "config.json") for part in parts}
        scheduler = read_json(path / "scheduler/scheduler_config.json")
        return Source(path, file, detect(file), configs, scheduler)
    file = open_tensors(path).without(drop)
    family = detect(file)
    facts = {}
    configs = {}
    if (path.is_dir() or path.name.startswith(WHOLE)) and len(family.parts) == 1:
        configs = {
            part: read_json((path if path.is_dir() else path.parent) / "config.json")
            for part in family.parts
        }
    if text := file.metadata.get("minidiff"):
        with refusing(path, "minidiff file"):
            facts = json.loads(text)
            if (
                not all(
                    isinstance(x, dict) for x in (*facts["args"].values(), facts["scheduler"] or {})
                )
                or facts["prediction"] not in (None, *MINE)
                or not facts["args"].keys() <= family.parts.keys()
            ):
                raise ValueError("its metadata are not those that minidiff writes")
            configs = {"unet": {"sample_size": facts.get("side")}}
    return Source(path, file, family, configs, facts.get("scheduler") or {}, facts)


def _merge(path: Path, parts: list[str]) -> TensorFile:
    """The parts of a folder as one table, each behind the name of its folder."""
    files = {FOLDERS[part]: open_tensors(path / FOLDERS[part]) for part in parts}
    others = [
        p.name + "/" for p in path.iterdir() if p.is_dir() and p.name not in (*files, *BESIDE)
    ]
    entries = {
        f"{sub}.{name}": entry for sub, file in files.items() for name, entry in file.items()
    }
    return TensorFile(path, "folder", entries, ignored=tuple(sorted(others)))


# ---- writing -------------------------------------------------------------------------------------


def destination(
    part: str, own: Iterable[str], to: str, args: dict, alone: bool
) -> dict[str, tuple[Theirs, str]]:
    """{our name: (full name or names, op)} in the file
    of another layout, like `keymaps.source_names`.

    The original text tower of SD 1 has Hugging Face's names, that of SD 2 OpenCLIP's. Readers take
    the one for quick GELU, the other for exact GELU, so the activation decides. `alone`: a file for
    this part only, whose names have no prefix.
    """
    layout, prefix = {
        "minidiff": ("", MINIDIFF.get(part, "")),
        "diffusers": ("diffusers", ""),
        "original": ("original", "" if alone and part != "unet" else ORIGINAL.get(part, "")),
    }[to]
    if to == "original" and part == "text":
        layout = "original" if args["act"] == "gelu" else "diffusers"
        prefix = "" if alone else TOWERS[layout]
    rows = (
        source_names(part, own, layout=layout) if layout else {name: (name, "same") for name in own}
    )
    return {
        k: (prefix + t if isinstance(t, str) else tuple(prefix + n for n in t), op)
        for k, (t, op) in rows.items()
    }


def contents(
    source: Source,
    to: str,
    args: dict[str, dict],
    entries: dict[str, dict[str, Entry]],
    prediction: str | None,
    notes: list[str],
) -> tuple[dict, dict]:
    """({file of weights: (parts in it, metadata)}, {other file: what to write as JSON}), by path in
    the new folder, or "" for the one file. `entries` by part, under their new names. What the
    layout cannot hold goes to `notes`, or is a ValueError.
    """
    scheduler = configs.scheduler_config(source.scheduler, source.family, prediction)
    if to == "minidiff":
        text = json.dumps(
            configs.facts(
                source.family, args, scheduler, prediction, source.configs.get("unet", {})
            )
        )
        return {"": (list(args), {"minidiff": text})}, {}
    if to == "original":
        if "dit" in args and len(args) > 1:
            raise ValueError(
                "in the original layout a DiT is a file for itself; convert to diffusers or "
                "minidiff"
            )
        notes += unsaid({n: e for part in entries.values() for n, e in part.items()}, args)
        spec = {"eps": "epsilon", "v": "v"}.get(prediction)
        notes += (
            [f"this layout cannot say that the model predicts {prediction}"]
            if prediction and not spec
            else []
        )
        return {"": (list(args), {"modelspec.prediction_type": spec} if spec else {})}, {}
    side = 96 if source.family.kind == "sd2" and prediction == "v" else 64
    known = {
        part: configs.config(part, a, source.configs.get(part, {}), side)
        for part, a in args.items()
    }
    alone = len(args) == 1 and not {"unet", "dit"} & args.keys()
    folders = {part: "" if alone else FOLDERS[part] + "/" for part in args}
    weights = {
        folders[part]
        + ("model" if part == "text" else "diffusion_pytorch_model")
        + ".safetensors": ([part], {})
        for part in args
    }
    texts = {folders[part] + "config.json": known[part] for part in args}
    if not alone:
        scheduler = scheduler if prediction else {}
        texts["model_index.json"] = configs.model_index(
            known, (source.path / "tokenizer").is_dir(), scheduler
        )
        texts |= {"scheduler/scheduler_config.json": scheduler} if scheduler else {}
        why = (
            f"{prediction} has none here"
            if prediction
            else "nothing tells what the model predicts (prediction=, --prediction)"
        )
        notes += [] if scheduler else [f"no scheduler is written: {why}"]
    return weights, texts


def unsaid(entries: dict[str, Entry], args: dict[str, dict]) -> list[str]:
    """What readers of the original layout will take for something
    else. ValueError: tensors that they would leave out.
    """
    if gone := dropped(entries):
        name, why = next(iter(gone.items()))
        raise ValueError(
            f"the original layout has no place for {len(gone)} tensor(s) such as {name} ({why}); "
            "convert to diffusers or minidiff"
        )
    family = detect(entries)
    notes = []
    try:
        seen = networks(entries, family)
    except ValueError as e:
        notes.append(f"readers must be told what this layout cannot say: {e}")
        seen = networks(
            entries, family, heads={part: a["heads"] for part, a in args.items() if "heads" in a}
        )
    wrong = [
        (part, k, v)
        for part, a in args.items()
        for k, v in a.items()
        if k in UNSEEN and seen[part][k] != v
    ]
    return notes + [
        (
            f"{k} of the {part} is {v!r}; this layout cannot say so, and it will be read as "
            f"{seen[part][k]!r}"
        )
        for part, k, v in wrong
    ]
