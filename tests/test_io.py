import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minidiff.data import shapes
from minidiff.io import (
    check_target,
    grid,
    paste_back,
    read_image,
    read_mask,
    to_pil,
    write_bytes,
    write_image,
    write_json,
)

SCENE = shapes.render(shapes.scene(np.random.default_rng(0)))  # 1 3 64 64
DEVICES = pytest.mark.skipif(
    sys.platform != "linux", reason="/dev/full and /proc are Linux's; no other place to test"
)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


# ---- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "new/folder/a.png"])
def test_a_png_returns_the_picture_to_half_a_level(tmp_path, name):
    write_image(SCENE, tmp_path / name)
    assert (read_image(tmp_path / name, 64) - SCENE).abs().max() <= 1 / 255 + 1e-6
    assert not [f for f in files(tmp_path) if f.endswith(".part")]


def test_a_jpeg_returns_about_the_picture(tmp_path):
    smooth = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    assert (read_image(write_image(smooth, tmp_path / "a.JPG")) - smooth).abs().max() < 0.06


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.zeros((2, 3, 4), np.uint8)
    # opaque, clear, a fifth black
    rgba[0, 0], rgba[0, 1], rgba[0, 2] = (255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    x = read_image(tmp_path / "a.png")
    assert x.shape == (1, 3, 2, 3)
    assert x[0, :, 0, 0].tolist() == [1, -1, -1] and x[0, :, 0, 1].tolist() == [1, 1, 1]
    assert (x[0, :, 0, 2] - (2 * 0.8 - 1)).abs().max() < 1e-6


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P"])
def test_grey_and_palette_pictures_become_three_channels(tmp_path, mode):
    grey = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8))
    grey.convert(mode).save(tmp_path / "a.png")
    assert torch.equal(
        read_image(tmp_path / "a.png"), torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).expand(1, 3, 2, 2)
    )


