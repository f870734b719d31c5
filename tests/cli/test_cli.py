import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

import minidiff
from minidiff.cli import main as app
from minidiff.cli import measuring, training
from minidiff.cli.options import Parser, arguments, described
from minidiff.data import shapes
from minidiff.io import read_image, write_image
from minidiff.techniques import TECHNIQUES
from minidiff.weights import store

PROMPT = "a red circle on a blue background"
UNTRAINED = {name: minidiff.build(name, seed=1) for name in ("tiny", "tiny-pixel")}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with pictures good and bad, where untrained models stand in for the shipped ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "load", load_untrained)
    write_image(shapes.render(shapes.scene(np.random.default_rng(0))), "scene.png")
    write_image(torch.zeros(3, 32, 32), "small.png")
    half = torch.full((3, 64, 64), -1.0)
    half[:, :, 20:] = 1
    write_image(half, "mask.png")
    Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save("deep.png")
    Image.fromarray(np.zeros((64, 64, 4), np.uint8)).save("clear.png")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save("grey.png")
    write_image(-torch.ones(3, 64, 64), "black.png")
    write_image(torch.ones(3, 64, 64), "white.png")
    Path("empty.png").write_bytes(b"")
    Path("text.png").write_text("not a picture")
    Path("folder").mkdir()
    return tmp_path


def load_untrained(name="tiny", *, device=None, dtype=None):
    if name not in UNTRAINED:
        raise ValueError(f"model {name!r} is unknown; the shipped ones are: {', '.join(UNTRAINED)}")
    return UNTRAINED[name]


def run(line: str) -> int:
    """`line` split at spaces; `_` inside a word stands for a space."""
    return app.main([w.replace("_", " ") for w in line.split()])


def snapshot(folder: Path) -> dict:
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


