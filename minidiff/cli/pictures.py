"""Commands that make pictures: generate, edit, invert, demo."""

import sys
from argparse import RawDescriptionHelpFormatter
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill

from minidiff.cli.common import choose, given, load, parse, parser, report, show
from minidiff.cli.options import Picture, arguments
from minidiff.techniques import TECHNIQUES


def generate(rest: list[str]) -> int:
    """pictures for one or more prompts"""
    from minidiff.pipe.pipe import Pipe

    p = parser("generate", out="out/generate.png")
    p.add_argument("prompt", nargs="+", help="what to draw, quoted; a class name for tiny-pixel")
    p.add_argument(
        "--n",
        type=int,
        default=1,
        metavar="INT",
        help="pictures of each prompt; picture i has seed SEED+i",
    )
    names = arguments(
        p, Pipe.generate, skip=("self", "prompts", "noise", "denoise", "decode", "progress")
    )
    of = p.add_argument_group("files that go with a model")
    of.add_argument(
        "--lora",
        nargs="+",
        default=[],
        metavar="FILE[=FLOAT]",
        help="LoRA files, each with its strength",
    )
    of.add_argument(
        "--embedding",
        nargs="+",
        default=[],
        metavar="FILE[=WORD]",
        help="textual inversion: new words; WORD names the one of a file without its own",
    )
    of.add_argument(
        "--control", metavar="PATH", help="a ControlNet or T2I-Adapter, which needs a --hint"
    )
    of.add_argument("--hint", metavar="PICTURE", help="what steers it: edges, depth, poses, ...")
    of.add_argument("--control-scale", type=float, default=1.0, metavar="FLOAT", help="default 1.0")
    of.add_argument(
        "--offload", action="store_true", help="one layer at a time: slower, in little memory"
    )
    p.formatter_class = RawDescriptionHelpFormatter
    p.epilog = f"samplers:\n{samplers()}\n\n`minidiff samplers` compares them."
    args = parse(p, rest)
    if (args.control is None) != (args.hint is None):
        raise ValueError(
            "--control and --hint go together: a file of weights, and the picture that steers it"
        )
    if not 1 <= args.n * len(args.prompt) <= 256:
        raise ValueError(
            f"{args.n * len(args.prompt)} pictures were asked for; 1 to 256 can be drawn at once"
        )
    prompts = [q for q in args.prompt for _ in range(args.n)]
    pipe = load(args)
    options = given(args, names)
    with dressed(pipe, args):
        if args.control:
            options["denoise"] = steered(pipe, args)
        images = pipe.generate(prompts, **options, progress=sys.stderr.isatty())
    titles = [f"{q} #{args.seed + i}" if args.n > 1 else q for i, q in enumerate(prompts)]
    show(images, titles, args.out)
    return 0


def samplers() -> str:
    """A line for each sampler: its name, and what one wants it for."""
    from minidiff.samplers import SAMPLERS

    lines = []
    for sampler in SAMPLERS.values():
        head = f"  {sampler.name:20}  "
        indent = " " * len(head)
        lines.append(fill(sampler.about, 79, initial_indent=head, subsequent_indent=indent))
    return "\n".join(lines)


@contextmanager
def dressed(pipe, args):
    """The pipe with what --embedding, --lora and --offload say, for the length of the block."""
    from contextlib import ExitStack

    from minidiff.formats.lora import lora
    from minidiff.formats.textual_inversion import load_embedding
    from minidiff.pipe.offload import offload

    for text in args.embedding:
        path, _, word = (text, "", "") if Path(text).exists() else text.partition("=")
        print("new words:", *load_embedding(path, pipe, word or None), file=sys.stderr)
    with ExitStack() as stack:
        for text in args.lora:
            path, _, strength = text.rpartition("=") if "=" in text else (text, "", "1")
            try:
                strength = float(strength)
            except ValueError:
                raise ValueError(f"--lora {text}: expected FILE or FILE=STRENGTH") from None
            stack.enter_context(lora(pipe, path, strength=strength, drop=args.drop or ()))
        if args.offload:
            stack.enter_context(offload(pipe))
        yield


def steered(pipe, args):
    """The pipe's denoiser under the ControlNet or adapter of --control, looking at --hint."""
    from minidiff.control.controlnet import ControlNet, controlled
    from minidiff.control.t2i_adapter import adapted
    from minidiff.io import read_image
    from minidiff.weights.real import load_control

    control = load_control(
        args.control,
        dtype=pipe.dtype,
        heads=dict(args.heads or ()),
        drop=tuple(args.drop or ()),
    ).to(pipe.device)
    hint = (read_image(args.hint, working_size(pipe, args)) + 1) / 2
    channels = 3 if isinstance(control, ControlNet) else control.in_channels
    hint = hint.mean(1, keepdim=True) if channels == 1 else hint
    return (controlled if isinstance(control, ControlNet) else adapted)(
        pipe, control, hint, args.control_scale
    )


