"""`minidiff.load(path)`: one small model in every layout gives one and the same picture."""

import json
from functools import partial

import pytest
import torch

import minidiff
from minidiff.core import schedule
from minidiff.data import shapes
from minidiff.editing.sdedit import sdedit
from minidiff.formats.convert import convert
from minidiff.formats.inspect import inspect
from minidiff.formats.layouts import destination
from minidiff.models.dit import DiT
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE

TOK = Tokenizer.words(shapes.VOCAB)
HEADS = {"unet": 4}  # channels of no released width
ARGS = {
    "unet": dict(channels=(32, 64, 64, 64), heads=4, context=768),
    "vae": dict(channels=(32, 32, 64, 64)),
    "text": dict(
        vocab_size=len(TOK), width=768, layers=1, heads=12, context=20, mlp_ratio=1, eos_id=2
    ),
}
TWO = {
    "unet": ARGS["unet"] | dict(linear=True, context=1024),
    "vae": ARGS["vae"],
    "text": ARGS["text"] | dict(width=1024, heads=16, act="gelu"),
}
CLASSES = {"unet": UNet, "vae": VAE, "text": CLIPText, "dit": DiT}
load = partial(minidiff.load, tokenizer=TOK, heads=HEADS)


def network(part, **args):
    torch.manual_seed(len(part))
    net = CLASSES[part](**args).eval().requires_grad_(False)
    for p in net.parameters():
        p.add_(0.02 * torch.randn_like(p))  # a forgotten norm must show
    return net


def save(path, parts, to="original", args=ARGS):
    """A file in a layout, by the tables that the converter uses."""
    from minidiff.formats.ops import scatter

    tensors = {}
    for part, net in parts.items():
        own = net.state_dict()
        rows = destination(
            part, own, to, {"act": "quick_gelu"} | args.get(part, {}), len(parts) == 1
        )
        tensors |= scatter(rows, own)
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    parts = {part: network(part, **args) for part, args in ARGS.items()}
    one = save(folder / "one.safetensors", parts)
    torch.save(
        {
            "state_dict": {k: v for k, v in torch.load(_as_pt(one), weights_only=True).items()},
            "global_step": 3,
        },
        folder / "one.ckpt",
    )
    convert(one, folder / "sd", to="diffusers", heads=HEADS)
    convert(one, folder / "mini.safetensors", to="minidiff", heads=HEADS)
    return folder, parts


def _as_pt(path):
    from safetensors.torch import load_file

    pt = path.with_suffix(".pt")
    torch.save(load_file(path), pt)
    return pt


def picture(pipe, **kw):
    return pipe.generate("a red circle", steps=3, height=64, width=64, seed=1, **kw)


def close(got, want):
    """Equal up to rounding: equal weights at other addresses in memory, where kernels round
    otherwise.
    """
    return (got - want).abs().max() <= 1e-4 * want.std()


STEP = 2 / 255 + 1e-6  # one level of a picture's file, in [-1, 1]


def test_every_layout_gives_the_same_picture(files):
    folder, parts = files
    want = picture(load(folder / "one.safetensors"))
    assert want.shape == (1, 3, 64, 64) and want.isfinite().all() and want.std() > 0.01
    for name in ("one.ckpt", "sd", "mini.safetensors"):
        pipe = load(folder / name)
        assert close(picture(pipe), want), name
        for part, module in (("unet", pipe.net), ("vae", pipe.vae), ("text", pipe.text)):
            assert all(
                torch.equal(v, parts[part].state_dict()[k]) for k, v in module.state_dict().items()
            )


def test_a_loaded_model_is_sampled_as_stable_diffusion_is(files):
    pipe = load(files[0] / "one.safetensors")
    assert (pipe.prediction, pipe.spacing, pipe.end, pipe.scale, pipe.literal) == (
        "eps",
        "leading",
        1,
        7.5,
        True,
    )
    assert (
        pipe.schedule.name == "scaled_linear"
        and abs(pipe.schedule.alpha_bar[1].item() - 0.99915) < 1e-6
    )
    assert pipe.shape == (4, 64, 64) and pipe.image_size == (512, 512) and not pipe.net.training
    assert not any(p.requires_grad for m in (pipe.net, pipe.vae, pipe.text) for p in m.parameters())