P = PROMPT.replace(" ", "_")
SDEDIT = f"edit sdedit --prompt {P} --steps 2"
P2P = "edit prompt-to-prompt --steps 2"
BAD = {
    "no such command": ("paint x", "unknown command 'paint'"),
    "no technique": ("edit", "technique is missing"),
    "unknown technique": (
        f"edit paint --prompt {P}",
        "unknown technique 'paint'; choose one of: sdedit",
    ),
    "misspelt technique": (f"edit flowedti --prompt {P}", "did you mean flowedit?"),
    "misspelt command": ("genrate", "did you mean generate?"),
    "misspelt method": ("bench --methods flowedti", "did you mean flowedit"),
    "misspelt proof": ("prove flowedti", "did you mean flowedit?"),
    "unknown recipe": ("train huge", "unknown model to train 'huge'"),
    "unknown model": (f"generate {P} --model huge", "model 'huge' is unknown"),
    "unknown size": ("trace huge", "size 'huge' is unknown"),
    "unknown option": (f"generate {P} --step 5", "unrecognized arguments: --step 5"),
    "no prompt": ("generate", "required: prompt"),
    "no picture": (SDEDIT, "required: --image"),
    "word for a number": (f"generate {P} --steps many", "invalid int value"),
    "steps 0": (f"generate {P} --steps 0", "steps=0 is outside 1..1000"),
    "steps 10000": (f"generate {P} --steps 10000", "steps=10000 is outside 1..1000"),
    "negative scale": (f"generate {P} --steps 2 --scale -1", "scale=-1.0 is negative"),
    "interval upside down": (f"generate {P} --steps 2 --interval 900 100", "lo below hi"),
    "scale nan": (f"generate {P} --steps 2 --scale nan", "scale=nan: a finite number"),
    "scale nan, sheet": (f"generate {P} {P} --steps 2 --scale nan", "scale=nan: a finite number"),
    "eta 2": (f"generate {P} --steps 2 --eta 2", "eta=2.0"),
    "negative seed": (f"generate {P} --seed -1", "seed -1 is outside"),
    "huge seed": (f"generate {P} --seed {10**30}", "is outside 0..2**62"),
    "no pictures": (f"generate {P} --n 0", "0 pictures were asked for"),
    "too many pictures": (f"generate {P} --n 1000000000", "1 to 256"),
    "unknown words": ("generate a_red_elephant --steps 2", "unknown words: elephant"),
    "unknown class": (
        "generate elephant --model tiny-pixel --steps 2",
        "class 'elephant' is unknown",
    ),
    "missing folder as output": (f"generate {P} --out folder", "it is a folder"),
    "no picture format": (f"generate {P} --out picture.txt", "must end in .png"),
    "output below a file": (f"generate {P} --out text.png/a.png", "is no folder"),
    "facts as a picture": ("invert --image scene.png --json facts.png", "must end in .json"),
    "missing file": (f"{SDEDIT} --image nothing.png", "no picture at nothing.png"),
    "folder as picture": (f"{SDEDIT} --image folder", "folder is a folder"),
    "0 bytes": (f"{SDEDIT} --image empty.png", "0 bytes"),
    "text as picture": (f"{SDEDIT} --image text.png", "no picture of a kind that is read"),
    "another size": (f"{SDEDIT} --image small.png", "32x32 pixels"),
    "mask of another size": (f"{SDEDIT} --image scene.png --mask small.png", "32x32 pixels"),
    "mask of another size, resize": (
        f"{SDEDIT} --image scene.png --mask small.png --resize",
        "32x32 pixels",
    ),
    "strength 2": (f"{SDEDIT} --image scene.png --strength 2", "strength=2.0 is outside 0..1"),
    "edit of NaN": (
        f"{SDEDIT} --image scene.png --scale nan --sheet sheet.png",
        "scale=nan: a finite number",
    ),
    "other word count": (
        f"{P2P} --kind replace --source {P} --target a_red_circle",
        "equally many words",
    ),
    "no such word": (f"{P2P} --source {P} --target {P} --weights star=2", "word 'star' is not in"),
    "no number": (f"{P2P} --source {P} --target {P} --weights star", "argument --weights"),
    "p2p without text": (f"{P2P} --model tiny-pixel --source a --target b", "reads no text"),
    "invert steps 0": ("invert --image scene.png --steps 0", "steps=0 is outside"),
    "invert unknown word": (
        "invert --image scene.png --prompt zebra --steps 2",
        "unknown words: zebra",
    ),
    "proof of nothing": ("prove sdedit --n 0", "n=0: at least one scene"),
    "bench: a word for a number": (
        "bench --methods sdedit@strength=x --items 1",
        "strength='x': a finite number",
    ),
    "height 0": (f"generate {P} --height 0", "0 x 64 pixels"),
    "more than memory": (f"generate {P} --height 1000000 --width 100000", "more than 64 million"),
    "paste without a mask": (f"{SDEDIT} --image scene.png --paste", "--paste needs"),
    "empty mask": (f"{SDEDIT} --image scene.png --mask black.png", "black.png is empty"),
    "full mask": (f"{SDEDIT} --image scene.png --mask white.png", "white.png is full"),
    "strength of no step": (f"{SDEDIT} --image scene.png --strength .1", "less than one step"),
    "size a transformer has not": (
        f"{SDEDIT} --image scene.png --model tiny-pixel --height 64",
        "takes that size only",
    ),
    "no such part": ("trace tiny --part engine", "part 'engine' is unknown"),
    "part that is not there": ("trace tiny-pixel --part vae", "has no vae"),
    "nothing to inspect": ("inspect nothing.safetensors", "no weights file at nothing.safetensors"),
    "a picture to inspect": ("inspect scene.png", "scene.png is no weights file by its name"),
    "a folder without weights": ("inspect folder", "no weights file in folder"),
    "nothing to convert": (
        "convert nothing.safetensors a.safetensors",
        "no weights file at nothing.safetensors",
    ),
    "unknown layout": ("convert a.safetensors b.safetensors --to torch", "invalid choice: 'torch'"),
    "unknown dtype": ("convert a.safetensors b.safetensors --dtype int8", "invalid choice: 'int8'"),
    "no place to convert to": ("convert a.safetensors", "required: DST"),
}
if not torch.cuda.is_available():
    BAD["absent device"] = (f"generate {P} --device cuda", "device cuda is not available")


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(here, capsys, case):
    line, words = BAD[case]
    before = snapshot(here)
    assert run(line) == 2
    out, err = capsys.readouterr()
    assert err.startswith("minidiff: ") and err.count("\n") == 1 and words in err, err
    assert out == "" and snapshot(here) == before


