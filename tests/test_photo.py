"""Photos of every kind come out as they are meant to be seen."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import IO

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from errors import UserError
from lib.photo import (
    FORMATS,
    PLUGINS,
    READ,
    ImageError,
    MissingImageError,
    TooLargeError,
    as_seen,
    open_photo,
    open_stored,
    opened,
    photo_size,
    read_mask,
)
from tests.helpers import naming

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


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


ACROSS = COLOURS.transpose(1, 0, 2)
SEEN = {
    1: COLOURS,
    2: COLOURS[:, ::-1],
    3: COLOURS[::-1, ::-1],
    4: COLOURS[::-1],
    5: ACROSS,
    6: ACROSS[:, ::-1],
    7: ACROSS[::-1, ::-1],
    8: ACROSS[::-1],
}


@pytest.mark.parametrize("orientation", SEEN)
@pytest.mark.parametrize("format", [format for format in FORMATS if format not in ("BMP", "GIF")])
def test_exif_turns_the_photo_and_its_size(tmp_path: Path, orientation: int, format: str) -> None:
    file, fine = tmp_path / "turned", {"quality": 95} | ({"subsampling": 0} if format == "JPEG" else {})
    Image.fromarray(big(COLOURS)).save(file, format=format, exif=exif_of(orientation), **fine)
    photo = open_photo(file)
    limit = 60 if format in ("WEBP", "AVIF") else 12  # these keep half of the colours' resolution
    assert np.abs(colours_of(photo).astype(int) - SEEN[orientation]).max() < limit
    assert photo_size(file) == photo.size
    assert as_seen(photo).size == photo.size, "it is turned once"


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("kind", ["eXIf", "iTXt"])
def test_orientation_at_the_end_of_a_png_is_applied(tmp_path: Path, kind: str) -> None:
    exif = exif_of(6).tobytes().removeprefix(b"Exif\0\0")
    content = {"eXIf": exif, "iTXt": b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'}[kind]
    memory = BytesIO()
    Image.fromarray(big(COLOURS)).save(memory, "PNG")
    whole, end = memory.getvalue(), memory.getvalue().index(b"IEND") - 4
    (tmp_path / "late.png").write_bytes(whole[:end] + png_chunk(kind.encode(), content) + whole[end:])
    assert np.array_equal(colours_of(open_photo(tmp_path / "late.png")), SEEN[6])
    assert photo_size(tmp_path / "late.png") == (32, 48)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_block_is_ignored(tmp_path: Path, format: str) -> None:
    """Cut at every place, and with any byte of it wrong."""
    exif = exif_of(1)
    exif[0x011A], exif[0x0128], exif[0x010F] = 72.0, 2, "maker"
    block, file = exif.tobytes(), tmp_path / "photo"
    broken = [block[:end] for end in range(1, len(block))]
    broken += [block[:at] + bytes([255 - block[at]]) + block[at + 1 :] for at in range(6, len(block))]
    for content in broken:
        Image.fromarray(COLOURS).save(file, format=format, exif=content)
        assert sorted(open_photo(file).size) == [2, 3]
        assert photo_size(file) == open_photo(file).size


def test_a_jpeg_whose_resolution_is_no_number_is_read_upright(tmp_path: Path) -> None:
    """Pillow refuses it; the orientation in the same block is sound."""
    # Two entries: orientation 6, a SHORT; the resolution, which must be a fraction, as one byte.
    entries = struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0), struct.pack("<HHIHH", 0x011A, 1, 1, 72, 0)
    unit = struct.pack("<HHIHH", 0x0128, 3, 1, 2, 0)
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 3) + b"".join(entries) + unit + bytes(4)
    file = tmp_path / "odd.jpg"
    Image.fromarray(big(COLOURS)).save(file, exif=block, quality=95, subsampling=0)
    content = file.read_bytes()  # without JFIF's own resolution, in whose place the EXIF data are asked
    start, length = content.index(b"\xff\xe0"), int.from_bytes(content[4:6], "big")
    file.write_bytes(content[:start] + content[start + 2 + length :])
    with pytest.raises(OSError), Image.open(file):
        pass
    assert np.abs(colours_of(open_photo(file)).astype(int) - SEEN[6]).max() < 12
    assert photo_size(file) == (32, 48)
    with file.open("rb") as opened_file:
        assert open_photo(opened_file).size == (32, 48)


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


def test_sixteen_bits_of_grey_with_a_transparent_value(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 32896]], np.uint16)).save(tmp_path / "deep.png", transparency=257)
    content = (tmp_path / "deep.png").read_bytes()
    if b"tRNS" not in content:  # Pillow does not write it for this mode
        at = content.index(b"IDAT") - 4
        (tmp_path / "deep.png").write_bytes(content[:at] + png_chunk(b"tRNS", b"\x01\x01") + content[at:])
    assert np.asarray(open_photo(tmp_path / "deep.png"))[0].tolist() == [[0] * 3, [255] * 3, [128] * 3]


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match=r"float\.tif .*floating-point"):
        open_photo(tmp_path / "float.tif")


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 cut off"])
def test_files_other_than_photos_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"odd\.jpg"):
        open_photo(tmp_path / "odd.jpg")
    with pytest.raises(UserError, match=r"no photo .*none\.jpg"):
        open_photo(tmp_path / "none.jpg")


def test_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(big(COLOURS)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"large\.png"):
        open_photo(tmp_path / "large.png")


def test_a_caller_names_its_own_limits(tmp_path: Path) -> None:
    Image.fromarray(big(COLOURS)).save(tmp_path / "photo.png")
    with opened(tmp_path / "photo.png", ["PNG"], 48 * 32):
        pass
    with pytest.raises(TooLargeError), opened(tmp_path / "photo.png", max_pixels=48 * 32 - 1):
        pass
    with pytest.raises(ImageError, match="none of JPEG"), opened(tmp_path / "photo.png", ["JPEG"]):
        pass


# ---------------------------------------------------------------- only pictures


@pytest.mark.parametrize("read", [open_stored, photo_size, read_mask])
def test_no_picture_starts_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    """A file of any name that begins with %!PS makes Pillow call Ghostscript, unless formats are named."""
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "photo.jpg").write_bytes(script)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("a program was started"))
    with pytest.raises(ImageError, match="none of JPEG, PNG"):
        read(tmp_path / "photo.jpg")


@pytest.mark.parametrize("error", [KeyError("tag"), RecursionError(), MemoryError(), AssertionError("odd"), OSError(5)])
def test_any_error_of_a_file_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "odd.png")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(UserError, match=r"odd\.png .*\(\S+"):
        open_photo(tmp_path / "odd.png")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", tmp_path):
        with pytest.raises(UserError, match="it is no file but a folder, a pipe or a device"):
            open_photo(path)


def test_names_of_photos_are_those_that_pillow_gives_the_formats() -> None:
    known = {suffix for suffix, format in Image.registered_extensions().items() if format in (*FORMATS, "MPO")}
    assert READ - {".avif"} <= known
    assert known - READ <= {".avif", ".avifs"}


# The heads of files of other formats, each with the module and the package that read it, and Pillow's name of it.
PLUGGED = {
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": ("pillow_heif", "pillow-heif", "HEIF"),
    b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic": ("pillow_heif", "pillow-heif", "HEIF"),
    b"\xff\x0a\x7f": ("pillow_jxl", "pillow-jxl-plugin", "JXL"),
    b"\0\0\0\x0cJXL \r\n\x87\n": ("pillow_jxl", "pillow-jxl-plugin", "JXL"),
    b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf": ("pillow_avif", "pillow-avif-plugin", "AVIF"),
}


def plugged_file(path: Path, head: bytes) -> Path:
    """Write a file that begins like one of another format; a PNG follows, whose EXIF data say that it lies."""
    content = BytesIO()
    Image.fromarray(big(COLOURS)).save(content, "PNG", exif=exif_of(6))
    path.write_bytes(head + content.getvalue())
    return path


@pytest.mark.parametrize("head", PLUGGED)
def test_a_format_without_its_plugin_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    module, package, _ = PLUGGED[head]
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("PIL.features.check", lambda _: False)  # as before Pillow read AVIF
    with naming("photo.heic", package):
        open_photo(plugged_file(tmp_path / "photo.heic", head))


@pytest.mark.parametrize("head", PLUGGED)
def test_plugins_read_photos_but_no_stored_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    """HEIC and JPEG XL come upright from their decoders, whatever the EXIF data say; AVIF does not."""
    name, _, format = PLUGGED[head]
    kind = next(kind for kind, plugin in PLUGINS.items() if plugin.format == format)

    def stand_in(file: IO[bytes], filename: str | bytes) -> PngImageFile:
        image = PngImageFile(BytesIO(file.read()[len(head) :]))
        image.format = format
        return image

    def register() -> None:
        Image.register_open(format, stand_in)

    Image.init()  # before the next line, so that it is not undone
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr("PIL.features.check", lambda _: False)
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    if PLUGINS[kind].register:
        monkeypatch.setattr(module, "register_heif_opener", register, raising=False)
    else:
        register()  # as importing the module does
    path = plugged_file(tmp_path / "photo", head)
    seen = SEEN[6] if format == "AVIF" else COLOURS
    assert np.array_equal(colours_of(open_photo(path)), seen)
    assert photo_size(path) == open_photo(path).size
    if format not in FORMATS:
        with pytest.raises(ImageError, match="none of"):
            open_stored(path)


# ---------------------------------------------------------------- as stored


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "1", "I;16"])
def test_stored_images_keep_their_pixels(tmp_path: Path, mode: str) -> None:
    """Not turned, not laid over white, not scaled: what Pillow's own conversion gives."""
    image = Image.fromarray(big(COLOURS)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(big(COLOURS)).convert("L"))
    format = "JPEG" if mode in ("RGB", "L", "CMYK") else "PNG"
    image.save(tmp_path / "image", format=format, exif=exif_of(6))
    with Image.open(tmp_path / "image") as plain:
        expected = np.asarray(plain.convert("RGB"))
    assert np.array_equal(np.asarray(open_stored(tmp_path / "image")), expected)


