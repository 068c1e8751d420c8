"""Test trained weights on one or more splits.

    python test.py --dataset refcoco --split testA --resume ./checkpoints/best_refcoco.pth
    python test.py --dataset refcoco --split val testA testB --resume ./checkpoints/best_refcoco.pth --json {split}.json
    python test.py --dataset refcocog --splitBy umd --split test --resume ./checkpoints/best_refcocog.pth
    torchrun --nproc_per_node 2 test.py --dataset refcoco --split val --resume ./checkpoints/best_refcoco.pth

The weights tell the type of the network. Image size and tokenizer default to those of the training, if the file has
them, and so does the name of your own data. The published protocol is used: predictions and masks are compared at
`--img_size`. In the name of an output, `{split}` stands for the split.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from errors import UserError, answer_first
from lib.arguments import positive_int
from lib.files import write_text
from lib.options import build_parser, check_flags
from lib.outputs import check_apart, check_folder, check_output, complete
from refer.datasets import data_files
from refer.splits import (
    JSONL,
    counts_of,
    default_max_tokens,
    fill_data_flags,
    noted_overlap,
    protocol_of,
    title_of,
    why_unpublished,
)

SPLIT = "{split}"  # in the name of an output
OUTPUTS = ("json", "csv", "jsonl", "predictions", "save_masks", "report")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for `sys.argv`. Flags that the file of weights may set are None."""
    several = {"nargs": "+", "default": ["val"], "help": "splits to test, one or more: val, test, testA or testB"}
    parser = build_parser(__doc__, training=False, changes={"split": several})
    parser.set_defaults(swin_type=None, bert_type=None, fusion=None, alignment=None, img_size=None, bert_tokenizer=None)
    add = parser.add_argument
    add("--json", metavar="FILE", help="write the scores to this file")
    add("--predictions", metavar="FILE", help="write all masks into this file as JSON lines, for score.py")
    add("--csv", metavar="FILE", help="write ids, sentence, pixel counts and IoU of every sentence as a table")
    add("--jsonl", metavar="FILE", help="write the same as JSON lines")
    add("--save-masks", metavar="DIR", help="write predicted masks and overlays into this folder")
    add("--report", metavar="DIR", help="write index.html with scores, examples and failures into this folder")
    add("--eval_ori_size", action="store_true", help="compare masks at image size (not the published protocol)")
    add("--shuffle_expressions", action="store_true", help="control: swap the sentences of different objects")
    add("--limit", type=positive_int, metavar="N", help="test only the first N sentences of each split: a quick look")
    args = parser.parse_args(arguments)
    check_flags(args)
    fill_data_flags(args, training=False)
    if args.predictions is not None and args.shuffle_expressions:
        raise UserError("--predictions belong to sentences, and --shuffle_expressions exchanges them: leave one out")
    if not args.resume:
        raise UserError("--resume is missing: name the weights to test, such as ./checkpoints/best_refcoco.pth")
    for one in by_split(args):
        check_outputs(one)
    return args