def test_sixteen_bit_grey_is_scaled_not_cut(tmp_path):
    values = np.array([[0, 300, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as im:
        assert im.mode.startswith("I")
    expected = torch.from_numpy(values / 65535 * 2 - 1).float()
    assert (read_image(tmp_path / "a.png")[0, 1] - expected).abs().max() < 1e-6


def png16(rgb: np.ndarray) -> bytes:
    """A 16-bit colour PNG, which Pillow reads but does not write."""
    h, w, _ = rgb.shape

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_sixteen_bit_colour_is_scaled_not_cut(tmp_path):
    rgb = np.array([[[0, 300, 65535], [32768, 20000, 257]]], np.uint16)
    (tmp_path / "a.png").write_bytes(png16(rgb))
    expected = torch.from_numpy(rgb / 65535 * 2 - 1).float().permute(2, 0, 1)[None]
    # Pillow keeps the high byte
    assert (read_image(tmp_path / "a.png") - expected).abs().max() < 2.1 / 255


def test_exif_orientation_is_applied(tmp_path):
    # 16 x 32
    im = Image.fromarray(
        np.array([[[255, 0, 0]] * 32, [[0, 0, 255]] * 32] * 1, np.uint8).repeat(8, 0)
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    im.save(tmp_path / "a.jpg", exif=exif, quality=95)
    x = read_image(tmp_path / "a.jpg")
    assert x.shape == (1, 3, 32, 16)
    # the top (red) is now on the right
    assert x[0, 0, :, -4:].mean() > 0.8 > -0.8 > x[0, 0, :, :4].mean()


def test_cmyk_jpeg_is_read_as_colour(tmp_path):
    to_pil(torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 16, 16)).convert("CMYK").save(
        tmp_path / "a.jpg"
    )
    assert (
        read_image(tmp_path / "a.jpg").mean((0, 2, 3)) - torch.tensor([1.0, -1.0, -1.0])
    ).abs().max() < 0.1


BAD_FILES = {
    "missing": (None, FileNotFoundError, "no picture at"),
    "empty": (b"", ValueError, "0 bytes"),
    "text": (b"hello", ValueError, "no picture of a kind that is read"),
    "gif": (b"GIF89a" + bytes(20), ValueError, "no picture of a kind that is read"),
    "cut": ("cut", ValueError, "no readable picture"),
    "flipped": ("flipped", ValueError, "no readable picture"),
    "large": (9_000, ValueError, "million"),
    "bomb": (60_000, ValueError, "no readable picture"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, case):
    content, error, words = BAD_FILES[case]
    path = write_image(torch.rand(3, 64, 64) * 2 - 1, tmp_path / "good.png").rename(
        tmp_path / "bad.png"
    )
    good = path.read_bytes()
    if content == "cut":
        content = good[: len(good) // 2]
    elif content == "flipped":
        content = good[:60] + bytes(b ^ 255 for b in good[60:90]) + good[90:]
    elif isinstance(content, int):  # claims so many pixels a side
        header = b"IHDR" + struct.pack(">IIBBBBB", content, content, 8, 2, 0, 0, 0)
        content = (
            good[:8]
            + struct.pack(">I", 13)
            + header
            + struct.pack(">I", zlib.crc32(header))
            + good[33:]
        )
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(error, match=words) as e:
        read_image(path)
    assert "bad.png" in str(e.value) and "\n" not in str(e.value)


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        read_image(tmp_path)


def test_another_size_is_an_error_unless_resizing_is_allowed(tmp_path):
    path = write_image(torch.zeros(3, 48, 96), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"48x96 pixels.*64x64 are needed"):
        read_image(path, 64)
    assert read_image(path, 64, resize=True).shape == (1, 3, 64, 64)
    assert read_image(path, (48, 96)).shape == (1, 3, 48, 96)


def test_resizing_keeps_the_centre_and_the_aspect(tmp_path):
    scene = shapes.Scene((shapes.Obj("circle", "red", "large"),), "center", "blue")
    disc = shapes.render(scene)
    # what is beside it is cut off
    wide = torch.cat([torch.ones(1, 3, 64, 32), disc, torch.ones(1, 3, 64, 32)], 3)
    x = read_image(write_image(wide, tmp_path / "a.png"), 32, resize=True)
    assert (x - shapes.render(scene, 32)).abs().mean() < 0.02
    assert x.abs().max() <= 1


def test_a_mask_is_zero_or_one_and_not_resized_by_itself(tmp_path):
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", (1, 4)).tolist() == [[[[0, 0, 1, 1]]]]
    with pytest.raises(ValueError, match="1x4 pixels"):
        read_mask(tmp_path / "m.png", 64)


# ---- masks as people have them -------------------------------------------------------------------


def save(array, path, mode=None):
    Image.fromarray(np.asarray(array, np.uint8), mode).save(path)
    return path


def half(light, dark=0):
    """8 x 8, the right half light."""
    m = np.full((8, 8), dark, np.uint8)
    m[:, 4:] = light
    return m


RIGHT = half(1).tolist()


def palette_map(path):
    """A label map: index 1 is a dark red on black."""
    im = Image.fromarray(half(1), "P")
    im.putpalette([0, 0, 0, 60, 0, 0] + [0] * 762)
    im.save(path)
    return path


def strokes_on_nothing(path):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, 4:] = (255, 255, 255, 255)
    return save(rgba, path)


def black_strokes_on_nothing(path):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, 4:, 3] = 255
    return save(rgba, path)


def hole_in_a_light_picture(path):
    rng = np.random.default_rng(0)
    rgba = rng.integers(180, 255, (8, 8, 4)).astype(np.uint8)
    rgba[..., 3] = 255
    rgba[:, 4:, 3] = 0
    return save(rgba, path)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: save(half(255), p),
        lambda p: save(half(1), p),  # labels 0 and 1
        lambda p: save(half(90, 40), p),  # two values are two values
        lambda p: save(half(250) - half(9) * np.eye(8, dtype=np.uint8), p),  # more than two values
        palette_map,
        strokes_on_nothing,
        black_strokes_on_nothing,
        hole_in_a_light_picture,
    ],
    ids=["white", "labels", "dark pair", "many", "palette", "strokes", "black strokes", "hole"],
)
def test_a_mask_is_read_as_it_was_meant(tmp_path, make):
    path = make(tmp_path / "m.png")
    assert read_mask(path, 8)[0, 0].tolist() == RIGHT
    assert read_mask(path, 8, invert=True)[0, 0].tolist() == (1 - half(1)).tolist()


@pytest.mark.parametrize("value, said", [(0, "empty"), (255, "full"), (40, "empty")])
def test_a_mask_that_is_empty_or_full_says_so(tmp_path, value, said):
    path = save(np.full((8, 8), value), tmp_path / "m.png")
    with pytest.raises(ValueError, match=rf"m\.png is {said}.*paint what may change"):
        read_mask(path, 8)


def test_a_mask_is_cut_and_scaled_as_its_picture_was(tmp_path):
    m = np.zeros((60, 120), np.uint8)
    m[:, 60:] = 255
    fitted = read_mask(save(m, tmp_path / "m.png"), 30, picture=(60, 120))
    assert (
        fitted.shape == (1, 1, 30, 30)
        and fitted[..., :15].max() == 0
        and fitted[..., 15:].min() == 1
    )
    with pytest.raises(ValueError, match=r"60x120 pixels.*its picture 60x100"):
        read_mask(tmp_path / "m.png", 30, picture=(60, 100))


def test_a_mask_that_the_cut_leaves_empty_says_so(tmp_path):
    m = np.zeros((60, 120), np.uint8)
    m[:, :10] = 255  # beside what is kept
    with pytest.raises(ValueError, match="cut and scaled to 30x30, is empty"):
        read_mask(save(m, tmp_path / "m.png"), 30, picture=(60, 120))


@pytest.mark.parametrize("kind", ["webp", "bmp", "gif", "tiff", "jpg", "png"])
def test_the_usual_kinds_of_picture_are_read(tmp_path, kind):
    scene = ((SCENE[0].permute(1, 2, 0) + 1) * 127.5).round().numpy()
    path = save(scene, tmp_path / f"scene.{kind}")
    assert (read_image(path, 64) - SCENE).abs().mean() < 0.06


def test_of_a_moving_picture_the_first_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    x = read_image(tmp_path / "a.gif")
    assert x[0, 0].min() > 0.9 and x[0, 2].max() < -0.9


def test_an_edit_is_pasted_back_at_full_size_through_its_mask():
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(1, 3, 96, 160, generator=generator) * 2 - 1
    mask = torch.zeros(1, 1, 96, 160)
    mask[:, :, 30:60, 60:100] = 1
    edited = torch.full((1, 3, 32, 32), 0.5)
    out = paste_back(edited, original, mask)
    assert out.shape == original.shape
    keep = (mask == 0).expand_as(out)
    assert torch.equal(out[keep], original[keep]) and (out[~keep] - 0.5).abs().max() < 1e-4
    assert torch.equal(paste_back(edited, original, torch.zeros(1, 1, 32, 32)), original)


# ---- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_picture_with_nan_is_not_written(tmp_path, bad):
    x = SCENE.clone()
    x[0, 1, 2, 3] = bad
    for write in (write_image, lambda x, p: grid(x, path=p)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            write(x, tmp_path / "a.png")
    assert files(tmp_path) == []


def test_values_outside_the_range_are_cut(tmp_path):
    x = torch.tensor([-9.0, -1.0, 1.0, 9.0]).expand(3, 1, 4)
    assert np.asarray(to_pil(x))[0, :, 0].tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 8, 8), (8, 8), (4, 8, 8)])
