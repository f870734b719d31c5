"""ShapesEditBench for programs that are not ours: its questions as files, and pictures graded.

    minidiff bench export bench64 --split test --n 50       # what a method may see
    (any program, in any language, writes bench64/mine/recolour_000.png, ...)
    minidiff bench score bench64/mine --inputs PS           # its row, and JSON for --report

The folder is laid out as PIE-Bench's is (Ju et al. 2023, arXiv 2310.01506), so that code written
for it runs on it:

    annotation_images/recolour_000.png   the sources
    masks/recolour_000.png               white where the true edit changes something
    mapping_file.json                    prompts, instruction, mask and more of each item
    chains.json                          with --chains: edits that follow one another
    truth/recolour_000.png               with --truth only: the answers
    manifest.json                        which items these are, and their SHA-256

Grading needs no truth on the disk: items are functions of their numbers, so it draws them again,
and refuses an export whose hash is another one. Pictures of 128 pixels and more are averaged to 64
before they are graded: nothing finer than a 64th of the picture is judged, by anyone.

For a challenge, with a seed that is in no file that is handed out (a large one: small ones can be
tried): whoever has it draws the same scenes and the true answers, and nobody else does.

    minidiff bench export challenge --seed 58201734466120 --n 10
    minidiff bench score challenge/team7 --seed 58201734466120 --json team7.json

Weakness: what a program was given, and how long it took, is only what its author says.
"""

import json
import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from minidiff import __version__
from minidiff.bench import leaderboard, summary
from minidiff.bench.bench import append, null_for_nan, rows_of
from minidiff.bench.controls import CONTROLS
from minidiff.bench.items import ITEMS_VERSION, KINDS, Item, chains, fingerprint, items
from minidiff.bench.scores import VERSION, grade
from minidiff.io import has_alpha, picture_size, read_image, write_image, write_json
from minidiff.pipe.pipe import Pipe
from minidiff.techniques import TECHNIQUES

MANIFEST = "manifest.json"
SIDES = (64, 128, 256, 512)
# PIE-Bench's numbers of the kinds of edits
TYPES = {
    "recolour": "6",
    "reshape": "1",
    "resize": "4",
    "move": "5",
    "add": "2",
    "delete": "3",
    "background": "8",
    "texture": "8",
}
MOST = 999  # items of a kind: names have three digits
GRADED = 16  # pictures at a time


# ---- what is asked -------------------------------------------------------------------------------


def check_numbers(n: int, chains: int, size: int) -> None:
    """ValueError for numbers that no export has."""
    if not 1 <= n <= MOST or not 0 <= chains <= MOST:
        raise ValueError(f"n={n}, chains={chains}: expected 1 to {MOST}, and 0 to {MOST}")
    if size not in SIDES:
        raise ValueError(f"size {size}: choose one of {', '.join(map(str, SIDES))}")


def named_items(
    split: str, n: int, kinds: tuple[str, ...], size: int, seed: int = 0
) -> dict[str, Item]:
    """{"recolour_000": item}: n of every kind, drawn at `size` pixels."""
    out = {}
    for kind in kinds:
        for i, item in enumerate(items(split, n, (kind,), seed)):
            out[f"{kind}_{i:03}"] = replace(item, size=size)
    return out


def named_turns(split: str, n: int, size: int, seed: int = 0) -> dict[str, Item]:
    """{"chain_000_1": item}: every turn of n chains, turns counted from 1."""
    out = {}
    for i, chain in enumerate(chains(split, n, seed) if n else []):
        for turn, item in enumerate(chain, start=1):
            out[f"chain_{i:03}_{turn}"] = replace(item, size=size)
    return out


def run_lengths(mask: Tensor) -> list[int]:
    """A mask (1 1 h w) as PIE-Bench writes it: start and length of every run of ones, the picture
    read row by row.
    """
    flat = mask.flatten().numpy().astype(np.int8)
    change = np.diff(flat, prepend=0, append=0)
    starts = np.flatnonzero(change == 1)
    ends = np.flatnonzero(change == -1)
    return np.stack([starts, ends - starts], axis=1).flatten().tolist()


def full_mask(item: Item) -> Tensor:
    """The item's mask at its own size, (1 1 size size): each of its 64ths whole."""
    times = item.size // 64
    return item.mask.repeat_interleave(times, 2).repeat_interleave(times, 3)


def described(item: Item, image: str) -> dict:
    """An item in PIE-Bench's words. `image`: the file to edit. The words that a local blend may
    use are the nouns of the edited object, or empty.
    """
    return {
        "image_path": image,
        "original_prompt": item.source,
        "editing_prompt": item.target,
        "editing_instruction": item.instruction,
        "blended_word": " ".join(item.nouns) if item.nouns else "",
        "editing_type_id": TYPES[item.kind],
        "kind": item.kind,
        "mask": run_lengths(full_mask(item)),
    }