def test_a_technique_written_for_the_tiny_model_runs_on_it(files):
    pipe = load(files[0] / "sd")
    edited = sdedit(
        pipe,
        shapes.render(shapes.Scene((shapes.Obj("circle", "red", "small"),), "left", "white")),
        "a blue circle",
        strength=0.5,
        steps=2,
    )
    assert edited.shape[-3:] == (3, 64, 64) and edited.isfinite().all()


def test_half_precision_loads_and_draws(files):
    pipe = load(files[0] / "one.safetensors", dtype=torch.bfloat16)
    assert pipe.dtype == torch.bfloat16 and picture(pipe).isfinite().all()


def test_the_autoencoder_can_come_from_another_file(files, tmp_path):
    folder, parts = files
    other = network("vae", **ARGS["vae"] | {"groups": 32})
    with torch.no_grad():
        other.decoder.conv_out.bias += 0.3
    save(tmp_path / "vae.safetensors", {"vae": other})
    pipe = load(folder / "one.safetensors", vae=tmp_path / "vae.safetensors")
    assert torch.equal(pipe.vae.decoder.conv_out.bias, other.decoder.conv_out.bias)
    assert torch.equal(pipe.net.conv_in.weight, parts["unet"].conv_in.weight)
    with pytest.raises(
        ValueError,
        match=r"vae\.safetensors holds no denoiser but is of kind vae .*use it beside a model",
    ):
        load(tmp_path / "vae.safetensors")


def test_a_denoiser_alone_asks_for_what_is_missing(files, tmp_path):
    folder, parts = files
    unet = save(tmp_path / "unet.safetensors", {"unet": parts["unet"]})
    with pytest.raises(
        ValueError, match=r"unet\.safetensors is a unet without vae and text: name a file"
    ):
        load(unet)
    both = folder / "one.safetensors"
    assert close(picture(load(unet, vae=both, text=both)), picture(load(both)))


