"""Variants of one case: each is checked against the plain assembly, then all are timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case, build_network, random_batch
from benchmarks.flops import count_flops
from benchmarks.roofline import Rate
from benchmarks.timing import FAILURES, Call, describe, seconds, side_by_side
from benchmarks.variants import Built, Optimizers, Variant, build_forward, build_training
from CrossVLT import SegModel
from lib.contracts import Batch

# Of float32, absolute. Random weights amplify rounding more than the reference weights do, on which base at 480 is off
# by 2.7e-5 eager and 7.3e-5 compiled; a mistake moves logits by 3e-2 and more.
LOGITS_TOLERANCE = 1e-3
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-4, 5e-3  # of float32, relative; ReLUs near zero show in gradients
OPERATIONS = ("matmul", "conv")


class MismatchError(RuntimeError):
    """The result of a variant differs from that of the plain assembly."""


@dataclass
class Row:
    """The measurements of one variant on one case."""

    part: str  # "forward" or "training"
    case: Case
    variant: Variant
    flops: int
    seconds: list[float] = field(default_factory=list)  # of each repeat
    first_seconds: float | None = None  # of the first call, compilation included
    check: dict[str, float] = field(default_factory=dict)  # how far the outcome is from the plain assembly's
    memory: dict[str, float] = field(default_factory=dict)  # GiB, see benchmarks/peak_memory.py
    rates: dict[str, list[float]] = field(default_factory=dict)  # best FLOP/s by operation, in the same rounds
    failure: str = ""
    memory_failure: str = ""

    @property
    def median(self) -> float:
        """Median time of a call in seconds."""
        return median(self.seconds)

    @property
    def samples_per_second(self) -> float:
        """Samples per second."""
        return self.case.batch_size / self.median

    def share(self, operation: str) -> float:
        """Return the achieved FLOP/s as a fraction of the best rate of "matmul" or "conv"."""
        return self.flops / self.median / median(self.rates[operation])

    def record(self) -> dict[str, Any]:
        """Return plain values for a file."""
        plain = {name: value for name, value in vars(self).items() if name not in ("case", "variant")}
        derived = {} if self.failure else {"median": self.median, "samples_per_second": self.samples_per_second}
        if not self.failure:
            derived |= {f"share_of_{operation}": self.share(operation) for operation in self.rates}
        return self.case._asdict() | {"variant": str(self.variant)} | self.variant._asdict() | plain | derived

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Row:
        """Return the row of a record in a file."""
        case = Case(*(record[name] for name in Case._fields))
        variant = Variant(*(record[name] for name in Variant._fields))
        names = [field.name for field in fields(cls) if field.name not in ("case", "variant")]
        return cls(case=case, variant=variant, **{name: record[name] for name in names})


@dataclass
class Bench:
    """The settings of the measurement."""

    device: torch.device
    variants: list[Variant]
    rates: list[Rate]
    repeats: int
    # What is held while the device is measured, and for plain, which takes most memory: for those who share a device.
    turn: Callable[[], AbstractContextManager[object]] = nullcontext
    calls: dict[str, Callable[[], Tensor]] = field(default_factory=dict)  # of the newest case, by variant

    def forward(self, case: Case) -> list[Row]:
        """Measure forward passes in evaluation."""
        network, batch = self._make(case)
        return self._measure(
            "forward", case, network, partial(build_forward, network=network, batch=batch), check_logits
        )

    def training(self, case: Case) -> list[Row]:
        """Measure training steps."""
        network, batch = self._make(case)
        build = partial(build_training, network=network, batch=batch, optimizers=Optimizers(network))
        return self._measure("training", case, network, build, check_step)

    def _make(self, case: Case) -> tuple[SegModel, Batch]:
        network = build_network(case.swin_type, self.device)
        return network, random_batch(case.img_size, case.batch_size, self.device)

    def _measure(
        self,
        part: str,
        case: Case,
        network: SegModel,
        build: Callable[[Variant], Built],
        check: Callable[[Tensor, Tensor, Variant], dict[str, float]],
    ) -> list[Row]:
        torch.compiler.reset()  # else it would generalise what it compiled for the case before to any size
        flops = count_flops(case, training=part == "training")
        rows = [Row(part, case, variant, flops) for variant in self.variants]
        self.calls, reference = {}, None
        for row in rows:
            try:
                built = build(row.variant)
                with self.turn() if row.variant.plain else nullcontext():
                    outcome = self._warm_up(row, built)
                if row.variant.plain:
                    reference = outcome
                elif reference is not None:
                    row.check = check(outcome, reference, row.variant)
                self.calls[str(row.variant)] = built.call
            except FAILURES as error:
                row.failure = describe(error)
                network.zero_grad()
        with self.turn():
            self._time(rows)
        return rows

    def _warm_up(self, row: Row, built: Built) -> Tensor:
        """Call twice: return the outcome of the first call; on a GPU, measure the memory of the second."""
        outcomes: list[Tensor] = []
        row.first_seconds = seconds(lambda: outcomes.append(built.outcome()))
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds(built.call)
        if self.device.type == "cuda":
            above = torch.cuda.max_memory_allocated(self.device) - before
            row.memory = {"peak_gib": (built.held_bytes + above) / 2**30, "above_gib": above / 2**30}
        return outcomes[0]

    def _time(self, rows: list[Row]) -> None:
        probes = {f"{rate.operation} {rate.precision}": rate for rate in self.rates}
        timed: dict[str, Call] = {name: rate.probe for name, rate in probes.items() if rate.probe}
        times = side_by_side({**self.calls, **timed}, self.repeats)
        for row in rows:
            found = times.get(str(row.variant), [])
            if isinstance(found, str):
                row.failure = found
            elif not row.failure:
                row.seconds = found
                for operation in OPERATIONS:
                    name = f"{operation} {row.variant.precision}"
                    row.rates[operation] = [probes[name].probe_flops / second for second in seconds_of(times[name])]


def seconds_of(found: list[float] | str) -> list[float]:
    """Return the measured seconds; RuntimeError with the message of a call that failed."""
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def check_logits(logits: Tensor, reference: Tensor, variant: Variant) -> dict[str, float]:
    """Return the largest difference and the fraction of pixels with the same class.

    Raises MismatchError if float32 differs by more than rounding.
    """
    difference = (logits - reference).abs().max().item()
    if variant.precision == "fp32" and not difference <= LOGITS_TOLERANCE:
        raise MismatchError(f"logits are off by up to {difference:.2g}, tolerance {LOGITS_TOLERANCE}")
    agreement = (logits.argmax(1) == reference.argmax(1)).float().mean().item()
    return {"logits": difference, "agreement": agreement}


def check_step(outcome: Tensor, reference: Tensor, variant: Variant) -> dict[str, float]:
    """Return the relative differences of loss and gradient norm.

    Raises MismatchError if float32 differs by more than rounding, or if the step was skipped.
    """
    if not outcome.isfinite().all():
        raise MismatchError("the step was left out: its gradients were not finite")
    loss, norm = ((outcome - reference).abs() / reference.abs()).tolist()
    if variant.precision == "fp32" and not (loss <= LOSS_TOLERANCE and norm <= NORM_TOLERANCE):
        raise MismatchError(f"loss and gradient norm are off by {loss:.2g} and {norm:.2g}")
    return {"loss": loss, "gradient_norm": norm}