def edit(rest: list[str]) -> int:
    """change a picture with one of the editing techniques"""
    name = choose("technique", TECHNIQUES, rest)
    technique = TECHNIQUES[name].load()
    p = parser(f"edit {name}", out="out/edit.png")
    p.description = TECHNIQUES[name].about
    p.add_argument(
        "--sheet", metavar="PNG", help="also write a labelled sheet: the picture, its edit"
    )
    fitting(p)
    p.add_argument(
        "--invert-mask", action="store_true", help="edit what the mask leaves out instead"
    )
    p.add_argument(
        "--paste",
        action="store_true",
        help="put the edit back into the picture at its full size, through the mask",
    )
    names = arguments(p, technique, skip=("pipe", "progress"))
    args = parse(p, rest[1:])
    options = given(args, names)
    if args.paste and not (options.get("image") and options.get("mask")):
        raise ValueError("--paste needs --image and --mask: it pastes through the mask")
    if args.invert_mask and not options.get("mask"):
        raise ValueError("--invert-mask needs --mask: the mask that is turned around")
    if args.sheet and Path(args.sheet).resolve() == Path(args.out).resolve():
        raise ValueError(f"--sheet and --out are both {args.out}: give two places")
    pipe = load(args)
    options |= prepared(options, pipe, args)
    result = technique(pipe, **options, progress=sys.stderr.isatty())
    after = result[-1:]
    title = str(options.get("target") or options.get("prompt") or name)
    if len(result) > 1:
        before = result[:-1]
    else:
        before = options.get("image", result[:0])
    write_edit(before, after, args, title)
    return 0


def fitting(p) -> None:
    """The options that say at which size a picture is worked on."""
    p.add_argument(
        "--resize", action="store_true", help="cut and scale pictures of another size to it"
    )
    p.add_argument("--height", type=int, metavar="INT", help="to work at, in pixels")
    p.add_argument("--width", type=int, metavar="INT", help="default of both: the model's own")


def working_size(pipe, args) -> tuple[int, int]:
    """(height, width) asked for, or the model's own; ValueError if the model does not take it."""
    height, width = pipe.image_size
    height = height if args.height is None else args.height
    width = width if args.width is None else args.width
    pipe.latent_size(height, width)
    return height, width


def prepared(options: dict, pipe, args) -> dict:
    """Pictures and masks in place of their paths, all cut and scaled alike."""
    from minidiff.io import picture_size, read_image, read_mask

    size = working_size(pipe, args)
    paths = {name: value for name, value in options.items() if isinstance(value, Picture)}
    image = paths.get("image")
    own = picture_size(image) if image else None
    read = {}
    for name, path in paths.items():
        if "mask" in name:
            fitted = own if args.resize else None
            read[name] = read_mask(path, size, picture=fitted, invert=args.invert_mask)
        else:
            read[name] = read_image(path, size, resize=args.resize)
    return read


def write_edit(before, after, args, title: str) -> None:
    from minidiff.io import grid, mask_of_size, paste_back, read_image, to_pil, write_image

    to_pil(after)  # a NaN picture ends here, nothing written
    if args.sheet:
        titles = [*["before"] * len(before), title]
        grid([*before.cpu(), *after.cpu()], titles, path=args.sheet)
        print(args.sheet)
    if args.paste:
        original = read_image(args.image)
        mask = mask_of_size(args.mask, invert=args.invert_mask)
        after = paste_back(after.float().cpu(), original, mask)
    print(write_image(after, args.out))


def invert(rest: list[str]) -> int:
    """the noise of a picture (DDIM inversion), and how well it leads back"""
    from minidiff.evaluate.metrics import psnr
    from minidiff.inversion import ddim
    from minidiff.io import grid, read_image

    p = parser("invert", out="out/invert.png", json=True)
    fitting(p)
    names = arguments(p, ddim.invert, skip=("pipe", "image", "progress"))
    p.add_argument("--image", required=True, type=Path, metavar="PICTURE", help="required")
    args = parse(p, rest)
    pipe = load(args)
    image = read_image(args.image, working_size(pipe, args), resize=args.resize)
    states = ddim.invert(pipe, image, **given(args, names), progress=sys.stderr.isatty())
    back = ddim.replay(pipe, states[-1], args.prompt, steps=args.steps).cpu()
    copy = pipe.decode(states[0]).cpu()
    facts = {
        "psnr": psnr(back, image).item(),
        "psnr_of_autoencoder": psnr(copy, image).item(),
        "psnr_to_copy": psnr(back, copy).item(),
        "noise_std": states[-1].std().item(),
        "steps": args.steps,
    }
    titles = [
        "picture",
        f"autoencoder, {facts['psnr_of_autoencoder']:.1f} dB",
        f"there and back, {facts['psnr']:.1f} dB",
    ]
    print(grid([image[0], copy[0], back[0]], titles, path=args.out))
    report(facts, args.json)
    return 0


def demo(rest: list[str]) -> int:
    """one scene, generated and edited three ways, each beside the true answer"""
    from minidiff.cli.demo import demo as run

    p = parser("demo", out="out/demo.png", json=True)
    names = arguments(p, run, skip=("pipe", "out", "progress"))
    args = parse(p, rest)
    report(
        run(args.out, pipe=load(args), **given(args, names), progress=sys.stderr.isatty()),
        args.json,
    )
    return 0
