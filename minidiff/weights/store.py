"""Finding, checking and loading weights; building networks from `SIZES`.

Shipped weights live in `weights/tiny/*.safetensors` beside `manifest.json`, which holds each file's
SHA-256, the recipe that made it, its seed and cost. A file whose hash differs is refused. Nothing
here ever unpickles code. A model you train is kept the same way, in a folder of its own (`keep`),
and `load` and `--model` take that folder.
"""

import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from minidiff.core import schedule
from minidiff.core.process import PREDICTIONS
from minidiff.data import shapes
from minidiff.formats.fields import field, read_json
from minidiff.formats.files import open_safetensors
from minidiff.formats.mapped import all_finite, sha256
from minidiff.io import write_bytes
from minidiff.models import BACKBONES
from minidiff.models.clip import CLIP
from minidiff.models.image_encoder import CLIPImage
from minidiff.models.sizes import SIZES
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE
from minidiff.pipe.checks import check_scale
from minidiff.pipe.pipe import Pipe
from minidiff.train.checkpoint import CHECKPOINT, averaged_weights, read_facts

TINY = Path(__file__).parent / "tiny"
SCHEDULES = {
    "linear": schedule.linear,
    "scaled_linear": schedule.scaled_linear,
    "cosine": schedule.cosine,
    "sigmoid": schedule.sigmoid,
    "flow": schedule.flow,
}  # those a model can be trained and loaded with
PIXEL_CLASSES = tuple(f"{color} {shape}" for shape in shapes.SHAPES for color in shapes.COLORS)
PARTS = {
    "tiny": {"net": "unet", "vae": "vae", "text": "text"},
    "tiny-dit": {"net": "dit", "vae": "vae", "text": "text"},
    "tiny-pixel": {"net": "pixel"},
}  # module of the pipe -> name of the shipped file


