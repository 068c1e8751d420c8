"""A mask over its image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from lib.network.resize import predicted_object, upsample
from lib.photo import Pixels, Places

TRUTH_COLOUR = (40, 170, 90)
PREDICTION_COLOUR = (220, 50, 60)
FADED_CONTRAST = 0.35  # of the background in an overlay
FADED = [int(FADED_CONTRAST * grey + (1 - FADED_CONTRAST) * 255) for grey in range(256)]  # by brightness


def predicted_mask(logits: Tensor, size: Sequence[int]) -> Pixels:
    """Return the mask of logits (2, H, W) at `size` (height, width), uint8 with 1 on the object."""
    return predicted_object(upsample(logits[None], size))[0].cpu().numpy().astype(np.uint8)


def overlay(image: Image.Image, mask: Pixels, colour: tuple[int, int, int], *, wider: int = 0) -> Image.Image:
    """Return an RGB image with a faded background and an outlined object, whose colours are kept.

    mask: (H, W), at the image's size, 1 on the object. wider: pixels by which the outline grows on both sides.
    """
    inside = mask.astype(bool)
    faded = image.convert("L").point(FADED).convert("RGB")
    shown = Image.composite(image, faded, Image.fromarray(inside))
    shown.paste(colour, mask=Image.fromarray(grown(edge_of(inside), wider)))
    return shown


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
    rows, columns = places.nonzero()
    height, width = places.shape
    result = places.copy()
    span = range(-radius, radius + 1)
    for down, across in ((down, across) for down in span for across in span if down**2 + across**2 <= radius**2):
        inner = (rows >= -down) & (rows < height - down) & (columns >= -across) & (columns < width - across)
        result[rows[inner] + down, columns[inner] + across] = True
    return result


def outline_growth(size: Sequence[int]) -> int:
    """Return the growth of an outline, in pixels, that makes it visible on a large photo."""
    return max(size) // 800
