"""Linear layers of a network for evaluation on the CPU, with the kernels of oneDNN.

The layers they replace are their reference: outputs agree up to rounding. docs/performance.md says what they gain.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.network.fusion import Fusion, PointwiseConv
from lib.network.swin import Mlp

LINEAR = nn.Linear | PointwiseConv


def use_onednn(network: nn.Module, dtype: torch.dtype, device: torch.device, *, compiled: bool) -> None:
    """Replace the linear layers of a network, in place, if oneDNN has kernels for them. compiled: for torch.compile."""
    if device.type == "cpu" and compiled:
        _replace_linear(network, ConvolvedLinear)
    elif can_pack(dtype, device):
        _fold_gelu(network)
        _replace_linear(network, PackedLinear)


def _fold_gelu(network: nn.Module) -> None:
    """Let linear layers apply the GELU that follows them."""
    for module in network.modules():
        if isinstance(module, Mlp):
            module.add_module("fc1", PackedLinear(module.fc1, gelu=True))
            module.add_module("act", nn.Identity())
        elif isinstance(module, Fusion) and isinstance(layer := module.project_mm[0], PointwiseConv):
            module.add_module("project_mm", PackedLinear(layer, gelu=True))


def _replace_linear(network: nn.Module, kind: type[nn.Module]) -> None:
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LINEAR):
                setattr(parent, name, kind(layer))


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether oneDNN has kernels with packed weights of this dtype on this machine."""
    if device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """A linear layer, optionally with GELU, whose weights are stored in the layout of oneDNN's kernels.

    It calls the operators that torch.compile uses on the CPU. `F.linear` uses MKL for float32, which is slower, and
    rearranges bfloat16 weights in every call.
    """

    def __init__(self, layer: LINEAR | nn.Conv2d, *, gelu: bool = False) -> None:
        super().__init__()
        self.dtype = layer.weight.dtype
        self.activation = "gelu" if gelu else "none"
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.flatten(1))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        x = x.to(self.dtype)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], "none")


class ConvolvedLinear(nn.Module):
    """A linear layer as a 1×1 convolution, for torch.compile on the CPU.

    torch.compile runs convolutions with oneDNN, packs their weights and fuses the operations after them. For float32
    linear layers it uses MKL instead, and it cannot compile `PackedLinear`. The channels-last rows are viewed as an
    image of one column, without a copy.
    """

    def __init__(self, layer: LINEAR) -> None:
        super().__init__()
        weight = layer.weight.flatten(1)[:, :, None, None].contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # 1, C, rows, 1
        rows = F.conv2d(rows.to(self.weight.dtype), self.weight, self.bias)
        return rows.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)
