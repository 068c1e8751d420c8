"""Masks over their image: outlined, in several colours, cut out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lib.photo import Pixels, Places

TRUTH_COLOUR = (40, 170, 90)
PREDICTION_COLOUR = (220, 50, 60)
# Of several objects in one picture. White numbers can be read on all of them, for eyes that do not tell colours apart.
OBJECT_COLOURS = (
    PREDICTION_COLOUR,
    (0, 105, 180),  # blue
    (180, 95, 0),  # orange brown
    (0, 130, 95),  # green
    (150, 60, 170),  # violet
    (90, 90, 90),  # grey
    (0, 125, 150),  # turquoise
    (200, 60, 130),  # pink
)
TINT = 0.3  # opacity of an object's colour over it, among several
MOST_LOOKED_AT = 1000  # rows and columns of a mask, for its middle
NUMBER_SIZE = 11  # of an object's number, in pixels, on a small image
FADED_CONTRAST = 0.35  # of the background in an overlay
FADED = [int(FADED_CONTRAST * grey + (1 - FADED_CONTRAST) * 255) for grey in range(256)]  # by brightness


def faded(image: Image.Image) -> Image.Image:
    """Return an RGB image in light grey, the background of overlays."""
    return image.convert("L").point(FADED).convert("RGB")


def overlay(
    image: Image.Image,
    mask: Pixels,
    colour: tuple[int, int, int],
    *,
    wider: int = 0,
    background: Image.Image | None = None,
) -> Image.Image:
    """Return an RGB image with a faded background and an outlined object, whose colours are kept.

    mask: (H, W), at the image's size, 1 on the object. wider: pixels by which the outline grows on both sides.
    background: `faded(image)`, if it is there already.
    """
    inside = mask.astype(bool)
    shown = Image.composite(image, background or faded(image), Image.fromarray(inside))
    shown.paste(colour, mask=Image.fromarray(grown(edge_of(inside), wider)))
    return shown


def overlay_several(image: Image.Image, masks: Sequence[Pixels], *, wider: int = 0) -> Image.Image:
    """Return an RGB image with a faded background and several objects, each tinted, outlined and numbered.

    masks: (H, W), at the image's size, 1 on the object. The first has the number 1; all colours are those of
    `colour_of`. Where masks overlap, their tints mix. wider: as in `overlay`.
    """
    anywhere = np.zeros((image.height, image.width), bool)
    tinted = image
    for number, mask in enumerate(masks):
        inside = mask.astype(bool)
        anywhere |= inside
        layer = Image.blend(tinted, Image.new("RGB", image.size, colour_of(number)), TINT)
        tinted = Image.composite(layer, tinted, Image.fromarray(inside))
    shown = Image.composite(tinted, faded(image), Image.fromarray(anywhere))
    for number, mask in enumerate(masks):
        edge = grown(edge_of(mask.astype(bool)), wider)
        shown.paste(colour_of(number), mask=Image.fromarray(edge))
    for number, mask in enumerate(masks):  # last, so that no outline crosses a number
        if mask.any():
            draw_number(shown, number, middle_of(mask.astype(bool)), NUMBER_SIZE + NUMBER_SIZE * max(image.size) // 800)
    return shown


def colour_of(number: int) -> tuple[int, int, int]:
    """Return the colour of an object, by its number from 0; they repeat after the last."""
    return OBJECT_COLOURS[number % len(OBJECT_COLOURS)]


def middle_of(inside: Places) -> tuple[int, int]:
    """Return column and row of the pixel of a mask that is nearest to its mean; the mask is not empty.

    Of a large mask some pixels are looked at: all indices of a photo's would take gigabytes.
    """
    step = max(1, max(inside.shape) // MOST_LOOKED_AT)
    some = inside[::step, ::step]
    if not some.any():
        step, some = 1, inside
    rows, columns = some.nonzero()
    nearest = ((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin()
    return step * int(columns[nearest]), step * int(rows[nearest])


def draw_number(picture: Image.Image, number: int, centre: tuple[int, int], size: int) -> None:
    """Draw the number of an object (shown from 1) on a disc of its colour; centre: column and row, size: pixels."""
    radius = 2 * size // 3
    draw, (column, row) = ImageDraw.Draw(picture), centre
    disc = (column - radius, row - radius, column + radius, row + radius)
    draw.ellipse(disc, fill=colour_of(number), outline="white", width=max(1, size // 8))
    draw.text(centre, str(number + 1), fill="white", font=ImageFont.load_default(size), anchor="mm")


def cut_out(image: Image.Image, mask: Pixels) -> Image.Image:
    """Return an RGBA image of the object alone: opaque in the mask (H, W) of its size, transparent black elsewhere."""
    inside = mask.astype(bool)
    pixels = np.dstack([np.asarray(image.convert("RGB")), np.full(inside.shape, 255, np.uint8)])
    pixels[~inside] = 0  # a colour under transparent pixels would still be in the file
    return Image.fromarray(pixels)


def outline(image: Image.Image, mask: Pixels, colour: tuple[int, int, int]) -> Image.Image:
    """Return an RGB image with an outline around a mask (H, W) of its size, white and coloured to be visible anywhere.

    All other pixels are unchanged.
    """
    inside = mask.astype(bool)
    pixels = np.array(image)
    for radius, line_colour in ((3, colour), (1, (255, 255, 255))):
        pixels[grown(inside, radius) & ~inside] = line_colour
    return Image.fromarray(pixels)


def edge_of(inside: Places) -> Places:
    """Return the pixels on both sides of the edge of a mask: those with a neighbour, not a diagonal one, across it.

    Like `skimage.segmentation.find_boundaries(inside, mode="thick")`, whose import takes half a second.
    """
    edge = np.zeros_like(inside)
    below, right = inside[1:] != inside[:-1], inside[:, 1:] != inside[:, :-1]
    edge[1:] |= below
    edge[:-1] |= below
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def grown(places: Places, radius: int) -> Places:
    """Return a mask with all pixels within `radius` of its own, such as those of an edge; fast if these are few.

    Like `skimage.morphology.isotropic_dilation(places, radius)`, which measures the distances of the whole image.
    """
    result = places.copy()
    if radius == 0:
        return result
    rows, columns = places.nonzero()
    height, width = places.shape
    span = range(-radius, radius + 1)
    for down, across in ((down, across) for down in span for across in span if down**2 + across**2 <= radius**2):
        inner = (rows >= -down) & (rows < height - down) & (columns >= -across) & (columns < width - across)
        result[rows[inner] + down, columns[inner] + across] = True
    return result


def outline_growth(size: Sequence[int]) -> int:
    """Return the growth of an outline, in pixels, that makes it visible on a large photo."""
    return max(size) // 800
