"""A trained network made ready for evaluation alone: the same function, with everything done beforehand that can be."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lib.compilation import compile_prepared
from lib.decoder import Decoder
from lib.fusion import Fusion, PointwiseConv
from lib.output import Output
from lib.precision import Precision
from lib.swin import WindowAttention


def prepare(network: nn.Module, precision: Precision, *, compiled: bool = False) -> nn.Module:
    """Return a copy of the network for evaluation alone, to be called as the network is, under `precision.autocast()`.

    Batch norm is folded into the convolutions before it, position biases and masks are added up, weights are stored in
    the type that `precision` computes in and, on the CPU, in oneDNN's order. What happens to the network's weights
    later does not reach the copy. compiled: with torch.compile, which takes a minute or two at the first batch of each
    size; a batch smaller than the first one is filled up to its size, so that only image sizes count.
    """
    prepared = copy.deepcopy(network).eval().requires_grad_(False)
    with torch.inference_mode(False), torch.no_grad():
        for module in list(prepared.modules()):
            if isinstance(module, WindowAttention):
                module.keep_biases(precision.dtype)
            elif isinstance(module, Decoder):
                _fold_batch_norm(module)
        # torch.compile packs weights itself, and cannot look into ours.
        _store_weights(prepared, precision.dtype, pack=not compiled and _can_pack(precision))
    return FixedBatch(compile_prepared(prepared, precision.device)) if compiled else prepared


def _fold_batch_norm(decoder: Decoder) -> None:
    for name, conv in list(decoder.named_children()):
        if name.startswith("conv") and (norm := getattr(decoder, name.replace("conv", "bn"), None)):
            setattr(decoder, name, fuse_conv_bn_eval(conv, norm))
            setattr(decoder, name.replace("conv", "bn"), nn.Identity())


def _store_weights(network: nn.Module, dtype: torch.dtype, *, pack: bool) -> None:
    """Give linear layers and convolutions weights of a type, except where fusion computes in float32."""
    exact = {module.w_v[0] for module in network.modules() if isinstance(module, Fusion)}
    with_gelu = dict(_layers_before_gelu(network)) if pack else {}
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            own_dtype = torch.float32 if layer in exact else dtype
            if pack and isinstance(layer, nn.Linear | PointwiseConv):
                setattr(parent, name, PackedLinear(layer, own_dtype, gelu=layer in with_gelu))
            elif isinstance(layer, nn.Linear | nn.Conv2d | PointwiseConv):
                layer.to(own_dtype)
    for activation_of, name in with_gelu.values():
        setattr(activation_of, name, nn.Identity())


def _layers_before_gelu(network: nn.Module) -> Iterator[tuple[nn.Module, tuple[nn.Module, str]]]:
    """Yield linear layers with the place of the GELU behind them."""
    for module in network.modules():
        if isinstance(module, Mlp):
            yield module.fc1, (module, "act")
        elif isinstance(module, Fusion):
            yield module.project_mm[0], (module.project_mm, "1")


def _can_pack(precision: Precision) -> bool:
    if precision.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return precision.dtype == torch.float32 or (
        precision.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class PackedLinear(nn.Module):
    """A linear layer, with GELU if asked for, whose weights lie in the order that oneDNN's kernels read.

    It calls the operators that torch.compile uses for linear layers on the CPU: faster than `F.linear`, which hands
    float32 to MKL and arranges bfloat16 weights anew in every call.
    """

    def __init__(self, layer: nn.Linear | PointwiseConv, dtype: torch.dtype, *, gelu: bool) -> None:
        super().__init__()
        self.dtype = dtype
        self.activation = "gelu" if gelu else "none"
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.flatten(1).to(dtype))
        self.bias = None if layer.bias is None else layer.bias.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        x = x.to(self.dtype)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], "none")


class FixedBatch(nn.Module):
    """Call a network with batches of one size, that of the first one; smaller ones are filled up."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.batch_size = 0

    def forward(self, *batch: Tensor) -> Output:
        """Take what the network takes; return what it returns."""
        n_samples = len(batch[0])
        self.batch_size = self.batch_size or n_samples
        missing = max(0, self.batch_size - n_samples)
        # Always a copy, so that every call brings tensors of one kind: torch.compile tells those that were made in
        # inference mode from others.
        filled = [torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) for part in batch]
        # Copied, because a replayed CUDA graph writes the next batch to the same place.
        return Output(self.network(*filled).logits[:n_samples].clone(), ())
