"""Test trained weights on a split.

    python test.py --dataset refcoco --split testA --resume ./checkpoints/best_refcoco.pth
    python test.py --dataset refcocog --splitBy umd --split test --resume ./checkpoints/best_refcocog.pth
    torchrun --nproc_per_node 2 test.py --dataset refcoco --split val --resume ./checkpoints/best_refcoco.pth

The weights tell the type of the network. Image size and tokenizer default to those of the training, if the file has
them. The published protocol is used: predictions and masks are compared at `--img_size`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from errors import UserError, run
from lib.files import write_text
from lib.options import build_parser, check_flags
from lib.outputs import check_apart, check_folder, check_output, complete
from refer.datasets import data_files, is_drawn
from refer.splits import counts_of, default_max_tokens, fill_data_flags, noted_overlap, protocol_of


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for `sys.argv`. Flags that the file of weights may set are None."""
    parser = build_parser(__doc__, training=False)
    parser.set_defaults(swin_type=None, bert_type=None, fusion=None, alignment=None, img_size=None, bert_tokenizer=None)
    add = parser.add_argument
    add("--json", metavar="FILE", help="write the scores to this file")
    add("--predictions", metavar="FILE", help="write all masks into this file as JSON lines, for score.py")
    add("--save-masks", metavar="DIR", help="write predicted masks and overlays into this folder")
    add("--report", metavar="DIR", help="write index.html with scores, examples and failures into this folder")
    add("--eval_ori_size", action="store_true", help="compare masks at image size (not the published protocol)")
    add("--shuffle_expressions", action="store_true", help="control: swap the sentences of different objects")
    args = parser.parse_args(arguments)
    check_flags(args)
    fill_data_flags(args, training=False)
    if args.predictions is not None and args.shuffle_expressions:
        raise UserError("--predictions belong to sentences, and --shuffle_expressions exchanges them: leave one out")
    if not args.resume:
        raise UserError("--resume is missing: name the weights to test, such as ./checkpoints/best_refcoco.pth")
    check_outputs(args)
    return args


def check_outputs(args: argparse.Namespace) -> None:
    """Raise UserError if an output cannot be written, or would replace an input."""
    for folder, flag in ((args.save_masks, "--save-masks"), (args.report, "--report")):
        if folder is not None:
            check_folder(folder, flag)
    pages = [Path(args.report, "index.html")] if args.report is not None else []
    pictures = [Path(args.save_masks, kind) for kind in ("masks", "overlays")] if args.save_masks is not None else []
    for page in pages:
        check_output(page, "--report", "a page of test.py")
    others: list[str | Path] = [*pages, *pictures]
    for file, flag in ((args.json, "--json"), (args.predictions, "--predictions")):
        if file is not None:
            check_apart(file, flag, others)
            check_output(file, flag, "JSON", input_files(args))
            others.append(file)


def input_files(args: argparse.Namespace) -> list[str | Path]:
    """Return the files that a test reads, except for the images, and those of the other data sets."""
    read = [args.resume, args.bert_tokenizer, args.cache, *(args.data_files or [])]
    return [*(one for one in read if one), *data_files(args.refer_data_root)]


