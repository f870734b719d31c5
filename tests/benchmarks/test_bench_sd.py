"""The benchmark against diffusers: it runs, at a tenth of the width; clock, memory and count of
operations are right.
"""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc"),
]


@pytest.fixture(scope="module")
def bench():
    pytest.importorskip("diffusers", reason="diffusers is not installed (development extra)")
    sys.path.insert(0, str(ROOT / "tests/benchmarks"))
    try:
        yield importlib.import_module("bench_sd")
    finally:
        sys.path.remove(str(ROOT / "tests/benchmarks"))


@pytest.mark.timeout(900)  # bfloat16 is emulated on processors without it
def test_every_case_computes_the_same_as_diffusers(tmp_path, bench, capsys):
    bench.main(
        ["--width", ".1", "--latent", "8", "--rounds", "1", "--json", str(tmp_path / "bench.json")]
    )
    table = capsys.readouterr().out
    facts = json.loads((tmp_path / "bench.json").read_text())
    rows = {row["case"]: row for row in facts["cases"]}
    assert list(rows) == list(bench.CASES) and facts["width"] == 0.1 and facts["rounds"] == 1
    for name, row in rows.items():
        assert row["error"] <= (0.2 if "bf16" in name else 1e-4), name
        assert (
            row["time"] > 0 and row["ours_s"] > 0 and (row["floor"] is None) == (row["gflop"] == 0)
        ), name
        assert f"{row['time']:.3f}" in table
    assert rows["unet1-bf16"]["error"] > 1e-3  # a bfloat16 network, not a float32 one


def test_the_peak_is_that_of_the_run_alone(bench):
    """What is taken and given back counts, what was there before does not. (Below 32 MB malloc may
    reuse old pages.)
    """
    before = torch.ones(32 << 18)
    peaks = [bench.measure(lambda n=n: torch.ones(n << 18).sum(), 2)[1] for n in (64, 40, 64)]
    assert all(abs(p - n) < 6 for p, n in zip(peaks, (64, 40, 64))) and len(before)


def test_arithmetic_of_the_text_tower_is_that_of_its_matrices(bench):
    args = bench.arguments("sd15", 0.25)
    n, d, layers = 77, args["text"]["width"], args["text"]["layers"]
    want = layers * (2 * n * 12 * d * d + 4 * n * n * d)  # q k v out, two of 4 d; scores and sums
    assert (
        bench.arithmetic(args, {"text": 1}, 8) == want
        and bench.arithmetic(args, {"text": 3}, 8) == 3 * want
    )
    unet, decode = (bench.arithmetic(args, {part: 1}, 8) for part in ("unet", "decode"))
    assert bench.arithmetic(args, {"unet": 2, "decode": 1}, 8) == 2 * unet + decode > unet > 0


def test_full_width_is_stable_diffusion_and_heads_divide_every_other(bench):
    full = bench.arguments("sd15")
    assert full["unet"]["channels"] == (320, 640, 1280, 1280) and full["vae"]["channels"] == (
        128,
        256,
        512,
        512,
    )
    assert full["unet"]["context"] == full["text"]["width"] == 768
    for size in ("sd15", "sd21"):
        for width in (0.05, 0.1, 0.3, 0.5):
            part = bench.arguments(size, width)["unet"]
            heads = part["heads"] if isinstance(part["heads"], tuple) else (part["heads"],) * 4
            assert all(c % 32 == 0 and c % h == 0 for c, h in zip(part["channels"], heads))


def test_an_unknown_case_is_refused_with_the_known_ones(bench, capsys):
    with pytest.raises(SystemExit) as e:
        bench.main(["--only", "unet3"])
    assert e.value.code == 2 and "unet1-packed" in capsys.readouterr().err
