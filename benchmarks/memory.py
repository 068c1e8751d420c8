"""Measure the peak memory of one training step with the options that save memory.

    python -m benchmarks.memory --swin_type base --img_size 480 --batch-size 1

Weights and inputs are random. Every setting runs in a separate process: one step to warm up, and one that is measured.
On a GPU the figure is the memory allocated by PyTorch; on the CPU it is the peak resident size of the process, which
includes Python and its libraries (almost 1 GiB).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from errors import answer_first, run
from lib.arguments import Parser
from lib.files import write_text
from lib.options import add_flags
from lib.outputs import check_output
from lib.texts import markdown_row, markdown_table
from lib.variants import BERT_VARIANTS


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for `sys.argv`."""
    parser = Parser("python -m benchmarks.memory", description=__doc__)
    add = parser.add_argument
    add_flags(parser, "--swin_type")
    add_flags(parser, "--img_size", help="height and width of the images")
    add_flags(parser, "--batch-size", default=1, help="images per step")
    add("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(arguments)
    if args.json is not None:
        check_output(args.json, "--json", "JSON")
    return args


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

import torch

import utils
from benchmarks import report
from benchmarks.cases import Case, random_batch
from benchmarks.machine import describe_machine
from benchmarks.peak_memory import in_subprocess
from benchmarks.targets import Results
from benchmarks.timing import FAILURES, describe
from benchmarks.variants import Optimizers, Variant, build_training
from CrossVLT import SegModel
from lib.environment import peak_memory_gib


class Setting(NamedTuple):
    """The options of a row of the table."""

    precision: str
    checkpointing: bool = False
    freeze_bert: bool = False

    def title(self) -> str:
        """Return the options as text."""
        return " + ".join([self.precision, *(name for name in self._fields[1:] if getattr(self, name))])


SETTINGS = (
    Setting("fp32"),
    Setting("fp32", checkpointing=True),
    Setting("tf32"),
    Setting("fp16"),
    Setting("bf16"),
    Setting("bf16", checkpointing=True),
    Setting("bf16", checkpointing=True, freeze_bert=True),
)
CUDA_ONLY = ("tf32", "fp16")


def measure(setting: Setting, swin_type: str, img_size: int, batch_size: int, device: torch.device) -> float:
    """Return the peak memory of a training step in GiB; on the CPU, call it in a fresh process."""
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    torch.manual_seed(0)
    bert_type = swin_type if swin_type in BERT_VARIANTS else "base"
    with device:
        model = SegModel(swin_type, bert_type, checkpointing=setting.checkpointing, freeze_bert=setting.freeze_bert)
    step = build_training(
        Variant(setting.precision), model, random_batch(img_size, batch_size, device), Optimizers(model)
    ).call
    step()  # makes the optimizer's state
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step()
    return peak_memory_gib(device) - before / 2**30


def record(setting: Setting, case: Case, call: Callable[[], float]) -> dict[str, Any]:
    """Return plain values: setting and case, and the result or the failure of `call`, a `measure`."""
    row: dict[str, Any] = {"setting": setting.title(), **case._asdict()}
    try:
        row["peak_gib"] = call()
    except FAILURES as error:
        row["failure"] = describe(error)
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every setting and print the table."""
    args = parse_args(arguments)
    device = utils.find_device()
    case = Case(args.swin_type, args.img_size, args.batch_size)
    results = Results(device.type, describe_machine(device), case._asdict())
    print(f"{case}\n{report.environment_list(results)}\n")
    kind = "allocated on the GPU" if device.type == "cuda" else "resident size of the process"
    print(markdown_table(("setting", "network", f"peak memory ({kind}), GiB"), []))
    for setting in SETTINGS:
        if device.type == "cuda" or setting.precision not in CUDA_ONLY:
            results.memory.append(record(setting, case, partial(in_subprocess, measure, setting, *case, device)))
            print(markdown_row(report.memory_cells(results.memory[-1])), flush=True)
    if args.json is not None:
        write_text(args.json, report.as_json(results))


if __name__ == "__main__":
    run(main)
