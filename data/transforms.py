"""The one transform of training and evaluation: image and mask are resized together, nothing is flipped or cut."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PairTransform:
    """Resize an image and its mask to a square and turn both into tensors.

    size: side of the square in pixels; the aspect ratio is not kept. resize_mask: False leaves the mask at the
    image's own size, for scores at that size.
    """

    def __init__(self, size: int, *, resize_mask: bool = True) -> None:
        if size < 1:
            raise ValueError(f"size is a number of pixels, at least 1, not {size}")
        self.size = size
        self.resize_mask = resize_mask

    def __call__(self, image: Image.Image, mask: np.ndarray) -> tuple[Tensor, Tensor]:
        """Take an RGB image and its (H, W) uint8 mask of 0 and 1, at one size.

        Returns the image (3, S, S) float32, ImageNet-normalised, and the mask int64 of 0 and 1: (S, S), or (H, W)
        without `resize_mask`. Raises ValueError where the two differ in size.
        """
        if mask.shape != (image.height, image.width):
            raise ValueError(f"mask {mask.shape} and image {(image.height, image.width)} differ in size (H, W)")
        return self.transform_image(image), self.transform_mask(mask)

    def transform_image(self, image: Image.Image) -> Tensor:
        """Take an RGB image of any size; return it (3, S, S) float32, ImageNet-normalised."""
        # Resized as a PIL image: Pillow's bilinear filter is antialiased, and the released weights saw its pixels.
        resized = F.resize(image, [self.size, self.size], InterpolationMode.BILINEAR)
        return F.normalize(F.to_tensor(resized), IMAGENET_MEAN, IMAGENET_STD)

    def transform_mask(self, mask: np.ndarray) -> Tensor:
        """Take a mask (H, W) uint8; return it int64 with the same values, (S, S) or (H, W) as `resize_mask` says."""
        if self.resize_mask:
            resized = F.resize(Image.fromarray(mask), [self.size, self.size], InterpolationMode.NEAREST)
            mask = np.array(resized)
        return torch.from_numpy(mask).long()