@pytest.mark.skipif(
    sys.platform != "linux", reason="/dev/full and /proc are Linux's; no other place to test"
)
@pytest.mark.parametrize("place", ["/dev/full", "/proc/minidiff.png"])
def test_a_place_that_takes_nothing_is_one_line_and_exit_code_2(here, capsys, place):
    assert run(f"generate {P} --steps 2 --out {place}") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"minidiff: cannot write {place}") and err.count("\n") == 1
    assert not Path(place).is_file()


def test_debug_shows_the_error_itself(here):
    with pytest.raises(ValueError, match="steps=0"):
        run(f"generate {P} --steps 0 --debug")


def fails(error):
    def command(rest):
        raise error

    return command


@pytest.mark.parametrize(
    "error, code, line",
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyError("no tap\nmatches"), 2, "no tap matches"),
        (FloatingPointError("loss is nan"), 1, "loss is nan"),
        (FileNotFoundError(2, "No such file", "x"), 2, "x"),
    ],
)
def test_errors_have_their_exit_codes(monkeypatch, capsys, error, code, line):
    monkeypatch.setitem(app.COMMANDS, "demo", fails(error))
    assert run("demo") == code
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1 and "'no tap" not in err


def test_a_bug_is_not_disguised_as_bad_input(monkeypatch):
    monkeypatch.setitem(app.COMMANDS, "demo", fails(RuntimeError("a bug")))
    with pytest.raises(RuntimeError):
        run("demo")


# ---- commands that work --------------------------------------------------------------------------


def test_one_picture_is_written_as_it_is(here, capsys):
    assert run(f"generate {P} --steps 2 --seed 3 --out new/a.png") == 0
    assert capsys.readouterr().out == "new/a.png\n"
    expected = UNTRAINED["tiny"].generate(PROMPT, steps=2, seed=3)
    assert (read_image("new/a.png", 64) - expected).abs().max() <= 1.01 / 255


def test_several_pictures_become_a_labelled_sheet(here):
    assert run(f"generate {P} a_green_star_on_a_white_background --n 2 --steps 2 --out a.png") == 0
    with Image.open("a.png") as im:
        assert im.width == 4 * 200 + 8 and im.height > 208 + 16


def test_a_model_without_text_takes_class_names(here):
    assert run("generate red_circle --model tiny-pixel --steps 2 --out a.png") == 0
    assert read_image("a.png").shape == (1, 3, 32, 32)


@pytest.mark.parametrize("image", ["scene", "deep", "clear", "grey"])
def test_sdedit_takes_pictures_of_every_depth(here, image):
    assert run(f"{SDEDIT} --image {image}.png --mask mask.png --out a.png --sheet b.png") == 0
    assert read_image("a.png", 64).isfinite().all() and Path("b.png").exists()


def test_a_picture_of_another_size_is_resized_when_asked(here):
    assert run(f"{SDEDIT} --image small.png --resize --out a.png") == 0
    assert read_image("a.png").shape == (1, 3, 64, 64)


def test_picture_and_mask_are_cut_and_scaled_together_and_pasted_back(here):
    """A photo and its mask of 96 x 160: the edit comes back at that size, its surroundings as they
    were.
    """
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 255, (96, 160, 3)).astype(np.uint8)
    mask = np.zeros((96, 160), np.uint8)
    mask[30:60, 60:100] = 255
    Image.fromarray(photo).save("photo.png")
    Image.fromarray(mask).save("stroke.png")
    line = f"{SDEDIT} --image photo.png --mask stroke.png --resize --strength 1"
    assert run(f"{line} --out small.png") == 0 and read_image("small.png").shape[2:] == (64, 64)
    assert run(f"{line} --paste --out large.png") == 0
    out = np.asarray(Image.open("large.png"))
    assert out.shape == photo.shape and (out != photo)[mask > 0].any()
    assert (out == photo)[mask == 0].all()


