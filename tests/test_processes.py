"""Several processes give what one gives, and end together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bert.tokenizer import build_tokenizer
from data.dataset_refer_bert import ReferDataset
from data.loaders import Batching, TrainBatches, evaluation_batches
from data.transforms import PairTransform
from refer.refer import REFER
from tests.helpers import wait_until
from tests.training_runs import (
    ROOT,
    launch,
    launch_anew,
    launch_by_forks,
    start,
    start_under_launcher,
    training_flags,
)
from tests.warm import Script

WORKER = ROOT / "tests" / "process_worker.py"
# (processes, samples per process, accumulated batches): six samples a step in every one; 0: evaluation only
SEED = 12345  # train.py's default
SPREADS = {"1": (1, 6, 1), "1, accumulated": (1, 2, 3), "2": (2, 3, 1), "3, accumulated": (3, 1, 2), "5": (5, 0, 1)}


@pytest.fixture(scope="module")
def result(few_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict]:
    """What `process_worker.py` measures in a spread, once."""
    folder = tmp_path_factory.mktemp("processes")

    @cache
    def measured(spread: str) -> dict:
        n_processes, batch_size, accumulate = SPREADS[spread]
        file = folder / f"{spread}.json"
        outcome = launch(n_processes, WORKER, few_root, batch_size, accumulate, file)
        assert outcome.returncode == 0, outcome.stderr
        return json.loads(file.read_text())

    return measured


@pytest.mark.parametrize("spread", ["1, accumulated", "2", "3, accumulated"])
@pytest.mark.slow  # trains in every spread
def test_loss_curve_is_that_of_one_process(result: Callable[[str], dict], spread: str) -> None:
    for name in ("losses", "masked_losses"):
        assert result(spread)[name] == pytest.approx(result("1")[name], rel=1e-5)
    assert result("1")["masked_losses"] != result("1")["losses"]


@pytest.mark.parametrize("spread", ["2", "3, accumulated", "5"])
@pytest.mark.slow  # up to five processes
def test_scores_are_those_of_one_process_to_the_last_digit(result: Callable[[str], dict], spread: str) -> None:
    n_processes = SPREADS[spread][0]
    assert result("1")["n_expressions"] % n_processes, "shards must be uneven for this test"
    assert result(spread)["scores"] == result("1")["scores"]
    assert result("1")["scores"]["overall_iou"] > 0


@pytest.mark.parametrize(
    "run",
    [launch, launch_anew, partial(launch_by_forks, module="torch.distributed.launch")],
    ids=["forked", "torchrun", "torch.distributed.launch"],
)
@pytest.mark.slow  # trains in two processes
def test_train_script_runs_in_two_processes(
    sample_root: Path, tmp_path: Path, run: Callable[..., CompletedProcess]
) -> None:
    """The last launcher passes `--local-rank`; last and best are written once, and every process ends well."""
    few = ["--limit-train", 8, "--limit-val", 6]
    flags = training_flags(sample_root, tmp_path, "-b", 4, "--workers", 0, "--epochs", 1, *few)
    outcome = run(2, ROOT / "train.py", *flags)
    assert outcome.returncode == 0, outcome.stderr
    assert {"best_refcoco.pth", "last_refcoco.pth", "log_refcoco.jsonl", "run_refcoco.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert outcome.stdout.count("  oIoU") == 1
    assert "8 = 4 per process × 2 processes" in outcome.stdout
    assert "batch norm is not synchronised" in outcome.stdout


@pytest.mark.slow  # trains in two processes until one fails
@pytest.mark.parametrize(
    ("begin", "split"),
    [(start, "train"), (start, "val"), (start_under_launcher, "val"), (start_under_launcher, "train")],
    ids=["forked-train", "forked-val", "torchrun-val", "torchrun-train"],
)
def test_an_error_in_one_process_ends_all_within_seconds(
    sample_root: Path, tmp_path: Path, split: str, begin: Callable[..., list[Script]]
) -> None:
    """Broken data that the second process comes to first, in training or in validation; a message names it."""
    root, output = tmp_path / "data", tmp_path / "output.txt"
    shutil.copytree(sample_root, root)
    name = break_image(root, split)
    soon = ["--limit-train", 8] if split == "val" else []
    flags = training_flags(root, tmp_path / "out", "-b", 4, "--workers", 1, "--epochs", 50, *soon)
    processes = begin(2, ROOT / "train.py", *flags, output=output)

    def message_came() -> bool:
        return any(line.startswith("error") and name in line for line in output.read_text().splitlines())

    def all_ended() -> bool:
        return all(process.poll() is not None for process in processes)

    try:
        wait_until(lambda: message_came() or all_ended())
        wait_until(all_ended, seconds=15)
    finally:
        for process in processes:
            process.kill()
    text = output.read_text()
    assert message_came(), text
    assert 0 not in [process.poll() for process in processes]
    assert text.count("Traceback") <= (begin is start_under_launcher), "none but the launcher's own"


def break_image(root: Path, split: str) -> str:
    """Cut an image short that process 1, of 2 with batches of 4, reads well before process 0; return its name."""
    tokenizer = build_tokenizer(str(root / "vocab.txt"))
    dataset = ReferDataset(REFER(str(root), "refcoco", "unc"), split, tokenizer, PairTransform(32))
    if split == "val":
        shards = [evaluation_batches(dataset, 4, rank=rank, world_size=2) for rank in (0, 1)]
    else:
        spread = Batching(4, processes=2)
        draws = [TrainBatches(dataset.objects, spread, seed=SEED, rank=rank) for rank in (0, 1)]
        shards = [[[draw.number for draw in batch] for batch in batches] for batches in draws]
    first = [
        {dataset.image_path(index): number for number, batch in reversed([*enumerate(shard)]) for index in batch}
        for shard in shards
    ]
    ahead = {path: first[0].get(path, len(shards[0])) - number for path, number in first[1].items()}
    path = max(ahead, key=ahead.__getitem__)
    assert ahead[path] >= 1
    path.write_bytes(path.read_bytes()[:100])
    return path.name


# In process 1 a picture cannot be drawn. Afterwards each process tells what it saw, and what all others did.
REPORT = """
import sys
from pathlib import Path
import torch
import utils
from errors import UserError
from lib.evaluation.metrics import Metrics
from lib.evaluation.report import Report
from tests.test_report import MEASURED, Dataset

