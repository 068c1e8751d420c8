"""A trained network made ready for evaluation alone: the same function, with everything done beforehand that can be."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lib.contracts import Output
from lib.network.compilation import compile_prepared
from lib.network.decoder import Decoder
from lib.network.fusion import Fusion, PointwiseConv
from lib.network.precision import Precision
from lib.network.swin import Mlp, WindowAttention

LINEAR = nn.Linear | PointwiseConv


def optimize_for_inference(network: nn.Module, precision: Precision, *, compiled: bool = False) -> nn.Module:
    """Return a copy of the network for evaluation alone, to be called as the network is, under `precision.autocast()`.

    Batch norm is folded into the convolutions before it, position biases and masks are added up, and weights are
    stored in the type that `precision` computes in, on the CPU for the kernels of oneDNN. What happens to the network's
    weights later does not reach the copy. compiled: with torch.compile, which takes minutes at the first batch; batches
    of fewer samples are filled up to the size of the largest one so far, so that only a larger batch, another image
    size and asking for alignment maps compile again.

    A network of float64 stays float64 whatever `precision` says, as autocast leaves it, and without oneDNN's kernels,
    which have no float64.
    """
    dtype = _computing_type(network, precision)
    with torch.inference_mode(False), torch.no_grad():  # what is made in inference mode cannot be packed
        prepared = copy.deepcopy(network).eval().requires_grad_(False)
        for module in list(prepared.modules()):
            if isinstance(module, WindowAttention):
                module.keep_biases(dtype)
            elif isinstance(module, Decoder):
                _fold_batch_norm(module)
        _store_weights(prepared, dtype)
        if precision.device.type == "cpu" and compiled:
            _replace_linear(prepared, ConvolvedLinear)
        elif can_pack(dtype, precision.device):
            _fold_gelu(prepared)
            _replace_linear(prepared, PackedLinear)
    return FixedBatch(compile_prepared(prepared, precision.device)) if compiled else prepared


def _computing_type(network: nn.Module, precision: Precision) -> torch.dtype:
    own = next(network.parameters()).dtype
    return own if own == torch.float64 else precision.dtype


def _fold_batch_norm(decoder: Decoder) -> None:
    for name, conv in list(decoder.named_children()):
        norm = getattr(decoder, name.replace("conv", "bn"), None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(decoder, name, fuse_conv_bn_eval(conv, norm))
            setattr(decoder, name.replace("conv", "bn"), nn.Identity())


def _store_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Give linear layers and convolutions weights of a type, except where fusion computes in float32."""
    exact = {module.w_v[0] for module in network.modules() if isinstance(module, Fusion)}
    for module in network.modules():
        if isinstance(module, LINEAR | nn.Conv2d) and module not in exact:
            module.to(dtype)


def _fold_gelu(network: nn.Module) -> None:
    """Let linear layers apply the GELU that stands behind them."""
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
    """Tell whether oneDNN has kernels with packed weights of this type on this machine."""
    if device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """A linear layer, with GELU if asked for, whose weights lie in the order that oneDNN's kernels read.

    It calls the operators that torch.compile uses on the CPU. `F.linear` hands float32 to MKL, which is slower, and
    arranges bfloat16 weights anew in every call.
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

    There convolutions go to oneDNN, with packed weights and what follows them fused in, but float32 linear layers go
    to MKL, and packed weights it cannot look into. Channels-last rows are an image of one column: nothing is copied.
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
    """Call a network with batches of one size, that of the largest one so far; smaller ones are filled up."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.batch_size = 0

    def forward(self, *batch: Tensor, with_alignment: bool = False) -> Output:
        """Take what the network takes; return what it returns."""
        n_samples = len(batch[0])
        self.batch_size = max(self.batch_size, n_samples)
        missing = self.batch_size - n_samples
        # Always a copy, so that every call brings tensors of one kind: torch.compile tells those that were made in
        # inference mode from others.
        filled = [torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) for part in batch]
        output: Output = self.network(*filled, with_alignment=with_alignment)
        # Copied, because a replayed CUDA graph writes the next batch to the same place.
        alignment = tuple(stage[:n_samples].clone() for stage in output.alignment)
        no_target = None if output.no_target is None else output.no_target[:n_samples].clone()
        return Output(output.logits[:n_samples].clone(), alignment, no_target)
