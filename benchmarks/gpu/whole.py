"""The speed of `train.py` and `test.py` as a whole, including data, with and without a cache and with several workers.

All runs are in one process, as if each had been started by its command, but without the start of Python. Files are
written to memory if there is enough, because the disk of a rented machine is not representative.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.gpu.steps import Task, Work
from benchmarks.profile_main import run as run_script
from benchmarks.timing import describe
from data.sample.make import make_sample
from lib.texts import read_json_lines

MEMORY_DISK, ROOM = Path("/dev/shm"), 2**34  # bytes that must be free there: states of base take 2.8 GB each
CELL_SECONDS = 12.0
WORKERS = (1, 8, 4)  # the most important first
CACHE = "cache.h5"


class Setup(NamedTuple):
    """The settings of training and test."""

    images: int  # of the sample data's training split
    objects: int  # of one epoch
    batch_size: int
    network: str  # flags


SETUP = Setup(200, 480, 12, "--swin_type base --img_size 480 --pretrained_swin_weights none --ck_bert none")
QUICK = Setup(4, 8, 4, "--swin_type nano --bert_type nano --img_size 32")


@dataclass
class Whole:
    """One run of a script."""

    workers: int
    cached: bool
    script: str  # "train" or "test"
    samples_per_second: float | None = None  # of training without its first tenth; of a whole test
    data_wait: float | None = None  # fraction of that time spent waiting for data
    seconds: float | None = None  # of the whole script
    failure: str = ""


def run(task: Task) -> None:
    """Run the scripts in bf16; the network of the first training is tested."""
    with working_folder() as folder:
        setup = QUICK if task.quick else SETUP
        make_sample(folder / "data", images=setup.images, version=1)
        workers = WORKERS[:1] if task.quick else WORKERS
        ways = [Whole(*way) for way in product(workers, (False, True), ("train", "test"))]
        task.each(Work(title(way), CELL_SECONDS, partial(measure, way, setup, task, folder)) for way in ways)


def title(way: Whole) -> str:
    """Return the description of a run."""
    workers = f"{way.workers} worker{'s' if way.workers > 1 else ''}"
    return f"{way.script}.py, {workers}, {'with' if way.cached else 'without'} a cache"


@contextmanager
def working_folder() -> Iterator[Path]:
    """Yield a temporary folder, in memory if there is enough."""
    roomy = MEMORY_DISK.is_dir() and shutil.disk_usage(MEMORY_DISK).free >= ROOM
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK if roomy else None) as folder:
        yield Path(folder)


def measure(way: Whole, setup: Setup, task: Task, folder: Path) -> dict[str, list[Any]]:
    """Run a script once."""
    flags = [*setup.network.split(), "--precision", "bf16", "--device", task.device.type, "--workers", way.workers]
    flags += ["--refer_data_root", folder / "data", "--bert_tokenizer", folder / "data" / "vocab.txt"]
    flags += ["--cache", folder / CACHE] if way.cached else []
    scripts: dict[str, Callable[..., None]] = {"train": train, "test": test}
    try:
        with redirect_stdout(io.StringIO()):
            scripts[way.script](way, setup, folder, flags)
    except Exception as error:  # any failure: the other runs are still measured
        way.failure = describe(error).replace(str(folder), ".")
    return {"whole": [asdict(way)]}


def train(way: Whole, setup: Setup, folder: Path, flags: list[object]) -> None:
    """Train one epoch, and read its log without the first line, which includes the start of the workers."""
    lines = setup.objects // setup.batch_size
    more = ["--epochs", 1, "--limit-train", setup.objects, "--limit-val", 1, "--print-freq", max(1, lines // 10)]
    more += ["--batch-size", setup.batch_size, "--output-dir", folder / "out", "--overwrite"]
    way.seconds = run_script("train", [*map(str, [*flags, *more])])["main"]
    records = (record for _, record in read_json_lines(folder / "out" / "log_refcoco.jsonl"))
    settled = [record for record in records if record["kind"] == "step"][1:]
    way.samples_per_second = median(record["samples_per_second"] for record in settled)
    way.data_wait = median(record["data_wait"] for record in settled)


def test(way: Whole, setup: Setup, folder: Path, flags: list[object]) -> None:
    """Test on the training split, which is the largest."""
    scores = folder / "scores.json"
    more = ["--split", "train", "--resume", folder / "out" / "last_refcoco.pth", "--json", scores]
    spent = run_script("test", [*map(str, [*flags, *more, "--batch-size", 32])])
    way.seconds, way.data_wait = spent["main"], spent["waiting"] / spent["evaluate"]
    way.samples_per_second = json.loads(scores.read_text())["n_expressions"] / spent["evaluate"]