def fail(index):
    raise UserError(f"there is no image {index}")

def main():
    utils.start_processes(torch.device("cpu"))
    masks = torch.ones(2, 4, 4, dtype=torch.int64)
    dataset, metrics, own = Dataset(masks), Metrics(), torch.tensor([utils.rank()])
    if utils.rank() == 1:
        dataset.load = fail
    report = Report(sys.argv[1], dataset)
    for mask in metrics.update(torch.stack([1 - masks, masks], dim=1)[own].float(), masks[own], own):
        report.add(utils.rank(), mask.numpy())
    metrics.reduce()
    told = ""
    try:
        report.write(metrics.compute(), MEASURED)
    except UserError as error:
        told = str(error)
    seen = utils.gather((utils.rank(), told))
    Path(sys.argv[1], f"{utils.rank()}.txt").write_text(repr(seen))

utils.run(main)
"""


@pytest.mark.slow  # two processes
def test_a_picture_that_fails_in_one_process_is_an_error_in_all(tmp_path: Path) -> None:
    """And none of them takes what another gathers next for an answer to its own."""
    outcome = launch(2, "-c", REPORT, tmp_path, timeout=60)
    assert outcome.returncode == 0, outcome.stderr
    expected = repr([(0, "there is no image 1"), (1, "there is no image 1")])
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == [expected] * 2
    assert not (tmp_path / "index.html").exists()
