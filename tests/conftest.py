"""Rules for the whole suite: what may be skipped, and that no test reaches for the network.

`--no-skips` (or MINIDIFF_NO_SKIPS=1) turns every skipped test into a failure, unless its reason
names something that is truly absent: data that is not part of the repository, an accelerator, or
Node.js. Pytest lists the reasons at the end.
"""

import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"  # data too large or not free to ship
MODEL = [
    ROOT / "minidiff/weights/tiny" / name
    for name in ("manifest.json", "unet.safetensors", "vae.safetensors")
]


def pytest_configure(config):
    config.option.importmode = "importlib"  # tests of two rooms may have the same name


def pytest_addoption(parser):
    wanted = os.environ.get("MINIDIFF_NO_SKIPS", "0") not in ("", "0")
    parser.addoption(
        "--no-skips",
        action="store_true",
        default=wanted,
        help="a skipped test is a failure, unless its reason is a thing that is truly absent",
    )


def pytest_collection_modifyitems(config, items):
    if not all(p.exists() for p in MODEL):
        for item in items:
            if item.get_closest_marker("weights"):
                item.add_marker(
                    pytest.mark.skip(reason="the shipped weights are not in minidiff/weights/tiny")
                )


def no_gpu() -> bool:
    import torch

    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def excused(reason: str) -> bool:
    """Does a reason name what is truly absent?"""
    return (
        ("not part of the repository" in reason and not SHARED.is_dir())
        or ("GPU" in reason and no_gpu())
        or ("Node.js" in reason and not shutil.which("node"))
    )


def judge(report, config):
    """A skip without excuse becomes a failure."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if (
        config.getoption("--no-skips")
        and report.skipped
        and not hasattr(report, "wasxfail")
        and not excused(reason)
    ):
        report.outcome, report.longrepr = "failed", f"skipped, and --no-skips is on: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return judge((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return judge((yield), collector.config)


@pytest.fixture(scope="session")
def awake():
    """awake(size, spread): a pipe of random weights whose zero-initialised layers are perturbed, so
    that every branch and every prompt matters.
    """
    import torch

    import minidiff

    def make(size: str, spread: float = 0.05):
        p, g = minidiff.build(size, seed=0), torch.Generator().manual_seed(1)
        for w in p.net.parameters():
            if w.abs().max() == 0:
                w.data.normal_(0, spread, generator=g)
        return p

    return make


@pytest.fixture(scope="session")
def pipe():
    """The tiny model with random weights. One for all tests: those that change weights make their
    own.
    """
    import minidiff

    return minidiff.build("tiny", seed=0)


@pytest.fixture(scope="session")
def image():
    """Two random pictures of the tiny model's size, for tests that leave them as they are."""
    import torch

    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
