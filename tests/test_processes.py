"""Several processes give what one gives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORKER = Path(__file__).parent / "process_worker.py"


def launch(n_processes: int, *command: object, module: str = "torch.distributed.run") -> subprocess.CompletedProcess:
    """Run a script in several processes with one of PyTorch's launchers, or plainly for one."""
    launcher = []
    if n_processes > 1:
        with socket.socket() as probe:  # a port that is free now
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = ["-m", module, "--nproc_per_node", str(n_processes), "--master_port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *launcher, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
    )


@pytest.fixture(scope="module")
def results(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """What `process_worker.py` measured, by number of processes; the global batch is six in every one."""
    folder = tmp_path_factory.mktemp("processes")
    found = {}
    for n_processes in (1, 2, 3):
        file = folder / f"{n_processes}.json"
        outcome = launch(n_processes, WORKER, sample_root, 6 // n_processes, file)
        assert outcome.returncode == 0, outcome.stderr
        found[n_processes] = json.loads(file.read_text())
    return found


@pytest.mark.parametrize("n_processes", [2, 3])
def test_loss_curve_is_that_of_one_process(results: dict[int, dict], n_processes: int) -> None:
    assert results[n_processes]["losses"] == pytest.approx(results[1]["losses"], rel=1e-5)


@pytest.mark.parametrize("n_processes", [2, 3])
def test_scores_are_those_of_one_process_to_the_last_digit(results: dict[int, dict], n_processes: int) -> None:
    assert results[1]["n_expressions"] % n_processes, "shards must be uneven for this test"
    assert results[n_processes]["scores"] == results[1]["scores"]
    assert results[1]["scores"]["overall_iou"] > 0


@pytest.mark.parametrize("module", ["torch.distributed.run", "torch.distributed.launch"])
def test_train_script_runs_under_both_launchers(sample_root: Path, tmp_path: Path, module: str) -> None:
    """The second passes `--local-rank`; last and best are written once, and every process ends well."""
    flags = "--swin_type nano --bert_type nano --img_size 64 -b 20 --workers 0 --epochs 1 --lr 1e-3 --device cpu"
    outcome = launch(
        2,
        ROOT / "train.py",
        *flags.split(),
        "--refer_data_root",
        sample_root,
        "--bert_tokenizer",
        sample_root / "vocab.txt",
        "--output-dir",
        tmp_path,
        module=module,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best_refcoco.pth",
        "last_refcoco.pth",
        "log_refcoco.jsonl",
    ]
    assert outcome.stdout.count("Overall IoU") == 1
