"""The live half of the playground: the shipped networks as ONNX and ONNX Runtime Web, packed into
plain scripts.

A page that is opened from a file may not fetch, not even its neighbours. Scripts it may load: so
what would be fetched (WebAssembly, networks) is gzipped, written in base64 into two scripts, and
unpacked by static/live.js when the reader asks.

    runtime.js   ONNX Runtime Web: one package of the npm registry, exact version, checked against
    its hash
    model.js     text tower, UNet, encoder, decoder; words, schedule, guidance. The weights are
                 float16 in their files and stay so in here; a Cast widens them when they are loaded

Both are kept in out/live until the version or the weights change. Without npm, or without onnx, the
site is built all the same, and the page says what is missing.
"""

import base64
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import warnings
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
API, GLUE, WASM = "ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
WEIGHTS = ("text", "unet", "vae")
OPSET = 17


class Missing(Exception):
    """Why there is no live part, as a sentence for the reader."""


def packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


# ---- the runtime ---------------------------------------------------------------------------------


def checked(archive: bytes, want: str = SHA512) -> bytes:
    """The archive, if its hash is right; ValueError otherwise."""
    got = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if got != want:
        raise ValueError(
            f"{PACKAGE} {VERSION} from npm has the sha512 {got}, expected {want}; it is not "
            "what was tested"
        )
    return archive


def package(cache: Path) -> dict[str, bytes]:
    """The three files that run on a page, out of npm's archive (downloaded once; no install, no
    scripts, no others).
    """
    archive = cache / f"{PACKAGE}-{VERSION}.tgz"
    if not archive.exists():
        if not shutil.which("npm"):
            raise Missing(
                "npm was not found when this site was built, and ONNX Runtime Web comes from there"
            )
        try:
            subprocess.run(
                ["npm", "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(cache)],
                capture_output=True,
                check=True,
                timeout=300,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            raise Missing(
                f"npm could not bring ONNX Runtime Web {VERSION} when this site was built"
            ) from None
    try:
        data = checked(archive.read_bytes())
    except ValueError:
        archive.unlink()  # the next build asks again
        raise
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {n: tar.extractfile(f"package/dist/{n}").read() for n in (API, GLUE, WASM)}


def runtime(cache: Path) -> str:
    """runtime.js: the API as it is, the rest packed."""
    files = package(cache)
    api = files[API].decode().split("//# sourceMappingURL")[0]
    rest = json.dumps({"glue": packed(files[GLUE]), "wasm": packed(files[WASM])})
    return f"{api}\nglobalThis.minidiffRuntime = {rest};\n"


# ---- the networks --------------------------------------------------------------------------------


def halved(data: bytes) -> bytes:
    """The same network with its large tables as float16 and a Cast behind each. ValueError: that
    would change numbers.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(data)
    graph, casts = model.graph, []
    for table in graph.initializer:
        values = numpy_helper.to_array(table)
        if values.dtype != np.float32 or values.size < 64:
            continue
        half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            raise ValueError(
                f"{table.name} {values.shape} is not float16 in disguise; store it as "
                "float32 here, too"
            )
        name = table.name
        table.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def networks() -> tuple[dict[str, bytes], dict]:
    """({part: ONNX}, the numbers and words that the loop needs). Shapes are fixed: two rows, one
    picture.
    """
    import torch
    from torch import nn

    import minidiff
    from minidiff.core.cond import Cond

    pipe = minidiff.load("tiny")

    class Call(nn.Module):
        """A function of a network as a module, which the exporter wants."""

        def __init__(self, net: nn.Module, fn):
            super().__init__()
            self.net, self.fn = net.requires_grad_(False), fn

        def forward(self, *args):
            return self.fn(*args)

    x, t, ids = (
        torch.zeros(2, *pipe.shape),
        torch.zeros(2, dtype=torch.long),
        pipe.tokenizer(["", ""]),
    )
    image = torch.zeros(1, 3, *pipe.image_size)
    calls = {
        "text": (Call(pipe.text, lambda ids: pipe.text(ids)), (ids,), ["ids"]),
        "unet": (
            Call(pipe.net, lambda x, t, text: pipe.net(x, t, Cond(text=text))),
            (x, t, pipe.text(ids)),
            ["x", "t", "text"],
        ),
        "vae": (Call(pipe.vae, lambda z: pipe.vae.to_image(z)), (x[:1],), ["z"]),
        "encoder": (Call(pipe.vae, lambda image: pipe.vae.to_latent(image)), (image,), ["image"]),
    }
    out = {}
    for part, (module, args, names) in calls.items():
        file = io.BytesIO()
        # without gradients GroupNorm takes another way
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fixed shapes; the age of this exporter: the new
            torch.onnx.export(
                module,
                args,
                file,
                input_names=names,
                output_names=["out"],
                opset_version=OPSET,
                dynamo=False,
            )  # one takes a minute, and the result is no faster
        out[part] = halved(file.getvalue())
    tok = pipe.tokenizer
    numbers = {
        "words": tok.speller.names,
        "bos": tok.bos,
        "eos": tok.eos,
        "pad": tok.pad,
        "context": tok.context,
        "alpha": pipe.schedule.alpha.tolist(),
        "sigma": pipe.schedule.sigma.tolist(),
        "shape": pipe.shape,
        "factor": pipe.factor,  # pixels of a latent, along a side
        "scale": pipe.scale,  # the guidance the model is used with
    }
    if (pipe.prediction, pipe.spacing, pipe.end) != ("v", "trailing", 0):
        raise ValueError(
            f"{pipe.name} predicts {pipe.prediction}, {pipe.spacing} to {pipe.end}; "
            "static/diffusion.js is "
            "written for v, trailing to 0"
        )
    return out, numbers


@cache
def guidance() -> float:
    """The guidance that the shipped model is used with: what the page's forms begin with."""
    import minidiff

    return minidiff.load("tiny").scale


def model() -> str:
    """model.js."""
    try:
        import onnx  # noqa: F401 - to say so before the work
    except ImportError:
        raise Missing("the package onnx was missing when this site was built") from None
    parts, numbers = networks()
    return (
        "globalThis.minidiffModel = "
        f"{json.dumps(numbers | {k: packed(v) for k, v in parts.items()})};\n"
    )


def key() -> str:
    """Changes when the weights, or this file, do."""
    files = [ROOT / f"minidiff/weights/tiny/{w}.safetensors" for w in WEIGHTS] + [Path(__file__)]
    return hashlib.sha256(
        b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)
    ).hexdigest()[:16]


def make(cache: Path) -> dict[str, Path]:
    """{"runtime.js": file, "model.js": file}, made if they are not there. Missing: why it cannot
    be.
    """
    cache.mkdir(parents=True, exist_ok=True)
    made = {}
    for name, text in (("runtime", lambda: runtime(cache)), ("model", model)):
        made[f"{name}.js"] = file = cache / f"{name}-{key()}.js"
        if not file.exists():
            for old in cache.glob(f"{name}-*.js"):
                old.unlink()
            file.with_suffix(".part").write_text(text())
            file.with_suffix(".part").replace(file)
    return made
