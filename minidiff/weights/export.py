"""Writing a model as ONNX files, for programs that are not Python or want it faster.

    net.onnx      x (b c h w), t (b) network times, text (b n d) or label (b) -> out (b c h w)
    text.onnx     ids (b n) -> text (b n d)
    encoder.onnx  picture (b 3 H W) in [-1, 1] -> z (b c h w), scaled
    decoder.onnx  z -> picture, clamped to [-1, 1]
    model.json    what a sampling loop needs beside them: alpha and sigma of every time, what the
                  network predicts, the words of the vocabulary, the shapes

The number of rows is free, everything else is the model's own size. Taps are not exported: nobody
can look inside an ONNX file or edit there. Needs the package `onnx`; to run the files any runtime
will do. `tutorials/weights/onnx.md` samples with NumPy and onnxruntime alone.
"""

import importlib.util
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from minidiff.core.cond import Cond
from minidiff.io import write_bytes, write_json
from minidiff.pipe.pipe import Pipe

OPSET = 17


class _Net(nn.Module):
    """The denoiser with plain tensors as its arguments."""

    def __init__(self, net: nn.Module, told: str):
        super().__init__()
        self.net = net
        self.told = told

    def forward(self, x: Tensor, t: Tensor, *told: Tensor) -> Tensor:
        cond = Cond(**dict(zip((self.told,), told))) if told else Cond()
        return self.net(x, t, cond)


class _Calls(nn.Module):
    """A module whose forward is another method of the one it holds."""

    def __init__(self, module: nn.Module, method: str):
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(self.module, self.method)(*inputs)


def export_onnx(pipe: Pipe, out: str | Path = "onnx") -> dict[str, str]:
    """Write a pipe's parts as ONNX files into the folder `out`, which must not exist or be empty;
    {part: path}.

    ValueError: the package onnx is missing, the folder holds something, or the model is in half
    precision.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ValueError("ONNX files are written with the package onnx: pip install onnx")
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; name another folder")
    if pipe.dtype != torch.float32:
        raise ValueError(f"weights in {pipe.dtype}: load the model in float32 to export it")
    written = {}
    for part, (module, inputs, result) in _parts(pipe).items():
        path = folder / f"{part}.onnx"
        write_bytes(_exported(module, inputs, result), path)
        written[part] = str(path)
    path = folder / "model.json"
    write_json(_facts(pipe), path)
    return written | {"model": str(path)}


def _parts(pipe: Pipe) -> dict[str, tuple[nn.Module, dict[str, Tensor], str]]:
    """{part: (module, {name: an example of the input}, name of the result)}."""
    rows = 2
    z = torch.zeros(rows, *pipe.shape)
    inputs = {"x": z, "t": torch.zeros(rows, dtype=torch.int64)}
    told = ""
    cond = pipe.null(rows)
    if cond.text is not None:
        told = "text"
        inputs["text"] = cond.text
    elif cond.label is not None:
        told = "label"
        inputs["label"] = cond.label
    parts = {"net": (_Net(pipe.net, told), inputs, "out")}
    if pipe.text is not None:
        ids = pipe.tokenizer([""] * rows)
        parts["text"] = (_Calls(pipe.text, "forward"), {"ids": ids}, "text")
    if pipe.vae is not None:
        picture = torch.zeros(rows, 3, *pipe.image_size)
        parts["encoder"] = (_Calls(pipe.vae, "to_latent"), {"picture": picture}, "z")
        parts["decoder"] = (_Calls(pipe.vae, "to_image"), {"z": z}, "picture")
    return parts


def _exported(module: nn.Module, inputs: dict[str, Tensor], result: str) -> bytes:
    """One module as the bytes of an ONNX file, its number of rows left open."""
    buffer = io.BytesIO()
    free = {name: {0: "rows"} for name in (*inputs, result)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that shapes are fixed is meant
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            buffer,
            input_names=list(inputs),
            output_names=[result],
            dynamic_axes=free,
            opset_version=OPSET,
            dynamo=False,  # takes a tenth of the time, and no onnxscript
        )
    return buffer.getvalue()


def _facts(pipe: Pipe) -> dict:
    """What model.json holds. `clock[t]`: what the network is told as the time of index t >= 1."""
    times = range(1, pipe.schedule.T + 1)
    like = torch.zeros(1)
    facts = {
        "model": pipe.name,
        "prediction": pipe.prediction,
        "shape": list(pipe.shape),
        "image_size": list(pipe.image_size),
        "start_std": pipe.start_std,
        "alpha": pipe.schedule.alpha.tolist(),
        "sigma": pipe.schedule.sigma.tolist(),
        "clock": [None, *[pipe.clock(t, like).item() for t in times]],
    }
    if pipe.classes:
        facts["classes"] = list(pipe.classes)
    tokenizer = pipe.tokenizer
    if pipe.text is not None and tokenizer is not None:
        facts |= {
            "vocabulary": list(tokenizer.speller.names),
            "context": tokenizer.context,
            "bos": tokenizer.bos,
            "eos": tokenizer.eos,
            "pad": tokenizer.pad,
        }
    return facts
