"""The network as one graph from tensors to tensors, for other runtimes: the same function, with simpler operators.

A graph has no assignments to a part of a tensor; each becomes many operators. `WindowAttention` writes its windows into
an empty map, to save memory. Here they are concatenated, and position biases and masks are constants. Only the padding
of maps is still written into a larger one.
"""

from __future__ import annotations

import copy
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lib.contracts import Output
from lib.network.attention import attend
from lib.network.swin import WindowAttention

INPUTS = ("image", "token_ids", "attention_mask")


class Graph(nn.Module):
    """A network in evaluation; its outputs are a plain tuple, in the order of `names`."""

    def __init__(self, network: nn.Module, scale: tuple[tuple[float, float], ...] = ()) -> None:
        """network: a `SegModel`; it is copied. scale: its `alignment_scale()`, for alignment maps; (): without."""
        super().__init__()
        self.scale = scale
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        for parent in list(self.network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, WindowAttention):
                    setattr(parent, name, ConcatenatedAttention(child))

    def forward(self, image: Tensor, token_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Take what `SegModel.forward` takes; return what `outputs` makes of its output."""
        output: Output = self.network(image, token_ids, attention_mask, with_alignment=bool(self.scale))
        return tuple(outputs(output, self.scale).values())

    if TYPE_CHECKING:  # PyTorch does not type the result of calling a module
        __call__ = forward


def outputs(output: Output, scale: tuple[tuple[float, float], ...]) -> dict[str, Tensor]:
    """Return the outputs of a graph by name.

    logits (B, 2, H, W); with `scale` alignment_1 to alignment_4, the cosines (B, 1, H_i, W_i); with a no-target head
    no_target (B, 2).
    """
    named = {"logits": output.logits}
    for number, (stage, (temperature, bias)) in enumerate(zip(output.alignment, scale, strict=True), start=1):
        named[f"alignment_{number}"] = (stage - bias) * temperature
    return named if output.no_target is None else named | {"no_target": output.no_target}


class ConcatenatedAttention(WindowAttention):
    """A trained `WindowAttention` that concatenates its windows."""

    def __init__(self, attention: WindowAttention) -> None:
        dim, window_size, shift = attention.proj.in_features, attention.window_size, attention.shift
        super().__init__(dim, attention.num_heads, window_size, shift)
        self.load_state_dict(attention.state_dict())
        with torch.no_grad():
            self.cache_attention_bias(torch.float32)

    def _attended(self, qkv: Tensor) -> Tensor:
        query, key, value = (one.flatten(4, 5) for one in self._windows(qkv, 3))
        bands: list[Tensor] = []  # of windows, from top to bottom
        kinds = zip(self._kinds(), self.biases(), strict=True)
        for rows, band in groupby(kinds, lambda kind: kind[0][0]):
            across = []  # from left to right
            for (_, columns), bias in band:
                q, k, v = (one[:, rows, columns] for one in (query, key, value))
                if q.shape[1] and q.shape[2]:  # a small map has no windows of some kinds
                    across.append(attend(q.flatten(0, 2), k.flatten(0, 2), v.flatten(0, 2), bias).view_as(q))
            if across:
                bands.append(torch.cat(across, 2))
        windows = torch.cat(bands, 1)
        windows = windows.unflatten(4, (self.window_size, self.window_size))
        return windows.permute(0, 1, 4, 2, 5, 3, 6).reshape(*qkv.shape[:3], -1)  # B, rows, columns, C
