"""A run interrupted anywhere and resumed is the uninterrupted one, bit for bit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import train
from errors import UserError
from tests.refer_fixture import IMAGES
from tests.training_runs import ROOT, differences, launch, training_flags

WORKER = ROOT / "tests" / "resume_worker.py"
# Processes, samples a step, which interruptions, flags.
WORLDS = [(1, 6, "one", "--precision fp32 -b 6")]
# Sums of three processes depend on their order; float16, which is slow on most CPUs, has a gradient scaler to restore.
MORE_WORLDS = [
    (1, 2, "one", "--precision fp16 -b 2"),
    (2, 6, "one", "--precision bf16 -b 1 --accumulate 3"),
    (2, 6, "few", "--precision fp32 -b 3 --checkpointing"),
    (1, 6, "all", "--precision fp32 -b 6"),
    (3, 6, "one", "--precision fp32 -b 1 --accumulate 2"),
]


@pytest.mark.parametrize(
    ("n_processes", "step", "choice", "options"),
    [*WORLDS, *[pytest.param(*world, marks=pytest.mark.slow) for world in MORE_WORLDS]],
)
def test_resumed_equals_uninterrupted(
    sample_root: Path, tmp_path: Path, n_processes: int, step: int, choice: str, options: str
) -> None:
    """Weights, optimizer, schedule, scaler and log, of the last and of the best state."""
    n_samples = step * (2 if choice == "one" else 3)
    flags = [*options.split(), "--limit-train", n_samples, "--limit-val", 5]
    outcome = launch(n_processes, WORKER, sample_root, tmp_path, choice, *flags)
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads((tmp_path / "differences.json").read_text()) == []


CALM = ["--epochs", 2, "--limit-train", 18, "--limit-val", 5, "--workers", 0, "--dropout", 0, "--drop_path", 0]


@pytest.fixture(scope="module")
def stopped(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a run of two processes that was stopped after its second of three steps an epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    flags = training_flags(sample_root, folder, "-b", 3, *CALM)
    outcome = launch(2, ROOT / "tests" / "stop_worker.py", 2, *flags)
    assert outcome.returncode == 0, outcome.stderr
    assert f"--resume {folder / 'last_refcoco.pth'}" in outcome.stdout
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


@pytest.mark.slow  # four trainings in five processes
def test_other_numbers_of_processes_resume_at_the_same_sample(sample_root: Path, stopped: Path, tmp_path: Path) -> None:
    """Without dropout the losses are those of a run that was two processes all along."""
    go_on(sample_root, stopped, tmp_path / "pair", 2, 3)
    for batch_size, tolerance in ((3, 1e-4), (6, 0.1)):  # the batch norm of two processes sees three samples at a time
        alone = tmp_path / str(batch_size)
        text = go_on(sample_root, stopped, alone, 1, batch_size)
        assert "6 = 3 per process × 2 processes before, 6 = " in text
        assert "at the same sample" in text
        assert len(losses(alone)) == 4
        assert losses(alone)[:1] == losses(tmp_path / "pair")[:1], "before the stop"
        assert losses(alone) == pytest.approx(losses(tmp_path / "pair"), rel=tolerance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("-b 4", r"6 = 3 per process × 2 processes.* 1 process.* --batch-size 4\b"),
        ("-b 3 --epochs 3", r"epochs .*\b2\b.*\b3\b"),
        ("-b 3 --limit-train 12", r"limit_train .*\b18\b.*\b12\b"),
        ("-b 3 --limit-val 4", r"limit_val .*\b5\b.*\b4\b"),
        ("-b 3 --swin_type tiny", "swin_type .*nano.*tiny"),
        ("-b 3 --dataset refcoco+", r"dataset .*refcoco .*refcoco\+"),
        ("-b 3 --split testA", "split .*val.*testA"),
        ("-b 3 --precision bf16", "precision .*fp32.*bf16"),
    ],
)
def test_another_run_is_refused(sample_root: Path, stopped: Path, tmp_path: Path, change: str, message: str) -> None:
    """Both values are named, and nothing of the run is touched."""
    before = stopped.read_bytes()
    flags = training_flags(sample_root, tmp_path, *CALM, "--resume", stopped, *change.split())
    with pytest.raises(UserError, match=message):
        train.main(flags)
    assert stopped.read_bytes() == before


def test_a_run_on_other_pixels_is_refused(sample_root: Path, stopped: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(sample_root, root)
    for path in (root / IMAGES).iterdir():
        Image.open(path).convert("L").convert("RGB").save(path)
    with pytest.raises(UserError, match="other images"):
        train.main(training_flags(root, tmp_path / "out", *CALM, "--resume", stopped, "-b", 3))


def test_another_run_is_refused_before_its_data_are_read(stopped: Path, tmp_path: Path) -> None:
    flags = training_flags(tmp_path / "no data", tmp_path, *CALM, "--resume", stopped, "-b", 3, "--lr", 0.5)
    with pytest.raises(UserError, match=r"lr was 0\.\d+ and is now 0\.5"):
        train.main(flags)


def test_other_data_are_refused(sample_root: Path, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(sample_root, tmp_path / "data")
    instances = tmp_path / "data/refcoco/instances.json"
    content = json.loads(instances.read_text())
    for one in content["images"]:
        one["file_name"] = one["file_name"].replace("COCO", "OTHER")
    instances.write_text(json.dumps(content))
    flags = training_flags(tmp_path / "data", tmp_path, *CALM, "--resume", stopped, "-b", 3)
    with pytest.raises(UserError, match=r"data was \w{16} \w{16} and is now \w{16} \w{16}"):
        train.main(flags)


@pytest.mark.slow  # three trainings
def test_the_same_command_line_resumes_repeatedly(sample_root: Path, stopped: Path, tmp_path: Path) -> None:
    """Also after the number of processes changed; another batch size in the same processes is another run."""
    shutil.copytree(stopped.parent, tmp_path / "run")
    flags = [*CALM, "--resume", "auto"]
    stop, line = ROOT / "tests" / "stop_worker.py", training_flags(sample_root, tmp_path / "run", "-b", 3, *flags)
    for now in ("6 = 3 per process × 2 processes before, 6 = 3 per process × 1 process × 2", ""):
        outcome = launch(1, stop, 1, *line)
        assert outcome.returncode == 0, outcome.stderr
        assert now in outcome.stdout
        assert "--resume " in outcome.stdout
    outcome = launch(1, stop, 1, *training_flags(sample_root, tmp_path / "run", "-b", 6, *flags, "--accumulate", 2))
    assert re.search(r"global_batch .*\b6\b.*\b12\b", outcome.stderr)


@pytest.mark.slow  # two trainings
def test_differences_are_seen(tmp_path: Path, sample_root: Path) -> None:
    """The comparison that all of this rests on finds what another seed changes."""
    flags = ["-b", 6, "--epochs", 1, "--limit-train", 6, "--limit-val", 2, "--workers", 0]
    for seed in (1, 2):
        line = training_flags(sample_root, tmp_path / str(seed), *flags, "--seed", seed)
        train.main(line)
    files = [tmp_path / str(seed) / "last_refcoco.pth" for seed in (1, 2)]
    assert differences(files[0], files[0]) == []
    found = differences(*files)
    assert any(name.startswith(".model.") for name in found)
    assert any(name.startswith(".log[0].loss") for name in found)