def export(
    folder: Path,
    *,
    split: Literal["dev", "test", "hard", "hard-dev"] = "test",
    n: int = 50,
    size: Literal[64, 128, 256, 512] = 64,
    kinds: tuple[str, ...] = (),
    chains: int = 0,
    truth: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> dict:
    """Write the questions of the bench as files, for editors that are not part of this package.

    split    test or hard, to report; dev or hard-dev, to tune on
    n        items of each kind of edit
    size     pixels a side; graded at 64
    kinds    kinds of edits (default: all eight)
    chains   scenes that are edited five times in a row
    truth    write the true answers too, into truth/
    seed     of scenes that nobody else has: keep it, for it is written nowhere; 0: the bench's own

    Returns what manifest.json holds. ValueError for a folder that is not empty, or a wrong number.
    """
    folder = Path(folder)
    kinds = tuple(kinds) or KINDS
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; choose a new name")
    check_numbers(n, chains, size)
    single = named_items(split, n, kinds, size, seed)
    turns = named_turns(split, chains, size, seed)
    every = {**single, **turns}
    for name, item in tqdm(every.items(), disable=not progress, desc="export"):
        if name in single or name.endswith("_1"):
            write_image(item.drawn(item.scene), folder / "annotation_images" / _source(name))
        write_image(full_mask(item).expand(-1, 3, -1, -1) * 2 - 1, folder / "masks" / f"{name}.png")
        if truth:
            write_image(item.drawn(item.truth), folder / "truth" / f"{name}.png")
    write_json(
        {name: described(item, f"{name}.png") for name, item in single.items()},
        folder / "mapping_file.json",
    )
    if turns:
        write_json(
            {name: described(item, _source(name)) for name, item in turns.items()},
            folder / "chains.json",
        )
    facts = {
        "bench": "ShapesEditBench",
        "items": ITEMS_VERSION,
        "minidiff": __version__,
        "split": split,
        "n": n,
        "size": size,
        "kinds": list(kinds),
        "chains": chains,
        "seed": "hidden" if seed else 0,
        "sha256": fingerprint(list(every.values())),
    }
    write_json(facts, folder / MANIFEST)  # last: who has it has all
    return facts


def _source(name: str) -> str:
    """The file that is edited: of the turns of a chain all begin with one."""
    return f"{name[:-2] if name.startswith('chain_') else name}.png"


# ---- what came back ------------------------------------------------------------------------------


def exported(folder: Path, seed: int = 0) -> tuple[dict, dict[str, Item]]:
    """(manifest, {name: item}) of an export; ValueError if there is none, or of other items than
    this version and seed ask.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {MANIFEST}; a folder of edits lies in what `minidiff bench export` "
            "wrote (or name that one with --items)"
        )
    try:
        facts = json.loads(path.read_text())
        split, n, size, chains = (facts[key] for key in ("split", "n", "size", "chains"))
        kinds = tuple(facts["kinds"])
        check_numbers(n, chains, size)
        _check_seed(path, facts.get("seed", 0) == "hidden", seed)
        its = {**named_items(split, n, kinds, size, seed)}
        its |= named_turns(split, chains, size, seed)
    except (KeyError, TypeError, json.JSONDecodeError) as e:
        raise ValueError(f"{path} is not what `minidiff bench export` writes ({e})") from None
    if facts.get("sha256") != fingerprint(list(its.values())):
        if seed:
            raise ValueError(f"{path} was not made with seed {seed}: give the one of its export")
        raise ValueError(
            f"{path} is of other items than this version asks (items {facts.get('items')}, here "
            f"{ITEMS_VERSION}); export them again, or use minidiff {facts.get('minidiff')}"
        )
    return facts, its


def _check_seed(path: Path, hidden: bool, seed: int) -> None:
    """ValueError unless a seed is given where the scenes are hidden, and there only."""
    if hidden and not seed:
        raise ValueError(f"{path} is of hidden scenes: give the --seed that they were drawn with")
    if seed and not hidden:
        raise ValueError(f"{path} is of the bench's own scenes: leave --seed away")


def check_edits(folder: Path, names: list[str], size: int) -> None:
    """ValueError unless the folder holds one picture for every name, all of that size and without
    transparency, and nothing else.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder of edits at {folder}")
    wanted = [f"{name}.png" for name in names]
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    unknown = sorted(set(found) - set(wanted))
    if unknown:
        raise ValueError(
            f"{unknown[0]} in {folder} is no item of this export; names are {wanted[0]} to "
            f"{wanted[-1]}"
        )
    missing = [name for name in wanted if name not in set(found)]
    if missing:
        raise ValueError(
            f"{missing[0]} is missing in {folder} ({len(missing)} of {len(wanted)} are); where a "
            "method gives up, hand in the source"
        )
    for name in wanted:
        path = folder / name
        got = picture_size(path)
        if got != (size, size):
            raise ValueError(
                f"{path} is {got[0]}x{got[1]} pixels (height x width), this export is {size}x{size}"
            )
        if has_alpha(path):
            raise ValueError(f"{path} has an alpha channel; save it without, as RGB")


def score(
    pipe: Pipe,
    folder: Path,
    *,
    items: Path | None = None,
    inputs: str = "P",
    out: Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict:
    """Grade a folder of edits that any program made, one picture for every item of an export.

    items    the export (default: the folder that the edits lie in)
    inputs   what the program was given: P target prompt, S source prompt, M exact mask, I
             instruction, F tuned for each picture
    out      folder of the results (default: scores/ in the export); `bench --report` makes the
             table of all that lie there
    seed     the hidden one of the export, if it has one

    The folder's name is the method's. `pipe` serves for its autoencoder alone: what a copy through
    it loses is the ceiling of every row. Returns {"method", "split", "score", "by_kind", ...}.
    ValueError, before any work, for a picture missing, of another size, with transparency, or that
    is no item.
    """
    folder = Path(folder)
    name = folder.resolve().name
    if name in TECHNIQUES or name in CONTROLS or not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(
            f"a method cannot be called {name!r} here: rename the folder to letters, digits, . _ "
            "or -, and to none of the bench's own methods"
        )
    if not inputs or set(inputs) - set("PSMIF"):
        raise ValueError(f"inputs {inputs!r}: expected some of the letters P, S, M, I, F")
    export_folder = Path(items) if items is not None else folder.resolve().parent
    if not (folder.is_dir() or (export_folder / MANIFEST).is_file()):
        raise ValueError(f"there is no folder {folder}: expected one of edited pictures")
    facts, its = exported(export_folder, seed)
    check_edits(folder, list(its), facts["size"])
    out = Path(out) if out is not None else export_folder / "scores"
    rows = _graded(pipe, name, inputs, folder, its, facts, progress)
    _keep(rows, out / f"{name}.jsonl")
    return _summed(name, facts["split"], rows)


def _graded(pipe, name, inputs, folder, its, facts, progress) -> list[dict]:
    """A row for every picture, as the bench writes them; the turns of chains are a split of their
    own.
    """
    digest = sha256(f"{facts['sha256']} scores {VERSION} {pipe.name}".encode())
    for item in its:
        digest.update((folder / f"{item}.png").read_bytes())
    names = list(its)
    rows = []
    bar = tqdm(total=len(names), disable=not progress, desc=name)
    for start in range(0, len(names), GRADED):
        part = names[start : start + GRADED]
        asked = [its[item] for item in part]
        edits = torch.cat([_at_64(read_image(folder / f"{item}.png")) for item in part])
        answers = torch.cat([item.answer for item in asked])
        ceilings = pipe.decode(pipe.encode(answers)).float().cpu()
        for item, question, scores in zip(part, asked, grade(edits, asked, ceilings)):
            numbers = [int(number) for number in item.split("_")[1:]]
            chained = len(numbers) == 2
            row = {
                "method": name,
                "inputs": inputs,
                "split": f"{facts['split']} chains" if chained else facts["split"],
                "fitted": True,
                "kind": question.kind,
                "i": numbers[0],
                "k": 0,
                "cfg": digest.hexdigest()[:8],
                "options": {},
                "objects": len(question.scene.objects),
                "nfe": None,
                "seconds": None,
                "mb": None,
                "batch": 1,
                "refused": "",
            }
            if chained:
                row["turn"] = numbers[1]
            rows.append({key: null_for_nan(value) for key, value in (row | scores).items()})
        bar.update(len(part))
    return rows


def _at_64(picture: Tensor) -> Tensor:
    """A picture (1 3 h w) averaged to 64 pixels a side."""
    return F.avg_pool2d(picture, picture.shape[-1] // 64)


def _keep(rows: list[dict], path: Path) -> None:
    """Add rows to a file of rows; pictures that were graded before are not written again."""
    known = {(row["split"], row["cfg"]) for row in rows_of(path)}
    new = [row for row in rows if (row["split"], row["cfg"]) not in known]
    if new:
        append(new, path)


def _summed(name: str, split: str, rows: list[dict]) -> dict:
    """What is printed and written of one method's rows."""
    single = [row for row in rows if "turn" not in row]
    out = {"method": name, "split": split, **summary.line(single), "per_kind": None}
    turns = sorted({row["turn"] for row in rows if "turn" in row})
    out["chains"] = {}
    for turn in turns:
        of_turn = [row for row in rows if row.get("turn") == turn]
        out["chains"][turn] = {
            what: summary.mean(row[what] for row in of_turn) for what in ("T", "K", "score")
        }
    return out


def told(facts: dict) -> str:
    """The row of one method as text."""
    parts = [leaderboard.main_table([facts]), leaderboard.kind_table([facts])]
    if facts["chains"]:
        rows = [
            [str(turn), *[leaderboard.num(of_turn[what]) for what in ("T", "K", "score")]]
            for turn, of_turn in facts["chains"].items()
        ]
        parts.append(leaderboard.table(["after turn", "T", "K", "EditScore"], rows))
    return "\n\n".join(parts)
