"""The tables of names in tutorials/weights, from the tables that the converter itself uses: `make figures` runs this too.

    python tutorials/tables.py            # rewrites what stands between <!-- table NAME --> and <!-- end -->
"""
import re
from pathlib import Path

from minidiff.weights.family import DROPPED, VARIANTS
from minidiff.weights.keymaps import RESNET, TABLES
from minidiff.weights.layouts import MINIDIFF, ORIGINAL, TOWERS

HERE = Path(__file__).parent / "weights"
BLOCK = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.S)


def lines(head: tuple[str, ...], rows) -> str:
    """A Markdown table; names are shown as code."""
    show = lambda c: f"`{c}`" if set(c) & set("._{") and " " not in c else c  # noqa: E731
    rows = [f"| {' | '.join(map(show, r))} |" for r in rows]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *rows])


def names(part: str, layout: str) -> str:
    """Our names of one part against those of a layout."""
    rows = [(k, *(v if isinstance(v, tuple) else (v, "same"))) for k, v in TABLES[part, layout].items()]
    return lines(("ours", "theirs", "op"), [(ours, theirs or "not stored", op) for ours, theirs, op in rows])


def dropped() -> str:
    found = {}
    for name, why in DROPPED.items():
        found.setdefault(why, []).append(f"`{name}`")
    return lines(("dropped", "why"), [(" ".join(n), why) for why, n in found.items()])


def prefixes() -> str:
    rows = [("UNet", ORIGINAL["unet"], MINIDIFF["unet"]), ("autoencoder", ORIGINAL["vae"], MINIDIFF["vae"]),
            ("text tower, SD 1", TOWERS["diffusers"] + "text_model.", MINIDIFF["text"]),
            ("text tower, SD 2", TOWERS["original"], MINIDIFF["text"]), ("ControlNet", ORIGINAL["controlnet"], "none")]
    return lines(("part", "original file", "minidiff file"), rows)


def variants() -> str:
    return lines(("channels in", "model"), [(str(n), what) for n, what in VARIANTS.items()])


MADE = {"unet": lambda: names("unet", "original"), "vae": lambda: names("vae", "original"),
        "text": lambda: names("text", "original"), "controlnet": lambda: names("controlnet", "original"),
        "t2i": lambda: names("t2i", "original"), "t2i-light": lambda: names("t2i-light", "original"),
        "dit": lambda: names("dit", "diffusers"), "resnet": lambda: lines(("ours", "theirs"), RESNET.items()),
        "dropped": dropped, "prefixes": prefixes, "variants": variants}


def filled(text: str) -> str:
    """A page with its tables as the code has them now. KeyError: no table of that name."""
    return BLOCK.sub(lambda m: f"{m[1]}{MADE[m[2]]()}\n{m[3]}", text)


def main() -> None:
    for page in sorted(HERE.glob("*.md")):
        page.write_text(filled(page.read_text()))
        print(page)


if __name__ == "__main__":
    main()