def test_a_stored_image_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingImageError):
        open_stored(tmp_path / "none.jpg")


# ---------------------------------------------------------------- masks

INSIDE = np.array([[False, True, True], [False, False, True]])
SHAPE = INSIDE.shape


def filled(colour: tuple[int, ...]) -> Image.Image:
    """Return a picture with a colour on the object and black elsewhere."""
    return Image.fromarray((INSIDE[..., None] * np.array(colour)).astype(np.uint8))


def indexed(colour: tuple[int, int, int]) -> Image.Image:
    picture = Image.frombytes("P", (SHAPE[1], SHAPE[0]), INSIDE.astype(np.uint8).tobytes())
    picture.putpalette([0, 0, 0, *colour] + [0] * 762)
    return picture


def cut_out(colour: int) -> Image.Image:
    """Return a picture of one colour that is transparent outside the object."""
    return Image.fromarray(np.dstack([np.full((*SHAPE, 3), colour), INSIDE * 255]).astype(np.uint8))


@pytest.mark.parametrize(
    "picture",
    [
        *(filled(colour) for colour in [(255, 255, 255), (1, 0, 0), (0, 1, 0), (0, 0, 4)]),
        *(indexed(colour) for colour in [(128, 0, 0), (0, 0, 4), (1, 1, 1)]),
        Image.fromarray(INSIDE),
        *(Image.fromarray(INSIDE.astype(kind)) for kind in (np.uint8, np.uint16, np.int32)),
        Image.fromarray((INSIDE * 65535).astype(np.uint16)),
        Image.fromarray(INSIDE.astype(np.float32) * 0.001),
        cut_out(255),
        cut_out(1),
        cut_out(255).convert("LA"),
        filled((0, 0, 4, 1)),
        Image.merge("CMYK", [*[Image.new("L", SHAPE[::-1])] * 3, Image.fromarray(~INSIDE * np.uint8(255))]),
    ],
    ids=lambda picture: picture.mode,
)
def test_anything_but_black_is_the_object(tmp_path: Path, picture: Image.Image) -> None:
    format = "TIFF" if picture.mode in ("I", "F", "CMYK") else "PNG"
    picture.save(tmp_path / "mask", format=format)
    assert np.array_equal(read_mask(tmp_path / "mask"), INSIDE)


def test_a_mask_of_a_transparent_colour(tmp_path: Path) -> None:
    indexed((255, 0, 0)).save(tmp_path / "mask.png", transparency=1)
    assert not read_mask(tmp_path / "mask.png").any()
    assert not read_mask_of(cut_out(0), tmp_path).any(), "visible black stays black"


def test_a_mask_is_turned_like_a_photo(tmp_path: Path) -> None:
    filled((255, 255, 255)).save(tmp_path / "mask.png", exif=exif_of(6))
    assert np.array_equal(read_mask(tmp_path / "mask.png"), np.rot90(INSIDE, -1))


def read_mask_of(picture: Image.Image, folder: Path) -> np.ndarray:
    picture.save(folder / "picture.png")
    return read_mask(folder / "picture.png")
