"""A mask over its image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from lib.network.resize import predicted_object, upsample
from lib.photo import Pixels

TRUTH_COLOUR = (40, 170, 90)
PREDICTION_COLOUR = (220, 50, 60)
FADED_CONTRAST = 0.35  # of the background in an overlay


def predicted_mask(logits: Tensor, size: Sequence[int]) -> Pixels:
    """Return the mask of logits (2, H, W) at `size` (height, width), uint8 with 1 on the object."""
    return predicted_object(upsample(logits[None], size))[0].cpu().numpy().astype(np.uint8)


def overlay(image: Image.Image, mask: Pixels, colour: tuple[int, int, int], *, wider: int = 0) -> Image.Image:
    """Return an RGB image with a faded background and an outlined object, whose colours are kept.

    mask: (H, W), at the image's size, 1 on the object. wider: pixels by which the outline grows on both sides.
    """
    from skimage.morphology import isotropic_dilation
    from skimage.segmentation import find_boundaries

    pixels = np.array(image)
    inside = mask.astype(bool)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    faded = (FADED_CONTRAST * grey + (1 - FADED_CONTRAST) * 255).astype(np.uint8)
    pixels[~inside] = np.broadcast_to(faded, pixels.shape)[~inside]
    edge = find_boundaries(inside, mode="thick")
    # The dilation of an empty edge would mark a corner.
    pixels[isotropic_dilation(edge, wider) if wider and edge.any() else edge] = colour
    return Image.fromarray(pixels)


def outline(image: Image.Image, mask: Pixels, colour: tuple[int, int, int]) -> Image.Image:
    """Return an RGB image with an outline around a mask (H, W) of its size, white and coloured to be visible anywhere.

    All other pixels are unchanged.
    """
    from skimage.morphology import isotropic_dilation

    pixels = np.array(image)
    for radius, line_colour in ((3, colour), (1, (255, 255, 255))):
        pixels[isotropic_dilation(mask, radius) & (mask == 0)] = line_colour
    return Image.fromarray(pixels)


def outline_growth(size: Sequence[int]) -> int:
    """Return the growth of an outline, in pixels, that makes it visible on a large photo."""
    return max(size) // 800
