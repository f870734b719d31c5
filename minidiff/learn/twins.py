"""Twins: the same start with one thing changed, laid over each other, and a slider between them.

    twins(without, with_guidance, ("without guidance", "with guidance"))

As the last line of a notebook's cell it shows each pair in one place: left of a line stands the
first picture, right of it the second, and the slider moves the line. What differs can then be seen
where it is, which two pictures side by side do not show.

The slider is one piece of HTML with the pictures inside. It needs no widget, no file and no
network, so it works in an exported page, too. Where HTML cannot be shown or moved, as in a PDF,
stands a strip of the same pictures, the first of each pair above the second.
"""

import base64
import html
from dataclasses import dataclass
from io import BytesIO

from PIL import Image
from torch import Tensor

from minidiff.io import as_pictures, grid, to_pil

# Nothing here has a name of its own on the page, so that many twins can stand on one. Without this
# style, where a notebook is not trusted, the two pictures of a pair stand beside each other.
STYLE = """
.twins { margin: 0; --cut: 50%; }
.twins .pairs { display: flex; flex-wrap: wrap; gap: 12px; }
.twins .pair { width: var(--side); }
.twins .both { position: relative; width: var(--side); overflow: hidden; }
.twins .both img { display: block; width: 100%; max-width: none; margin: 0; border-radius: 0;
  image-rendering: pixelated; }
.twins .both img + img { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--cut)); }
.twins .both::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--cut);
  width: 2px; margin-left: -1px; background: #fff; box-shadow: 0 0 0 1px #000; }
.twins .caption { font-size: 85%; line-height: 1.3; margin-top: 4px; }
.twins label { display: flex; flex-wrap: wrap; align-items: center; gap: 10px; margin: 8px 0; }
.twins input { flex: 0 1 320px; min-width: 120px; cursor: ew-resize; }
@media print {
  .twins .pair { width: calc(2 * var(--side)); }
  .twins .both { display: flex; width: calc(2 * var(--side)); }
  .twins .both img { width: 50%; }
  .twins .both img + img { position: static; clip-path: none; }
  .twins .both::after, .twins input { display: none; }
}
"""


@dataclass(frozen=True)
class Twins:
    """What a notebook shows of `left` and `right` (b 3 h w): HTML with a slider, or a strip.

    labels    what the left one is, what the right one is
    captions  one for each pair, or none
    start     where the line stands at first, from 0 (only right ones) to 1 (only left ones)
    side      width of a picture on the page, in pixels
    """

    left: Tensor
    right: Tensor
    labels: tuple[str, str]
    captions: tuple[str, ...]
    start: float
    side: int

    def strip(self) -> Image.Image:
        """All pictures at rest: the left ones in one row, the right ones below them."""
        titles = [f"{self.labels[0]}: {c}" if c else self.labels[0] for c in self.captions]
        titles += [self.labels[1]] * len(self.captions)
        return grid([*self.left, *self.right], titles, cols=len(self.left), side=self.side)

    def _repr_png_(self) -> bytes:
        return _png(self.strip())

    def _repr_html_(self) -> str:
        first, second = (html.escape(label) for label in self.labels)
        pairs = []
        for left, right, caption in zip(self.left, self.right, self.captions):
            said = html.escape(caption)
            pairs.append(
                f'<div class="pair"><div class="both">{_image(left, f"{first}: {said}")}'
                f'{_image(right, f"{second}: {said}")}</div><div class="caption">{said}</div></div>'
            )
        percent = round(100 * self.start)
        move = "this.closest('.twins').style.setProperty('--cut', this.value + '%')"
        return (
            f'<figure class="twins" style="--cut: {percent}%; --side: {self.side}px">'
            f'<style>{STYLE}</style><div class="pairs">{"".join(pairs)}</div>'
            f'<label><span>{first}</span><input type="range" min="0" max="100" value="{percent}" '
            f'aria-label="how much of each picture is the left one: {first}" oninput="{move}">'
            f"<span>{second}</span></label></figure>"
        )


def twins(
    left,
    right,
    labels: tuple[str, str],
    captions: tuple[str, ...] | list[str] = (),
    *,
    start: float = 0.5,
    side: int = 192,
) -> Twins:
    """Pairs of pictures, `left` and `right` (b 3 h w) in [-1, 1] or whatever `as_pictures` takes,
    to be shown by a notebook with a slider between them.

    labels    what the left ones are, what the right ones are
    captions  one for each pair, shown below it; none by default
    start     where the line stands at first: the share of a picture that is the left one, 0 to 1
    side      width of a picture on the page, in pixels

    ValueError: pictures of two sizes or in two numbers, labels that are not two, captions in
    another number than the pairs, `start` outside 0..1, no width.
    """
    left, right = as_pictures(left, "left"), as_pictures(right, "right")
    if left.shape != right.shape:
        raise ValueError(
            f"twins are compared place by place, but left is {tuple(left.shape)} and right is "
            f"{tuple(right.shape)}; give as many pictures of the same size on both sides"
        )
    if isinstance(labels, str) or len(labels) != 2:
        raise ValueError(
            f"labels={labels!r}: expected two, one for the left pictures and one for the right ones"
        )
    if isinstance(captions, str) or (captions and len(captions) != len(left)):
        raise ValueError(
            f"captions={captions!r}: expected one for each of the {len(left)} pairs, or none"
        )
    if not 0 <= start <= 1:
        raise ValueError(f"start={start}: expected a share of the picture, 0 to 1")
    if side < 1:
        raise ValueError(f"side={side}: expected a width in pixels, at least 1")
    said = tuple(str(c) for c in captions) or ("",) * len(left)
    return Twins(left, right, (str(labels[0]), str(labels[1])), said, start, side)


def _png(picture: Image.Image) -> bytes:
    data = BytesIO()
    picture.save(data, "PNG", optimize=True)
    return data.getvalue()


def _image(picture: Tensor, alt: str) -> str:
    """A picture (3 h w) as an element that holds it."""
    inside = base64.b64encode(_png(to_pil(picture))).decode()
    return f'<img alt="{alt.removesuffix(": ")}" src="data:image/png;base64,{inside}">'