def by_split(args: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """Yield the flags of the test of each split.

    split: its name, which replaces `{split}` in the names of outputs. splits: the names of all.
    Raises UserError if the outputs of several splits would have the same name.
    """
    splits = list(dict.fromkeys(args.split))
    outputs = {name: value for name in OUTPUTS if (value := getattr(args, name)) is not None}
    for name, value in outputs.items():
        if len(splits) > 1 and SPLIT not in value:
            raise UserError(
                f"--{name.replace('_', '-')} {value} would be written for each of {', '.join(splits)}: put {SPLIT} "
                "into its name, which becomes the name of the split"
            )
    for split in splits:
        named = {name: value.replace(SPLIT, split) for name, value in outputs.items()}
        yield argparse.Namespace(**vars(args) | named | {"split": split, "splits": splits})


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
    files = (("json", "JSON"), ("predictions", "JSON"), ("jsonl", "JSON"), ("csv", "a table of test.py"))
    for name, kind in files:
        file, flag = getattr(args, name), f"--{name}"
        if file is not None:
            check_apart(file, flag, others)
            check_output(file, flag, kind, input_files(args))
            others.append(file)


def input_files(args: argparse.Namespace) -> list[str | Path]:
    """Return the files that a test reads, except for the images, and those of the other data sets."""
    read = [args.resume, args.bert_tokenizer, args.cache, *(args.data_files or [])]
    return [*(one for one in read if one), *data_files(args.refer_data_root)]


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

from torch import nn

import utils
from bert.tokenizer import find_vocabulary
from CrossVLT import SegModel
from data.dataset_refer_bert import ReferDataset
from data.loaders import build_datasets, evaluation_loader
from dry_run import Check, cache_bytes, check_space, data_checks, found, run_checks
from lib.engine import chain_callbacks, evaluate
from lib.evaluation.expected import ExpectedIoU
from lib.evaluation.predictions import PredictionFile
from lib.evaluation.protocols import Counting, Evaluation
from lib.evaluation.published import Measurement
from lib.evaluation.report import Report
from lib.evaluation.result import describe_scores, result_text, rows_as_csv, rows_as_json_lines, sentence_rows
from lib.evaluation.writer import PredictionWriter
from lib.network.inference import optimize_for_inference
from lib.network.precision import Precision
from refer.missing import Present
from trained import Trained, find_weight_file, open_trained, read_found


def main(arguments: Sequence[str] | None = None) -> None:
    """Test each split, and print and write its scores."""
    args = parse_args(arguments)
    if args.dry_run:
        list_missing(args)
        return
    device = utils.start_processes(utils.find_device(args.device))
    trained = open_named(args)
    tests = list(by_split(args))
    splits = [one.split for one in tests]
    datasets = build_datasets(args, splits, trained.tokenizer, resize_mask=not args.eval_ori_size)
    precision = Precision(args.precision, device)
    network = optimize_for_inference(trained.network.to(device), precision, compiled=args.compile)
    measurements = [
        describe_measurement(one, trained.network, dataset) for one, dataset in zip(tests, datasets, strict=True)
    ]

    finished: dict[str, Evaluation] = {}
    try:
        for one, dataset, measurement in zip(tests, datasets, measurements, strict=True):
            shown = shuffled(dataset, args.seed) if args.shuffle_expressions else dataset
            test_split(one, shown, network, precision, measurement, finished)
    finally:
        if len(splits) > 1 and finished and utils.is_main():
            print(describe_scores(finished, measurements[0]))


def list_missing(args: argparse.Namespace) -> None:
    """Print what this test finds. Raises UserError with all that is missing; writes nothing."""
    present: list[Present] = []
    checks: dict[str, Check] = {
        "weights": lambda: found(find_weight_file(args.resume, flag="--resume", offline=True)),
        "vocabulary": lambda: find_words(args),
        **data_checks(args, args.split, present),
    }
    if args.cache and not Path(args.cache).exists():
        checks["disk space"] = lambda: find_space(args, present)
    run_checks(checks)


def find_words(args: argparse.Namespace) -> str:
    """Return where the vocabulary is. Raises UserError if it is missing, or with the weights that should name it."""
    if args.bert_tokenizer:
        return str(find_vocabulary(args.bert_tokenizer, offline=True))
    path = find_weight_file(args.resume, flag="--resume", offline=True)
    checkpoint = read_found(path)
    if checkpoint.vocabulary:
        return f"{len(checkpoint.vocabulary):,} words in {path}"
    return str(find_vocabulary(checkpoint.remembered("bert_tokenizer"), offline=True))


def find_space(args: argparse.Namespace, present: Sequence[Present]) -> str:
    """Return the space that a new cache takes. UserError if the disk has less, or if no weights tell its size."""
    path = find_weight_file(args.resume, flag="--resume", offline=True)
    side = args.img_size or read_found(path).remembered("img_size")
    return check_space(cache_bytes(args.cache, side, present))


def shuffled(dataset: ReferDataset, seed: int) -> ReferDataset:
    """Return a data set with the sentences of other objects; log if that changes nothing."""
    dataset = dataset.with_shuffled_expressions(seed)
    if not dataset.has_choice():
        utils.log(
            "note: every image has only one object here, which can be found without the sentence: "
            "--shuffle_expressions shows nothing"
        )
    return dataset


def test_split(
    args: argparse.Namespace,
    dataset: ReferDataset,
    network: nn.Module,
    precision: Precision,
    measurement: Measurement,
    finished: dict[str, Evaluation],
) -> None:
    """Test one split, print and write its scores; all processes must call this together.

    args: of `by_split`. finished: receives the evaluation by split. Raises UserError in all processes if an output
    cannot be written in any.
    """
    loader = evaluation_loader(
        dataset,
        batch_size=args.batch_size,
        workers=args.workers,
        pin_memory=args.pin_mem or precision.device.type == "cuda",
        device=precision.device,
        limit=args.limit,
        rank=utils.rank(),
        world_size=utils.world_size(),
    )
    writer = PredictionWriter(args.save_masks, dataset) if args.save_masks else None
    page = Report(args.report, dataset) if args.report else None
    masks = PredictionFile(args.predictions, dataset) if args.predictions else None
    expected = ExpectedIoU() if args.csv or args.jsonl else None
    on_batch = chain_callbacks(writer, page, masks, expected)
    counting = Counting(protocol_of(args.dataset), dataset.no_target, args.no_target_pixels)
    title = f"testing {args.split}"
    evaluation = evaluate(
        network, loader, precision.device, precision, on_batch=on_batch, counting=counting, title=title
    )
    finished[args.split] = evaluation
    steps = [lambda: print_scores(args, evaluation, dataset, measurement)]
    if writer:
        steps.append(writer.finish)
    if expected:
        steps.append(lambda: write_rows(args, evaluation, dataset, expected))
    if masks:
        steps.append(masks.finish)
    if page:
        steps.append(lambda: page.write(evaluation, measurement))
    utils.together(lambda: complete(*steps))  # so that no process begins the next split after another has failed


def open_named(args: argparse.Namespace) -> Trained:
    """Return the trained network that the flags name; set `args.img_size`, `args.max_tokens`, of own data `args.name`.

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
    if args.dataset == JSONL and args.name is None and trained.data_name:
        args.name = trained.data_name
        utils.log(f"data {args.name}, as in the training of these weights; --name gives them another name")
    return trained


def describe_measurement(args: argparse.Namespace, network: SegModel, dataset: ReferDataset) -> Measurement:
    """Return the settings of this test, for the report."""
    return Measurement(
        dataset=args.name or args.dataset,
        split_by="" if args.dataset == JSONL else args.splitBy,
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
        unpublished=why_unpublished(
            args.dataset, args.splitBy, args.split, args.refer_data_root, (len(dataset.objects), len(dataset))
        ),
    )


def print_scores(
    args: argparse.Namespace, evaluation: Evaluation, dataset: ReferDataset, measurement: Measurement
) -> None:
    """Print the scores of a split, of several only how many were tested, and write the files about them."""
    if not utils.is_main():
        return
    n_tested = len(evaluation.results)
    number = f"the first {n_tested} of {len(dataset)}" if n_tested < len(dataset) else f"{n_tested}"
    shuffled = ", expressions shuffled between objects" if args.shuffle_expressions else ""
    print(f"{title_of(args.dataset, args.splitBy, args.name)} {args.split}: {number} expressions{shuffled}")
    if len(args.splits) == 1:
        print(describe_scores({"": evaluation}, measurement))
    if args.json is not None:
        content = json_content(args, evaluation, n_all=len(dataset))
        write_text(args.json, result_text(content, evaluation, dataset))


def write_rows(args: argparse.Namespace, evaluation: Evaluation, dataset: ReferDataset, expected: ExpectedIoU) -> None:
    """Write a row for every sentence, as `--csv` and `--jsonl` say; all processes must call this together."""
    expected.finish()
    if utils.is_main():
        rows = sentence_rows(evaluation, dataset, expected.values)
        texts = ((args.csv, rows_as_csv), (args.jsonl, rows_as_json_lines))
        complete(*(partial(write_text, path, text(rows)) for path, text in texts if path is not None))


def json_content(args: argparse.Namespace, evaluation: Evaluation, *, n_all: int) -> dict[str, object]:
    """Return the scores for `--json`, with what differs from the published protocol; n_all: sentences of the split."""
    content: dict[str, object] = {
        "dataset": args.dataset,
        "splitBy": args.splitBy,
        "split": args.split,
        "checkpoint": args.resume,
        **evaluation.scores.as_dict(),
    }
    if args.name:
        content["name"] = args.name
    if args.shuffle_expressions:
        content["expressions"] = "shuffled"
    if args.eval_ori_size:
        content["measured_at"] = "image size"
    else:
        content["img_size"] = args.img_size
    content |= noted_overlap(args.dataset, args.overlap)
    if args.max_tokens != default_max_tokens(args.dataset):
        content["max_tokens"] = args.max_tokens
    if len(evaluation.results) < n_all:
        content["limit"] = len(evaluation.results)
    return content


if __name__ == "__main__":
    utils.run(main)
