"""Two processes that train one network equal one process with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minidiff.train.checkpoint import read_facts
from minidiff.train.fit import fit
from minidiff.train.processes import gathered, own_rows

# The same lines here and in both processes. (With dropout each process would drop other units.)
WORLD = """
import json, sys
import torch
from safetensors.torch import save_file
from torch import nn
import minidiff.train.fit as fit_module
from minidiff.core.schedule import linear
from minidiff.data import shapes
from minidiff.foundations.latent_diffusion import diffusion_loss
from minidiff.models.attribute_net import AttributeNet
from minidiff.models.clip import CLIP
from minidiff.models.image_encoder import CLIPImage
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.vae import VAE
from minidiff.shipped.autoencoder import autoencoder_loss, image_batches
from minidiff.shipped.clip import clip_batches, clip_loss
from minidiff.data.attributes import HEADS
from minidiff.models.noisy_classifier import NoisyClassifier
from minidiff.shipped.noisy_classifier import classifier_loss
from minidiff.shipped.oracle import oracle_batches, oracle_loss
from minidiff.shipped.words import Taught, word_batch, word_loss
from minidiff.train.fit import _Objective, fit
from minidiff.train.processes import own_rows, process_group

torch.set_num_threads(1)
TOKENIZER = Tokenizer.words(shapes.VOCAB)
SETUP = dict(lr=1e-2, muon_lr=2e-2, warmup=5, decay=.3, ema=.9, seed=3, progress=False)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))


def batch(step):
    g = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(8, 6, generator=g)
    return {"x": x, "y": x[:, :2].sin()}


def double(rows):
    return {k: v.double() if v.is_floating_point() else v for k, v in rows.items()}


def loss(net, rows):
    return (net(rows["x"]) - rows["y"]).pow(2).mean()


def text(causal):
    return CLIPText(len(TOKENIZER), 16, 1, 2, 20, eos_id=2, project_dim=8 if causal else None, causal=causal)


def latent_rows(step):
    g = torch.Generator().manual_seed(step)
    answers = [torch.randint(len(v), (4, 1), generator=g) for v in HEADS.values()]
    x0, eps = torch.randn(2, 4, 4, 16, 16, generator=g)
    return {"x0": x0, "eps": eps, "t": torch.tensor([3, 500, 90, 1000]), "label": torch.cat(answers, 1)}


def losses():
    '''{name: (network, its loss, its batch)}, in double precision.'''
    torch.manual_seed(0)
    clip = CLIP(text(True), CLIPImage(64, 32, 16, 1, 2, 8)).double()
    old, classifier = text(False).double(), NoisyClassifier(width=(8, 8, 8)).double()
    taught = Taught(text(False), len(TOKENIZER)).double()
    vae = VAE(channels=(8, 16), layers=1, groups=4, patch=2).double()
    conv = nn.Conv2d(4, 4, 3, padding=1).double()
    noised = lambda n, b: diffusion_loss(lambda x, t, c: n(x), b, linear(), "v")
    return {
        "clip": (clip, clip_loss, clip_batches(TOKENIZER, 4, 0)(0)),
        "words": (taught, lambda n, b: word_loss(n, b, old), word_batch(TOKENIZER, 6, 0, 0)),
        "autoencoder": (vae, autoencoder_loss, image_batches(2, 0, vae_shape(vae))(0)),
        "classifier": (classifier, lambda n, b: classifier_loss(n, b, linear()), latent_rows(0)),
        "oracle": (AttributeNet().double(), oracle_loss, oracle_batches(4, 0)(0)),
        "diffusion": (conv, noised, latent_rows(1)),
    }


def vae_shape(vae):
    with torch.no_grad():
        return tuple(vae.encode(torch.zeros(1, 3, 64, 64).double()).mean.shape[1:])


def gradients(net, loss, rows):
    '''Of every parameter, as `fit` gets them.'''
    rank, world = process_group("cpu")
    objective = _Objective(net, loss)
    if world > 1:
        objective = nn.parallel.DistributedDataParallel(objective)
    objective(own_rows(double(rows), rank, world)).backward()
    return {n: p.grad for n, p in net.named_parameters()}


