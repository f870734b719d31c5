"""Pictures in and out of files: the only place where minidiff touches PNG and JPEG.

Inside, a picture is a float tensor (1, 3, h, w) in [-1, 1] and a mask is (1, 1, h, w) in {0, 1}, 1
where the edit happens. What comes in is checked here (kind of file, size, depth, transparency,
orientation), and every complaint is one line that names the file. What goes out appears whole or
not at all.
"""

import json
import os
import textwrap
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

MAX_PIXELS = 64_000_000  # 8000 x 8000; a larger claim is a mistake or an attack
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
Size = int | tuple[int, int]


# ---- reading -------------------------------------------------------------------------------------


def read_image(path: str | Path, size: Size | None = None, *, resize: bool = False) -> Tensor:
    """A PNG or JPEG file as (1, 3, h, w) in [-1, 1].

    8 bit or 16 bit (scaled, not cut), grey, palette or colour; transparency is laid on white; EXIF
    orientation is applied. `size` (side, or height and width) is what the caller needs: another
    size is a ValueError, or with `resize` is cut to the right aspect around the centre and scaled.
    Errors: FileNotFoundError, ValueError.
    """
    image = _to_tensor(_open(path))
    if size is None:
        return image
    want, got = (size, size) if isinstance(size, int) else tuple(size), tuple(image.shape[2:])
    if got == want:
        return image
    if not resize:
        raise ValueError(
            f"{path} is {got[0]}x{got[1]} pixels (height x width), {want[0]}x{want[1]} are needed; "
            "allow a resize, which cuts around the centre and scales"
        )
    return _fit(image, want)


def read_mask(path: str | Path, size: Size) -> Tensor:
    """A mask (1, 1, h, w) in {0, 1} from a picture of exactly that size: 1, the edit, where it is
    lighter than middle grey (transparent counts as white). Never resized: a mask of another size
    belongs to another picture.
    """
    return (read_image(path, size).mean(1, keepdim=True) > 0).float()


def _open(path: str | Path) -> Image.Image:
    """The decoded picture, upright. Everything Pillow may raise for a bad file ends as one line."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a PNG or JPEG file")
    if not path.exists():
        raise FileNotFoundError(f"no picture at {path}")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes), expected a PNG or JPEG file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is checked two lines below, more strictly
            with Image.open(path, formats=("PNG", "JPEG")) as im:
                if im.width * im.height > MAX_PIXELS:
                    raise ValueError(
                        f"{im.width}x{im.height} pixels, at most {MAX_PIXELS // 10**6} million"
                    )
                im.load()
                return ImageOps.exif_transpose(im)
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path} is no PNG or JPEG picture") from None
    except PermissionError:
        raise PermissionError(f"{path} may not be read (permission denied)") from None
    except Exception as e:  # Pillow: OSError, SyntaxError, struct.error, zlib.error, ...
        raise ValueError(
            f"{path} is no readable picture ({' '.join(str(e).split()) or type(e).__name__})"
        ) from e


def _to_tensor(im: Image.Image) -> Tensor:
    if im.mode.startswith("I"):  # 16-bit grey: "I;16", or "I" from older versions of Pillow
        grey = torch.from_numpy(np.asarray(im).astype(np.float32) / 65535)
        return (grey.clamp(0, 1) * 2 - 1).expand(1, 3, -1, -1).clone()  # 1 3 h w
    im = im.convert("RGB") if im.mode in ("CMYK", "YCbCr", "LAB", "HSV") else im
    # 1 4 h w
    rgba = torch.from_numpy(np.array(im.convert("RGBA"))).permute(2, 0, 1)[None].float() / 255
    rgb, alpha = rgba[:, :3], rgba[:, 3:]
    return (rgb * alpha + (1 - alpha)) * 2 - 1  # on white


def _fit(image: Tensor, want: tuple[int, int]) -> Tensor:
    """Cut (1, 3, h, w) around the centre to the aspect of `want`, then scale with a smoothing
    filter.
    """
    (h, w), (H, W) = image.shape[2:], want
    scale = max(H / h, W / w)
    ch, cw = min(h, round(H / scale)), min(w, round(W / scale))
    top, left = (h - ch) // 2, (w - cw) // 2
    part = image[:, :, top : top + ch, left : left + cw]
    return F.interpolate(part, want, mode="bicubic", antialias=True).clamp(-1, 1)


# ---- writing -------------------------------------------------------------------------------------


def write_bytes(data: bytes, path: str | Path) -> Path:
    """Write a file whole or not at all: beside it first, then renamed. Missing folders are made. A
    device or pipe (/dev/stdout) is written to, never replaced. Errors: one-line OSError; nothing is
    left behind.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))  # through symbolic links: they stay links
    try:
        if target.is_dir():
            raise IsADirectoryError("it is a folder")
        if target.exists() and not target.is_file():
            with open(target, "wb") as f:
                f.write(data)
            return path
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(data, target)
        return path
    except OSError as e:
        raise type(e)(f"cannot write {path}: {e.strerror or e}") from e


