"""How fast `train.py` and `test.py` are as a whole, data included: with and without a cache, with several workers.

All run in one process, one after another, as if each had been started by its command: only the start of Python is not
repeated. Files go to memory if there is room, for the disk of a rented machine says little about anybody's own.
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

MEMORY_DISK, ROOM = Path("/dev/shm"), 2**34  # bytes that must be free there: states of base take 2.8 GB each
CELL_SECONDS = 12.0
WORKERS = (1, 8, 4)  # what says most first
CACHE = "cache.h5"


class Setup(NamedTuple):
    """What is trained and tested."""

    images: int  # of the sample data's training split
    objects: int  # of one epoch
    batch_size: int
    network: str  # flags


SETUP = Setup(200, 480, 12, "--swin_type base --img_size 480 --pretrained_swin_weights none --ck_bert none")
QUICK = Setup(6, 16, 4, "--swin_type nano --bert_type nano --img_size 56")


@dataclass
class Whole:
    """One run of a script."""

    workers: int
    cached: bool
    script: str  # "train" or "test"
    samples_per_second: float | None = None  # of training without its first tenth; of a whole test
    data_wait: float | None = None  # share of that time in which data were waited for
    seconds: float | None = None  # of all that the script does
    failure: str = ""


def run(task: Task) -> None:
    """Run the scripts in bf16; the first training leaves the network that is tested."""
    with working_folder() as folder:
        setup = QUICK if task.quick else SETUP
        make_sample(folder / "data", images=setup.images)
        workers = WORKERS[:1] if task.quick else WORKERS
        ways = [Whole(*way) for way in product(workers, (False, True), ("train", "test"))]
        task.each(Work(title(way), CELL_SECONDS, partial(measure, way, setup, task, folder)) for way in ways)


def title(way: Whole) -> str:
    """Return what a run is, in words."""
    workers = f"{way.workers} worker{'s' if way.workers > 1 else ''}"
    return f"{way.script}.py, {workers}, {'with' if way.cached else 'without'} a cache"


@contextmanager
def working_folder() -> Iterator[Path]:
    """Yield a folder that is removed afterwards."""
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
    except Exception as error:  # of any kind: the other ways are measured all the same
        way.failure = describe(error).replace(str(folder), ".")
    return {"whole": [asdict(way)]}


def train(way: Whole, setup: Setup, folder: Path, flags: list[object]) -> None:
    """Train one epoch, and read its log, whose first line starts workers and so does not count."""
    lines = setup.objects // setup.batch_size
    more = ["--epochs", 1, "--limit-train", setup.objects, "--limit-val", 1, "--print-freq", max(1, lines // 10)]
    more += ["--batch-size", setup.batch_size, "--output-dir", folder / "out", "--overwrite"]
    way.seconds = run_script("train", [*map(str, [*flags, *more])])["main"]
    records = map(json.loads, (folder / "out" / "log_refcoco.jsonl").read_text().splitlines())
    settled = [record for record in records if record["kind"] == "step"][1:]
    way.samples_per_second = median(record["samples_per_second"] for record in settled)
    way.data_wait = median(record["data_wait"] for record in settled)


def test(way: Whole, setup: Setup, folder: Path, flags: list[object]) -> None:
    """Test on what was trained on, which is most of the data."""
    scores = folder / "scores.json"
    more = ["--split", "train", "--resume", folder / "out" / "last_refcoco.pth", "--json", scores]
    spent = run_script("test", [*map(str, [*flags, *more, "--batch-size", 32])])
    way.seconds, way.data_wait = spent["main"], spent["waiting"] / spent["evaluate"]
    way.samples_per_second = json.loads(scores.read_text())["n_expressions"] / spent["evaluate"]