def all_gradients():
    found = {name: gradients(*case) for name, case in losses().items()}
    return {f"{name}:{n}": g for name, grads in found.items() for n, g in grads.items()}
"""

SCRIPT = (
    WORLD
    + """
seen = []
saves = []
keep = fit_module.save_checkpoint
fit_module.save_checkpoint = lambda *args: (saves.append(args[-1]["step"]), keep(*args))


def counted(net, rows):
    seen.append(len(rows["x"]))
    return loss(net, rows)


out = sys.argv[1]
exact = fit(net().double(), counted, lambda k: double(batch(k)), out=out + "/run", steps=25, optimiser="adamw", **SETUP)
muon = fit(net(), loss, batch, steps=5, **SETUP)
rank, world = process_group("cpu")
save_file({f"exact.{n}": v for n, v in exact.state_dict().items()} | {f"muon.{n}": v for n, v in muon.state_dict().items()} | all_gradients(), f"{out}/{rank}.safetensors")
json.dump({"seen": sorted(set(seen)), "saves": saves}, open(f"{out}/{rank}.json", "w"))
torch.distributed.destroy_process_group()
"""
)
LOSSES = ("clip", "words", "autoencoder", "classifier", "oracle", "diffusion")


@pytest.fixture(scope="module")
def here():
    """The same lines in this process, on one thread."""
    threads = torch.get_num_threads()
    exec(WORLD, world := {"__name__": "here"})
    yield world
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(the folder, what each of two processes ended with), started as `torchrun` starts them."""
    out = tmp_path_factory.mktemp("both")
    script = out / "script.py"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [*torchrun, "--nproc_per_node=2", script, out],
        env=env | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out, [load_file(out / f"{rank}.safetensors") for rank in (0, 1)]


def test_two_processes_end_with_the_same_weights_to_the_bit(both):
    first, second = both[1]
    assert all(torch.equal(first[k], second[k]) for k in first) and len(first) > 50


@pytest.mark.parametrize("how, tolerance", [("exact", 1e-9), ("muon", 1e-4)])
def test_two_processes_train_as_one_with_the_whole_batch(both, here, how, tolerance):
    """Sums in another order differ in the last bit, which training then multiplies; so in double
    precision.
    """
    if how == "exact":
        batch = lambda k: here["double"](here["batch"](k))  # noqa: E731
        net, steps, kind = here["net"]().double(), 25, "adamw"
    else:
        batch, net, steps, kind = here["batch"], here["net"](), 5, "muon"
    alone = fit(net, here["loss"], batch, steps=steps, optimiser=kind, **here["SETUP"])
    for name, v in alone.state_dict().items():
        assert (both[1][0][f"{how}.{name}"] - v).abs().max() <= tolerance


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_over_two_processes_has_the_slopes_of_the_whole_batch(both, here, name):
    """Also where rows are compared (CLIP's twins stand in neighbouring rows, so in different
    processes), and where they hold unequal numbers of words.
    """
    want = here["gradients"](*here["losses"]()[name])
    assert want
    for parameter, slope in want.items():
        found = both[1][0][f"{name}:{parameter}"]
        assert (found - slope).abs().max() <= 1e-9 * (1 + slope.abs().max()), parameter
    assert max(slope.abs().max() for slope in want.values()) > 1e-4


def test_each_process_takes_its_share_of_the_rows_and_the_first_one_writes(both):
    out, _ = both
    first, second = (json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["seen"] == second["seen"] == [4]  # of 8
    assert first["saves"] == [25] and second["saves"] == []
    rows = [json.loads(row)["step"] for row in (out / "run/log.jsonl").read_text().splitlines()]
    assert rows == [25] and read_facts(out / "run")["step"] == 25


def test_rows_that_cannot_be_shared_evenly_are_refused():
    rows = {"x": torch.arange(6)}
    assert own_rows(rows, 1, 3)["x"].tolist() == [1, 4]
    with pytest.raises(ValueError, match="6 rows of 'x' cannot be shared evenly by 4 processes"):
        own_rows(rows, 0, 4)


def test_one_process_has_nothing_to_gather():
    x = torch.randn(2, 3)
    assert gathered(x) is x