def test_only_one_colour_picture_is_a_picture(tmp_path, shape):
    with pytest.raises(ValueError, match="expected"):
        write_image(torch.zeros(shape), tmp_path / "a.png")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_image(SCENE, tmp_path / "a.png")
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*a\.png: No space left"):
        write_image(-SCENE, path)
    assert files(tmp_path) == ["a.png"] and path.read_bytes() == before


@DEVICES
def test_a_device_is_written_to_and_never_replaced():
    with pytest.raises(OSError, match="cannot write /dev/full: No space left"):
        write_image(SCENE, "/dev/full")
    assert not Path("/dev/full").is_file()
    write_image(SCENE, "/dev/null")
    assert not Path("/dev/null").is_file()


@DEVICES
def test_a_folder_that_takes_no_files_is_a_one_line_error():
    with pytest.raises(OSError, match=r"cannot write /proc/a\.png"):
        write_image(SCENE, "/proc/a.png")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    write_image(SCENE, tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink() and read_image(tmp_path / "real.png").shape == (
        1,
        3,
        64,
        64,
    )


def test_targets_are_checked_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file.png").write_bytes(b"")
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "a.bmp", "must end in"),
        (tmp_path / "a", "must end in"),
        (tmp_path / "file.png" / "a.png", "no folder"),
    ):
        with pytest.raises((ValueError, OSError), match=words):
            check_target(path)
    check_target(tmp_path / "new" / "folder" / "a.png")
    check_target(tmp_path / "facts.json", kinds=(".json",))
    monkeypatch.setattr(os, "access", lambda *a: False)
    with pytest.raises(OSError, match="read-only"):
        check_target(tmp_path / "a.png")
    assert files(tmp_path) == ["file.png"]


