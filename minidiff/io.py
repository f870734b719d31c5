"""Pictures in and out of files: the only place where minidiff touches picture formats.

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

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "READ",
    "as_mask",
    "as_pictures",
    "check_target",
    "crop_box",
    "fit",
    "grid",
    "has_alpha",
    "known_range",
    "mask_of",
    "mask_of_size",
    "paste_back",
    "picture_size",
    "read_image",
    "read_mask",
    "to_pil",
    "write_bytes",
    "write_image",
    "write_json",
    "write_pil",
]

MAX_PIXELS = 64_000_000  # 8000 x 8000; a larger claim is a mistake or an attack
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}  # written
READ = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # of a GIF or TIFF the first picture
Size = int | tuple[int, int]


# ---- reading -------------------------------------------------------------------------------------


def read_image(path: str | Path, size: Size | None = None, *, resize: bool = False) -> Tensor:
    """A picture file as (1, 3, h, w) in [-1, 1].

    8 bit or 16 bit (scaled, not cut), grey, palette or colour; transparency is laid on white; EXIF
    orientation is applied. `size` (side, or height and width) is what the caller needs: another
    size is a ValueError, or with `resize` is cut to the right aspect around the centre and scaled.
    Errors: FileNotFoundError, ValueError.
    """
    image = _to_tensor(_open(path))
    want = tuple(image.shape[2:]) if size is None else _pair(size)
    got = tuple(image.shape[2:])
    if got == want:
        return known_range(image)
    if not resize:
        raise ValueError(
            f"{path} is {got[0]}x{got[1]} pixels (height x width), {want[0]}x{want[1]} are needed; "
            "allow a resize (--resize), which cuts around the centre and scales"
        )
    return known_range(fit(image, want))


def read_mask(
    path: str | Path,
    size: Size,
    *,
    picture: tuple[int, int] | None = None,
    invert: bool = False,
) -> Tensor:
    """A mask file as (1, 1, h, w) in {0, 1}; `mask_of` says which pixels are 1, the edit.

    size     what the caller needs: side, or height and width
    picture  (height, width) of the picture it belongs to, as that was in its file: a mask of this
             size is cut and scaled as the picture was
    invert   the other pixels

    ValueError: a mask of any other size, for it belongs to another picture; one that is empty or
    full.
    """
    want = _pair(size)
    got = picture_size(path)
    if got not in (want, picture):
        known = f", its picture {picture[0]}x{picture[1]}" if picture and picture != want else ""
        raise ValueError(
            f"{path} is {got[0]}x{got[1]} pixels (height x width), {want[0]}x{want[1]} are needed"
            f"{known}: a mask of another size belongs to another picture"
        )
    mask = mask_of_size(path, invert=invert)
    if got == want:
        return mask
    fitted = (fit(mask * 2 - 1, want) > 0).float()
    _refuse_trivial(fitted, f"{path}, cut and scaled to {want[0]}x{want[1]},")
    return fitted


def picture_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a picture file, upright."""
    im = _open(path)
    return im.height, im.width


def has_alpha(path: str | Path) -> bool:
    """Does a picture file say which of its pixels are transparent?"""
    im = _open(path)
    return "A" in im.getbands() or "transparency" in im.info


def mask_of_size(path: str | Path, *, invert: bool = False) -> Tensor:
    """A mask file at its own size, (1, 1, h, w) in {0, 1}."""
    mask = mask_of(_open(path), str(path))
    return 1 - mask if invert else mask


def mask_of(im: Image.Image, name: str = "the mask") -> Tensor:
    """Which pixels of a picture are the mask, (1, 1, h, w) in {0, 1}.

    Transparency that varies is the mask: the drawn pixels if they are of one colour (strokes on
    nothing), else the erased ones (a hole in a picture). A picture of two values is 1 at the
    lighter one; any other is 1 where it is lighter than middle grey. ValueError if all or none are.
    """
    rgba = np.array(im.convert("RGBA")) if not im.mode.startswith("I") else None
    if rgba is None:
        grey = np.asarray(im).astype(np.float64) / 257
        opaque = None
    else:
        grey = rgba[..., :3].mean(-1)
        alpha = rgba[..., 3]
        opaque = alpha > 127 if alpha.min() < alpha.max() else None
    if opaque is not None:
        drawn = rgba[..., :3][alpha > 0].astype(int)
        one_colour = len(drawn) and (drawn.max(0) - drawn.min(0)).max() <= 8
        on = opaque if one_colour else ~opaque
    else:
        values = np.unique(grey)
        on = grey == values[-1] if len(values) == 2 else grey > 127.5
    mask = torch.from_numpy(on)[None, None].float()
    _refuse_trivial(mask, name, f" (its grey values are {grey.min():.0f} to {grey.max():.0f})")
    return mask


def _refuse_trivial(mask: Tensor, name: str, why: str = "") -> None:
    if mask.min() == mask.max():
        state = "full: it covers every pixel" if mask.min() == 1 else "empty: it covers no pixel"
        raise ValueError(
            f"{name} is {state}{why}; paint what may change white and the rest black, or invert "
            "the mask"
        )


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


