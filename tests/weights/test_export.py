"""A model as ONNX files: the same numbers, by a program that knows nothing of this one."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

import minidiff
from minidiff.weights.export import export_onnx

onnxruntime = pytest.importorskip("onnxruntime", reason="it runs the files; make test brings it")
pytest.importorskip("onnx", reason="it writes the files; make test brings it")

PROMPT = "a red circle on a blue background"


def opened(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pipe = minidiff.build("tiny", seed=1)
    return pipe, export_onnx(pipe, tmp_path_factory.mktemp("onnx") / "tiny")


def test_any_number_of_rows_gives_the_same_numbers(exported):
    pipe, files = exported
    rng = np.random.default_rng(0)
    net = opened(files["net"])
    for rows in (1, 3):
        x = torch.from_numpy(rng.standard_normal((rows, 4, 16, 16), dtype=np.float32))
        t = torch.from_numpy(rng.integers(1, 1001, rows))
        cond = pipe.embed([PROMPT] * rows)
        with torch.no_grad():
            ours = pipe.net(x, t - 1, cond).numpy()
        told = {"x": x.numpy(), "t": (t - 1).numpy(), "text": cond.text.numpy()}
        theirs = net.run(None, told)[0]
        assert np.abs(ours - theirs).max() < 1e-4  # float32 sums in another order


def test_numpy_alone_samples_what_the_pipe_samples(exported):
    pipe, files = exported
    facts = json.loads(open(files["model"]).read())
    net, text, decoder = (opened(files[part]) for part in ("net", "text", "decoder"))
    alpha = np.array(facts["alpha"], np.float32)
    sigma = np.array(facts["sigma"], np.float32)

    def states(prompt):
        words = [facts["vocabulary"].index(word) for word in prompt.split()]
        ids = [facts["bos"], *words, facts["eos"]]
        ids += [facts["pad"]] * (facts["context"] - len(ids))
        return text.run(None, {"ids": np.array([ids], np.int64)})[0]

    told = np.concatenate([states(""), states(PROMPT)])
    x = pipe.noise(1, seed=3).numpy()
    times = pipe.timesteps(4)
    for t, s in pairwise(times):
        clock = np.array([facts["clock"][t]] * 2, np.int64)
        out = net.run(None, {"x": np.repeat(x, 2, 0), "t": clock, "text": told})[0]
        eps = sigma[t] * x + alpha[t] * out  # of a v-prediction
        eps = eps[:1] + 3 * (eps[1:] - eps[:1])  # classifier-free guidance
        x = alpha[s] * (x - sigma[t] * eps) / alpha[t] + sigma[s] * eps  # DDIM
    picture = decoder.run(None, {"z": x})[0]
    ours = pipe.generate(PROMPT, steps=4, scale=3.0, seed=3).numpy()
    assert np.abs(picture - ours).max() < 1e-3


def test_a_picture_goes_in_and_out(exported):
    pipe, files = exported
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    z = opened(files["encoder"]).run(None, {"picture": image.numpy()})[0]
    assert np.abs(z - pipe.encode(image).numpy()).max() < 1e-4


def test_the_command_writes_every_part_and_says_where(tmp_path, monkeypatch, capsys):
    from minidiff.cli import main as app
    from minidiff.weights import store

    monkeypatch.setattr(store, "load", lambda name: minidiff.build("tiny-pixel"))
    out = tmp_path / "pixel-onnx"
    assert app.main(["export", "onnx", "tiny-pixel", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "net.onnx"]
    assert str(out / "net.onnx") in capsys.readouterr().out
    assert len(json.loads((out / "model.json").read_text())["classes"]) == 56
    assert app.main(["export", "onnx", "tiny-pixel", "--out", str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_bad_input_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    pipe = minidiff.build("tiny-pixel")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    with pytest.raises(ValueError, match="is not empty"):
        export_onnx(pipe, tmp_path / "full")
    with pytest.raises(ValueError, match="float32"):
        export_onnx(minidiff.build("tiny-pixel", dtype=torch.float16), tmp_path / "half")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install onnx"):
        export_onnx(pipe, tmp_path / "none")
    assert not (tmp_path / "half").exists() and not (tmp_path / "none").exists()
