"""Score masks predicted by any model, and compare several models.

    python score.py predictions.jsonl --dataset refcoco --split val --img_size 480
    python score.py masks/ --dataset grefcoco --split testA --json scores.json --report report
    python score.py ours.jsonl theirs.jsonl --dataset refcoco --split testA --img_size 480 --report comparison

PREDICTIONS is a folder of SENT_ID.png, a file of COCO's run lengths (predict.py --json), or JSON lines (test.py
--predictions). Masks are compared at the size of their images; with --img_size at that size, as in test.py and in most
papers. Each further PREDICTIONS is compared with the first; there, files of test.py --json are also allowed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import UserError, answer_first
from lib.arguments import Parser
from lib.files import write_text
from lib.options import add_flags
from lib.outputs import check_apart, check_folder, check_output, complete, is_same
from refer.datasets import data_files
from refer.splits import JSONL, counts_of, fill_data_flags, noted_overlap, protocol_of, title_of, why_unpublished

PAGE = "index.html"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for those of the command line."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("predictions", nargs="+", type=Path, metavar="PREDICTIONS", help="folder or file of masks")
    add_flags(parser, "--dataset", "--splitBy", "--data", "--name", "--split", "--refer_data_root", "--overlap")
    size_help = "compare masks at this height and width; default: the size of each image"
    add_flags(parser, "--img_size", default=None, help=size_help)
    add_flags(parser, "--no-target-pixels")
    add("--missing", choices=("refuse", "empty"), default="refuse", help="sentences without a mask")
    add("--duplicate", choices=("refuse", "first", "last"), default="refuse", help="sentences with several masks")
    add("--extra", choices=("refuse", "ignore"), default="refuse", help="masks that belong to no sentence of the split")
    add("--wrong-size", choices=("refuse", "resize"), default="refuse", help="masks of another size than their image")
    add("--json", metavar="FILE", help="write the scores, or the comparison, to this file")
    add("--report", metavar="DIR", help="write index.html into this folder")
    args = parser.parse_args(arguments)
    args.max_tokens = 1  # no sentence is tokenized
    fill_data_flags(args, training=False)
    check_paths(args)
    return args


def check_paths(args: argparse.Namespace) -> None:
    """Raise UserError if predictions do not exist, or an output cannot be written."""
    for path in args.predictions:
        if not path.exists():
            raise UserError(f"there are no predictions {path}")
    for flag, folder in (("--report", args.report), ("--json", args.json and Path(args.json).parent)):
        if folder is not None and any(is_same(path, folder) for path in args.predictions):
            raise UserError(f"{flag} would write among the masks in {folder}, where every file counts: choose another")
    pages = [Path(args.report, PAGE)] if args.report is not None else []
    if args.report is not None:
        check_folder(args.report, "--report")
    for page in pages:
        check_output(page, "--report", "a page of test.py", args.predictions)
    if args.json is not None:
        check_apart(args.json, "--json", pages)
        read = [*args.predictions, *(args.data_files or []), *data_files(args.refer_data_root)]
        check_output(args.json, "--json", "JSON", read)


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

import numpy as np
import torch

import utils
from data.dataset_refer_bert import ReferDataset
from data.loaders import log_odd_objects, open_index
from data.transforms import PairTransform
from errors import few, few_lines
from lib.contents import COUNTS
from lib.evaluation.comparison import ALL, Comparison, Model
from lib.evaluation.metrics import count_pixels
from lib.evaluation.protocols import NO_ANSWER, Counting, Evaluation, Result, count_all, evaluation_of, rule_of
from lib.evaluation.published import Measurement
from lib.evaluation.report import PackedMask, Report
from lib.evaluation.result import COUNTED, describe_scores, result_text
from lib.evaluation.tables import read_result
from lib.photo import Pixels, Places, resize_mask
from lib.schema import check
from refer.predictions import Answer, match, read_predictions
from refer.refer import repeated

N_NAMED = 100  # faults of each kind listed in a message


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the scores of predictions, or the comparison of several."""
    args = parse_args(arguments)
    dataset = open_split(args)
    print(f"{title_of(args.dataset, args.splitBy, args.name)} {args.split}: {len(dataset)} expressions")
    if len(args.predictions) > 1:
        compare(args, dataset)
        return
    (path,) = args.predictions
    report = Report(args.report, dataset) if args.report else None
    evaluation = Scorer(args, dataset).score(path, report)
    measurement = measurement_of(args, path, dataset)
    print(describe_scores({"": evaluation}, measurement))
    steps = []
    if args.json is not None:
        steps.append(lambda: write_text(args.json, result_text(describe(args, path, evaluation), evaluation, dataset)))
    if report:
        steps.append(lambda: report.write(evaluation, measurement))
    complete(*steps)


