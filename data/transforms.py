"""The transform of training and evaluation: image and mask are resized together, without flips or crops."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from lib.inputs import normalized_planes, resize_image
from lib.photo import Pixels, resize_mask


class PairTransform:
    """Resize an image and its mask to a square and turn both into tensors.

    size: side of the square in pixels; the aspect ratio is not kept. resize_mask: False keeps the mask at the size of
    the image, for scores at that size. Raises ValueError if `size` is below 1.

    The two steps can be used alone: `resize` returns uint8 arrays, and `to_tensors` the network's inputs.
    """

    def __init__(self, size: int, *, resize_mask: bool = True) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, not {size}")
        self.size = size
        self.resizes_mask = resize_mask

    def __call__(self, image: Image.Image, mask: Pixels) -> tuple[Tensor, Tensor]:
        """Return the image (3, S, S) float32, ImageNet-normalised, and the mask int64 of 0 and 1.

        image: RGB. mask: (H, W) uint8 of 0 and 1, at the image's size. The returned mask is (S, S), or (H, W) without
        `resize_mask`. Raises ValueError if image and mask differ in size.
        """
        return self.to_tensors(*self.resize(image, mask))

    def resize(self, image: Image.Image, mask: Pixels) -> tuple[Pixels, Pixels]:
        """Take what `__call__` takes; return the image (S, S, 3) and the mask, (S, S) or (H, W), both uint8."""
        if mask.shape != (image.height, image.width):
            raise ValueError(f"mask {mask.shape} and image {(image.height, image.width)} differ in size (H, W)")
        return self.resize_image(image), self.resize_mask(mask)

    def resize_image(self, image: Image.Image) -> Pixels:
        """Take an RGB image of any size; return its pixels (S, S, 3) uint8."""
        return resize_image(image, self.size)

    def resize_mask(self, mask: Pixels) -> Pixels:
        """Take a mask (H, W) uint8; return it as (S, S) with the same values, or unchanged without `resize_mask`."""
        if not self.resizes_mask:
            return mask
        return resize_mask(mask, (self.size, self.size))

    @staticmethod
    def to_tensors(image: Pixels, mask: Pixels) -> tuple[Tensor, Tensor]:
        """Take what `resize` returns; return what `__call__` returns."""
        return normalize(image), torch.from_numpy(mask).long()


def normalize(pixels: Pixels) -> Tensor:
    """Turn pixels (S, S, 3) uint8 into an image (3, S, S) float32, ImageNet-normalised."""
    return torch.from_numpy(normalized_planes(pixels))
