"""Pictures side by side under their captions, and sheets of them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from lib.contracts import Similarity
from lib.photo import Pixels
from lib.pictures.overlay import PREDICTION_COLOUR, TRUTH_COLOUR, overlay
from lib.texts import showable

PANEL_SIZE = 170  # pixels on a side; images are fitted in
STRIP_WIDTH, STRIP_HEIGHT = 400, 200  # pixels, at most, of a panel with an alignment map
CAPTION_HEIGHT = 22
GAP = 4


def evenly_spaced(n: int, count: int) -> list[int]:
    """Return `count` numbers spread over range(n), or all of them where there are fewer."""
    count = min(count, n)
    return [number * n // count for number in range(count)]


def alignment_strip(image: Image.Image, text: str, maps: Sequence[Similarity]) -> Image.Image:
    """Return what each stage finds similar to the sentence, side by side: dark where little, yellow where much.

    maps: of each stage, (H_i, W_i) float. Each has its own range of colours, which its caption names.
    """
    from matplotlib import colormaps

    scale = min(STRIP_HEIGHT / image.height, STRIP_WIDTH / image.width)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BILINEAR), dtype=np.float32)[..., None]
    panels = [image.resize(size, Image.Resampling.BILINEAR)]
    captions = [text]
    for number, values in enumerate(maps, start=1):
        low, high = float(values.min()), float(values.max())
        shares = Image.fromarray((values.astype(np.float32) - low) / max(high - low, 1e-6)).resize(size)
        colours = colormaps["viridis"](np.asarray(shares).clip(0, 1))[..., :3] * 255
        panels.append(Image.fromarray((0.3 * grey + 0.7 * colours).astype(np.uint8)))
        captions.append(f"stage {number}: {low:.3f} to {high:.3f}")
    return captioned(panels, captions)


def captioned(panels: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Return pictures of one size side by side, each under its caption."""
    width, height = panels[0].size
    strip = Image.new("RGB", (len(panels) * (width + GAP) - GAP, CAPTION_HEIGHT + height), "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(size=14)
    for column, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        left = column * (width + GAP)
        strip.paste(panel, (left, CAPTION_HEIGHT))
        draw.text((left + 2, 3), fitting(caption, font, width - 4), fill="black", font=font)
    return strip


def side_by_side(image: Image.Image, text: str, truth: Pixels, prediction: Pixels) -> Image.Image:
    """Return image, truth (green) and prediction (red) next to each other under the expression."""
    panels = (image, overlay(image, truth, TRUTH_COLOUR), overlay(image, prediction, PREDICTION_COLOUR))
    strip = Image.new("RGB", (3 * PANEL_SIZE + 2 * GAP, CAPTION_HEIGHT + PANEL_SIZE), "white")
    for column, panel in enumerate(panels):
        fitted = ImageOps.pad(panel, (PANEL_SIZE, PANEL_SIZE), Image.Resampling.BILINEAR, color="white")
        strip.paste(fitted, (column * (PANEL_SIZE + GAP), CAPTION_HEIGHT))
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(strip).text((2, 3), fitting(text, font, strip.width - 4), fill="black", font=font)
    return strip


def fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return as much of a text's beginning as fits on one line of so many pixels; nothing on a very short line."""
    text = showable(" ".join(text.split()))
    if font.getlength(text) <= width:
        return text
    cuts = (f"{text[:end].rstrip()} …" for end in range(len(text), -1, -1))
    return next((cut for cut in cuts if font.getlength(cut) <= width), "")


def sheet(pictures: Sequence[Image.Image], columns: int = 3) -> Image.Image:
    """Arrange pictures in rows on one white sheet."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    column_width = max(picture.width for picture in pictures) + 3 * GAP
    heights = [max(picture.height for picture in row) + 3 * GAP for row in rows]
    page = Image.new("RGB", (column_width * min(columns, len(pictures)), sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            page.paste(picture, (column * column_width, sum(heights[:number])))
    return page


def small_png(image: Image.Image) -> bytes:
    """Return an RGB image as a PNG of at most 256 colours."""
    content = io.BytesIO()
    # Of Pillow's ways the one that keeps strong colours, refined: others make purple hearts pink.
    few = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    few.save(content, format="PNG", optimize=True)
    return content.getvalue()