# ---- what callers in Python may hand in ----------------------------------------------------------


def known_range(image: Tensor) -> Tensor:
    """Note on a picture that its values are in [-1, 1], however light it is: `as_pictures` need not
    guess. Pictures from files and from a model's `decode` carry the note.
    """
    image.in_range = True
    return image


def as_pictures(value, name: str = "image") -> Tensor:
    """Pictures from a caller: float32 (b, 3, h, w) in [-1, 1], without gradients (float64 stays).

    A path, a PIL picture, uint8 from numpy or torch ((h, w), (h, w, 3 or 4), (3, h, w), or a batch
    of those), a float tensor (b, 3, h, w) in [-1, 1], or a list of these. Floats from 0 to 1 are
    refused: they cannot be told from light pictures in [-1, 1].
    """
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError(f"{name} is an empty list; expected at least one picture")
        parts = [as_pictures(v, name) for v in value]
        sizes = sorted({tuple(p.shape[2:]) for p in parts})
        if len(sizes) > 1:
            raise ValueError(f"{name} holds pictures of sizes {sizes}; expected one size")
        return torch.cat(parts)
    if isinstance(value, (str, Path)):
        return read_image(value)
    if isinstance(value, Image.Image):
        return _to_tensor(ImageOps.exif_transpose(value))
    expected = f"{name}: expected (b, 3, h, w) floats in [-1, 1], uint8, a PIL picture or a path"
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.array(value))
    if not isinstance(value, Tensor):
        raise ValueError(f"{expected}; got {type(value).__name__}")
    noted = getattr(value, "in_range", False)
    value = value.detach()
    shape = tuple(value.shape)
    if not value.numel():
        raise ValueError(f"{expected}; got an empty batch, {shape}")
    if value.dtype == torch.uint8:
        return _from_bytes(value, expected)
    if not value.is_floating_point() or value.ndim != 4 or shape[1] != 3:
        raise ValueError(f"{expected}; got {value.dtype} of shape {shape}")
    if not value.isfinite().all():
        raise ValueError(f"{expected}; this one holds NaN or infinite values")
    lo, hi = value.min().item(), value.max().item()
    doubtful = lo >= 0 and not noted
    if doubtful or lo < -1.01 or hi > 1.01:
        what = "which looks like 0..1; map it with 2 * x - 1" if 0 <= lo and hi <= 1 else "outside"
        raise ValueError(f"{expected}; the values are {lo:.3g} to {hi:.3g}, {what}")
    return value if value.dtype == torch.float64 else value.float()


def _from_bytes(x: Tensor, expected: str) -> Tensor:
    shape = tuple(x.shape)
    last = x.ndim >= 3 and shape[-1] in (1, 3, 4)  # h w c
    first = x.ndim >= 3 and shape[-3] in (1, 3)  # c h w
    if x.ndim == 2:
        x = x[None, None]
    elif x.ndim in (3, 4) and first != last:
        x = x.movedim(-1, -3) if last else x
        x = x if x.ndim == 4 else x[None]
    else:
        raise ValueError(f"{expected}; got uint8 of shape {shape}: which axis is colour?")
    x = x.float() / 255  # b c h w
    if x.shape[1] == 4:
        x = _on_white(x)
    return (x.expand(-1, 3, -1, -1) * 2 - 1).contiguous()


def as_mask(value, name: str = "mask") -> Tensor:
    """A mask from a caller: float32 (b, 1, h, w); whether it holds 0 and 1 alone is checked beside
    its picture.

    A path or a PIL picture (read as `mask_of` says), bool, uint8 of 0 and 255 or of 0 and 1, or
    floats; (h, w), (1, h, w) or (b, 1, h, w).
    """
    if isinstance(value, (str, Path)):
        return mask_of(_open(value), str(value))
    if isinstance(value, Image.Image):
        return mask_of(value, name)
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, Tensor) or value.ndim not in (2, 3, 4):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: expected (b, 1, h, w) of 0 and 1, 1 where to edit; got {got}")
    x = value.detach()
    if x.dtype == torch.uint8 and x.numel() and x.max() == 255:
        x = x.float() / 255
    x = x.float()
    return x[(None,) * (4 - x.ndim)]