def test_a_picture_is_worked_on_at_another_size_when_asked(here):
    assert run(f"{SDEDIT} --image scene.png --resize --height 48 --width 80 --out a.png") == 0
    assert read_image("a.png").shape == (1, 3, 48, 80)
    assert (
        run("invert --image scene.png --steps 2 --resize --height 48 --width 80 --out b.png") == 0
    )


def test_the_mask_can_be_turned_around(here):
    for extra, side in (("", slice(0, 20)), ("--invert-mask", slice(20, 64))):
        assert (
            run(f"{SDEDIT} --image scene.png --mask mask.png --strength 1 {extra} --out a.png") == 0
        )
        kept = (read_image("a.png") - read_image("scene.png"))[..., side]
        assert kept.abs().max() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="file descriptors are closed by a shell; Linux")
def test_a_closed_output_is_one_line():
    command = f"{sys.executable} -m minidiff trace tiny >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "closed" in done.stderr


def test_outside_the_mask_nothing_changes(here):
    m = torch.full((3, 64, 64), -1.0)
    m[:, :, :20] = 1
    write_image(m, "left.png")
    assert run(f"{SDEDIT} --image scene.png --mask left.png --strength 1 --out a.png") == 0
    change = (read_image("a.png") - read_image("scene.png")).abs()
    assert change[..., 20:].max() == 0 and change[..., :20].max() > 0.1


def test_prompt_to_prompt_writes_the_edit_and_a_sheet_of_both(here):
    target = "a_red_square_on_a_blue_background"
    assert (
        run(
            f"{P2P} --source {P} --target {target} --self .5 --weights square=2 --blend circle "
            "square --sheet s.png "
            "--out a.png"
        )
        == 0
    )
    with Image.open("s.png") as im:
        assert im.width == 2 * 200 + 8
    function = importlib.import_module("minidiff.editing.prompt_to_prompt").prompt_to_prompt
    expected = function(
        UNTRAINED["tiny"],
        PROMPT,
        target.replace("_", " "),
        self_=0.5,
        weights={"square": 2.0},
        blend=("circle", "square"),
        steps=2,
    )[1:]
    assert (read_image("a.png") - expected).abs().max() <= 1.01 / 255


def test_invert_measures_the_round_trip(here, capsys):
    assert (
        run(f"invert --image scene.png --prompt {P} --steps 3 --out a.png --json facts.json") == 0
    )
    facts = json.loads(Path("facts.json").read_text())
    assert (
        facts.keys() == {"psnr", "psnr_of_autoencoder", "psnr_to_copy", "noise_std", "steps"}
        and facts["steps"] == 3
    )
    assert "psnr_to_copy" in capsys.readouterr().out and Path("a.png").exists()


def test_trace_prints_and_writes_the_same_rows(here, capsys):
    assert run("trace tiny --part text --json rows.json") == 0
    rows = json.loads(Path("rows.json").read_text())
    assert f"{sum(r['parameters'] for r in rows):,}" in capsys.readouterr().out


def vae_file(path: str) -> None:
    from safetensors.torch import save_file

    from minidiff.models.vae import VAE

    save_file(VAE(channels=(32, 32)).state_dict(), path)


