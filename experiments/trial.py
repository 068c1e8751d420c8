"""Train and test one trial of the comparison in this process; `experiments.compare` starts one process for each.

python -m experiments.trial refcoco-cross-seed1
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import answer_first
from experiments.plan import (
    ExperimentConfig,
    Paths,
    Trial,
    add_comparison_flags,
    best_rate,
    config_and_paths,
    find_trial,
    read_sweep,
)
from experiments.results import SPLITS, Result, write_result
from lib.arguments import Parser


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; arguments: None for `sys.argv`."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the trial, as `python -m experiments.compare --list` names it")
    add_comparison_flags(parser, *Paths._fields)
    args = parser.parse_args(arguments)
    find_trial(config_and_paths(args)[0], args.name)
    return args


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

import numpy as np
import torch
from torch import nn

import train
import utils
from benchmarks.machine import describe_machine
from CrossVLT import SegModel
from data.dataset_refer_bert import ReferDataset
from data.loaders import build_datasets, collate, evaluation_loader
from data.sample.make import NOTE
from experiments.maps import map_quality
from lib.engine import evaluate, to_model_inputs
from lib.evaluation.protocols import Evaluation
from lib.network.complexity import count_flops, count_parameters
from lib.network.inference import optimize_for_inference
from lib.network.precision import Precision
from lib.network.resize import predicted_object
from lib.pictures.panels import evenly_spaced
from lib.run_lengths import encode_mask
from lib.texts import read_json_lines
from refer.splits import default_split_by
from trained import Trained, open_trained

N_EXAMPLES = 8
N_MAPS = 400  # sentences whose alignment maps are measured
DEVICE = torch.device("cpu")  # small networks: every trial is as fast there, and anyone has one
FIXED_FLAGS = "--swin_type nano --bert_type nano --dropout 0 --drop_path 0 -j 0 --device cpu --print-freq 10 --keep 1"
RESUMABLE = "--save-every 100 --resume auto"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the named trial, or resume it if it was interrupted."""
    args = parse_args(arguments)
    config, paths = config_and_paths(args)
    run_trial(find_trial(config, args.name), config, paths)


def run_apart(arguments: Sequence[str], output: Path, threads: int) -> None:
    """Be a process for a trial, with that many threads; its output is added to a file."""
    with output.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.argv = [__file__, *arguments]  # the log shows it
    torch.set_num_threads(threads)
    utils.run(lambda: main(arguments))


def run_trial(trial: Trial, config: ExperimentConfig, paths: Paths) -> None:
    """Train a trial, or finish its training, and write its result, unless a signal stops it."""
    sweep = read_sweep(config, paths, trial.variant) if trial.lr is None else {}
    lr = best_rate(config, sweep) if trial.lr is None else trial.lr
    flags = training_flags(trial, lr, config, paths)
    train.main(flags)
    args = train.parse_args(flags)
    log = [record for _, record in read_json_lines(Path(args.output_dir) / f"log_{trial.dataset}.jsonl")]
    epochs = [record for record in log if record["kind"] == "epoch"]
    if len(epochs) < args.epochs:
        return
    if trial.lr is not None:
        val = epochs[-1]["val"]
        description = {
            "dataset": trial.dataset,
            **trial.variant._asdict(),
            "seed": trial.seed,
            "epochs": trial.epochs,
            "lr": lr,
        }
        write_result(paths.result(trial), description | val)
        shutil.rmtree(args.output_dir)  # its states are no longer needed
        return
    newest = Path(args.output_dir) / f"last_{trial.dataset}.pth"
    trained = open_trained(newest, bert_tokenizer=args.bert_tokenizer, img_size=args.img_size)
    result = Result(
        dataset=trial.dataset,
        **trial.variant._asdict(),
        seed=trial.seed,
        lr=lr,
        sweep=sweep,
        commands=[
            " ".join(["python -m experiments.compare", *config.flags, f"--only {trial.name}"]),
            "python train.py " + " ".join(flags),
        ],
        sample=json.loads((paths.data / NOTE).read_text(encoding="utf-8")),
        img_size=args.img_size,
        batch_size=args.batch_size,
        steps=epochs[-1]["global_step"],
        parameters=count_parameters(trained.network),
        flops=count_flops(trained.network, args.img_size, args.max_tokens),
        seconds=round(sum(record["seconds"] for record in epochs), 1),
        machine=describe_machine(DEVICE),
        curve=curve(log),
        **examine(trained, args, trial.dataset),
    )
    write_result(paths.result(trial), result._asdict())
    (Path(args.output_dir) / f"best_{trial.dataset}.pth").unlink()  # the newest state was tested, not the best one


