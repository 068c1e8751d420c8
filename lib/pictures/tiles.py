"""Tiles for composing pictures: images, texts and heat maps, side by side and one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lib.texts import showable

CAPTION_SIZE, CAPTION_HEIGHT = 14, 22  # of a caption: size of the font and height of the tile in pixels
TEXT_SIZE, LINE_HEIGHT = 16, 20  # of a paragraph, in pixels
GAP = 4  # pixels
BAR_WIDTH = 16  # of a colour bar, in pixels
COLOUR_MAP = "viridis"
MAP_OPACITY = 0.75  # of a heat map over its image

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@cache
def font_of(size: int) -> Font:
    """Return Pillow's font in a size in pixels; reading it again for every text would take as long as drawing it."""
    return ImageFont.load_default(size)


def beside(tiles: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Return tiles side by side on white, aligned at the top."""
    row = Image.new("RGB", (sum(tile.width + gap for tile in tiles) - gap, max(tile.height for tile in tiles)), "white")
    left = 0
    for tile in tiles:
        row.paste(tile, (left, 0))
        left += tile.width + gap
    return row


def below(tiles: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Return tiles one below the other on white, aligned on the left."""
    column = Image.new(
        "RGB", (max(tile.width for tile in tiles), sum(tile.height + gap for tile in tiles) - gap), "white"
    )
    top = 0
    for tile in tiles:
        column.paste(tile, (0, top))
        top += tile.height + gap
    return column


def caption(text: str, width: int) -> Image.Image:
    """Return a tile with a text on one line, truncated to `width` pixels."""
    tile = Image.new("RGB", (width, CAPTION_HEIGHT), "white")
    font = font_of(CAPTION_SIZE)
    ImageDraw.Draw(tile).text((2, 3), truncate(text, font, width - 4), fill="black", font=font)
    return tile


def truncate(text: str, font: Font, width: int) -> str:
    """Return a text, truncated so that it fits on one line of `width` pixels; "" if nothing fits."""
    text = showable(" ".join(text.split()))
    max_length = 2 * max(width, 1)  # far more characters than fit; measuring longer texts would take minutes
    if len(text) <= max_length and font.getlength(text) <= width:
        return text
    cuts = (f"{text[:end].rstrip()} …" for end in range(min(len(text), max_length), -1, -1))
    return next((cut for cut in cuts if font.getlength(cut) <= width), "")


def paragraph(text: str, width: int) -> Image.Image:
    """Return a tile of `width` pixels with a text, wrapped to one or more lines."""
    font = font_of(TEXT_SIZE)
    lines = wrapped(text, font, width)
    tile = Image.new("RGB", (width, max(1, len(lines)) * LINE_HEIGHT), "white")
    draw = ImageDraw.Draw(tile)
    for number, line in enumerate(lines):
        draw.text((0, number * LINE_HEIGHT), line, fill="black", font=font)
    return tile


def wrapped(text: str, font: Font, width: int) -> list[str]:
    """Return a text in lines of at most `width` pixels, broken between words; a longer word has its own line."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def heat_map(image: Image.Image, values: np.ndarray, low: float, high: float) -> Image.Image:
    """Return an RGB image in grey with a heat map over it: dark at `low`, yellow at `high`.

    values: (H, W) float, of any size.
    """
    fractions = Image.fromarray(((values - low) / max(high - low, 1e-6)).astype(np.float32))
    colours = colours_of(np.asarray(fractions.resize(image.size, Image.Resampling.BILINEAR)))
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    return Image.fromarray(((1 - MAP_OPACITY) * grey + MAP_OPACITY * colours).astype(np.uint8))


def colour_bar(height: int, low: float, high: float) -> Image.Image:
    """Return the colours of heat maps over grey as a tile of this height: `high` at the top, `low` at the bottom."""
    grey = Image.new("RGB", (BAR_WIDTH, height), "grey")
    tile = Image.new("RGB", (3 * BAR_WIDTH, height), "white")
    tile.paste(heat_map(grey, np.linspace(high, low, height)[:, None], low, high))
    font, left = font_of(CAPTION_SIZE), BAR_WIDTH + GAP
    for value, top, anchor in ((high, 0, "lt"), (low, height, "lb")):
        ImageDraw.Draw(tile).text((left, top), f"{value:g}", fill="black", font=font, anchor=anchor)
    return tile


def colours_of(fractions: np.ndarray) -> np.ndarray:
    """Return the colours (H, W, 3), 0 to 255, for fractions (H, W) of the range of a heat map."""
    from matplotlib import colormaps

    colours: np.ndarray = colormaps[COLOUR_MAP](fractions.clip(0, 1))[..., :3]
    return 255 * colours