def _open(path: str | Path) -> Image.Image:
    """The decoded picture, upright. Everything Pillow may raise for a bad file ends as one line."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a picture file")
    if not path.exists():
        raise FileNotFoundError(f"no picture at {path}")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes), expected a picture file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is checked two lines below, more strictly
            with Image.open(path, formats=READ) as im:
                if im.width * im.height > MAX_PIXELS:
                    raise ValueError(
                        f"{im.width}x{im.height} pixels, at most {MAX_PIXELS // 10**6} million"
                    )
                im.load()
                return ImageOps.exif_transpose(im)
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"{path} is no picture of a kind that is read ({', '.join(READ)})"
        ) from None
    except PermissionError:
        raise PermissionError(f"{path} may not be read (permission denied)") from None
    except Exception as e:  # Pillow: OSError, SyntaxError, struct.error, zlib.error, ...
        raise ValueError(
            f"{path} is no readable picture ({' '.join(str(e).split()) or type(e).__name__})"
        ) from e


def _to_tensor(im: Image.Image) -> Tensor:
    if im.mode == "F":
        raise ValueError("a picture of floats (Pillow's mode F): its range cannot be told")
    if im.mode.startswith("I"):  # 16-bit grey: "I;16", or "I" from older versions of Pillow
        values = np.asarray(im).astype(np.float32)
        if im.mode == "I" and values.max() <= 255:
            raise ValueError(
                f"a picture of whole numbers up to {values.max():.0f} (Pillow's mode I): 8 or 16 "
                "bits? convert it to mode L or I;16"
            )
        grey = torch.from_numpy(values / 65535)
        return (grey.clamp(0, 1) * 2 - 1).expand(1, 3, -1, -1).clone()  # 1 3 h w
    im = im.convert("RGB") if im.mode in ("CMYK", "YCbCr", "LAB", "HSV") else im
    rgba = torch.from_numpy(np.array(im.convert("RGBA"))).float() / 255  # h w 4
    return _on_white(rgba.permute(2, 0, 1)[None]) * 2 - 1


def _on_white(rgba: Tensor) -> Tensor:
    """Transparent pictures (b 4 h w) laid on white, all in 0..1: (b 3 h w)."""
    rgb = rgba[:, :3]
    alpha = rgba[:, 3:]
    return rgb * alpha + (1 - alpha)


def fit(image: Tensor, want: tuple[int, int]) -> Tensor:
    """Cut (b, c, h, w) around the centre to the aspect of `want`, then scale with a smoothing
    filter.
    """
    top, left, h, w = crop_box(tuple(image.shape[2:]), want)
    part = image[:, :, top : top + h, left : left + w]
    return F.interpolate(part, want, mode="bicubic", antialias=True).clamp(-1, 1)


def crop_box(size: tuple[int, int], want: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of what `fit` keeps of a picture of that size."""
    scale = max(want[0] / size[0], want[1] / size[1])
    h = min(size[0], round(want[0] / scale))
    w = min(size[1], round(want[1] / scale))
    return (size[0] - h) // 2, (size[1] - w) // 2, h, w


def paste_back(edited: Tensor, original: Tensor, mask: Tensor) -> Tensor:
    """An edit (1, 3, h, w) put back into the picture it was fitted from (1, 3, H, W), at that
    picture's own resolution, through the mask: (1, 1, H, W), or (1, 1, h, w) as the edit had it.
    """
    size = tuple(original.shape[2:])
    top, left, h, w = crop_box(size, tuple(edited.shape[2:]))
    large = F.interpolate(edited, (h, w), mode="bicubic", antialias=True).clamp(-1, 1)
    if tuple(mask.shape[2:]) == size:
        m = mask[:, :, top : top + h, left : left + w]
    else:
        m = F.interpolate(mask, (h, w), mode="nearest")
    out = original.clone()
    here = out[:, :, top : top + h, left : left + w]  # a view: what is written here is in `out`
    here.copy_(m * large.to(out) + (1 - m) * here)
    return out


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
    levels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())  # h w 3


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
            f"of {len(shapes)} sizes and {len(titles)} titles"
        )
    h, w, _ = shapes.pop()
    times = max(1, round(side / max(h, w)))
    pictures = [p.repeat(times, 0).repeat(times, 1) for p in pictures]
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

    dpi = 128  # a power of two: sizes stay exact
    pixels = font * dpi / 72  # height of a letter; it is about 0.62 of that wide
    h, w = pictures[0].shape[:2]
    line = round(1.3 * pixels)
    letters = max(8, int(w / (0.62 * pixels)))  # of a line
    texts = [textwrap.wrap(title, letters) for title in titles]
    numbers = list(range(len(pictures)))
    rows = [numbers[i : i + cols] for i in range(0, len(pictures), cols)]
    heads = [line * max(len(texts[i]) for i in row) for row in rows]  # height of a row's titles
    width = cols * (w + gap) + gap
    height = sum(heads) + len(rows) * (h + gap) + gap

    figure = Figure((width / dpi, height / dpi), dpi=dpi, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    style = dict(ha="center", va="bottom", fontsize=font, linespacing=1.1, parse_math=False)
    top = gap
    for row, head in zip(rows, heads):
        left = gap
        for i in row:
            bottom = height - top - head - h
            figure.figimage(pictures[i], left, bottom, origin="upper")
            middle = (left + w / 2) / width
            above = 1 - (top + head - 2) / height
            figure.text(middle, above, "\n".join(texts[i]), **style)
            left += w + gap
        top += head + h + gap
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3].copy())
