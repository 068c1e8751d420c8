"""Optimizing a trained network for inference: the same function, with as much as possible computed in advance."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lib.contracts import Output
from lib.network.compilation import compile_for_inference
from lib.network.decoder import Decoder
from lib.network.fusion import Fusion
from lib.network.linear import LINEAR, use_onednn
from lib.network.precision import Precision
from lib.network.swin import WindowAttention


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
        use_onednn(prepared, dtype, precision.device, compiled=compiled)
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