def compare(args: argparse.Namespace, dataset: ReferDataset) -> None:
    """Print, write and show the comparison of several predictions."""
    scorer, measurement = Scorer(args, dataset), measurement_of(args, args.predictions[0], dataset)
    names = [path.stem for path in args.predictions]
    if len(set(names)) < len(names):
        names = [str(path) for path in args.predictions]
    if repeated(names):
        raise UserError(f"{few(repeated(names))} is named more than once")
    models = []
    for name, path in zip(names, args.predictions, strict=True):
        models.append(scorer.model(name, path))
        check_same_truth(models[0], models[-1])
        print(f"\n{name}\n{describe_scores({'': models[-1].evaluation}, measurement)}")
    comparison = Comparison(models, dataset)
    rows = comparison.rows()
    for row in rows:
        if row.group == ALL:
            print(f"{row.model} minus {names[0]}: {row.metric} {row.cell}")
    steps = []
    if args.json is not None:
        steps.append(lambda: write_text(args.json, json.dumps(comparison.as_dict(rows), indent=2) + "\n"))
    if args.report:
        steps.append(lambda: comparison.write_page(args.report, rows, measurement))
    complete(*steps)


def open_split(args: argparse.Namespace) -> ReferDataset:
    """Return the split that the flags name, without tokens; its masks have the size of their images."""

    def no_tokens(texts: list[str]) -> list[list[int]]:
        return [[] for _ in texts]

    transform = PairTransform(args.img_size or 1, resize_mask=False)
    dataset = ReferDataset(open_index(args), args.split, no_tokens, transform, args.max_tokens)
    log_odd_objects(dataset, f"{title_of(args.dataset, args.splitBy, args.name)} {args.split}", left_out=False)
    return dataset


def measurement_of(args: argparse.Namespace, path: Path, dataset: ReferDataset) -> Measurement:
    """Return the description of a test for its report."""
    return Measurement(
        dataset=args.name or args.dataset,
        split_by="" if args.dataset == JSONL else args.splitBy,
        split=args.split,
        checkpoint=str(path),
        swin_type="",
        bert_type="",
        img_size=args.img_size or 0,
        n_published=counts_of(args.dataset, args.splitBy).get(args.split, (None, None))[1],
        own_size=args.img_size is None,
        overlap=args.overlap,
        unpublished=why_unpublished(
            args.dataset, args.splitBy, args.split, args.refer_data_root, (len(dataset.objects), len(dataset))
        ),
    )


def describe(args: argparse.Namespace, path: Path, evaluation: Evaluation) -> dict[str, object]:
    """Return what `--json` writes of scores."""
    content: dict[str, object] = {"dataset": args.dataset, "splitBy": args.splitBy, "split": args.split}
    content |= {"name": args.name} if args.name else {}
    content |= {"predictions": str(path), **evaluation.scores.as_dict()}
    content |= {"measured_at": "image size"} if args.img_size is None else {"img_size": args.img_size}
    content |= noted_overlap(args.dataset, args.overlap)
    return content


def check_same_truth(first: Model, other: Model) -> None:
    """Raise UserError if the two models were measured on objects or images with different numbers of pixels."""
    pairs = zip(first.evaluation.results, other.evaluation.results, strict=True)
    differs = [left.number for left, right in pairs if (left.truth, left.image) != (right.truth, right.image)]
    if differs:
        raise UserError(
            f"{first.name} and {other.name} were measured on other masks: {len(differs):,} sentences differ in the "
            f"pixels of object or image, first number {differs[0] + 1} of the split. Compare tests on the same data"
        )


class KeptMasks:
    """Stores the masks of a model; may be used instead of a report."""

    def __init__(self) -> None:
        self.masks: dict[int, PackedMask] = {}  # by index of the expression

    def add(self, index: int, mask: Places) -> None:
        """Add the prediction of an expression, (H, W) bool."""
        self.masks[index] = PackedMask.of(mask)