def test_inspect_and_convert_print_and_write_what_they_found(here, capsys):
    vae_file("vae.safetensors")
    assert run("inspect vae.safetensors --sha256 --json a.json") == 0
    facts, out = json.loads(Path("a.json").read_text()), capsys.readouterr().out
    assert facts["family"] == "vae" and facts["problem"] is None
    assert "family       vae: " in out and facts["sha256"]["vae.safetensors"] in out
    assert (
        run("convert vae.safetensors new/b.safetensors --to original --dtype float16 --json b.json")
        == 0
    )
    facts, out = json.loads(Path("b.json").read_text()), capsys.readouterr().out
    assert facts["parts"]["vae"]["dtypes"] == ["float16"] and out.endswith("new/b.safetensors\n")
    before = snapshot(here)
    assert run("convert vae.safetensors new/b.safetensors") == 2
    assert "exists; " in capsys.readouterr().err and snapshot(here) == before
    assert (
        run("convert vae.safetensors new/b.safetensors --force") == 0
        and run("inspect new/b.safetensors") == 0
    )


def test_an_unsupported_family_is_an_answer_to_inspect_and_an_error_to_convert(here, capsys):
    from safetensors.torch import save_file

    save_file({"conditioner.embedders.1.x": torch.ones(1)}, "xl.safetensors")
    assert run("inspect xl.safetensors") == 0 and "sdxl is not supported" in capsys.readouterr().out
    assert run("convert xl.safetensors b.safetensors") == 2
    assert "xl.safetensors" in capsys.readouterr().err and not Path("b.safetensors").exists()


def test_train_passes_the_options_of_the_recipe(here, monkeypatch, capsys):
    seen = {}

    def recipe(out: Path, *, budget: float = 1.0, seed: int = 0, **kw):
        """Train."""
        seen.update(out=out, budget=budget, seed=seed)

    monkeypatch.setattr(training, "find", lambda address: recipe)
    assert run("train tiny --budget .01 --out runs/mine") == 0
    assert seen == {"out": Path("runs/mine"), "budget": 0.01, "seed": 0}
    assert capsys.readouterr().out == "runs/mine/tiny: try it with --model runs/mine/tiny\n"


def test_evaluate_passes_the_model_and_fails_for_a_failed_claim(here, monkeypatch):
    def score(
        pipe_or_name, *, n: int = 192, json: str | None = None, progress: bool = True
    ) -> dict:
        """Score."""
        return {"passed": n > 10 and pipe_or_name is UNTRAINED["tiny"]}

    monkeypatch.setattr(measuring, "find", lambda address: score)
    assert [run(f"evaluate tiny --n {n}") for n in (20, 5)] == [0, 1]


def test_demo_draws_one_figure(here, capsys):
    assert run("demo --steps 2 --out figure.png --json facts.json") == 0
    with Image.open("figure.png") as im:
        assert im.width == 4 * 200 + 8
    assert json.loads(Path("facts.json").read_text()).keys() >= {
        "figure",
        "seconds",
        "SDEdit",
        "prompt-to-prompt",
    }
    assert "figure.png" in capsys.readouterr().out


@pytest.mark.weights
def test_edits_of_the_demo_are_nearer_to_the_truth_than_the_picture_they_start_from(tmp_path):
    from minidiff.cli.demo import EDITS, SCENE, demo
    from minidiff.evaluate.metrics import psnr

    facts = demo(tmp_path / "a.png")
    for name, (what, value) in EDITS.items():
        idle = psnr(shapes.render(SCENE), shapes.render(shapes.edit(SCENE, what, value))).item()
        assert facts[name] > idle, (name, facts[name], idle)


# ---- help and options ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "help",
        "--version",
        "generate --help",
        "edit --help",
        "edit sdedit --help",
        "edit prompt-to-prompt -h",
        "invert --help",
        "train --help",
        "train tiny --help",
        "train tiny-dit --help",
        "train tiny-pixel --help",
        "evaluate --help",
        "trace --help",
        "inspect --help",
        "convert --help",
        "doctor --help",
        "demo --help",
    ],
)
def test_help_is_there_for_every_command(capsys, line):
    assert run(line) == 0
    out, err = capsys.readouterr()
    assert len(out) > 10 and err == ""


def test_without_a_command_the_usage_is_shown(capsys):
    assert run("") == 2
    err = capsys.readouterr().err
    assert all(name in err for name in app.COMMANDS)


