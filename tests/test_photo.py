"""Photos of every kind come out as they are meant to be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.photo import open_photo
from utils import UserError

ORIENTATION = 0x0112
# Two rows of three pixels; colours far apart, so that JPEG's losses do not matter.
COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [255, 255, 255], [128, 128, 128]]], np.uint8)


def big(pixels: np.ndarray) -> np.ndarray:
    """Return pixels as blocks of 16, which JPEG keeps."""
    return pixels.repeat(16, axis=0).repeat(16, axis=1)


def colours_of(photo: Image.Image) -> np.ndarray:
    """Return the middle of every block."""
    assert photo.mode == "RGB"
    return np.asarray(photo)[8::16, 8::16]


@pytest.mark.parametrize(
    ("orientation", "seen"),
    [
        (1, COLOURS),
        (2, COLOURS[:, ::-1]),
        (3, COLOURS[::-1, ::-1]),
        (6, COLOURS.transpose(1, 0, 2)[:, ::-1]),
        (8, COLOURS.transpose(1, 0, 2)[::-1]),
    ],
)
def test_exif_turns_the_photo(tmp_path: Path, orientation: int, seen: np.ndarray) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(big(COLOURS)).save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    assert np.abs(colours_of(open_photo(tmp_path / "turned.jpg")).astype(int) - seen).max() < 12


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    alpha = np.array([[0, 255, 128], [255, 255, 255]], np.uint8)
    Image.fromarray(big(np.dstack([COLOURS, alpha]))).save(tmp_path / "alpha.png")
    seen = colours_of(open_photo(tmp_path / "alpha.png"))
    assert seen[0].tolist() == [[255, 255, 255], [0, 255, 0], [127, 127, 255]]


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.fromarray(big(COLOURS)).quantize(6)
    red = image.getpixel((0, 0))
    image.save(tmp_path / "palette.png", transparency=red)
    assert colours_of(open_photo(tmp_path / "palette.png"))[0, :2].tolist() == [[255, 255, 255], [0, 255, 0]]


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "CMYK"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(big(COLOURS)).convert(mode)
    image.save(tmp_path / f"photo.{'tif' if mode == 'CMYK' else 'png'}")
    (file,) = tmp_path.iterdir()
    assert np.array_equal(np.asarray(open_photo(file)), np.asarray(image.convert("RGB")))


def test_sixteen_bits_of_grey(tmp_path: Path) -> None:
    """The brightest stays white: Pillow's own conversion would cut everything above 255 off."""
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(open_photo(tmp_path / "deep.png"))[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match=r"float\.tif cannot be read as a photo \(floating-point"):
        open_photo(tmp_path / "float.tif")


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 cut off"])
def test_what_is_no_photo_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"odd\.jpg cannot be read as a photo"):
        open_photo(tmp_path / "odd.jpg")
    with pytest.raises(UserError, match=r"there is no photo .*none\.jpg"):
        open_photo(tmp_path / "none.jpg")


def test_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(big(COLOURS)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"large\.png cannot be read"):
        open_photo(tmp_path / "large.png")
