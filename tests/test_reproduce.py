"""`docs/reproduce.md`: its commands exist, its numbers are the published ones, and its arithmetic is right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from benchmarks.cases import Case
from benchmarks.flops import count_flops
from CrossVLT import SegModel
from data.loaders import Batching, TrainBatches
from lib.evaluation.published import IMG_SIZE, PUBLISHED, Published
from refer.splits import counts_of
from tests.commands import Command, lines, parse

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reproduce.md"
TEXT = PAGE.read_text(encoding="utf-8")
TITLES = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "G-Ref"}
SPLIT_BY = {dataset: split_by for dataset, split_by, _ in PUBLISHED}
BATCH, EPOCHS = 12, 40
MEASURED = ROOT / "benchmarks" / "results" / "cpu-2026-11-23.json"


def found() -> list[str]:
    """Return every command of the page below its head, in blocks and in sentences."""
    text = TEXT.split("\n## ", 1)[1]
    shown = [" ".join(words) for words in lines(text)]
    return [line for line in shown + re.findall(r"`([^`\n]+)`", text) if re.match(r"(python|torchrun) ", line)]


@cache
def commands() -> list[Command]:
    return [parse(line) for line in found()]


def calls_of(module: str) -> list[Command]:
    return [command for command in commands() if command.module == module]


def tables() -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield header and rows of every table of the page."""
    for block in re.findall(r"(?:^\|.*\n)+", TEXT, flags=re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines())
        assert all(len(row) == len(header) for row in rows), header
        yield header, rows


def rows_of(*header: str) -> dict[str, list[str]]:
    """Return the rows of all tables whose header begins so: the cells behind the first, by the first."""
    found = [row for names, rows in tables() for row in rows if names[: len(header)] == list(header)]
    by_name = {row[0]: row[1:] for row in found}
    assert found and len(by_name) == len(found)
    return by_name


def title(dataset: str, split: str) -> str:
    return f"{TITLES[dataset]} {split}"


# ---------------------------------------------------------------- commands


def test_every_command_is_understood() -> None:
    """By the real parsers, which refuse unknown flags and values; modules outside of this list have no command here."""
    modules = {"train", "test", "refer.prepare", "lib.weights", "benchmarks", "benchmarks.memory"}
    assert {command.module for command in commands()} == modules
    for command in calls_of("train"):
        # Flags in the command lines of the recipe are also the defaults.
        assert command.args.lr == 3e-5 and command.args.epochs == EPOCHS and command.args.img_size == IMG_SIZE


@pytest.mark.parametrize("dataset", TITLES)
def test_every_data_set_is_prepared_and_trained_in_three_ways(dataset: str) -> None:
    """Two GPUs as published, and two ways of making the same step on one."""
    prepared = [command.args for command in calls_of("refer.prepare") if command.args.dataset == dataset]
    assert [(args.splitBy, args.check) for args in prepared] == [(SPLIT_BY[dataset], False), (SPLIT_BY[dataset], True)]
    trainings = [command for command in calls_of("train") if command.args.dataset == dataset]
    spread = [Batching(c.args.batch_size, c.processes, c.args.accumulate) for c in trainings]
    assert spread == [Batching(6, 2, 1), Batching(12, 1, 1), Batching(6, 1, 2)]
    assert {batching.total for batching in spread} == {BATCH}
    for command in trainings:
        assert (command.args.splitBy, command.args.split) == (SPLIT_BY[dataset], "val")
        assert (command.args.swin_type, command.args.bert_type, command.args.loss) == ("base", "base", "ce")
        assert command.args.output_dir == "./checkpoints/own", "a training must not meet the released weights"


@pytest.mark.parametrize(("dataset", "split_by", "split"), PUBLISHED)
def test_every_row_is_tested_with_released_and_with_own_weights(dataset: str, split_by: str, split: str) -> None:
    found = [
        command.args.resume
        for command in calls_of("test")
        if (command.args.dataset, command.args.splitBy, command.args.split) == (dataset, split_by, [split])
    ]
    for command in calls_of("test"):
        args = command.args
        assert (args.img_size, args.overlap, args.precision, args.swin_type) == (IMG_SIZE, None, "fp32", "base")
        assert not args.eval_ori_size and not args.shuffle_expressions
    assert found == [f"./checkpoints/best_{dataset}.pth", f"./checkpoints/own/best_{dataset}.pth"]


