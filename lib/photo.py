"""Opening image files, with limits on formats and sizes, because no file is trusted.

`open_photo` reads the user's own photos as a viewer shows them (`as_seen`): EXIF orientation is applied, and greyscale,
transparent, CMYK and 16-bit images are converted to RGB. Only photos are read with packages that add formats to Pillow.
`open_stored` reads COCO's images as they are stored, because the published numbers were measured on stored pixels.
`read_mask` reads mask images.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, features

from errors import UserError
from lib.texts import IS_POINTER, LFS_POINTER

# An explicit list, because Pillow starts other programs for some formats, such as Ghostscript for a file that begins
# with "%!PS". JPEG includes MPO, as written by stereo and panorama cameras. Pillow reads AVIF since 11.3.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", *(["AVIF"] if find_spec("PIL.AvifImagePlugin") else []))
# Suffixes of photos in a folder; files with other suffixes are ignored.
READ = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif"}
PLUGGED = {".heic", ".heif", ".hif", ".jxl"}  # read if a plugin is installed, see PLUGINS
NOT_READ = {".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}
SUFFIXES = frozenset(READ | PLUGGED | NOT_READ)
MAX_PIXELS = 178_956_970  # Pillow's limit for decompression bombs


class Plugin(NamedTuple):
    """A package that makes Pillow read one more format."""

    package: str  # for pip
    module: str
    format: str  # Pillow's name
    register: str | None  # the function that adds the format; None if importing the module does


PLUGINS = {
    "HEIC": Plugin("pillow-heif", "pillow_heif", "HEIF", "register_heif_opener"),
    "AVIF": Plugin("pillow-avif-plugin", "pillow_avif", "AVIF", None),  # for Pillow before 11.3
    "JPEG XL": Plugin("pillow-jxl-plugin", "pillow_jxl", "JXL", None),
}
UPRIGHT = ("HEIF", "JXL")  # formats whose decoders turn the pixels and leave the EXIF orientation without effect
# ISO base media files name their kinds in "brands" of four bytes.
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
JXL_HEADS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")

Source = str | Path | BinaryIO  # a file, by name or open
Pixels: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"  # of an image, or a mask of 0 and 1
Places: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]"  # of some pixels

ORIENTATION = 0x0112
# The transposition that turns an image upright, by its EXIF orientation.
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
    """An image cannot be read; the message follows the image's name in a sentence."""


class MissingImageError(ImageError):
    """There is no such file."""


class TooLargeError(ImageError):
    """The image has too many pixels; even a tiny file may announce any number of them."""


# ---------------------------------------------------------------- photos


def open_photo(source: Source) -> Image.Image:
    """Return a photo as a viewer shows it, see `as_seen`; of an animation the first frame.

    Raises UserError with its name if it cannot be read.
    """
    name = source if isinstance(source, str | Path) else getattr(source, "name", "the photo")
    try:
        with opened(source, plugins=True) as image:
            return as_seen(image)
    except MissingImageError:
        raise UserError(f"there is no photo {name}") from None
    except ImageError as error:
        raise UserError(f"{name} cannot be read as a photo ({error})") from error


def photo_size(source: Source) -> tuple[int, int]:
    """Return width and height of a photo as `open_photo` returns it, mostly without decoding it.

    Raises ImageError if it cannot be read.
    """
    with opened(source, plugins=True) as image:
        if image.format == "PNG" and _may_have_late_exif(image):
            image.load()
        # Pillow already reports the upright size of a TIFF.
        sideways = image.format != "TIFF" and _turn(image) in SIDEWAYS
        width, height = image.size
    return (height, width) if sideways else (width, height)


def as_seen(image: Image.Image) -> Image.Image:
    """Return an image of any Pillow mode as RGB, upright by its EXIF data, on white if transparent, without metadata.

    16-bit grey is scaled to 8 bits; Pillow does so for 16-bit colour. Raises ValueError for pixels of unknown range:
    floating-point pixels, and grey values beyond 16 bits.
    """
    image.load()  # may read EXIF data, and turns a TIFF upright
    turn = _turn(image)
    seen = _as_rgb(image if turn is None else image.transpose(turn))
    seen.info = {}  # its EXIF orientation no longer applies
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
    return np.where(_is_transparent(image), 255, (values / 257).round()).astype(np.uint8)


