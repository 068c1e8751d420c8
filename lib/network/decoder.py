"""The FPN-like mask decoder (arXiv 2408.07539; `classifier` in released weights)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.network.resize import upsample


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that uses the running statistics if there is only one value per channel.

    PyTorch's BatchNorm2d raises an error then. It happens for one image of at most 16×16 pixels, whose deepest map is a
    single pixel.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == self.num_features:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class Decoder(nn.Module):
    """From the deepest skip to the finest, at each level: upsample, concatenate, two 3×3 convolutions."""

    def __init__(self, skip_dims: Sequence[int], hidden_dim: int, num_classes: int = 2) -> None:
        """skip_dims: channels of skip 0 (finest) to skip 3 (deepest). hidden_dim: channels of the convolutions."""
        super().__init__()
        previous_dim = skip_dims[3]
        for level in (4, 3, 2):  # numbers of the levels in released weights; level `n` reads skip `n - 2`
            self.add_module(f"conv1_{level}", _conv(previous_dim + skip_dims[level - 2], hidden_dim))
            self.add_module(f"bn1_{level}", BatchNorm(hidden_dim))
            self.add_module(f"conv2_{level}", _conv(hidden_dim, hidden_dim))
            self.add_module(f"bn2_{level}", BatchNorm(hidden_dim))
            previous_dim = hidden_dim
        self.conv1_1 = nn.Conv2d(hidden_dim, num_classes, kernel_size=1)
        # The skips are channels-last: with weights in the same memory format, no convolution has to rearrange them.
        self.to(memory_format=torch.channels_last)

    def forward(self, skips: Sequence[Tensor]) -> Tensor:
        """Return logits (B, 2, H_0, W_0); skips: 0–3, each (B, C_i, H_i, W_i)."""
        x = skips[3]
        for level in (4, 3, 2):
            skip = skips[level - 2]
            x = torch.cat([upsample(x, skip.shape[-2:]), skip], dim=1)
            x = self._conv_norm_relu(x, f"1_{level}")
            x = self._conv_norm_relu(x, f"2_{level}")
        return self.conv1_1(x)

    if TYPE_CHECKING:  # PyTorch does not type the result of calling a module
        __call__ = forward

    def _conv_norm_relu(self, x: Tensor, name: str) -> Tensor:
        x = self.get_submodule(f"conv{name}")(x)
        return F.relu(self.get_submodule(f"bn{name}")(x), inplace=True)


class SentenceDecoder(Decoder):
    """The decoder of the variant without fusion: it adds the sentence to the deepest skip."""

    def __init__(self, skip_dims: Sequence[int], hidden_dim: int, sentence_dim: int) -> None:
        super().__init__(skip_dims, hidden_dim)
        self.sentence = nn.Linear(sentence_dim, skip_dims[3])

    def join(self, skips: Sequence[Tensor], sentence: Tensor) -> list[Tensor]:
        """Return the skips for `forward`, with the sentence added; sentence: its first token (B, D)."""
        return [*skips[:3], skips[3] + self.sentence(sentence)[:, :, None, None]]


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
