"""Pictures side by side with captions, and sheets of them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageOps

from lib.photo import Pixels
from lib.pictures.overlay import PREDICTION_COLOUR, TRUTH_COLOUR, draw_number, faded, overlay
from lib.pictures.tiles import GAP, LINE_HEIGHT, below, beside, caption, colour_bar, heat_map, paragraph
from lib.texts import showable

if TYPE_CHECKING:  # it imports PyTorch, which prediction without it does not have
    from lib.contracts import Similarity

PANEL_SIZE = 170  # side of a panel in pixels
LEGEND_WIDTH, LEGEND_SIZE = 32, 12  # of the column of numbers in a legend, and of a number, in pixels
STRIP_WIDTH, STRIP_HEIGHT = 400, 200  # maximum size of a panel with an alignment map, in pixels


def evenly_spaced(n: int, count: int) -> list[int]:
    """Return `count` evenly spaced numbers of range(n), or all of them if there are fewer."""
    count = min(count, n)
    return [number * n // count for number in range(count)]


def alignment_strip(image: Image.Image, text: str, maps: Sequence[Similarity]) -> Image.Image:
    """Return the alignment maps of all stages side by side, and the colours of their scale.

    maps: of each stage, (H_i, W_i) float, -1 to 1. All have one scale, from dark at -1 to yellow at 1, so a map without
    differences looks like it; its own range is in its caption.
    """
    scale = min(STRIP_HEIGHT / image.height, STRIP_WIDTH / image.width)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.BILINEAR)
    panels = [captioned(small, text)]
    for number, values in enumerate(maps, start=1):
        span = f"stage {number}: {values.min():.3f} to {values.max():.3f}"
        panels.append(captioned(heat_map(small, values, -1, 1), span))
    return beside([*panels, captioned(colour_bar(small.height, low=-1, high=1), "cosine")], GAP)


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """Return a picture with a caption above it."""
    return below([caption(text, picture.width), picture])


def with_legend(picture: Image.Image, texts: Sequence[str]) -> Image.Image:
    """Return a picture of `overlay_several` above the sentences of its objects, with their numbers and colours."""
    rows = []
    for number, text in enumerate(texts):
        words = paragraph(showable(text), max(picture.width - LEGEND_WIDTH, 1))
        sign = Image.new("RGB", (LEGEND_WIDTH, words.height), "white")
        draw_number(sign, number, (LEGEND_WIDTH // 2 - GAP, LINE_HEIGHT // 2), LEGEND_SIZE)
        rows.append(beside([sign, words]))
    return below([picture, *rows], GAP)


def side_by_side(image: Image.Image, text: str, truth: Pixels, prediction: Pixels) -> Image.Image:
    """Return image, truth (green) and prediction (red) next to each other under the expression."""
    return with_prediction(share_of(views_of(image), truth), text, prediction)


class Views(NamedTuple):
    """What the pictures of all sentences about an image share."""

    image: Image.Image
    background: Image.Image  # the faded image
    panel: Image.Image  # of the image


class Shared(NamedTuple):
    """What the pictures of all sentences about an object share."""

    views: Views
    row: Image.Image  # panels of the image and of the object outlined in green, and a white one


def views_of(image: Image.Image) -> Views:
    """Return what all sentences about an RGB image share."""
    return Views(image, faded(image), fitted(image))


def share_of(views: Views, truth: Pixels) -> Shared:
    """Return what all sentences about an object share; truth: (H, W), at the image's size, 1 on the object."""
    outlined = overlay(views.image, truth, TRUTH_COLOUR, background=views.background)
    white = Image.new("RGB", (PANEL_SIZE, PANEL_SIZE), "white")
    return Shared(views, beside([views.panel, fitted(outlined), white], GAP))


def with_prediction(shared: Shared, text: str, prediction: Pixels) -> Image.Image:
    """Return image, truth and the prediction (red) next to each other under the expression."""
    return captioned(in_a_row(shared, prediction), text)


def in_a_row(shared: Shared, prediction: Pixels) -> Image.Image:
    """Return image, truth and the prediction (red) next to each other."""
    views = shared.views
    predicted = overlay(views.image, prediction, PREDICTION_COLOUR, background=views.background)
    row = shared.row.copy()
    row.paste(fitted(predicted), (row.width - PANEL_SIZE, 0))
    return row


class Parts(NamedTuple):
    """The parts of a picture that `with_prediction` made."""

    caption: Image.Image
    panels: list[Image.Image]  # image, truth, prediction


def parts_of(picture: Image.Image) -> Parts:
    """Take a picture that `with_prediction` made apart; ValueError if it is another one."""
    if picture.width != 3 * PANEL_SIZE + 2 * GAP or picture.height < PANEL_SIZE:
        raise ValueError(f"a picture of {picture.width}×{picture.height} pixels has no image, truth and prediction")
    top = picture.height - PANEL_SIZE
    lefts = [number * (PANEL_SIZE + GAP) for number in range(3)]
    panels = [picture.crop((left, top, left + PANEL_SIZE, picture.height)) for left in lefts]
    return Parts(picture.crop((0, 0, picture.width, top)), panels)


def fitted(picture: Image.Image) -> Image.Image:
    """Return a picture as a square panel, with white beside it or above and below."""
    narrowest = max(1, max(picture.size) // PANEL_SIZE)
    if min(picture.size) < narrowest:  # Pillow would round a side of the panel to no pixel
        picture = picture.resize((max(picture.width, narrowest), max(picture.height, narrowest)))
    return ImageOps.pad(picture, (PANEL_SIZE, PANEL_SIZE), Image.Resampling.BILINEAR, color="white")


def compared(image: Image.Image, text: str, truth: Pixels, predictions: Mapping[str, Pixels]) -> Image.Image:
    """Return image, truth (green) and the predictions of several models (red) under the expression and their names."""
    panels = [("image", image), ("truth", overlay(image, truth, TRUTH_COLOUR))]
    panels += [(name, overlay(image, mask, PREDICTION_COLOUR)) for name, mask in predictions.items()]
    return captioned(named([(name, fitted(panel)) for name, panel in panels]), text)


def named(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Return panels side by side, each under its name."""
    return beside([captioned(panel, name) for name, panel in panels], GAP)


def sheet(pictures: Sequence[Image.Image], columns: int = 3) -> Image.Image:
    """Arrange pictures in rows on one white sheet."""
    width = max(picture.width for picture in pictures)
    cells = [
        ImageOps.expand(picture, (0, 0, width - picture.width + 3 * GAP, 3 * GAP), "white") for picture in pictures
    ]
    return below([beside(cells[start : start + columns]) for start in range(0, len(cells), columns)])


def small_png(image: Image.Image) -> bytes:
    """Return an RGB image as a PNG of at most 256 colours."""
    content = io.BytesIO()
    # Pillow's only method that keeps strong colours: with others purple hearts become pink.
    quantized = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    quantized.save(content, format="PNG", optimize=True)
    return content.getvalue()