def _is_transparent(image: Image.Image) -> Places:
    """Return a mask (H, W) bool of the transparent pixels of a grey image with more than eight bits."""
    return np.asarray(np.asarray(image) == image.info.get("transparency", -1))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that turns an image upright; None if it is upright or its EXIF data are damaged."""
    if image.format in UPRIGHT:
        return None
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF data may raise anything, but the pixels may be intact
        return None


def _may_have_late_exif(image: ImageFile.ImageFile) -> bool:
    """Return whether a PNG may have EXIF data after its pixels, which Pillow reads only when it decodes the image."""
    file = image.fp
    if file is None:  # already decoded, so all EXIF data are known
        return False
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    return any(chunk in content for chunk in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"))


# ---------------------------------------------------------------- images as stored, masks


def open_stored(source: Source) -> Image.Image:
    """Return an image as RGB, as it is stored and completely decoded.

    Raises ImageError if it cannot be read.
    """
    with opened(source) as image:
        return image.convert("RGB")


def resize_mask(mask: Pixels, size: Sequence[int]) -> Pixels:
    """Return a mask (H, W) resized to `size` (height, width) by nearest neighbour."""
    return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def read_mask(source: Source) -> Places:
    """Return a mask (H, W) bool of the pixels that are neither black nor transparent, upright as in `open_photo`.

    Raises ImageError if the image cannot be read.
    """
    with opened(source) as image:
        image.load()
        turn = _turn(image)
        upright = image if turn is None else image.transpose(turn)
        if upright.mode in (*DEEP_GREY, "F"):
            return np.asarray((np.asarray(upright) > 0) & ~_is_transparent(upright))
        pixels = np.asarray(upright.convert("RGBA"))
        return np.asarray(pixels[..., :3].any(axis=-1) & (pixels[..., 3] > 0))


def read_above(source: Source, threshold: int) -> Places:
    """Return a mask (H, W) bool of the pixels whose grey value is above a threshold, as they are stored.

    Colours are converted to grey by Pillow. Raises ImageError if the image cannot be read.
    """
    with opened(source) as image:
        image.load()
        grey = image if image.mode in (*DEEP_GREY, "F") else image.convert("L")
        return np.asarray(np.asarray(grey) > threshold)


# ---------------------------------------------------------------- opening


@contextmanager
def opened(
    source: Source, formats: Sequence[str] = FORMATS, max_pixels: int = MAX_PIXELS, *, plugins: bool = False
) -> Iterator[ImageFile.ImageFile]:
    """Open an image. Any exception in the block becomes an ImageError, unless too many files are open.

    plugins: also read the formats of PLUGINS. Raises MissingImageError if there is no such file, TooLargeError if it
    has more than `max_pixels`, and ImageError if it is damaged or has none of the `formats`.
    """
    try:
        with _open(source, formats, plugins) as image:
            if image.width * image.height > max_pixels:
                raise TooLargeError(f"its {image.width}×{image.height} pixels exceed the limit of {max_pixels:,}")
            yield image
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise MissingImageError("there is no such file") from error
    except Image.DecompressionBombError as error:  # from Pillow's limit
        raise TooLargeError(str(error)) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"it is damaged, or none of {', '.join(formats)}") from error
    except Exception as error:  # for damaged files and odd metadata Pillow may raise anything
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # too many files are open; this one is not the cause
        raise ImageError(" ".join(str(error).split()) or type(error).__name__) from error


def _open(source: Source, formats: Sequence[str], plugins: bool) -> ImageFile.ImageFile:
    if isinstance(source, str | Path) and not stat.S_ISREG(os.stat(source).st_mode):
        raise ImageError("it is no file but a folder, a pipe or a device")  # reading a pipe might wait forever
    try:
        return Image.open(source, formats=list(formats))
    except UnidentifiedImageError:
        # Pillow refuses a JPEG whose EXIF data have an invalid resolution.
        content = _read(source)
        if content.startswith(LFS_POINTER):
            raise ImageError(f"it {IS_POINTER}") from None
        if plugins and (kind := _plugged_kind(content)):
            return _open_plugged(content, kind)
        if "JPEG" not in formats or not content.startswith(b"\xff\xd8"):
            raise
        bare, exif = _split_exif(content)
        image = Image.open(BytesIO(bare), formats=["JPEG"])
        image.info["exif"] = exif
        return image


def _plugged_kind(content: bytes) -> str | None:
    """Return the key in PLUGINS of a file's format, by its first bytes; None for other formats."""
    if content.startswith(JXL_HEADS):
        return "JPEG XL"
    if content[4:8] != b"ftyp":
        return None
    length = min(int.from_bytes(content[:4], "big"), 1024)
    brands = {content[start : start + 4] for start in range(8, length, 4)}
    if brands & AVIF_BRANDS:
        return None if "AVIF" in FORMATS and features.check("avif") else "AVIF"  # Pillow's own reader has failed
    return "HEIC" if brands & HEIF_BRANDS else None


def _open_plugged(content: bytes, kind: str) -> ImageFile.ImageFile:
    """Open a file's content with a plugin. Raises ImageError with the package if it is not installed."""
    plugin = PLUGINS[kind]
    try:
        module = import_module(plugin.module)
    except ImportError:
        raise ImageError(f"it is {kind}: pip install {plugin.package}, or save it as JPEG") from None
    if plugin.register:
        getattr(module, plugin.register)()
    if plugin.format not in Image.OPEN:
        raise ImageError(f"it is {kind}, which {plugin.package} does not add to Pillow: try another version")
    return Image.open(BytesIO(content), formats=[plugin.format])


def content_of(path: Path) -> bytes | None:
    """Return the bytes of a file; None if it does not exist or cannot be read."""
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
    """Return a JPEG without metadata, and its EXIF data, b"" if it has none.

    Its first segments begin with 0xFF, a type and two bytes of length. APP1 to APP13 are metadata; APP0 and APP14
    define the colour coding and are kept.
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
