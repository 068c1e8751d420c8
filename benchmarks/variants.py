"""The compared variants: the plain assembly, and this project's network in every precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.plain import PlainNetwork, plain_step
from CrossVLT import SegModel
from lib.contracts import Batch
from lib.engine import EpochConfig, predict, train_step
from lib.network.compilation import compile_training
from lib.network.inference import optimize_for_inference
from lib.network.losses import Criterion
from lib.network.precision import Precision
from lib.training.optim import build_optimizer, build_scheduler
from lib.training.run_log import RunLog
from lib.training.state import TrainingState


class Variant(NamedTuple):
    """A variant of the computation."""

    precision: str = "fp32"
    compiled: bool = False
    plain: bool = False

    def __str__(self) -> str:
        return f"{'plain' if self.plain else 'compiled' if self.compiled else 'eager'} {self.precision}"


PLAIN = Variant(plain=True)
# Maximum number of steps until the loss scale of float16, initially 2¹⁶ and halved at every overflow, is small enough.
MAX_SCALINGS = 16


def variants(precisions: Iterable[str], compiled: Iterable[bool]) -> list[Variant]:
    """Return the plain assembly in float32, then the project's variants."""
    ways = list(compiled)
    return [PLAIN, *(Variant(name, way) for name in precisions for way in ways)]


class Built(NamedTuple):
    """A variant that is ready to run."""

    call: Callable[[], Tensor]  # is timed
    outcome: Callable[[], Tensor]  # calls once, and returns the values to compare with the plain assembly
    held_bytes: int  # of weights and optimizer state


def build_forward(variant: Variant, network: SegModel, batch: Batch) -> Built:
    """Return a forward pass in evaluation; its outcome is the logits (B, 2, H, W), float32."""
    device = batch.image.device
    precision = Precision(variant.precision, device)
    if variant.plain:
        model: nn.Module = PlainNetwork(network).eval()
    else:
        model = optimize_for_inference(network, precision, compiled=variant.compiled)

    def call() -> Tensor:
        Precision(variant.precision, device)  # sets the float32 precision of this process
        return predict(model, batch, device, precision)

    return Built(call, call, sum(map(_bytes, [*model.parameters(), *model.buffers()])))


class Optimizers:
    """The optimizers of a network in training: one for the plain assembly, one for the project's variants.

    The learning rate is 0, so that every step does all its work but starts from the same weights.
    """

    def __init__(self, network: SegModel) -> None:
        self.network = network

    @cached_property
    def plain(self) -> torch.optim.Optimizer:
        """PyTorch's AdamW with default options."""
        return torch.optim.AdamW([weight for weight in self.network.parameters() if weight.requires_grad], lr=0.0)

    @cached_property
    def ours(self) -> torch.optim.Optimizer:
        """The optimizer of `train.py`."""
        return build_optimizer(self.network, lr=0.0, weight_decay=1e-2)


def build_training(variant: Variant, network: SegModel, batch: Batch, optimizers: Optimizers) -> Built:
    """Return a training step; its outcome is loss and L2 norm of all gradients, (2,) float32."""
    if variant.plain:
        optimizer, model = optimizers.plain, PlainNetwork(network).train()
        step: Callable[[], Tensor] = partial(plain_step, model, optimizer, batch)
    else:
        optimizer = optimizers.ours
        step = _our_step(variant, network.train(), optimizer, batch)

    def call() -> Tensor:
        Precision(variant.precision, batch.image.device)  # sets the float32 precision of this process
        return step()

    def outcome() -> Tensor:
        norms: list[Tensor] = []
        hook = optimizer.register_step_pre_hook(lambda *_: norms.append(_gradient_norm(network, optimizer)))
        for _ in range(MAX_SCALINGS):
            loss = call()
            if norms[-1].isfinite():
                break
        hook.remove()
        return torch.stack([loss, norms[-1]])

    weights = sum(map(_bytes, [*network.parameters(), *network.buffers()]))
    moments = sum(2 * _bytes(parameter) for group in optimizer.param_groups for parameter in group["params"])
    return Built(call, outcome, weights + moments)


def _our_step(
    variant: Variant, network: SegModel, optimizer: torch.optim.Optimizer, batch: Batch
) -> Callable[[], Tensor]:
    """Return a call of `engine.train_step` that returns the loss, ()."""
    device = batch.image.device
    # Compiled in place: a copy that shares all weights, for the network itself stays the eager variant.
    model = compile_training(copy.copy(network), device) if variant.compiled else network
    precision = Precision(variant.precision, device, compiled=variant.compiled)
    criterion = Criterion().to(device)
    scheduler = build_scheduler(optimizer, total_steps=10**6)
    log = RunLog(Path("."), "none")  # never started, so it writes nothing
    state = TrainingState(network, optimizer, scheduler, precision.scaler, log, {})
    config = EpochConfig(epochs=1, global_batch=len(batch.numbers), precision=precision)

    def step() -> Tensor:
        losses, _ = train_step(model, criterion, [batch], state, device, config, measure=False)
        return losses.total

    return step


def _gradient_norm(network: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    """Return the L2 norm of all gradients, (); a fused optimizer is given float16's as they were scaled."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients) / (getattr(optimizer, "grad_scale", None) or 1.0)


def _bytes(tensor: Tensor) -> int:
    return tensor.nelement() * tensor.element_size()