def parse_result(path: Path) -> dict[str, Any] | None:
    """Return the content of a file of `--json` with counts; None for any other file."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and "counts" in content else None


class Scorer:
    """Scores predictions on a split according to the flags."""

    def __init__(self, args: argparse.Namespace, dataset: ReferDataset) -> None:
        self.args, self.dataset = args, dataset
        self.has_head = False  # of the model whose predictions were read last
        self.counting = Counting(protocol_of(args.dataset), dataset.no_target, args.no_target_pixels)

    def model(self, name: str, path: Path) -> Model:
        """Return a model with its predictions, or with the counts of a result of `--json`. Raises as `score` does."""
        if path.suffix == ".json" and path.is_file() and (content := parse_result(path)):
            return Model(name, self.from_counts(path, content), {})
        masks = KeptMasks()
        return Model(name, self.score(path, masks), masks.masks)

    def _check_result(self, path: Path) -> None:
        """Raise UserError if a file of results is not of the data and the size that the flags name."""
        result, flags = read_result(path), self.args
        if result.get("expressions") == "shuffled":
            raise UserError(f"{path} is a control with shuffled expressions")
        if result.get("img_size") != flags.img_size:
            size = result.get("img_size", "the size of each image")
            raise UserError(f"{path} was measured at {size}: compare at that size (--img_size)")
        overlap = noted_overlap(flags.dataset, flags.overlap).get("overlap")
        named = {"dataset": flags.dataset, "splitBy": flags.splitBy, "split": flags.split, "overlap": overlap}
        for flag, expected in named.items():
            if result.get(flag) != expected:
                measured, wanted = (value or "that of the data set" for value in (result.get(flag), expected))
                raise UserError(
                    f"{path} was measured with --{flag} {measured}, not {wanted}: compare results of the same data"
                )

    def from_counts(self, path: Path, content: dict[str, Any]) -> Evaluation:
        """Return the scores of a result's counts.

        Raises UserError if they are not of this split at this size, or if they are impossible for any masks.
        """
        self._check_result(path)
        check(content["counts"], COUNTS, path)
        counts, expressions = content["counts"], self.dataset.expressions
        order = {sent_id: place for place, sent_id in enumerate(counts["sent_id"])}
        lengths = {len(counts[name]) for name in (*COUNTED, "sent_id", "image_id", *({"answer"} & counts.keys()))}
        if lengths != {len(expressions)} or order.keys() != {one.sent_id for one in expressions}:
            raise UserError(f"{path} has the counts of other sentences than {self.args.dataset} {self.args.split}")
        columns = [counts[name] for name in COUNTED]
        answers = counts.get("answer", [NO_ANSWER] * len(expressions))
        results = []
        for index, expression in enumerate(expressions):
            place = order[expression.sent_id]
            row = Result(index, *(column[place] for column in columns))
            if not is_possible(row) or counts["image_id"][place] != expression.image_id:
                raise UserError(f"{path}: no masks of sent_id {expression.sent_id} have its counts. Test again")
            no_target = self.counting.means_nothing(index)
            results.append(row._replace(answer=answers[place], no_target=no_target))
        return evaluation_of(results, self.counting)

    def score(self, path: Path, report: Report | KeptMasks | None = None) -> Evaluation:
        """Return the scores of predictions; report: gets their masks.

        Raises UserError, naming files and lines, for predictions that cannot be read or that the flags refuse.
        """
        answers = self.read(path)
        wrong_sizes: list[str] = []
        results = []
        for index in range(len(self.dataset)):
            truth = self.dataset.mask(index)
            size = truth.shape if self.args.img_size is None else (self.args.img_size, self.args.img_size)
            mask = self._mask(index, answers.get(index), truth.shape, size, wrong_sizes)
            result = self._count(index, mask, resized(truth, size), answers.get(index))
            results.append(result)
            if report:
                (counted,) = count_all([result], rule_of([result], self.counting), self.counting.protocol)
                report.add(index, mask if counted.predicted else np.zeros_like(mask))
        advice = "score at another size with --img_size, or resize them with --wrong-size resize"
        decide(wrong_sizes, "masks of another size", self.args.wrong_size, advice)
        return evaluation_of(results, self.counting)

    def read(self, path: Path) -> dict[int, Answer]:
        """Return the answers by index of the expression, with faults treated according to the flags."""
        expressions = self.dataset.expressions
        names = [self.dataset.image_path(index) for index in range(len(expressions))]
        files = [name.relative_to(self.dataset.image_dir).as_posix() for name in names]
        pairs = [(file, expression.text) for file, expression in zip(files, expressions, strict=True)]
        given, extra = match(read_predictions(path), [one.sent_id for one in expressions], pairs)
        several = {index: masks for index, masks in given.items() if len(masks) > 1}
        unequal = {i: masks for i, masks in several.items() if not all(masks[0].same_as(one) for one in masks[1:])}
        if len(several) > len(unequal):
            utils.log(f"{len(several) - len(unequal):,} sentences have the same mask several times, which counts once")
        duplicates = [f"sent_id {expressions[index].sent_id}: {masks[1].where}" for index, masks in unequal.items()]
        missing = [f"sent_id {one.sent_id}" for index, one in enumerate(expressions) if index not in given]
        flags = self.args
        decide(extra, "masks of no sentence of the split", flags.extra, "leave them out with --extra ignore")
        decide(duplicates, "sentences with several masks", flags.duplicate, "take the --duplicate first or last")
        decide(missing, "sentences without a mask", flags.missing, "score empty masks with --missing empty")
        answers = {index: masks[-1 if flags.duplicate == "last" else 0] for index, masks in given.items()}
        with_no_target = [answer.no_target is not None for answer in answers.values()]
        if any(with_no_target) and not all(with_no_target):
            without = next(answer.where for answer in answers.values() if answer.no_target is None)
            raise UserError(f"{without} has no no_target, but others have: give it in all of them, or in none")
        self.has_head = any(with_no_target)
        return answers

    def _mask(
        self,
        index: int,
        answer: Answer | None,
        image_size: tuple[int, ...],
        size: tuple[int, ...],
        wrong_sizes: list[str],
    ) -> Places:
        """Return a predicted mask, resized to `size`. Adds a mask of neither size to `wrong_sizes`."""
        if answer is None:
            return np.zeros(size, bool)
        mask = answer.load()
        if mask.shape not in (image_size, size):
            expected = " or ".join(dict.fromkeys(f"{width}×{height}" for height, width in (image_size, size)))
            fault = f"{mask.shape[1]}×{mask.shape[0]} pixels, expected {expected}"
            wrong_sizes.append(f"sent_id {self.dataset.expressions[index].sent_id}: {answer.where}: {fault}")
        return resized(mask.astype(np.uint8), size).astype(bool)

    def _count(self, index: int, mask: Places, truth: Pixels, answer: Answer | None) -> Result:
        counted = count_pixels(torch.from_numpy(mask)[None], torch.from_numpy(truth.astype(bool))[None])
        (counts,) = counted.tolist()
        no_target = NO_ANSWER
        if self.has_head:  # a sentence without an answer has an empty mask
            no_target = 1 if answer is None else int(bool(answer.no_target))
        return Result(index, *counts)._replace(answer=no_target, no_target=self.counting.means_nothing(index))


def decide(faults: Sequence[str], what: str, decision: str, advice: str) -> None:
    """Print the first faults of a kind and the decision. Raises UserError with them for `refuse`."""
    if not faults:
        return
    lines = [f"  {line}" for line in few_lines(faults, N_NAMED)]
    if decision == "refuse":
        raise UserError("\n".join([f"{len(faults):,} {what}:", *lines, f"Mend the predictions, or {advice}"]))
    utils.log("\n".join([f"{len(faults):,} {what} ({decision}):", *lines]))


def is_possible(row: Result) -> bool:
    """Return whether two masks of an image can have these counts."""
    fits = row.intersection <= min(row.predicted, row.truth) and row.union <= row.image
    return fits and row.union == row.predicted + row.truth - row.intersection


def resized(mask: Pixels, size: tuple[int, ...]) -> Pixels:
    """Return a mask (H, W) resized by nearest neighbour, as is usual in the field."""
    return mask if mask.shape == size else resize_mask(mask, size)


if __name__ == "__main__":
    utils.run(main)
