"""Every image file is opened here: in one of the formats that are named, of a bearable size, and none is trusted.

People's own photos are read as they are seen (`open_photo`), COCO's as they are stored (`open_stored`): the published
numbers were measured on stored pixels. Mask pictures: `read_mask`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from errors import UserError
from lib.texts import IS_POINTER, LFS_POINTER

# Named one by one, because Pillow knows formats that start other programs: Ghostscript, for any file that begins with
# "%!PS". JPEG stands for MPO, too, the pairs of stereo and panorama cameras. Pillow reads AVIF from 11.3 on.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", *(["AVIF"] if find_spec("PIL.AvifImagePlugin") else []))
# In a folder, files of these names are photos; no other file's name there makes an error.
READ = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif"}
NOT_READ = {".heic", ".heif", ".hif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}
SUFFIXES = frozenset(READ | NOT_READ)
MOST_PIXELS = 178_956_970  # where Pillow, too, speaks of a decompression bomb

Source = str | Path | BinaryIO  # a file, by name or open
Pixels: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"  # of an image, or a mask of 0 and 1
Places: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]"  # of some pixels

ORIENTATION = 0x0112
# How a picture is turned upright, by the orientation in its EXIF data.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (TURNS[5], TURNS[6], TURNS[7], TURNS[8])  # these exchange width and height
DEEP_GREY = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of more than eight bits
WHITE = (255, 255, 255, 255)


class ImageError(Exception):
    """Why an image cannot be read, in words that follow its name."""


class MissingImageError(ImageError):
    """There is no such file."""


class TooLargeError(ImageError):
    """It has more pixels than are read; a file of a few bytes may announce any number of them."""


# ---------------------------------------------------------------- photos


def open_photo(source: Source) -> Image.Image:
    """Return a photo as it is meant to be seen: see `as_seen`; of moving ones the first picture.

    Raises UserError, naming it, where `opened` or `as_seen` says that it cannot be read.
    """
    name = source if isinstance(source, str | Path) else getattr(source, "name", "the photo")
    try:
        with opened(source) as image:
            return as_seen(image)
    except MissingImageError:
        raise UserError(f"there is no photo {name}") from None
    except ImageError as error:
        raise UserError(f"{name} cannot be read as a photo ({error})") from error


def photo_size(source: Source) -> tuple[int, int]:
    """Return width and height of a photo as `open_photo` returns it, mostly without decoding it.

    Raises ImageError, where it cannot be read.
    """
    with opened(source) as image:
        if image.format == "PNG" and _has_notes(image):
            image.load()
        # A TIFF's size is the upright one from the beginning.
        sideways = image.format != "TIFF" and _turn(image) in SIDEWAYS
        width, height = image.size
    return (height, width) if sideways else (width, height)


def as_seen(image: Image.Image) -> Image.Image:
    """Return an image of any of Pillow's modes turned upright as its EXIF data say, RGB, over white where it is
    transparent, without its metadata. Sixteen bits of grey become eight; of colour Pillow does so.

    Raises ValueError for pixels whose black and white nobody knows: floating-point ones, and grey beyond 16 bits.
    """
    image.load()  # which may bring EXIF data, and turns a TIFF
    turn = _turn(image)
    seen = _as_rgb(image if turn is None else image.transpose(turn))
    seen.info = {}  # its orientation has been heeded
    return seen


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in DEEP_GREY:
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode in ("F", "LAB"):
        kind = "floating-point pixels" if image.mode == "F" else "LAB colours"
        raise ValueError(f"{kind}: save it as RGB or grey, with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, WHITE), seen).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Pixels:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"its values reach from {values.min()} to {values.max()}, beyond 16 bits")
    return np.where(_is_clear(image), 255, (values / 257).round()).astype(np.uint8)


def _is_clear(image: Image.Image) -> Places:
    """Return where a grey image of more than eight bits has the one value that is transparent."""
    return np.asarray(np.asarray(image) == image.info.get("transparency", -1))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return how an image is turned upright; None where its EXIF data do not say so, or are broken."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # of almost any kind; the pixels may be sound all the same
        return None


def _has_notes(image: ImageFile.ImageFile) -> bool:
    """Tell whether a PNG may hold EXIF data behind its pixels, where they are not known before it is decoded."""
    file = image.fp
    if file is None:  # it has been decoded, and all notes are known
        return False
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    return any(chunk in content for chunk in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"))


# ---------------------------------------------------------------- images as stored, masks


def open_stored(source: Source) -> Image.Image:
    """Return an image as RGB, its pixels where the file has them, all of it read.

    Raises ImageError where that cannot be done.
    """
    with opened(source) as image:
        return image.convert("RGB")


def resize_mask(mask: Pixels, size: Sequence[int]) -> Pixels:
    """Return a mask (H, W) at another size (height, width): every pixel has the value of the nearest one."""
    return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def read_mask(source: Source) -> Places:
    """Return where a picture is anything but black, (H, W) bool, upright as `open_photo`; what is transparent is black.

    Raises ImageError where it cannot be read.
    """
    with opened(source) as image:
        image.load()
        turn = _turn(image)
        picture = image if turn is None else image.transpose(turn)
        if picture.mode in (*DEEP_GREY, "F"):
            return np.asarray((np.asarray(picture) > 0) & ~_is_clear(picture))
        pixels = np.asarray(picture.convert("RGBA"))
        return np.asarray(pixels[..., :3].any(axis=-1) & (pixels[..., 3] > 0))


def read_above(source: Source, threshold: int) -> Places:
    """Return where the grey value of a picture is above a threshold, (H, W) bool, its pixels where the file has them.

    Colours become grey as Pillow does it. Raises ImageError where it cannot be read.
    """
    with opened(source) as image:
        image.load()
        grey = image if image.mode in (*DEEP_GREY, "F") else image.convert("L")
        return np.asarray(np.asarray(grey) > threshold)


# ---------------------------------------------------------------- opening


@contextmanager
def opened(
    source: Source, formats: Sequence[str] = FORMATS, most_pixels: int = MOST_PIXELS
) -> Iterator[ImageFile.ImageFile]:
    """Open an image; whatever it raises in the block becomes an ImageError, unless too many files are open.

    Raises MissingImageError where there is no such file, TooLargeError where it has more than `most_pixels`, ImageError
    where it is damaged or of none of the `formats`.
    """
    try:
        with _open(source, formats) as image:
            if image.width * image.height > most_pixels:
                raise TooLargeError(f"its {image.width}×{image.height} pixels exceed the limit of {most_pixels:,}")
            yield image
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise MissingImageError("there is no such file") from error
    except Image.DecompressionBombError as error:  # of Pillow's own limit
        raise TooLargeError(str(error)) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"it is damaged, or none of {', '.join(formats)}") from error
    except Exception as error:  # damaged files and odd metadata make Pillow raise almost anything
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # too many files are open, which is no fault of this one
        raise ImageError(" ".join(str(error).split()) or type(error).__name__) from error


def _open(source: Source, formats: Sequence[str]) -> ImageFile.ImageFile:
    if isinstance(source, str | Path) and not stat.S_ISREG(os.stat(source).st_mode):
        raise ImageError("it is no file but a folder, a pipe or a device")  # a pipe might be waited for without end
    try:
        return Image.open(source, formats=list(formats))
    except UnidentifiedImageError:
        # Pillow gives a JPEG up for a resolution in its EXIF data that is no number.
        content = _read(source)
        if content.startswith(LFS_POINTER):
            raise ImageError(f"it {IS_POINTER}") from None
        if "JPEG" not in formats or not content.startswith(b"\xff\xd8"):
            raise
        bare, exif = _split_exif(content)
        image = Image.open(BytesIO(bare), formats=["JPEG"])
        image.info["exif"] = exif
        return image


def content_of(path: Path) -> bytes | None:
    """Return the bytes of a file; None where there is none, or it cannot be read."""
    try:
        return path.read_bytes() if path.is_file() else None
    except OSError:
        return None


def _read(source: Source) -> bytes:
    if isinstance(source, str | Path):
        return Path(source).read_bytes()
    source.seek(0)
    return source.read()


def _split_exif(jpeg: bytes) -> tuple[bytes, bytes]:
    """Return a JPEG without metadata, and its EXIF data, b"" where it has none.

    Its first segments begin with 0xFF, their kind and two bytes of length. APP1 to APP13 hold metadata; APP0 and APP14
    tell how colours are coded.
    """
    kept, exif, start = [jpeg[:2]], b"", 2
    while jpeg[start : start + 1] == b"\xff" and jpeg[start + 1 : start + 2] not in (b"", b"\xda"):  # 0xDA: the pixels
        end = start + 2 + max(2, int.from_bytes(jpeg[start + 2 : start + 4], "big"))
        if not 0xE1 <= jpeg[start + 1] <= 0xED:
            kept.append(jpeg[start:end])
        elif jpeg[start + 4 : start + 10] == b"Exif\0\0":
            exif = jpeg[start + 4 : end]
        start = end
    return b"".join([*kept, jpeg[start:]]), exif