def _replace(data: bytes, target: Path) -> None:
    part = target.with_name(f".{target.name[:100]}.{os.getpid()}.part")
    try:
        with open(part, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_json(facts, path: str | Path) -> Path:
    """Facts as indented JSON, atomically. ValueError for NaN or infinite numbers, which JSON does
    not have.
    """
    try:
        text = json.dumps(facts, indent=1, allow_nan=False, default=str)
    except ValueError as e:
        raise ValueError(f"cannot write {path}: a measured number is NaN or infinite") from e
    return write_bytes(text.encode() + b"\n", path)


def check_target(path: str | Path, kinds=tuple(FORMATS)) -> None:
    """ValueError or OSError now, rather than after a minute of sampling, if a file cannot be
    written there. `kinds`: the endings a new file may have (empty: any).
    """
    path = Path(path)
    real = Path(os.path.realpath(path))
    if real.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder, expected the name of a file")
    if kinds and path.suffix.lower() not in kinds and (real.is_file() or not real.exists()):
        raise ValueError(f"cannot write {path}: the name must end in {', '.join(kinds)}")
    folder = next(p for p in real.parents if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OSError(
            f"cannot write {path}: {folder} is {'read-only' if folder.is_dir() else 'no folder'}"
        )


def to_pil(image: Tensor) -> Image.Image:
    """(3, h, w) or (1, 3, h, w) in [-1, 1] -> 8-bit picture; values outside are cut, NaN or
    infinity a ValueError.
    """
    image = image[0] if image.ndim == 4 and len(image) == 1 else image
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"picture of shape {tuple(image.shape)}: expected (3, h, w) or (1, 3, h, w); "
            "grid takes more"
        )
    image = image.detach().float().cpu()
    if not image.isfinite().all():
        share = 100 * (1 - image.isfinite().float().mean().item())
        raise ValueError(
            f"the picture holds NaN or infinite numbers ({share:.3g}% of it); nothing was written "
            "(a lower guidance scale, or float32, usually helps)"
        )
    array = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)  # h w 3
    return Image.fromarray(array.numpy())


def write_pil(picture: Image.Image, path: str | Path) -> Path:
    """Write a Pillow picture as its name says (PNG for devices), atomically."""
    check_target(path)
    data = BytesIO()
    # PNG has no quality
    picture.save(data, FORMATS.get(Path(path).suffix.lower(), "PNG"), quality=95)
    return write_bytes(data.getvalue(), path)


def write_image(image: Tensor, path: str | Path) -> Path:
    """Write one picture, (3, h, w) or (1, 3, h, w) in [-1, 1], as PNG or JPEG. Errors: ValueError,
    OSError.
    """
    return write_pil(to_pil(image), path)


# ---- contact sheets ------------------------------------------------------------------------------


def grid(
    images, titles=None, cols: int | None = None, path: str | Path | None = None, *, side: int = 192
):
    """A labelled contact sheet: pictures (b, 3, h, w) or a list of (3, h, w), each with its title
    above.

    Small pictures are enlarged by a whole number to about `side` pixels, so that every pixel stays
    a sharp square; larger ones are shown as they are. Returns a Pillow picture, or writes it if
    `path` is given and returns the path. ValueError: no pictures, different sizes, another number
    of titles, NaN.
    """
    pictures = [np.asarray(to_pil(i)) for i in images]
    titles = [""] * len(pictures) if titles is None else [str(t) for t in titles]
    shapes = {p.shape for p in pictures}
    if len(shapes) != 1 or len(titles) != len(pictures):
        raise ValueError(
            f"a sheet needs pictures of one size and as many titles, got {len(pictures)} pictures "
            "of "
            f"{len(shapes)} sizes and {len(titles)} titles"
        )
    h, w, _ = shapes.pop()
    k = max(1, round(side / max(h, w)))
    pictures = [p.repeat(k, 0).repeat(k, 1) for p in pictures]
    sheet = _sheet(pictures, titles, min(cols or 4, len(pictures)))
    return sheet if path is None else write_pil(sheet, path)


def _sheet(
    pictures: list[np.ndarray], titles: list[str], cols: int, gap: int = 8, font: float = 7.0
) -> Image.Image:
    """Lay out pictures of one size pixel for pixel; every row is as high as its longest title
    needs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # late: 0.5 s that most commands do not need

    dpi, (h, w) = 128, pictures[0].shape[:2]  # a power of two: sizes stay exact
    line = round(1.3 * font * dpi / 72)
    texts = [textwrap.wrap(t, max(8, int(w / (0.62 * font * dpi / 72)))) for t in titles]
    rows = [range(i, min(i + cols, len(pictures))) for i in range(0, len(pictures), cols)]
    heads = [line * max(len(texts[i]) for i in row) for row in rows]
    width, height = cols * (w + gap) + gap, sum(heads) + len(rows) * (h + gap) + gap
    fig = Figure((width / dpi, height / dpi), dpi=dpi, facecolor="white")
    canvas, y = FigureCanvasAgg(fig), gap
    for row, head in zip(rows, heads):
        for c, i in enumerate(row):
            x = gap + c * (w + gap)
            fig.figimage(pictures[i], x, height - y - head - h, origin="upper")
            fig.text(
                (x + w / 2) / width,
                1 - (y + head - 2) / height,
                "\n".join(texts[i]),
                ha="center",
                va="bottom",
                fontsize=font,
                linespacing=1.1,
                parse_math=False,
            )
        y += head + h + gap
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3].copy())
