"""What packed weights gain: forward passes of the network in evaluation with and without them, in turn.

python -m benchmarks.packed --swin_type base --img_size 480
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from unittest.mock import patch

from benchmarks.forward_flags import parse_forward_flags
from errors import answer_first, run


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; arguments: None for those of the command line."""
    return parse_forward_flags("benchmarks.packed", __doc__, arguments)


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

import torch
from torch import Tensor, nn

from benchmarks.cases import build_network, random_batch
from benchmarks.machine import describe_cpu
from benchmarks.timing import side_by_side
from lib.engine import predict
from lib.network import linear
from lib.network.inference import optimize_for_inference
from lib.network.precision import Precision

CPU = torch.device("cpu")


def forward_passes(network: nn.Module, img_size: int, precision: Precision) -> dict[str, Callable[[], Tensor]]:
    """Return a forward pass with packed weights, and one without."""
    batch, packed = random_batch(img_size, 1, CPU), optimize_for_inference(network, precision)
    with patch.object(linear, "can_pack", return_value=False):
        plain = optimize_for_inference(network, precision)
    models = {"packed": packed, "plain": plain}
    return {name: partial(predict, model, batch, CPU, precision) for name, model in models.items()}


def compare(network: nn.Module, img_size: int, repeats: int, precision: Precision) -> str:
    """Return the medians and their ratio, after one forward pass of each to warm up."""
    calls = forward_passes(network, img_size, precision)
    side_by_side(calls, 1)
    seconds = {name: median(map(float, times)) for name, times in side_by_side(calls, repeats).items()}
    ratio = seconds["plain"] / seconds["packed"]
    return f"packed {seconds['packed']:.3f} s, plain {seconds['plain']:.3f} s, plain : packed {ratio:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the medians of every precision that this CPU has packed weights for."""
    args = parse_args(arguments)
    network = build_network(args.swin_type, CPU)
    print(f"{describe_cpu()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}")
    for precision in (Precision(name, CPU) for name in ("fp32", "bf16")):
        found = "no packed weights on this CPU"
        if linear.can_pack(precision.dtype, CPU):
            found = compare(network, args.img_size, args.repeats, precision)
        print(f"{precision.name}: {found}", flush=True)


if __name__ == "__main__":
    run(main)
