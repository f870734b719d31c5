"""Do a word's attention maps lie where its thing is, and in which layers and at which times?"""

import numpy as np

from minidiff.analysis.daam import TIMES, Maps, attention_maps, heat, overlap
from minidiff.data import shapes
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, draw, gained

N = 64
SIZE = (64, 64)


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Overlap with the true outline, of the shape's word, the colour's, and one that is not there;
    of the encoder's layers and the decoder's; with little noise and with much.
    """
    scenes = draw(n, seed)
    said = [shapes.caption(s) for s in scenes]
    maps = attention_maps(pipe, shapes.render(scenes), said, seed=seed)

    def iou(word: str, among: str = "", times=TIMES) -> np.ndarray:
        return overlaps(pipe, maps, scenes, said, word, among, times)

    shape, color, ground = iou("shape"), iou("color"), iou("background")
    fills = shapes.object_masks(scenes)[:, 0].mean().item()  # overlap of a map that is even
    rows = [
        averaged("overlap of the shape's word with the true outline", shape, 0.5, fills),
        averaged("overlap of the colour's word with it", color, 0.5, fills),
        gained("the shape's word overlaps more than the word background", shape, ground),
        gained(
            "the decoder's maps overlap more than the encoder's, shape's word",
            iou("shape", "up_blocks"),
            iou("shape", "down_blocks"),
        ),
        gained(
            f"maps at t = {TIMES[0]} overlap more than those at {TIMES[-1]}, shape's word",
            iou("shape", times=TIMES[:1]),
            iou("shape", times=TIMES[-1:]),
        ),
    ]
    for layer in sorted({layer for layer, _ in maps if "up_blocks.1" in layer}):
        rows.append(_division_of_labour(layer, iou("shape", layer), iou("color", layer)))
    return rows


def _division_of_labour(layer: str, shape: np.ndarray, color: np.ndarray) -> Row:
    """That a fine layer looks for one of the two words and not for the other."""
    better, worse = (shape, color) if shape.mean() > color.mean() else (color, shape)
    word = "shape" if better is shape else "colour"
    layer = layer.removesuffix(".transformer_blocks.0")
    return gained(f"{layer} finds the {word}'s word, and less the other", better, worse)


def overlaps(
    pipe: Pipe,
    maps: Maps,
    scenes: list[shapes.Scene],
    said: list[str],
    word: str,
    among: str = "",
    times=TIMES,
) -> np.ndarray:
    """(scenes,) intersection over union of the object's outline with the map of a word: "shape",
    "color", or a word of the caption.
    """
    masks = shapes.object_masks(scenes)[:, 0]
    rows = []
    for i, s in enumerate(scenes):
        spans = dict(pipe.tokenizer.token_spans(said[i]))
        span = spans[getattr(s.objects[0], word, word)]
        own = {key: m[i : i + 1] for key, m in maps.items() if key[1] in times}
        rows.append(overlap(heat(own, span, SIZE, among), masks[i : i + 1]).item())
    return np.array(rows)
