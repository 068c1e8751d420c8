"""`train.py` and `test.py` on the sample data: whole commands, each in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from data.sample.make import make_sample
from lib.files import ROOT
from lib.texts import read_json_lines

SPLITS = ("testA", "testB")
WORKERS = 2
ONE_AT_A_TIME = "one sentence at a time"
PARTS = ("command", "main", "evaluate")  # see Evaluation.seconds


class Setup(NamedTuple):
    """The settings of training and test."""

    images: int  # in the training split of the sample data set; the other splits have a tenth
    epochs: int
    batch_size: int
    network: str  # flags
    training: str  # flags
    ways: tuple[str, ...]  # flags of `test.py`, a row each


NANO = "--swin_type nano --bert_type nano --img_size 56"
SETUPS = {
    "cpu": Setup(400, 4, 16, NANO, "--lr 0.001", ("", "--precision bf16")),
    "cuda": Setup(
        400,
        4,
        16,
        "--swin_type base --img_size 480 --pretrained_swin_weights none --ck_bert none",
        "--lr 0.0001 --precision bf16 --compile",
        ("", "--precision bf16", "--precision bf16 --compile"),
    ),
}
QUICK = Setup(16, 2, 16, NANO, "--lr 0.001", ("",))


@dataclass
class Evaluation:
    """The results of one way of evaluating the test sets."""

    name: str
    # Of every repeat, all splits together, by what is counted: "command", from the start of the process to its end;
    # "main", without the start of Python and the imports; "evaluate", the loop over the samples alone.
    seconds: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    scores: dict[str, Any] = field(default_factory=dict)  # by split
    failure: str = ""

    def median(self, part: str) -> float:
        """Return the median time of a part in seconds."""
        return median(self.seconds[part])

    @property
    def n_expressions(self) -> int:
        """Number of scored sentences."""
        return sum(scores["n_expressions"] for scores in self.scores.values())


@dataclass
class Training:
    """One run of `train.py`."""

    name: str
    command_seconds: float | None = None  # of the whole process, building the cache included
    epochs: list[dict[str, Any]] = field(default_factory=list)  # the log's lines
    failure: str = ""

    def settled(self, name: str) -> float:
        """Return the median of a value over epochs, without the first epoch, which starts workers and compiles."""
        values: list[float] = [epoch[name] for epoch in self.epochs[1:]]
        return median(values)


class CommandError(RuntimeError):
    """A command ended with an error; the message is its last line."""


class EndToEnd:
    """Commands on a sample data set in a separate folder."""

    def __init__(self, setup: Setup, device: torch.device, folder: Path) -> None:
        """Draw the data set."""
        self.setup, self.device, self.folder = setup, device, folder
        self.data, self.trained = folder / "data", folder / "trained"
        make_sample(self.data, images=setup.images, version=1)

    def train(self) -> list[Training]:
        """Train with and without a cache; the network of the run without a cache is kept for testing."""
        cached = self._train("train.py --cache", self.folder / "cached", "--cache", self.folder / "cache.h5")
        return [self._train("train.py", self.trained), cached]

    def _train(self, name: str, out: Path, *more: object) -> Training:
        setup, run = self.setup, Training(name)
        flags = [*setup.network.split(), *setup.training.split(), "--epochs", setup.epochs, "--limit-val", 1]
        flags += ["--batch-size", setup.batch_size, "--dropout", 0, "--drop_path", 0, "--output-dir", out, *more]
        try:
            run.command_seconds, _ = self._run("train", flags)
        except CommandError as error:
            run.failure = str(error)
            return run
        records = (record for _, record in read_json_lines(out / "log_refcoco.jsonl"))
        run.epochs = [record for record in records if record["kind"] == "epoch"]
        return run

    def evaluate(self, repeats: int) -> list[Evaluation]:
        """Test the trained network in every way, in turn."""
        rows = {ONE_AT_A_TIME: Evaluation(ONE_AT_A_TIME)}
        rows |= {way: Evaluation(f"test.py {way}".strip()) for way in self.setup.ways}
        for _ in range(repeats):
            for way, row in rows.items():
                if row.failure:
                    continue
                plain = way == ONE_AT_A_TIME
                try:
                    self._evaluate(row, "benchmarks.plain_test" if plain else "test", "" if plain else way)
                except CommandError as error:
                    row.failure = str(error)
        return list(rows.values())

    def _evaluate(self, row: Evaluation, script: str, way: str) -> None:
        """Test all splits once."""
        total = dict.fromkeys(PARTS, 0.0)
        for split in SPLITS:
            scores = self.folder / "scores.json"
            flags = ["--resume", self.trained / "last_refcoco.pth", "--split", split, "--json", scores, *way.split()]
            command, inside = self._run(script, [*flags, "--batch-size", 2 * self.setup.batch_size])
            for part in PARTS:
                total[part] += ({"command": command} | inside)[part]
            row.scores[split] = json.loads(scores.read_text())
            del row.scores[split]["checkpoint"]  # in a folder that is removed
        for part, spent in total.items():
            row.seconds[part].append(spent)

    def _run(self, script: str, flags: list[object]) -> tuple[float, dict[str, float]]:
        """Run a script in a separate process; return the time of the process and of its parts in seconds."""
        inside = self.folder / "seconds.json"
        flags = [*flags, "--refer_data_root", self.data, "--bert_tokenizer", self.data / "vocab.txt"]
        flags += ["--workers", WORKERS, "--device", self.device]
        line = [sys.executable, "-m", "benchmarks.profile_main", inside, script, *flags]
        start = time.perf_counter()
        ended = subprocess.run([*map(str, line)], capture_output=True, text=True, check=False, cwd=ROOT)
        spent = time.perf_counter() - start
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
            raise CommandError(last.replace(str(self.folder), "."))
        return spent, json.loads(inside.read_text())
