"""minidiff/learn/twins.py: two pictures in one place, in HTML that needs nothing else, or at rest."""

import base64
import re
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from minidiff.io import to_pil
from minidiff.learn.twins import twins


def pair(n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    left = torch.rand(n, 3, 16, 12, generator=g) * 2 - 1
    return left, -left


def pictures_inside(page: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(BytesIO(base64.b64decode(f)))) for f in found]


def test_the_page_holds_every_picture_pixel_for_pixel_left_before_right():
    left, right = pair()
    inside = pictures_inside(twins(left, right, ("a", "b"))._repr_html_())
    wanted = torch.stack([left[0], right[0], left[1], right[1]])
    wanted = ((wanted + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert len(inside) == 4 and all((a == b).all() for a, b in zip(inside, wanted))


def test_the_slider_begins_where_it_is_told_and_moves_the_line_of_its_own_figure():
    page = twins(*pair(), ("a", "b"), start=0.3)._repr_html_()
    assert 'value="30"' in page and "--cut: 30%" in page
    assert page.count('type="range"') == 1 and "this.closest('.twins')" in page


def test_nothing_is_fetched_and_no_script_is_needed():
    page = twins(*pair(), ("a", "b"))._repr_html_()
    assert "http" not in page and "<script" not in page
    assert page.count("src=") == page.count('src="data:')


def test_words_are_shown_as_they_are():
    page = twins(*pair(1), ("w < 1", 'the "other" & more'), ["<b>c</b>"])._repr_html_()
    assert "w &lt; 1" in page and "&quot;other&quot; &amp; more" in page
    assert "&lt;b&gt;c&lt;/b&gt;" in page and "<b>" not in page


def test_the_strip_shows_left_above_right():
    g = torch.Generator().manual_seed(0)
    left = torch.rand(1, 3, 16, 16, generator=g) * 2 - 1
    png = twins(left, -left, ("a", "b"), side=32)._repr_png_()
    strip = np.asarray(Image.open(BytesIO(png)))

    def rows_of(picture) -> list[int]:
        """Where it stands in the strip, twice as large, 8 pixels from the left."""
        large = np.asarray(to_pil(picture)).repeat(2, 0).repeat(2, 1)
        places = range(strip.shape[0] - 31)
        return [row for row in places if (strip[row : row + 32, 8:40] == large).all()]

    (above,), (below,) = rows_of(left), rows_of(-left)
    assert above + 32 < below  # a label stands between them


def test_a_label_is_there_without_captions_and_with_them():
    left, right = pair()
    plain = np.asarray(twins(left, right, ("a", "b")).strip())
    told = np.asarray(twins(left, right, ("a", "b"), ["one", "two"]).strip())
    assert plain.shape[1] == told.shape[1] and (plain.shape != told.shape or (plain != told).any())


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(right=torch.zeros(2, 3, 16, 13) - 0.5), "place by place"),
        (dict(right=torch.zeros(1, 3, 16, 12) - 0.5), "place by place"),
        (dict(left=torch.rand(2, 3, 16, 12)), "left"),
        (dict(labels="ab"), "expected two"),
        (dict(labels=("a", "b", "c")), "expected two"),
        (dict(captions=["one"]), "one for each of the 2 pairs"),
        (dict(captions="xy"), "one for each of the 2 pairs"),
        (dict(start=1.5), "0 to 1"),
        (dict(start=float("nan")), "0 to 1"),
        (dict(side=0), "at least 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, says):
    left, right = pair()
    given = {"left": left, "right": right, "labels": ("a", "b"), **change}
    with pytest.raises(ValueError, match=says):
        twins(**given)
