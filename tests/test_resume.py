"""A run interrupted anywhere and resumed is the uninterrupted one, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import train
from tests.resume_worker import interruptions
from tests.training_runs import ROOT, differences, launch, training_flags
from utils import UserError

WORKER = ROOT / "tests" / "resume_worker.py"
# (processes, precision, which interruptions)
WORLDS = [(1, "fp32", "all"), (1, "bf16", "few"), (1, "fp16", "few"), (2, "fp32", "few"), (2, "bf16", "few")]
WORLDS += [(3, "fp32", "few")]  # sums of three depend on their order


@pytest.mark.parametrize(("n_processes", "precision", "choice"), WORLDS)
def test_resumed_equals_uninterrupted(
    sample_root: Path, tmp_path: Path, n_processes: int, precision: str, choice: str
) -> None:
    """Weights, optimizer, schedule, scaler and log, of the last and of the best state; six samples a step."""
    flags = ["-b", 6 // n_processes, "--limit-train", 18, "--limit-val", 5, "--precision", precision]
    outcome = launch(n_processes, WORKER, sample_root, tmp_path, choice, *flags)
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads((tmp_path / "differences.json").read_text())
    assert found == {name: [] for name in interruptions(choice)}


CALM = ["--epochs", 2, "--limit-train", 18, "--limit-val", 5, "--workers", 0, "--dropout", 0, "--drop_path", 0]


@pytest.fixture(scope="module")
def stopped(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a run of two processes that was stopped after its second of three steps an epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    flags = training_flags(sample_root, folder, "-b", 3, *CALM)
    outcome = launch(2, ROOT / "tests" / "stop_worker.py", 2, *flags)
    assert outcome.returncode == 0, outcome.stderr
    assert f"stopped by a signal: saved, resume with --resume {folder / 'last_refcoco.pth'}" in outcome.stdout
    return folder / "last_refcoco.pth"


def losses(folder: Path) -> list[float]:
    """Return the losses of a run's steps, by the log's lines, which hold two steps or an epoch's last one."""
    lines = [json.loads(line) for line in (folder / "log_refcoco.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


def go_on(root: Path, stopped: Path, out: Path, n_processes: int, batch_size: int) -> str:
    """Go on from a state in another folder, and return what is printed."""
    flags = training_flags(root, out, "-b", batch_size, *CALM, "--resume", stopped)
    outcome = launch(n_processes, ROOT / "train.py", *flags)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def test_other_processes_go_on_at_the_same_sample(sample_root: Path, stopped: Path, tmp_path: Path) -> None:
    """Without dropout the losses are those of a run that was two processes all along."""
    go_on(sample_root, stopped, tmp_path / "pair", 2, 3)
    for batch_size, tolerance in ((3, 1e-4), (6, 0.1)):  # the batch norm of two processes sees three samples at a time
        alone = tmp_path / str(batch_size)
        text = go_on(sample_root, stopped, alone, 1, batch_size)
        assert "2 processes trained so far, 1 go on at the same sample: a step still takes 6 =" in text
        assert len(losses(alone)) == 4
        assert losses(alone)[:1] == losses(tmp_path / "pair")[:1], "before the stop"
        assert losses(alone) == pytest.approx(losses(tmp_path / "pair"), rel=tolerance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("-b 4", r"a step takes 6 samples \(2 processes trained so far\).*1 processes × --batch-size 4"),
        ("-b 3 --epochs 3", "epochs was 2 and is now 3; .*steps was 6 and is now 9"),
        ("-b 3 --limit-train 12", "steps was 6 and is now 4"),
        ("-b 3 --limit-val 4", "limit_val was 5 and is now 4"),
        ("-b 3 --swin_type tiny", "swin_type was nano and is now tiny"),
        ("-b 3 --dataset refcoco+", r"dataset was refcoco and is now refcoco\+; .*data was \w+ \w+ and is now"),
        ("-b 3 --split testA", "split was val and is now testA"),
        ("-b 3 --precision bf16", "precision was fp32 and is now bf16"),
    ],
)
def test_another_run_is_refused(
    sample_root: Path, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, message: str
) -> None:
    """Both values are named, and nothing of the run is touched."""
    before = stopped.read_bytes()
    flags = training_flags(sample_root, tmp_path, *CALM, "--resume", stopped, *change.split())
    monkeypatch.setattr("sys.argv", ["train.py", *flags])
    with pytest.raises(UserError, match=message):
        train.main()
    assert stopped.read_bytes() == before


def test_differences_are_seen(tmp_path: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison that all of this rests on finds what another seed changes."""
    flags = ["-b", 6, "--epochs", 1, "--limit-train", 6, "--limit-val", 2, "--workers", 0]
    for seed in (1, 2):
        line = training_flags(sample_root, tmp_path / str(seed), *flags, "--seed", seed)
        monkeypatch.setattr("sys.argv", ["train.py", *line])
        train.main()
    files = [tmp_path / str(seed) / "last_refcoco.pth" for seed in (1, 2)]
    assert differences(files[0], files[0]) == []
    found = differences(*files)
    assert any(name.startswith(".model.") for name in found)
    assert any(name.startswith(".log[0].loss") for name in found)
