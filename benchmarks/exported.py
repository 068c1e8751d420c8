"""An exported network in onnxruntime beside PyTorch on the CPU: forward passes in evaluation, in turn.

python -m benchmarks.exported --swin_type base --img_size 480
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from benchmarks.forward_flags import parse_forward_flags
from errors import answer_first, run
from lib.texts import markdown_table


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; arguments: None for those of the command line."""
    return parse_forward_flags("benchmarks.exported", __doc__, arguments)


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

import torch
from torch import nn

from benchmarks.cases import VOCABULARY, build_network, random_batch
from benchmarks.machine import describe_cpu
from benchmarks.timing import side_by_side
from lib.engine import predict
from lib.inputs import IMAGENET_MEAN, IMAGENET_STD
from lib.network.inference import optimize_for_inference
from lib.network.precision import Precision
from lib.variants import MAX_TOKENS
from lib.weights.onnx_file import check_packages, write_onnx

CPU = torch.device("cpu")


def forward_passes(network: nn.Module, img_size: int) -> dict[str, Callable[[], object]]:
    """Return a forward pass of one image and sentence by the network itself, by what tests use, and by onnxruntime."""
    import onnxruntime

    batch, precision = random_batch(img_size, 1, CPU), Precision("fp32", CPU)
    about = {"img_size": img_size, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "max_tokens": MAX_TOKENS}
    content, difference = write_onnx(network, about, vocab_size=VOCABULARY, most_tokens=MAX_TOKENS)
    print(f"maximal difference of the exported network: {difference:.1e}", flush=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    inputs = {name: getattr(batch, name).numpy() for name in ("image", "token_ids", "attention_mask")}
    models = {
        "eager": network,
        "packed, as predict.py": optimize_for_inference(network, precision),
        "compiled": optimize_for_inference(network, precision, compiled=True),
    }
    calls: dict[str, Callable[[], object]] = {
        name: partial(predict, model, batch, CPU, precision) for name, model in models.items()
    }
    return calls | {"onnxruntime": partial(session.run, None, inputs)}


def compare(network: nn.Module, img_size: int, repeats: int) -> str:
    """Return a table of medians and ratios, after two forward passes of each to warm up."""
    calls = forward_passes(network, img_size)
    side_by_side(calls, 2)
    times = side_by_side(calls, repeats)
    rows = [(name, *_cells(one, times["eager"])) for name, one in times.items()]
    return markdown_table(("fp32, batch 1", "seconds", "eager : this"), rows, 1)


def _cells(times: list[float] | str, eager: list[float] | str) -> tuple[str, str]:
    """Return the median, and the median of the ratios in each round; the error if there is one."""
    if isinstance(times, str) or isinstance(eager, str):
        return str(times), ""
    return f"{median(times):.3f}", f"{median(one / other for one, other in zip(eager, times, strict=True)):.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    args = parse_args(arguments)
    check_packages()
    network = build_network(args.swin_type, CPU).eval()
    print(f"{describe_cpu()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}", flush=True)
    print(f"{args.swin_type} at {args.img_size} pixels")
    print(compare(network, args.img_size, args.repeats))


if __name__ == "__main__":
    run(main)
