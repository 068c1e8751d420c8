"""Train and test one piece of the comparison in this process: `experiments.compare` starts one process for each.

python -m experiments.piece refcoco-cross-seed1
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import run
from experiments.pieces import Folders, Piece, Setting, add_places, best_rate, find_piece, places, read_sweep
from experiments.results import SPLITS, Result, write_result
from lib.arguments import Parser


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the piece, as `python -m experiments.compare --list` names it")
    add_places(parser, *Folders._fields)
    args = parser.parse_args(arguments)
    find_piece(places(args)[0], args.name)
    return args


if __name__ == "__main__":
    run(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import nn

import train
import utils
from benchmarks.machine import describe_machine
from CrossVLT import SegModel
from data.dataset_refer_bert import ReferDataset
from data.loaders import build_datasets, collate, evaluation_loader
from data.sample.make import NOTE
from lib.engine import evaluate, to_model_inputs
from lib.evaluation.metrics import Evaluation
from lib.network.complexity import count_flops, count_parameters
from lib.network.inference import optimize_for_inference
from lib.network.precision import Precision
from lib.network.resize import predicted_object
from lib.pictures.panels import evenly_spaced
from lib.texts import read_json_lines
from refer.splits import default_split_by
from trained import Trained, open_trained

N_EXAMPLES = 8
DEVICE = torch.device("cpu")  # small networks: every piece is as fast there, and anyone has one
FIXED_FLAGS = "--swin_type nano --bert_type nano --dropout 0 --drop_path 0 -j 0 --device cpu --print-freq 10 --keep 1"
RESUMABLE = "--save-every 100 --resume auto"


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the piece that the command line names, going on where it was interrupted."""
    args = parse_args(arguments)
    setting, folders = places(args)
    do_piece(find_piece(setting, args.name), setting, folders)


def do_piece(piece: Piece, setting: Setting, folders: Folders) -> None:
    """Train a piece, or finish its training, and write its result; none where a signal stopped it before."""
    sweep = read_sweep(setting, folders, piece.variant) if piece.lr is None else {}
    lr = best_rate(setting, sweep) if piece.lr is None else piece.lr
    flags = training_flags(piece, lr, setting, folders)
    train.main(flags)
    args = train.parse_args(flags)
    log = [record for _, record in read_json_lines(Path(args.output_dir) / f"log_{piece.dataset}.jsonl")]
    epochs = [record for record in log if record["kind"] == "epoch"]
    if len(epochs) < args.epochs:
        return
    if piece.lr is not None:
        val = epochs[-1]["val"]
        what = {
            "dataset": piece.dataset,
            **piece.variant._asdict(),
            "seed": piece.seed,
            "epochs": piece.epochs,
            "lr": lr,
        }
        write_result(folders.result(piece), what | val)
        shutil.rmtree(args.output_dir)  # nothing will read these states
        return
    newest = Path(args.output_dir) / f"last_{piece.dataset}.pth"
    trained = open_trained(newest, bert_tokenizer=args.bert_tokenizer, img_size=args.img_size)
    result = Result(
        dataset=piece.dataset,
        **piece.variant._asdict(),
        seed=piece.seed,
        lr=lr,
        sweep=sweep,
        commands=[
            " ".join(["python -m experiments.compare", *setting.flags, f"--only {piece.name}"]),
            "python train.py " + " ".join(flags),
        ],
        sample=json.loads((folders.data / NOTE).read_text(encoding="utf-8")),
        img_size=args.img_size,
        batch_size=args.batch_size,
        steps=epochs[-1]["global_step"],
        parameters=count_parameters(trained.network),
        flops=count_flops(trained.network, args.img_size, args.max_tokens),
        seconds=round(sum(record["seconds"] for record in epochs), 1),
        machine=describe_machine(DEVICE),
        curve=curve(log),
        **examine(trained, args, piece.dataset),
    )
    write_result(folders.result(piece), result._asdict())
    (Path(args.output_dir) / f"best_{piece.dataset}.pth").unlink()  # the newest state is what was tested


def training_flags(piece: Piece, lr: float, setting: Setting, folders: Folders) -> list[str]:
    """Return the command line of `train.py`: for all variants the same but for their flags and the learning rate."""
    data = ["--dataset", piece.dataset, "--splitBy", default_split_by(piece.dataset)]
    data += ["--refer_data_root", str(folders.data), "--bert_tokenizer", str(folders.data / "vocab.txt")]
    data += ["--cache", str(cache_path(folders, piece.dataset, setting))]
    variant = ["--fusion", piece.variant.fusion, *([] if piece.variant.alignment else ["--no-alignment"])]
    length = ["--epochs", piece.epochs, "-b", setting.batch_size, "--img_size", setting.img_size, "--lr", lr]
    length += ["--limit-val", setting.limit_val] if setting.limit_val else []
    # A state of another learning rate, which a later sweep may choose, is nothing to go on from.
    folder = folders.run(piece) / f"lr{lr:g}"
    where = ["--seed", piece.seed, "--output-dir", folder, *RESUMABLE.split()]
    return [str(word) for word in (*data, *variant, *FIXED_FLAGS.split(), *length, *where)]


def cache_path(folders: Folders, dataset: str, setting: Setting) -> Path:
    """Return the file that keeps a data set's resized images, for all pieces."""
    return folders.data.with_name(f"{dataset}-{setting.img_size}.h5")


def curve(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the course of a training, see `Result.curve`."""
    steps = [record for record in log if record["kind"] == "step"]
    val = [record for record in log if record["kind"] == "epoch"]
    columns = {"step": "global_step", "loss": "loss", "mask_loss": "mask_loss"}
    course = {column: [round(record[name], 4) for record in steps] for column, name in columns.items()}
    scores = [[record["global_step"], record["val"]["mean_iou"], record["val"]["overall_iou"]] for record in val]
    return course | {
        "val": dict(zip(("step", "mean_iou", "overall_iou"), map(list, zip(*scores, strict=True)), strict=True))
    }


def examine(trained: Trained, args: argparse.Namespace, dataset: str) -> dict[str, Any]:
    """Test a trained network on every split; return `metrics`, `counts` and `examples` of its `Result`."""
    precision = Precision("fp32", DEVICE)
    prepared = optimize_for_inference(trained.network, precision)
    splits = dict(zip(SPLITS[dataset], build_datasets(args, SPLITS[dataset], trained.tokenizer), strict=True))
    tests = {split: test(prepared, splits[split], args, precision) for split in splits}
    shuffled = test(prepared, splits["val"].with_shuffled_expressions(args.seed), args, precision)
    return {
        "metrics": {split: found.scores.as_dict() for split, found in (tests | {"val, shuffled": shuffled}).items()},
        "counts": {split: columns(found) for split, found in tests.items()},
        "examples": examples(trained.network, splits["val"]),
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
    """Return what a network makes of a few expressions, the same for every network, see `Result.examples`."""
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
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"]
    return counts if isinstance(counts, str) else counts.decode()


if __name__ == "__main__":
    utils.run(main)
