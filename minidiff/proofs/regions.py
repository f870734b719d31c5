"""Several prompts on one canvas: is every object there, and can one see the borders?"""

import numpy as np
import torch

from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import sample
from minidiff.data import shapes
from minidiff.evaluate.oracle import oracle
from minidiff.guidance.regions import Region, regional, row_of_windows, seam
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, counted, gained

N = 12  # canvases, with an object in each of four windows
WINDOWS = 4
SIDE, WIDTH = 16, 48  # latents of a window, and of a canvas three times as wide
STEPS = 12


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Canvases three times as wide as the model's own, with Gaussian weights and with even ones."""
    rng = np.random.default_rng(seed)
    grounds, things = [], []
    for _ in range(n):
        ground, objects = asked(rng)
        grounds.append(ground)
        things.append(objects)
    right: dict[str, list[float]] = {"gauss": [], "even": []}
    seams: dict[str, list[float]] = {"gauss": [], "even": []}
    for i, (ground, objects) in enumerate(zip(grounds, things)):
        said = [f"a large {c} {s} in the center on a plain {ground} background" for c, s in objects]
        windows = row_of_windows([pipe.embed(text) for text in said], SIDE, WIDTH)
        for weights in ("gauss", "even"):
            picture = canvas(pipe, windows, weights, seed + i)
            right[weights].append(share_right(picture, windows, objects))
            seams[weights].append(seam(picture, borders(windows)))
    rows = [
        averaged(
            "objects right in the crop of their window, Gaussian weights", right["gauss"], 0.9
        ),
        averaged("objects right in the crop of their window, even weights", right["even"], 0.9),
        gained(
            "seams at the windows' borders less visible with Gaussian weights than with even",
            -np.array(seams["gauss"]),
            -np.array(seams["even"]),
        ),
        one_window(pipe, seed),
    ]
    return counted(rows, n)


def asked(rng: np.random.Generator) -> tuple[str, list[tuple[str, str]]]:
    """A ground, and for every window another shape in another colour, none that of the ground."""
    ground = str(rng.choice(["white", "black", "grey"]))
    colors = rng.permutation([c for c in shapes.COLORS if c != ground])[:WINDOWS]
    forms = rng.permutation(list(shapes.SHAPES))[:WINDOWS]
    return ground, [(str(c), str(s)) for c, s in zip(colors, forms)]


@torch.no_grad()
def canvas(pipe: Pipe, windows: list[Region], weights: str, seed: int) -> torch.Tensor:
    """One picture (1 3 64 192) drawn window by window, decoded as a whole."""
    guided = cfg_batched(pipe.eps, pipe.null(), pipe.scale)
    x = pipe.start(1, seed, size=(4 * SIDE, 4 * WIDTH))
    denoise = regional(guided, windows, (SIDE, WIDTH), weights=weights)
    return pipe.decode(sample(denoise, pipe.schedule, x, pipe.timesteps(STEPS)))


def share_right(
    picture: torch.Tensor, windows: list[Region], objects: list[tuple[str, str]]
) -> float:
    """Share of windows in whose crop the learned oracle reads one object, of the colour and shape
    asked for.
    """
    crops = torch.cat([picture[..., 4 * w.left : 4 * (w.left + w.width)] for w in windows])
    right = []
    for read, (color, form) in zip(oracle().read(crops), objects):
        seen = [(o["color"], o["shape"]) for o in read["objects"]]
        right.append(seen == [(color, form)])
    return float(np.mean(right))


def borders(windows: list[Region]) -> list[int]:
    """Columns of pixels at which a window begins or ends inside the canvas."""
    ends = {4 * w.left for w in windows} | {4 * (w.left + w.width) for w in windows}
    return sorted(ends - {0, 4 * WIDTH})


@torch.no_grad()
def one_window(pipe: Pipe, seed: int) -> Row:
    """One window as large as its canvas is plain sampling."""
    cond = pipe.embed("a large red circle on a white background")
    guided = cfg_batched(pipe.eps, pipe.null(), pipe.scale)
    x = pipe.start(1, seed)
    ts = pipe.timesteps(STEPS)
    window = row_of_windows([cond], SIDE, SIDE)
    alone = sample(guided, pipe.schedule, x, ts, cond)
    inside = sample(regional(guided, window, (SIDE, SIDE)), pipe.schedule, x, ts)
    same = float(torch.equal(alone, inside))
    return Row(
        "one window on its own canvas is plain sampling, to the bit", same, 1.0, None, "identity"
    )
