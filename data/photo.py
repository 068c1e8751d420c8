"""Photos of any kind as the network reads them: upright, RGB, eight bits."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from refer.images import IMAGE_ERRORS
from utils import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
DEEP_GREY = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of more than eight bits
WHITE = (255, 255, 255, 255)


def open_photo(source: str | Path | BinaryIO) -> Image.Image:
    """Return a photo as it is meant to be seen: turned upright as its EXIF data say, RGB, of transparent ones over
    white, of moving ones the first picture. Sixteen bits of grey become eight, of colour too.

    source: a file's name or an open file. Raises UserError, naming it, where it is no image, damaged, of more pixels
    than Pillow's limit, or of floating-point pixels, whose black and white nobody knows.
    """
    name = source if isinstance(source, str | Path) else getattr(source, "name", "the photo")
    try:
        with Image.open(source) as image:
            return as_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise UserError(f"there is no photo {name}") from None
    except IMAGE_ERRORS as error:
        raise UserError(f"{name} cannot be read as a photo ({error})") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any of Pillow's modes as RGB; ValueError for one of floating-point pixels."""
    if image.mode in DEEP_GREY:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"its values reach from {values.min()} to {values.max()}, beyond 16 bits")
        return Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels: save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, WHITE), seen).convert("RGB")
    return image.convert("RGB")