def test_bytes_into_a_folder_is_an_error(tmp_path):
    with pytest.raises(OSError, match="it is a folder"):
        write_bytes(b"x", tmp_path)


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="NaN"):
        write_json({"a": float("nan")}, tmp_path / "a.json")
    assert files(tmp_path) == []
    assert write_json({"a": Path("b")}, tmp_path / "a.json").read_text() == '{\n "a": "b"\n}\n'


# ---- contact sheets ------------------------------------------------------------------------------


def test_a_sheet_holds_every_picture_pixel_for_pixel():
    images = shapes.render([shapes.scene(np.random.default_rng(i)) for i in range(3)])
    sheet = np.asarray(grid(images, cols=2))
    # 64 pixels enlarged by 3, gaps of 8
    assert sheet.shape == (2 * (192 + 8) + 8, 2 * (192 + 8) + 8, 3)
    for i, (y, x) in enumerate([(8, 8), (8, 208), (208, 8)]):
        assert (sheet[y : y + 192 : 3, x : x + 192 : 3] == np.asarray(to_pil(images[i]))).all()
    assert (sheet[:8] == 255).all() and (sheet[208:, 208:] == 255).all()


def test_titles_have_room_and_stay_out_of_the_pictures(tmp_path):
    plain, titled = (
        grid(SCENE),
        grid(SCENE, ["a very long title that says $x^2$ and needs more than one line, surely"]),
    )
    assert titled.width == plain.width and titled.height > plain.height + 30
    head = np.asarray(titled)[: titled.height - 200]
    assert (head < 128).any() and (head[:, :4] == 255).all() and (head[:, -4:] == 255).all()
    assert (np.asarray(titled)[-200:] == np.asarray(plain)[-200:]).all()
    assert grid(SCENE, ["title"], path=tmp_path / "sheet.png") == tmp_path / "sheet.png"


@pytest.mark.parametrize(
    "images, titles", [([], None), (SCENE, ["a", "b"]), ([SCENE[0], SCENE[0, :, :32]], None)]
)
def test_a_sheet_refuses_what_does_not_fit(images, titles):
    with pytest.raises(ValueError, match="a sheet needs"):
        grid(images, titles)