def build(
    size: str,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Pipe:
    """A pipe with random weights. `device="meta"` allocates
    nothing: shapes and counts of full-size models for free.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r} is unknown; choose one of: {', '.join(SIZES)}")
    spec = SIZES[size]
    with torch.random.fork_rng(devices=[]), torch.device(device or "cpu"):
        torch.manual_seed(seed)
        kind = _backbone(spec)
        net = BACKBONES[kind].make(**spec[kind])
        vae = VAE(**spec["vae"]) if "vae" in spec else None
        text = (
            CLIPText(**{**spec["text"], "project_dim": None})
            if "text" in spec and _reads_text(spec)
            else None
        )
    tiny = size.startswith("tiny")
    pipe = Pipe(
        net=net,
        vae=vae,
        text=text,
        shape=spec["shape"],
        prediction=spec["prediction"],
        scale=spec["scale"],
        name=size,
        schedule=SCHEDULES[spec["schedule"]](),
        classes=PIXEL_CLASSES if size == "tiny-pixel" else (),
        tokenizer=Tokenizer.words(shapes.VOCAB) if tiny and text is not None else None,
    )
    for m in (net, vae, text):
        if m is not None:
            m.eval().requires_grad_(False)
    return pipe.to(dtype=dtype) if dtype else pipe


def _backbone(spec: dict) -> str:
    """The key of an entry of `SIZES` that names its denoiser."""
    return next(name for name in BACKBONES if name in spec)


def _reads_text(spec: dict) -> bool:
    kind = _backbone(spec)
    return spec[kind].get("context", 768 if kind == "unet" else None) is not None


def load(
    name: str | Path = "tiny",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **options,
) -> Pipe:
    """A trained pipe: "tiny", "tiny-dit" or "tiny-pixel", whose weights are part of the package,
    the folder of one that `minidiff train` made, or the path of a public model's file or folder,
    with the options of `weights.real.load_model`.
    """
    trained = any((Path(name) / file).is_file() for file in ("manifest.json", CHECKPOINT))
    if str(name) not in PARTS and not trained:
        if not Path(name).exists():
            raise ValueError(
                f"model {str(name)!r} is unknown: neither one of the shipped ones "
                f"({', '.join(PARTS)}) nor a file or folder"
            )
        from minidiff.weights.real import load_model

        return load_model(name, device=device, dtype=dtype, **options)
    if options:
        raise ValueError(
            f"{', '.join(options)}: for public models; {name} is "
            f"{'trained' if trained else 'a shipped one'}"
        )
    if trained:
        pipe = _load_trained(Path(name))
    else:
        pipe = _empty(name)
        for part, file in PARTS[pipe.name].items():
            fill(getattr(pipe, part), load_weights(file, TINY), file)
    pipe.name = str(name)
    return pipe.to(device, dtype) if device or dtype else pipe


def _empty(size: str) -> Pipe:
    """A pipe without memory or random numbers, to be filled."""
    from minidiff.formats.fill import Blank  # late, with all that reads public files

    with Blank():
        return build(size, device="meta")


def described(pipe: Pipe) -> dict:
    """What a folder must say of a trained pipe, so that `load` can build it again."""
    return {
        "size": pipe.name,
        "prediction": pipe.prediction,
        "schedule": pipe.schedule.name,
        "classes": list(pipe.classes),
    }


def keep(pipe: Pipe, folder: Path, *, parts=("net", "vae", "text"), **facts) -> Path:
    """Write a trained pipe of one of the tiny sizes, or some parts of it, in full precision, into a
    folder that `load` reads; the folder.
    """
    for part, file in PARTS[pipe.name].items():
        if part in parts:
            told = facts | (described(pipe) | {"scale": pipe.scale} if part == "net" else {})
            ship(file, getattr(pipe, part), dtype=torch.float32, folder=folder, **told)
    return folder


def _load_trained(folder: Path) -> Pipe:
    """A finished training; or one that was interrupted, with the averaged weights so far."""
    known = manifest(folder) if (folder / "manifest.json").is_file() else {}
    found = [row for row in known.values() if field(row, "size", str) in PARTS]
    facts = None if found else read_facts(folder)
    if facts and facts["settings"].get("size") in PARTS:
        found = [facts["settings"]]
    pipe = _as_described(folder, found)
    for part, file in PARTS[pipe.name].items():
        unfinished = facts and part == "net"
        weights = averaged_weights(folder) if unfinished else load_weights(file, folder)
        fill(getattr(pipe, part), weights, file)
    if facts:
        warnings.warn(
            f"{folder} is not finished: weights after {facts['step']} of "
            f"{facts['settings']['steps']} steps",
            stacklevel=3,
        )
    return pipe


def _as_described(folder: Path, found: list[dict]) -> Pipe:
    """An empty pipe as the folder of a trained model describes it."""
    if len(found) != 1:
        raise ValueError(
            f"{folder} names {len(found)} denoisers in its manifest.json; expected one folder per "
            "model, as `minidiff train` makes it"
        )
    row = found[0]
    predicts = field(row, "prediction", str)
    tables = field(row, "schedule", str)
    classes = tuple(field(row, "classes", list, []))
    if predicts not in PREDICTIONS or tables not in SCHEDULES:
        raise ValueError(
            f"{folder}: prediction {predicts!r} with schedule {tables!r} is not known; expected "
            f"one of {', '.join(PREDICTIONS)} with one of {', '.join(SCHEDULES)}"
        )
    pipe = _empty(row["size"])
    if not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{folder}: the classes in its manifest.json are not all texts")
    pipe.scale = field(row, "scale", float, pipe.scale)
    check_scale(pipe.scale)
    pipe.prediction = predicts
    pipe.schedule = SCHEDULES[tables]()
    if classes != pipe.classes:
        pipe.net = UNet(**SIZES[row["size"]]["unet"] | {"classes": len(classes)}).eval()
        pipe.classes = classes
        pipe.net.requires_grad_(False)
    return pipe


def load_clip() -> CLIP:
    """The tiny CLIP, both towers, as trained: for scoring pictures against captions."""
    clip = CLIP(
        CLIPText(**SIZES["tiny"]["text"] | {"causal": True}), CLIPImage(**SIZES["tiny"]["image"])
    )
    return fill(clip, load_weights("clip"), "clip").eval().requires_grad_(False)


def fill(module: nn.Module, weights: dict[str, Tensor], name: str = "weights") -> nn.Module:
    """Weights into a module; every key used, every parameter filled, every shape equal, every
    number finite. Copied, but into a module without memory (on the meta device): given.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - weights.keys())
    extra = sorted(weights.keys() - own.keys())
    wrong = [
        f"{k} is {tuple(weights[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own.keys() & weights.keys()
        if weights[k].shape != own[k].shape
    ]
    for label, found in (
        ("missing", missing),
        ("not of this network", extra),
        ("of another shape", sorted(wrong)),
    ):
        if found:
            raise ValueError(
                f"{name}: {len(found)} tensor(s) {label}: "
                f"{', '.join(found[:3])}{' ...' if found[3:] else ''}"
            )
    bad = [k for k, v in weights.items() if not all_finite(v)]
    if bad:
        raise ValueError(
            f"{name}: tensor {bad[0]} holds NaN or infinite numbers ({len(bad)} such tensor(s))"
        )
    empty = all(v.is_meta for v in own.values())
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in weights.items()}, assign=empty)
    return module


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a file, with one-line errors for what is
    missing, empty, cut off or no safetensors file at all.
    """
    file = open_safetensors(path)
    return {name: file.tensor(name, copy=True) for name in file}


def manifest(folder: Path | None = None) -> dict[str, dict]:
    """{name: {"sha256", "recipe", "seed", "cpu_minutes", ...}}
    of the files in a folder (default: the shipped ones).
    """
    path = (folder or TINY) / "manifest.json"
    rows = read_json(path)
    for name in rows:
        field(rows, name, dict)
    return rows


def load_weights(name: str, folder: Path = TINY) -> dict[str, Tensor]:
    """Tensors (float16 or float32) of a shipped file, after its hash was found right."""
    path = folder / f"{name}.safetensors"
    known = manifest(folder)
    if name not in known:
        raise ValueError(f"no shipped weights called {name!r}; there are: {', '.join(known)}")
    tensors = read_safetensors(path)
    if sha256(path) != known[name].get("sha256"):
        raise ValueError(
            f"{path} is not the file that was shipped (its SHA-256 differs from manifest.json); "
            + ("reinstall" if folder == TINY else "train it again, or make the manifest anew")
        )
    return tensors


def ship(
    name: str,
    module: nn.Module | dict[str, Tensor],
    *,
    dtype: torch.dtype = torch.float16,
    folder: Path = TINY,
    **facts,
) -> Path:
    """Write weights for shipping, atomically, and their hash
    and facts (recipe, seed, minutes...) into the manifest.
    """
    state = module.state_dict() if isinstance(module, nn.Module) else module
    path = folder / f"{name}.safetensors"
    index = folder / "manifest.json"
    tensors = {k: v.detach().to("cpu", dtype).contiguous().clone() for k, v in state.items()}
    write_bytes(to_bytes(tensors), path)
    rows = json.loads(index.read_text()) if index.exists() else {}
    rows[name] = {"sha256": sha256(path), "bytes": path.stat().st_size, **facts}
    text = json.dumps(dict(sorted(rows.items())), indent=1) + "\n"
    write_bytes(text.encode(), index)
    return path