def test_help_does_not_wait_for_torch():
    code = (
        "import sys, minidiff.cli.main as m; assert m.main(['--help']) == 0; assert 'torch' not "
        "in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_and_exits_with_its_code():
    done = subprocess.run(
        [sys.executable, "-m", "minidiff", "paint"], capture_output=True, text=True
    )
    assert (
        done.returncode == 2
        and done.stderr.startswith("minidiff: unknown command")
        and done.stderr.count("\n") == 1
    )


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m minidiff --help | true", shell=True, capture_output=True, text=True
    )
    assert done.stderr == ""


def every_type(
    pipe,
    image: torch.Tensor,
    name: str,
    *,
    count: int = 3,
    ratio: float | None = None,
    fast: bool = True,
    self_: float = 0.4,
    kind: Literal["a", "b"] = "a",
    pair: tuple[str, str] | None = None,
    many: tuple[int, ...] = (1,),
    weights: dict[str, float] | None = None,
    hook=None,
    where: Path = Path("x"),
    bare=2.5,
    **rest,
):
    """Every type there is.

    count       how many, 50% of them
    """


def options(line: str):
    p = Parser(prog="test")
    names = arguments(p, every_type, skip=("pipe",))
    args = p.parse_args(line.split())
    return {n: getattr(args, n) for n in names}


def test_options_have_the_types_and_defaults_of_the_signature():
    assert options("--image a.png --name b") == {
        "image": "a.png",
        "name": "b",
        "count": 3,
        "ratio": None,
        "fast": True,
        "self_": 0.4,
        "kind": "a",
        "pair": None,
        "many": (1,),
        "weights": None,
        "where": Path("x"),
        "bare": 2.5,
    }
    given = options(
        "--image a --name b --count 4 --ratio 1 --no-fast --self .5 --kind b --pair p q --many 1 "
        "2 3 "
        "--weights x=1 y=.5 --where z --bare 1e-3"
    )
    assert given == {
        "image": "a",
        "name": "b",
        "count": 4,
        "ratio": 1.0,
        "fast": False,
        "self_": 0.5,
        "kind": "b",
        "pair": ("p", "q"),
        "many": (1, 2, 3),
        "weights": {"x": 1.0, "y": 0.5},
        "where": Path("z"),
        "bare": 0.001,
    }


@pytest.mark.parametrize(
    "line, words",
    [
        ("--image a", "required: --name"),
        ("--image a --name b --pair p", "--pair"),
        ("--image a --name b --count 1.5", "invalid int"),
        ("--image a --name b --kind c", "invalid choice"),
        ("--image a --name b --weights x", "not of the form word=number"),
        ("--image a --name b --coun 3", "unrecognized"),
    ],
)
def test_mistakes_are_errors_of_one_line(line, words):
    with pytest.raises(ValueError, match=words) as e:
        options(line)
    assert "\n" not in str(e.value) and "test --help" in str(e.value)


def test_help_repeats_the_docstring():
    p = Parser(prog="test")
    arguments(p, every_type, skip=("pipe",))
    text = " ".join(p.format_help().split())
    assert "Every type there is." in text and "how many, 50% of them; default 3" in text


def test_a_required_parameter_that_cannot_be_typed_in_is_a_programming_error():
    with pytest.raises(TypeError, match="parameter pipe"):
        arguments(Parser(), every_type)


def test_help_goes_on_over_the_lines_of_the_docstring():
    found = described(
        """Title.

        one    begins here
               and ends here
        other  alone

        Prose after it.
            x    a formula
        """.replace("        ", "")
    )
    assert found["other"] == "alone" and found["one"].startswith("begins here")


def test_every_option_of_every_technique_is_explained_to_its_end(capsys):
    assert run("edit sdedit --help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "0 returns the autoencoder's copy, 1 starts from noise" in text


@pytest.mark.parametrize("name", TECHNIQUES)
def test_no_option_of_a_technique_is_one_that_all_commands_have(name, capsys):
    assert run(f"edit {name} --help") == 0  # two of one name are an error
