"""The command that trains: train."""

from pathlib import Path

from minidiff.cli.common import choose, find, given, parse, parser
from minidiff.cli.options import arguments

RECIPES = {
    "tiny": "minidiff.shipped.recipes:train_tiny",
    "tiny-dit": "minidiff.shipped.recipes:train_tiny_dit",
    "tiny-pixel": "minidiff.shipped.recipes:train_tiny_pixel",
}


def train(rest: list[str]) -> int:
    """train a shipped model again, resumable at any moment"""
    name = choose("model to train", RECIPES, rest)
    recipe = find(RECIPES[name])
    p = parser(f"train {name}", model="")
    p.add_argument(
        "--out", type=Path, default=Path("runs/tiny"), metavar="FOLDER", help="default runs/tiny"
    )
    names = arguments(p, recipe, skip=("out",))
    args = parse(p, rest[1:], pictures=())
    told = given(args, names)
    recipe(args.out, **told)
    folder = args.out / (
        name if told.get("data", "shapes") == "shapes" else f"{name}-{told['data']}"
    )
    print(f"{folder}: try it with --model {folder}")
    return 0