def edited(path, source, change):
    """A copy of a safetensors file whose dictionary of tensors was changed."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(source)
    change(tensors)
    save_file(tensors, path)
    return path


STRAY = {"scaled_fp8": torch.zeros(1)}


def test_names_are_matched_and_a_network_planned_once_for_each_part(files, monkeypatch):
    from minidiff.formats import fill, plans

    asked = []
    for module, name in ((fill, "source_names"), (plans, "plan_of")):
        real = getattr(module, name)

        def counted(*args, _name=name, _real=real, **more):
            asked.append(_name)
            return _real(*args, **more)

        monkeypatch.setattr(module, name, counted)
    load(files[0] / "sd")
    assert asked.count("source_names") == asked.count("plan_of") == 3


def test_every_file_that_is_opened_must_be_used_up_or_have_its_rest_dropped(files, tmp_path):
    folder, parts = files
    one = folder / "one.safetensors"
    alone = save(tmp_path / "vae.safetensors", {"vae": parts["vae"]})
    vae = edited(tmp_path / "stray.safetensors", alone, lambda t: t.update(STRAY))
    tower = save(tmp_path / "tower.safetensors", {"text": parts["text"]})
    text = edited(tmp_path / "text.safetensors", tower, lambda t: t.update(STRAY))
    whole = edited(tmp_path / "whole.safetensors", one, lambda t: t.update(STRAY))
    for path, options in ((one, {"vae": vae}), (one, {"text": text}), (whole, {})):
        with pytest.raises(ValueError, match=r"1 of .* have no place .*scaled_fp8"):
            load(path, **options)
    pipe = load(whole, vae=vae, text=text, drop=("scaled*",))
    assert torch.equal(pipe.vae.decoder.conv_out.bias, parts["vae"].decoder.conv_out.bias)


def test_a_controlnet_with_what_nobody_knows_is_refused(files, tmp_path):
    from minidiff.control.controlnet import ControlNet
    from minidiff.weights.real import load_control

    net = ControlNet.from_unet(files[1]["unet"])
    path = save(tmp_path / "control.safetensors", {"controlnet": net})
    heads = {"controlnet": 4}
    assert load_control(path, heads=heads).factor == 8
    stray = edited(tmp_path / "stray.safetensors", path, lambda t: t.update(STRAY))
    with pytest.raises(ValueError, match=r"have no place .*scaled_fp8"):
        load_control(stray, heads=heads)
    assert load_control(stray, heads=heads, drop=("scaled_fp8",)).factor == 8
    mark = edited(
        tmp_path / "mark.safetensors", path, lambda t: t.update(difference=torch.zeros(0))
    )
    with pytest.raises(ValueError, match="stored as its difference from a base model"):
        load_control(mark, heads=heads)


def test_parts_wrapped_in_one_pickle_and_names_of_a_compiled_network_are_loaded(files, tmp_path):
    folder, parts = files
    wrapped = {
        "unet": {f"_orig_mod.{k}": v for k, v in parts["unet"].state_dict().items()},
        "vae": parts["vae"].state_dict(),
        "text_encoder": {f"text_model.{k}": v for k, v in parts["text"].state_dict().items()},
        "step": 3,
    }
    torch.save(wrapped, tmp_path / "one.CKPT")
    pipe = load(tmp_path / "one.CKPT")
    assert close(picture(pipe), picture(load(folder / "one.safetensors")))
    report = inspect(tmp_path / "one.CKPT")
    assert report["family"] == "sd1" and set(report["parts"]) == {"unet", "vae", "text"}


def test_tensors_of_eight_bits_are_told_and_widened(files, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(files[0] / "one.safetensors")
    small = {k: v.to(torch.float8_e4m3fn) if v.ndim > 1 else v for k, v in tensors.items()}
    save_file(small, tmp_path / "one.sft")
    assert "float8_e4m3fn" in inspect(tmp_path / "one.sft")["dtypes"]
    pipe = load(tmp_path / "one.sft")
    want = files[1]["unet"].conv_in.weight.to(torch.float8_e4m3fn).float()
    assert torch.equal(pipe.net.conv_in.weight, want)


@pytest.mark.parametrize(
    "new", [dict(trained_betas=[0.1, 0.2]), dict(num_train_timesteps=500)], ids=["betas", "times"]
)
def test_inspecting_tells_of_a_scheduler_that_loading_refuses(files, tmp_path, new):
    import shutil

    shutil.copytree(files[0] / "sd", tmp_path / "sd")
    path = tmp_path / "sd/scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | new))
    with pytest.raises(ValueError, match="scheduler config") as e:
        load(tmp_path / "sd")
    assert inspect(tmp_path / "sd")["problem"] == str(e.value)


def test_latents_of_a_config_need_not_be_square(files, tmp_path):
    import shutil

    shutil.copytree(files[0] / "sd", tmp_path / "sd")
    path = tmp_path / "sd/unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": [12, 8]}))
    assert load(tmp_path / "sd").image_size == (96, 64)


def test_what_stable_diffusion_2_predicts_is_asked_for_and_never_guessed(files, tmp_path):
    path = save(
        tmp_path / "two.safetensors", {p: network(p, **a) for p, a in TWO.items()}, args=TWO
    )
    with pytest.raises(
        ValueError, match=r"two\.safetensors: what it predicts is unknown .*same names and shapes"
    ):
        load(path)
    eps, v = (load(path, prediction=p) for p in ("eps", "v"))
    assert (v.prediction, v.image_size, eps.image_size) == ("v", (768, 768), (512, 512))
    assert (picture(eps) - picture(v)).abs().max() > 1e-3


def test_the_scheduler_config_says_how_to_sample(files, tmp_path):
    import shutil

    folder = tmp_path / "sd"
    shutil.copytree(files[0] / "sd", folder)
    path = folder / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())

    def told(**new):
        path.write_text(json.dumps(config | new))
        return load(folder)

    pipe = told(
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
    )
    assert (pipe.prediction, pipe.spacing, pipe.end, pipe.schedule.name) == (
        "v",
        "trailing",
        0,
        "linear",
    )
    assert torch.equal(pipe.schedule.alpha, schedule.linear().alpha)
    config.pop("timestep_spacing"), config.pop("set_alpha_to_one")
    for kind, (spacing, end) in {
        "DDIMScheduler": ("leading", 0),
        "PNDMScheduler": ("leading", 1),
    }.items():
        pipe = told(_class_name=kind)  # defaults belong to the class
        assert (pipe.spacing, pipe.end, pipe.literal) == (spacing, end, True), kind
    for kind, words in {
        "DPMSolverMultistepScheduler": "--sampler dpm",
        "EulerDiscreteScheduler": "the same steps in other symbols",
        "LCMScheduler": "more than its 1 to 8 steps",
        "SomeScheduler": "another method on the same grid",
    }.items():  # without the departures from the papers that other classes do not have
        with pytest.warns(UserWarning, match=f"names {kind}; DDIM is used: .*{words}"):
            pipe = told(_class_name=kind)
        spacing = "leading" if kind == "LCMScheduler" else "linspace"
        assert (pipe.spacing, pipe.end, pipe.literal) == (spacing, 0, False), kind
    for new, what in (
        (dict(rescale_betas_zero_snr=True), "rescale_betas_zero_snr is True; only False"),
        (dict(beta_schedule="sigmoid"), "beta_schedule 'sigmoid'"),
        (dict(timestep_spacing="log"), "timestep_spacing is 'log'"),
        (dict(prediction_type="score"), "prediction_type is 'score'"),
    ):
        with pytest.raises(ValueError, match=what):
            told(**new)


def test_an_official_dit_draws_with_an_autoencoder(files, tmp_path):
    dit = network("dit", size=8, dim=384, depth=2, heads=6, classes=10)
    torch.save(dit.state_dict(), tmp_path / "DiT.pt")
    with pytest.raises(ValueError, match=r"DiT\.pt is a dit without vae"):
        load(tmp_path / "DiT.pt")
    pipe = minidiff.load(tmp_path / "DiT.pt", vae=files[0] / "sd/vae")
    assert (
        pipe.shape == (4, 8, 8)
        and pipe.classes[:2] == ("0", "1")
        and pipe.schedule.name == "linear"
    )
    image = pipe.generate(["7", "3"], steps=2)
    assert (
        image.shape == (2, 3, 64, 64)
        and image.isfinite().all()
        and (image[0] - image[1]).abs().max() > 1e-3
    )


@pytest.mark.parametrize(
    "name, what",
    [
        ("nothing.ckpt", "is unknown: neither one of the shipped ones"),
        ("page.safetensors", "HTML page"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path, name, what):
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html>Not found</html>")
    with pytest.raises((ValueError, FileNotFoundError), match=what) as e:
        load(tmp_path / name)
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="vae: for public models; tiny is a shipped one"):
        minidiff.load("tiny", vae="x")


def test_what_a_message_asks_for_the_command_line_can_say(monkeypatch, files, tmp_path):
    from minidiff.cli import main as cli

    said = {}

    def load(name, **options):
        said.update(options)
        raise ValueError("heard")

    monkeypatch.setattr(minidiff, "load", load)
    options = (
        "--text-tower t --vae v --ema --heads unet=5,10 text=2 --drop ztsnr *.fp8 --prediction v"
    )
    assert cli.main(["generate", "a fox", "--model", "x", *options.split()]) == 2
    assert said["heads"] == {"unet": (5, 10), "text": 2} and said["drop"] == ["ztsnr", "*.fp8"]
    assert (said["text"], said["vae"], said["ema"], said["prediction"]) == ("t", "v", True, "v")
    one, sd = files[0] / "one.safetensors", tmp_path / "sd"
    to = ["convert", str(one), str(sd), "--to", "diffusers", "--heads"]
    assert cli.main([*to, "unet=4,2,4,4"]) == 0
    assert json.loads((sd / "unet/config.json").read_text())["attention_head_dim"] == [4, 2, 4, 4]
    assert cli.main([*to, "unet=four"]) == 2 and cli.main([*to, "net=4"]) == 2


@pytest.fixture
def command(files, monkeypatch, tmp_path):
    """`minidiff generate` with the small model: a function of further options -> (exit code, the
    picture).
    """
    from minidiff.cli import main as cli
    from minidiff.cli import pictures
    from minidiff.io import read_image

    monkeypatch.setattr(pictures, "load", lambda args: load(files[0] / "one.safetensors"))

    def run(*options):
        out = tmp_path / "a.png"
        out.unlink(missing_ok=True)
        size = ("--height", "64", "--width", "64", "--steps", "2")
        code = cli.main(["generate", "a red circle", "--out", str(out), *size, *map(str, options)])
        return code, read_image(out) if out.exists() else None

    return run


def test_files_that_go_with_a_model_change_what_the_command_draws(command, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file(
        {
            f"{name}.lora_down.weight": torch.randn(2, 768),
            f"{name}.lora_up.weight": torch.randn(64, 2),
        },
        tmp_path / "lora.safetensors",
    )
    save_file({"<cat>": torch.randn(768)}, tmp_path / "cat.safetensors")
    plain, again, offloaded = command(), command(), command("--offload")
    assert plain[0] == 0
    assert (again[1] - plain[1]).abs().max() <= STEP
    assert (offloaded[1] - plain[1]).abs().max() <= STEP
    for options in (
        ("--lora", tmp_path / "lora.safetensors"),
        ("--lora", f"{tmp_path / 'lora.safetensors'}=0.5"),
    ):
        code, image = command(*options)
        assert code == 0 and (image - plain[1]).abs().max() > 2 * STEP, options
    _, off = command("--lora", f"{tmp_path / 'lora.safetensors'}=0")
    assert (off - plain[1]).abs().max() <= STEP
    torch.save(torch.randn(768), tmp_path / "bare.pt")
    assert command("--embedding", tmp_path / "bare.pt")[0] == 2
    words = tmp_path / "cat.safetensors", f"{tmp_path / 'bare.pt'}=<dog>"
    assert command("--embedding", *words)[0] == 0
    assert command("--lora", f"{tmp_path / 'lora.safetensors'}=much")[0] == 2


def test_a_control_file_and_its_hint_steer_the_command(command, files, tmp_path):
    from minidiff.control.controlnet import ControlNet
    from minidiff.io import write_image

    torch.manual_seed(0)
    control = ControlNet.from_unet(files[1]["unet"]).requires_grad_(False)
    for p in control.parameters():
        p.add_(0.05 * torch.randn_like(p))
    save(tmp_path / "control.safetensors", {"controlnet": control})
    convert(
        tmp_path / "control.safetensors",
        tmp_path / "control",
        to="diffusers",
        heads={"controlnet": 4},
    )
    write_image(torch.rand(1, 3, 64, 64) * 2 - 1, tmp_path / "hint.png")
    plain = command()[1]
    code, image = command("--control", tmp_path / "control", "--hint", tmp_path / "hint.png")
    assert code == 0 and (image - plain).abs().max() > 2 * STEP
    _, off = command(
        "--control", tmp_path / "control", "--hint", tmp_path / "hint.png", "--control-scale", 0
    )
    assert (off - plain).abs().max() <= STEP
    assert command("--control", tmp_path / "control") == (2, None)
    assert command("--control", files[0] / "one.safetensors", "--hint", tmp_path / "hint.png") == (
        2,
        None,
    )