if __name__ == "__main__":
    run(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

import utils
from CrossVLT import SegModel
from data.dataset_refer_bert import ReferDataset
from data.loaders import build_datasets, evaluation_loader
from lib.engine import chain_callbacks, evaluate
from lib.evaluation.predictions import PredictionFile
from lib.evaluation.protocols import Counting, Evaluation
from lib.evaluation.published import Measurement
from lib.evaluation.report import Report
from lib.evaluation.result import describe_scores, result_text
from lib.evaluation.writer import PredictionWriter
from lib.network.inference import optimize_for_inference
from lib.network.precision import Precision
from trained import Trained, open_trained


def main(arguments: Sequence[str] | None = None) -> None:
    """Test one split and print its scores."""
    args = parse_args(arguments)
    device = utils.start_processes(utils.find_device(args.device))
    trained = open_named(args)
    network = trained.network.to(device)
    (dataset,) = build_datasets(args, [args.split], trained.tokenizer, resize_mask=not args.eval_ori_size)
    if args.shuffle_expressions:
        dataset = dataset.with_shuffled_expressions(args.seed)
        if not dataset.has_choice():
            utils.log(
                "note: every image has only one object here, which can be found without the sentence: "
                "--shuffle_expressions shows nothing"
            )
    loader = evaluation_loader(
        dataset,
        batch_size=args.batch_size,
        workers=args.workers,
        pin_memory=args.pin_mem or device.type == "cuda",
        device=device,
        rank=utils.rank(),
        world_size=utils.world_size(),
    )

    writer = PredictionWriter(args.save_masks, dataset) if args.save_masks else None
    precision = Precision(args.precision, device)
    page = Report(args.report, dataset) if args.report else None
    masks = PredictionFile(args.predictions, dataset) if args.predictions else None
    on_batch = chain_callbacks(writer, page, masks)
    prepared = optimize_for_inference(network, precision, compiled=args.compile)
    counting = Counting(protocol_of(args.dataset), dataset.no_target, args.no_target_pixels)
    evaluation = evaluate(prepared, loader, device, precision, on_batch=on_batch, counting=counting)
    measurement = describe_measurement(args, network)
    steps = [lambda: print_scores(args, evaluation, dataset, measurement)]
    if masks:
        steps.append(masks.finish)
    if page:
        steps.append(lambda: page.write(evaluation, measurement))
    complete(*steps)


def open_named(args: argparse.Namespace) -> Trained:
    """Return the trained network that the flags name, and set `args.img_size` and `args.max_tokens`.

    Raises UserError if the flags contradict the weights.
    """
    trained = open_trained(
        args.resume,
        bert_tokenizer=args.bert_tokenizer,
        img_size=args.img_size,
        max_tokens=args.max_tokens,
        usual_tokens=default_max_tokens(args.dataset),
    )
    options = trained.network.options
    for flag in ("swin_type", "bert_type", "fusion"):
        if getattr(args, flag) not in (None, options[flag]):
            raise UserError(f"--{flag} {getattr(args, flag)}: the weights in {trained.path} are {options[flag]}")
    if args.alignment is False and options["alignment"]:
        raise UserError(f"--no-alignment: the weights in {trained.path} were trained with alignment")
    args.img_size, args.max_tokens = trained.img_size, trained.max_tokens
    return trained


def describe_measurement(args: argparse.Namespace, network: SegModel) -> Measurement:
    """Return the settings of this test, for the report."""
    return Measurement(
        dataset=args.dataset,
        split_by=args.splitBy,
        split=args.split,
        checkpoint=args.resume,
        swin_type=network.options["swin_type"],
        bert_type=network.options["bert_type"],
        img_size=args.img_size,
        max_tokens=args.max_tokens,
        usual_tokens=default_max_tokens(args.dataset),
        precision=args.precision,
        n_published=counts_of(args.dataset, args.splitBy).get(args.split, (None, None))[1],
        own_size=args.eval_ori_size,
        overlap=args.overlap,
        shuffled=args.shuffle_expressions,
        fusion=network.options["fusion"],
        alignment=network.options["alignment"],
        drawn=is_drawn(args.refer_data_root),
    )


def print_scores(
    args: argparse.Namespace, evaluation: Evaluation, dataset: ReferDataset, measurement: Measurement
) -> None:
    """Print the scores and, with `--json`, write them."""
    if not utils.is_main():
        return
    shuffled = ", expressions shuffled between objects" if args.shuffle_expressions else ""
    scores = evaluation.scores.as_dict()
    print(f"{args.dataset} ({args.splitBy}) {args.split}: {scores['n_expressions']} expressions{shuffled}")
    print(describe_scores(evaluation, measurement))
    if args.json is not None:
        content: dict[str, object] = {
            "dataset": args.dataset,
            "splitBy": args.splitBy,
            "split": args.split,
            "checkpoint": args.resume,
            **scores,
        }
        # Differences from the published protocol are recorded.
        if args.shuffle_expressions:
            content["expressions"] = "shuffled"
        if args.eval_ori_size:
            content["measured_at"] = "image size"
        else:
            content["img_size"] = args.img_size
        content |= noted_overlap(args.dataset, args.overlap)
        if args.max_tokens != default_max_tokens(args.dataset):
            content["max_tokens"] = args.max_tokens
        write_text(args.json, result_text(content, evaluation, dataset))


if __name__ == "__main__":
    utils.run(main)