def training_flags(trial: Trial, lr: float, config: ExperimentConfig, paths: Paths) -> list[str]:
    """Return the flags of `train.py`, which differ between variants only in the variant and the learning rate."""
    data = ["--dataset", trial.dataset, "--splitBy", default_split_by(trial.dataset)]
    data += ["--refer_data_root", str(paths.data), "--bert_tokenizer", str(paths.data / "vocab.txt")]
    data += ["--cache", str(cache_path(paths, trial.dataset, config))]
    variant = ["--fusion", trial.variant.fusion, *([] if trial.variant.alignment else ["--no-alignment"])]
    variant += trial.variant.flags
    length = ["--epochs", trial.epochs, "-b", config.batch_size, "--img_size", config.img_size, "--lr", lr]
    length += ["--limit-val", config.limit_val] if config.limit_val else []
    # A later sweep may choose another learning rate, which must not resume this state.
    folder = paths.run(trial) / f"lr{lr:g}"
    output = ["--seed", trial.seed, "--output-dir", folder, *RESUMABLE.split()]
    return [str(flag) for flag in (*data, *variant, *FIXED_FLAGS.split(), *length, *output)]


def cache_path(paths: Paths, dataset: str, config: ExperimentConfig) -> Path:
    """Return the cache file of a data set, which all trials share."""
    return paths.data.with_name(f"{dataset}-{config.img_size}.h5")


def curve(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return losses and scores of a training by step, see `Result.curve`."""
    steps = [record for record in log if record["kind"] == "step"]
    val = [record for record in log if record["kind"] == "epoch"]
    columns = {"step": "global_step", "loss": "loss", "mask_loss": "mask_loss"}
    course = {column: [round(record[name], 4) for record in steps] for column, name in columns.items()}
    scores = [[record["global_step"], record["val"]["mean_iou"], record["val"]["overall_iou"]] for record in val]
    return course | {
        "val": dict(zip(("step", "mean_iou", "overall_iou"), map(list, zip(*scores, strict=True)), strict=True))
    }


def examine(trained: Trained, args: argparse.Namespace, dataset: str) -> dict[str, Any]:
    """Test a trained network on every split; return `metrics`, `counts`, `examples`, `maps` of its `Result`."""
    precision = Precision("fp32", DEVICE)
    prepared = optimize_for_inference(trained.network, precision)
    splits = dict(zip(SPLITS[dataset], build_datasets(args, SPLITS[dataset], trained.tokenizer), strict=True))
    tests = {split: test(prepared, splits[split], args, precision) for split in splits}
    shuffled = test(prepared, splits["val"].with_shuffled_expressions(args.seed), args, precision)
    return {
        "metrics": {split: test.scores.as_dict() for split, test in (tests | {"val, shuffled": shuffled}).items()},
        "counts": {split: columns(test) for split, test in tests.items()},
        "examples": examples(trained.network, splits["val"]),
        "maps": [
            stage._asdict()
            for stage in map_quality(trained.network, splits["val"], evenly_spaced(len(splits["val"]), N_MAPS))
        ],
    }


def test(network: nn.Module, dataset: ReferDataset, args: argparse.Namespace, precision: Precision) -> Evaluation:
    """Score a prepared network on all sentences of a split."""
    loader = evaluation_loader(dataset, batch_size=args.batch_size, workers=0, pin_memory=False)
    return evaluate(network, loader, DEVICE, precision)


def columns(evaluation: Evaluation) -> list[list[int]]:
    """Return [intersections, unions] in the order of the expressions."""
    pairs = [(result.intersection, result.union) for result in evaluation.results]
    return [list(column) for column in zip(*pairs, strict=True)]


@torch.inference_mode()
def examples(network: SegModel, dataset: ReferDataset) -> list[dict[str, Any]]:
    """Return the predictions for a few expressions, the same for every network, see `Result.examples`."""
    indices = evenly_spaced(len(dataset), N_EXAMPLES)
    output = network(*to_model_inputs(collate([dataset[index] for index in indices]), DEVICE), with_alignment=True)
    masks = predicted_object(output.logits).numpy().astype(np.uint8)
    maps = [stage[:, 0].double().numpy().round(3).tolist() for stage in output.alignment]
    return [
        {"index": index, "mask": encode(masks[number]), "maps": [stage[number] for stage in maps]}
        for number, index in enumerate(indices)
    ]


def encode(mask: np.ndarray) -> str:
    """Return the COCO RLE counts of a mask (H, W) uint8."""
    return str(encode_mask(mask)["counts"])


if __name__ == "__main__":
    utils.run(main)