def test_named_flags_exist() -> None:
    """In the text and in the table of choices."""
    known = set.union(*(command.flags for command in commands()))
    named = set(re.findall(r"--[a-zA-Z][\w-]*", TEXT)) - {"--nproc_per_node"}
    assert named <= known, named - known
    for flag in ("--train-temperature", "--train-embeddings", "--loss", "--eval_ori_size", "--overlap"):
        assert flag in named


def test_choices_are_read_by_the_parsers() -> None:
    choices = rows_of("choice", "published or released")
    assert len(choices) == 5
    for _, default, other, _ in choices.values():
        for text in re.findall(r"`([^`]+)`", f"{default} {other}"):
            script = "test.py" if text.startswith("test.py") else "train.py"
            flags = text.removeprefix("test.py …").strip()
            command = parse(f"python {script} --resume x.pth {flags}")
            assert vars(command.args)[flags.split()[0].removeprefix("--").replace("-", "_")]


def test_tests_and_measurements_that_are_named_exist() -> None:
    for name in re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py)`", TEXT):
        assert (ROOT / name).is_file(), name


# ---------------------------------------------------------------- numbers


def numbers(row: Published) -> list[str]:
    return [f"{value:.2f}" for value in (*row.precision, row.mean_iou, row.overall_iou)]


def test_all_eight_rows_are_the_published_ones() -> None:
    names = ["published", *(f"P@0.{tenths}" for tenths in range(5, 10)), "mIoU", "oIoU", "expressions"]
    expected = {
        title(dataset, split): [*numbers(row), f"{counts_of(dataset, split_by)[split][1]:,}"]
        for (dataset, split_by, split), row in PUBLISHED.items()
    }
    assert len(expected) == 8
    assert rows_of(*names) == expected


def test_the_row_that_repeats_another_network_is_marked() -> None:
    (row,) = (row for row in PUBLISHED.values() if row.repeats_lavt)
    assert f"In the test row only the overall IoU {row.overall_iou:.2f} is a target" in TEXT
    assert f"LAVT, and the {row.mean_iou:.2f}" in TEXT.replace("\n", " ")


@cache
def flops(*, training: bool) -> int:
    """Of one sample of base."""
    return count_flops(Case("base", IMG_SIZE, 1), training=training)


@pytest.mark.slow  # counts a training step of base
def test_operations_of_a_sample() -> None:
    assert f"{flops(training=True) / 1e9:,.1f}\nGFLOP in training" in TEXT
    assert f"{flops(training=False) / 1e9:,.1f} GFLOP in a forward pass" in TEXT


@pytest.mark.slow
def test_operations_are_those_of_the_released_implementation() -> None:
    """411.6 GFLOP with what it computes in evaluation though nobody reads it."""
    unread = sum(2 * (120 >> i) ** 2 * (128 << i) * 256 for i in range(4))  # alignment's projection of every stage
    unread += 2 * 2 * 15**2 * 1024**2  # the last stage's gate
    assert (flops(training=False) + unread) / 1e9 == pytest.approx(411.6, abs=0.1)
    assert 2.9 < flops(training=True) / flops(training=False) < 3.1


class Work(NamedTuple):
    """What the training on a data set takes."""

    objects: int
    steps: int  # of an epoch
    expressions: int  # of val

    @property
    def training(self) -> int:
        return self.steps * BATCH * EPOCHS * flops(training=True)

    @property
    def validations(self) -> int:
        return self.expressions * EPOCHS * flops(training=False)


def sentences(counts: tuple[int | None, int | None]) -> int:
    assert counts[1] is not None
    return counts[1]


def work(dataset: str) -> Work:
    counts = counts_of(dataset, SPLIT_BY[dataset])
    objects = counts["train"][0]
    assert objects is not None
    batches = TrainBatches([[number] for number in range(objects)], Batching(6, 2), seed=0)
    return Work(objects, batches.steps, sentences(counts["val"]))


def measured(part: str, swin_type: str, precision: str) -> tuple[float, float]:
    """Return seconds and operations per second of this project's own eager variant on the CPU."""
    for row in json.loads(MEASURED.read_text())["rows"]:
        name = (row["part"], row["swin_type"], row["variant"], row["img_size"])
        if name == (part, swin_type, f"eager {precision}", IMG_SIZE):
            return row["median"], row["flops"] / row["median"]
    raise AssertionError(f"{part} of {swin_type} in {precision} was not measured")


@pytest.mark.slow  # counts a training step of base
def test_steps_and_operations_of_a_training() -> None:
    expected = {}
    for dataset, name in TITLES.items():
        own = work(dataset)
        parts = (own.training, own.validations, own.training + own.validations)
        counts = (own.objects, own.steps, own.steps * EPOCHS)
        expected[name] = [*(f"{count:,}" for count in counts), *(f"{part / 1e18:.3f}" for part in parts)]
    assert rows_of("training", "objects") == expected


@pytest.mark.slow  # counts a training step of base
def test_hours_of_a_training() -> None:
    expected = {}
    for dataset, name in TITLES.items():
        own = work(dataset)
        total = own.training + own.validations
        cells = [f"{total / (rate * 1e12) / 3600:.1f}" for rate in (20, 50, 100)]
        for precision in ("fp32", "bf16"):
            _, rate = measured("training", "tiny", precision)
            seconds, _ = measured("forward", "base", precision)
            days = (own.training / rate + own.expressions * EPOCHS * seconds) / 86400
            cells.append(f"{days:.0f}")
        expected[name] = cells
    assert rows_of("training", "20 TFLOP/s, h") == expected


def test_speeds_are_the_measured_ones() -> None:
    text = TEXT.replace("\n", " ")
    rates = [measured("training", "tiny", precision)[1] / 1e9 for precision in ("fp32", "bf16")]
    assert f"ran at {rates[0]:.0f} GFLOP/s in fp32 and {rates[1]:.0f} GFLOP/s in bf16" in text
    seconds = [measured("forward", "base", precision)[0] for precision in ("fp32", "bf16")]
    assert f"took {seconds[0]:.3f} s and {seconds[1]:.3f} s" in text


@pytest.mark.slow  # counts a forward pass of base
def test_hours_of_a_test() -> None:
    expected = {}
    for dataset, split_by, split in PUBLISHED:
        expressions = sentences(counts_of(dataset, split_by)[split])
        operations = expressions * flops(training=False)
        hours = [expressions * measured("forward", "base", precision)[0] / 3600 for precision in ("fp32", "bf16")]
        cells = [f"{expressions:,}", f"{operations / 1e15:.2f}", f"{operations / 20e12 / 60:.1f}"]
        expected[title(dataset, split)] = [*cells, *(f"{value:.1f}" for value in hours)]
    assert rows_of("test", "expressions") == expected


@pytest.mark.slow
def test_parameters_and_least_memory() -> None:
    with torch.device("meta"):
        model, other = SegModel(), SegModel(train_embeddings=True)
    everything, trained, more = (
        sum(p.numel() for p in network.parameters() if p.requires_grad or not only_trained)
        for network, only_trained in ((model, False), (model, True), (other, True))
    )
    assert f"{more - trained:,} more parameters" in TEXT
    held = (4 * everything + 2 * 4 * trained) / 2**30
    assert f"{held:.1f} GiB of weights and AdamW's state" in TEXT
    assert f"{4 * trained / 2**30:.1f} GiB of gradients" in TEXT
    kept = {"without options, GiB": 1853, "`--checkpointing`, GiB": 425}  # MiB for an image: docs/performance.md
    measured_there = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert "1853 to 425 MiB for one image in fp32" in " ".join(measured_there.split())
    expected = {name: [f"{held + n * mib / 1024:.1f}" for n in (6, 12)] for name, mib in kept.items()}
    assert rows_of("images of a process at a time, fp32") == expected
    for setting, gib in (("--precision fp32", "5.76"), ("--precision fp32 --checkpointing", "4.83")):
        assert f"| `{setting}` | {gib} |" in measured_there and gib in TEXT
