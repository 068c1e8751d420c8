"""Optimizing a trained network for inference: the same function, with as much as possible computed in advance."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lib.contracts import Output
from lib.network.compilation import compile_for_inference
from lib.network.decoder import Decoder
from lib.network.fusion import Fusion, PointwiseConv
from lib.network.precision import Precision
from lib.network.swin import Mlp, WindowAttention

LINEAR = nn.Linear | PointwiseConv


def optimize_for_inference(network: nn.Module, precision: Precision, *, compiled: bool = False) -> nn.Module:
    """Return a copy of the network for evaluation only; call it like the network, under `precision.autocast()`.

    In the copy, batch norms are folded into the convolutions before them, position biases and masks are added up, and
    weights are stored in the dtype of `precision`, on the CPU in the layout of oneDNN's kernels. Later changes of the
    network's weights have no effect on it. compiled: use torch.compile, which takes minutes at the first batch. Smaller
    batches are then padded to the largest size so far, so that only a larger batch, another image size or a request for
    alignment maps compiles again.

    A float64 network stays float64 in every precision, and does not use oneDNN's kernels, which have no float64.
    """
    dtype = _computing_type(network, precision)
    with torch.inference_mode(False), torch.no_grad():  # tensors made in inference mode cannot be packed
        prepared = copy.deepcopy(network).eval().requires_grad_(False)
        for module in list(prepared.modules()):
            if isinstance(module, WindowAttention):
                module.cache_attention_bias(dtype)
            elif isinstance(module, Decoder):
                _fold_batch_norm(module)
        _store_weights(prepared, dtype)
        if precision.device.type == "cpu" and compiled:
            _replace_linear(prepared, ConvolvedLinear)
        elif can_pack(dtype, precision.device):
            _fold_gelu(prepared)
            _replace_linear(prepared, PackedLinear)
    return FixedBatch(compile_for_inference(prepared, precision.device)) if compiled else prepared


def _computing_type(network: nn.Module, precision: Precision) -> torch.dtype:
    stored = next(network.parameters()).dtype
    return stored if stored == torch.float64 else precision.dtype


def _fold_batch_norm(decoder: Decoder) -> None:
    for name, conv in list(decoder.named_children()):
        norm = getattr(decoder, name.replace("conv", "bn"), None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(decoder, name, fuse_conv_bn_eval(conv, norm))
            setattr(decoder, name.replace("conv", "bn"), nn.Identity())


def _store_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of linear layers and convolutions, except those that `Fusion` uses in float32."""
    exact = {module.w_v[0] for module in network.modules() if isinstance(module, Fusion)}
    for module in network.modules():
        if isinstance(module, LINEAR | nn.Conv2d) and module not in exact:
            module.to(dtype)


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


class FixedBatch(nn.Module):
    """Calls a network with batches of one size, the largest so far; pads smaller batches."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.batch_size = 0

    def forward(self, *batch: Tensor, with_alignment: bool = False) -> Output:
        """Take the arguments of the network; return its output."""
        n_samples = len(batch[0])
        self.batch_size = max(self.batch_size, n_samples)
        missing = self.batch_size - n_samples
        # Always a copy: torch.compile would compile again for tensors that were made in inference mode, or were not.
        padded = [torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) for part in batch]
        output: Output = self.network(*padded, with_alignment=with_alignment)
        # Cloned, because a replayed CUDA graph writes the next batch to the same memory.
        alignment = tuple(stage[:n_samples].clone() for stage in output.alignment)
        no_target = None if output.no_target is None else output.no_target[:n_samples].clone()
        return Output(output.logits[:n_samples].clone(), alignment, no_target)
