"""PNG files of many small pictures, written fast."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {"L": 0, "RGB": 2}  # by Pillow's mode
UP = 2  # the filter that leaves the differences from the row above
FASTEST = 1  # zlib's level


def write_png(picture: Image.Image, file: BinaryIO) -> None:
    """Write a picture, L or RGB, as a PNG file.

    Pillow tries five filters for every row, which takes twice as long as all of this; the file is as large.
    """
    pixels = np.asarray(picture).reshape(picture.height, -1)
    rows = np.empty((picture.height, 1 + pixels.shape[1]), np.uint8)
    rows[:, 0] = UP
    rows[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", picture.width, picture.height, 8, COLOUR_TYPES[picture.mode], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, FASTEST)), (b"IEND", b""))
    file.write(SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
