"""`python -m benchmarks.gpu`: its steps, what is kept of a run that is cut off, and the report. No time is measured."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import torch

import utils
from benchmarks import tables
from benchmarks.cases import Case
from benchmarks.compare import Row
from benchmarks.flops import count_flops
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import correct, environment, packages, steps
from benchmarks.gpu.cells import MIDDLE, compiled_cells, eager_cells
from benchmarks.gpu.combine import combine
from benchmarks.gpu.correct import Notes
from benchmarks.gpu.eager import CELL_SECONDS, seconds_of
from benchmarks.gpu.profiling import Interval, intervals, summarise
from benchmarks.gpu.steps import Sheet, Step, Task, Work, read_sheet, run_steps
from benchmarks.peak_memory import in_subprocess
from benchmarks.report import as_json, markdown
from benchmarks.roofline import Rate
from benchmarks.variants import PLAIN, Variant
from errors import UserError
from lib.variants import PRECISIONS
from tests import training_runs
from tests.helpers import free_port, naming, wait_until
from tests.training_runs import ROOT, launch
from tests.warm import Script

CPU = torch.device("cpu")


# ---------------------------------------------------------------- steps


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Steps, by name, each a piece of Python that finds the name of its file in `out`."""
    codes: dict[str, str] = {}

    def line(step: Step, out: Path, seconds: float, flags: list[str]) -> list[str]:
        return [sys.executable, "-c", f"import os, pathlib, sys, time\nout = {str(out)!r}\n{codes[step.name]}"]

    monkeypatch.setattr(steps, "command", line)
    monkeypatch.setattr(steps, "LEAST", 3.0)
    return codes


WRITE = "pathlib.Path(out, '{}.json').write_text('{{\"found\": [1]}}')\n"


def run(scripted: dict[str, str], out: Path, minutes: float = 1.0) -> list[str]:
    """Run the scripted steps; return the names of those that had ended at each report."""
    ended: list[str] = []

    def report() -> None:
        ended.extend(name for name in scripted if name not in ended and "failure" in content(out, name))

    run_steps([Step(name, "a step", 0.1) for name in scripted], out, minutes, [], report)
    return ended


def content(out: Path, name: str) -> dict:
    return read_sheet(out, Step(name, "", 0.0)).content


def test_a_failed_step_is_reported_and_the_next_one_runs(scripted: dict[str, str], tmp_path: Path) -> None:
    scripted["bad"] = WRITE.format("bad") + f"sys.exit('error: no luck in {ROOT}/lib')"
    scripted["good"] = WRITE.format("good")
    assert run(scripted, tmp_path) == ["bad", "good"]
    assert content(tmp_path, "bad") | {"seconds": 0} == {
        "found": [1],
        "seconds": 0,
        "failure": "error: no luck in ./lib",
    }
    assert content(tmp_path, "good")["failure"] == ""


def test_a_hanging_step_is_killed_with_its_children_and_keeps_its_results(
    scripted: dict[str, str], tmp_path: Path
) -> None:
    child = tmp_path / "child"
    scripted["hangs"] = WRITE.format("hangs") + (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(child)!r}).write_text(str(child.pid))\n"
        "time.sleep(600)"
    )
    scripted["next"] = WRITE.format("next")
    begin = time.monotonic()
    assert run(scripted, tmp_path, minutes=0.001) == ["hangs", "next"]
    assert time.monotonic() - begin < 60
    assert content(tmp_path, "hangs")["found"] == [1]
    assert "its time was up" in content(tmp_path, "hangs")["failure"]
    wait_until(lambda: not alive(int(child.read_text())), seconds=30)
    assert content(tmp_path, "next")["failure"] == ""


def test_a_stopped_run_ends_its_children(
    scripted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results so far are reported while the step still runs."""
    monkeypatch.setattr(steps, "REPORT_EVERY", 0.2)
    child = tmp_path / "child"
    started = f"pathlib.Path({str(child)!r}).write_text(str(os.getpid()))\n"
    scripted["slow"] = started + WRITE.format("slow") + "time.sleep(600)"

    def report() -> None:
        if content(tmp_path, "slow"):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), steps.stopped_by_sigterm():
        run_steps([Step("slow", "a step", 1.0)], tmp_path, 10.0, [], report)
    wait_until(lambda: not alive(int(child.read_text())), seconds=30)


def test_a_stopped_run_leaves_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        (tmp_path / "environment.json").write_text('{"environment": {"device": "H100"}}')
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_steps", stopped)
    with pytest.raises(KeyboardInterrupt):
        command.main(["--quick", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("gpu-cpu-*.json")
    found = json.loads(file.read_text())
    assert found["environment"] == {"device": "H100"}
    assert [(step["name"], step["failure"]) for step in found["steps"]] == [("environment", "cut off")]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for it")
def test_a_step_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """Killed by force, the command cannot end its step itself."""
    wait = "time.sleep(600)"
    step = "import os, time; from benchmarks.gpu.steps import end_with_parent; end_with_parent()\n"
    step += f"print(os.getpid(), flush=True); {wait}"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {step!r}]); {wait}"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    number = int(process.stdout.readline())
    assert alive(number)
    process.kill()
    process.wait()
    process.stdout.read()  # ends when nobody holds the other end any more
    wait_until(lambda: not alive(number), seconds=30)  # the pipe closes a moment before the process is gone


def alive(number: int) -> bool:
    """Tell whether a process runs; one that has ended but was not fetched does not."""
    status = Path(f"/proc/{number}/status")
    return status.exists() and "Z (zombie)" not in status.read_text()


def test_steps_share_the_minutes_and_return_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, given = [1000.0], {}
    takes = {"environment": 5.0, "eager": 40.0}  # all others everything that they are given

    def run_step(step: Step, out: Path, seconds: float, *_: object) -> dict:
        given[step.name] = seconds
        clock[0] += takes.get(step.name, seconds)
        return {"seconds": 0.0, "failure": ""}

    monkeypatch.setattr(steps, "run_step", run_step)
    monkeypatch.setattr(steps.time, "monotonic", lambda: clock[0])
    run_steps(steps.STEPS, tmp_path, 8.0, [], lambda: None)
    shares = {step.name: 480 * step.share for step in steps.STEPS}
    assert sum(shares.values()) == pytest.approx(480)
    assert given == pytest.approx(
        shares
        | {
            "correct": shares["correct"] + shares["environment"] - 5,
            "compiled": shares["compiled"] + shares["eager"] - 40,
        }
    )
    assert clock[0] == pytest.approx(1480)


def test_files_of_an_earlier_run_are_no_results(scripted: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "silent.json").write_text('{"found": [7]}')
    scripted["silent"] = ""
    run(scripted, tmp_path)
    assert "found" not in content(tmp_path, "silent")


def task(folder: Path, seconds: float) -> Task:
    return Task(CPU, True, time.monotonic() + seconds, Sheet(folder / "step.json", {}), folder)


def test_cells_are_written_at_once_and_none_begins_that_cannot_end(tmp_path: Path) -> None:
    own, seen = task(tmp_path, 100.0), []

    def cell(number: int) -> dict[str, list[int]]:
        seen.append(json.loads((tmp_path / "step.json").read_text()) if number else {})
        if number == 1:
            own.end = time.monotonic() + 1
        return {"rows": [number]}

    own.each(Work(f"cell {number}", 5.0, partial(cell, number)) for number in range(4))
    assert seen == [{}, {"rows": [0]}]
    assert json.loads((tmp_path / "step.json").read_text()) == {"rows": [0, 1], "left_out": ["cell 2", "cell 3"]}


def test_cells_like_the_longest_so_far_need_as_much_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(steps.time, "monotonic", lambda: clock[0])
    own = Task(CPU, True, 50.0, Sheet(tmp_path / "step.json", {}), tmp_path)

    def cell(seconds: float) -> dict[str, list[float]]:
        clock[0] += seconds
        return {"rows": [seconds]}

    own.each(Work(str(seconds), 5.0, partial(cell, seconds)) for seconds in (4.0, 20.0, 9.0, 3.0))
    assert own.sheet.content == {"rows": [4.0, 20.0, 9.0], "left_out": ["3.0"]}
    assert clock[0] <= own.end


@pytest.mark.slow  # counts operations
def test_time_for_a_cell_follows_from_the_rates_that_were_measured() -> None:
    cell = eager_cells(quick=True)[0]
    flops = count_flops(cell.case)
    rates = [Rate("matmul", name, "mm", flops / 2, {}) for name in PRECISIONS]
    rates += [Rate("conv", name, "conv", 1.0, {}) for name in PRECISIONS]
    assert seconds_of(cell, rates, repeats=8) == CELL_SECONDS + 10 * 5 * 4


def test_a_process_that_takes_too_long_is_killed() -> None:
    assert in_subprocess(os.path.basename, "a/b", seconds=60) == "b"
    with pytest.raises(TimeoutError):
        in_subprocess(time.sleep, 600, seconds=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_the_command_prints_one_sentence(tmp_path: Path) -> None:
    with naming("CUDA", "--quick"):
        command.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("# a list\ntorch>=2.11\ntorch>=99\nno-such-package>=1\n")
    assert environment.unmet(file) == ["torch>=99", "no-such-package>=1"]
    assert packages.missing(file) == ["no-such-package>=1"]
    assert environment.unmet() == []
    monkeypatch.setattr(command, "missing", lambda: packages.missing(file))
    with pytest.raises(UserError, match=r"no-such-package>=1.*docs/gpus\.md"):
        command.main(["--out", str(tmp_path)])


def test_all_files_with_tests_of_devices_are_run() -> None:
    asking = re.compile(r"def test_\w+\([^)]*device: torch\.device|mark\.cuda\b")
    files = [path for path in (ROOT / "tests").glob("test_*.py") if path != Path(__file__)]
    assert {f"tests/{path.name}" for path in files if asking.search(path.read_text())} == set(correct.FILES)


def test_every_test_is_noted_down_when_it_has_ended(tmp_path: Path) -> None:
    notes = Notes(Sheet(tmp_path / "correct.json", {}))
    crash = SimpleNamespace(reprcrash=SimpleNamespace(message="assert 1\n  == 2"))
    reports = [
        ("setup", "passed", None),
        ("call", "passed", None),
        ("call", "failed", crash),
        ("setup", "skipped", "no"),
    ]
    for when, outcome, longrepr in reports:
        flags = {name: outcome == name for name in ("passed", "failed", "skipped")}
        about = {"when": when, "outcome": outcome, "longrepr": longrepr, "nodeid": "a::b", "duration": 1.0}
        notes.pytest_runtest_logreport(SimpleNamespace(**about, **flags))
    written = json.loads((tmp_path / "correct.json").read_text())["tests"]
    assert [note["outcome"] for note in written] == ["passed", "failed", "skipped"]
    assert written[1]["message"] == "assert 1 == 2"
    assert notes.failed == 1


# ---------------------------------------------------------------- cells


def test_the_cells_are_those_of_the_plan_and_what_says_most_comes_first() -> None:
    cells = compiled_cells(quick=False)
    base = {
        (part, size, name) for part, size, name in ((c.part, c.case.batch_size, c.variant.precision) for c in cells)
    }
    sizes = {"forward": (1, 8, 32), "training": (6, 12, 24)}
    assert base == {(part, size, name) for part in sizes for size in sizes[part] for name in PRECISIONS} | {
        ("training", 8, "bf16")
    }
    assert len(cells) == 24 + 6 == len(set(cells))
    assert all(cell.variant.compiled for cell in cells)
    assert [(cell.case, cell.variant.precision, cell.profiled) for cell in cells[:2]] == [
        (Case("base", 480, MIDDLE[part]), "bf16", True) for part in ("training", "forward")
    ]
    assert {cell.variant.precision for cell in cells[:6]} == {"bf16"}
    eager = eager_cells(quick=False)
    assert [(cell.part, cell.case) for cell in eager[:6]] == [
        (part, Case("base", 480, size)) for part in sizes for size in sizes[part]
    ]
    assert {cell.case.swin_type for cell in eager} == {"base", "tiny", "small", "large"}


# ---------------------------------------------------------------- profiles


def test_gaps_and_the_longest_kernels_are_told_apart() -> None:
    ran = [Interval("gemm", 0, 3000), Interval("Memcpy HtoD", 1000, 4000), Interval("gemm", 6000, 9000)]
    found = summarise([*ran, Interval("norm", 8000, 10000)])
    assert (found["span_ms"], found["gaps_ms"], found["launches"]) == (10.0, 2.0, 4)
    assert found["copies"] == {"count": 1, "ms": 3.0}
    assert [(row["name"], row["calls"], row["ms"]) for row in found["top"]] == [
        ("gemm", 2, 6.0),
        ("Memcpy HtoD", 1, 3.0),
        ("norm", 1, 2.0),
    ]
    assert sum(row["share"] for row in found["top"]) == pytest.approx(1.0)
    assert len(summarise([Interval(f"kernel {n}", n, n + 1) for n in range(99)])["top"]) == 10
    assert summarise([])["launches"] == 0


def test_kernels_are_what_ran_on_the_gpu() -> None:
    time_range = SimpleNamespace(start=1.0, end=3.0)
    gpu, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [
        SimpleNamespace(name="gemm", device_type=gpu, time_range=time_range, is_user_annotation=False),
        SimpleNamespace(name="a range", device_type=gpu, time_range=time_range, is_user_annotation=True),
        SimpleNamespace(name="aten::mm", device_type=cpu, time_range=time_range, self_cpu_time_total=1.5),
    ]
    assert intervals(events, torch.device("cuda")) == [Interval("gemm", 1.0, 3.0)]
    assert intervals(events[2:], CPU) == [Interval("aten::mm", 1.0, 2.5)]


# ---------------------------------------------------------------- the report


def row(case: Case, variant: Variant, seconds: float, failure: str = "") -> dict:
    rates = {"matmul": [1e11], "conv": [1e11]}
    timed = [] if failure else [seconds]
    return Row("training", case, variant, 10**11, timed, 1.0, rates=rates, failure=failure).record()


def test_the_report_puts_all_steps_together_also_of_a_run_that_was_cut_off(tmp_path: Path) -> None:
    base, large = Case("base", 480, 12), Case("large", 480, 8)
    rate = {"operation": "matmul", "precision": "bf16", "best": "mm 8192", "flops_per_second": 7e14, "all": {}}
    ended = {"seconds": 9.0, "failure": ""}
    profile = {"part": "training", **base._asdict(), "variant": "eager bf16"}
    kernels = summarise([Interval("gemm|sm90", 0, 3000)])
    whole = {"script": "train", "workers": 8, "cached": True, "samples_per_second": 99.5, "data_wait": 0.014}
    sheets: dict[str, dict[str, Any]] = {
        "environment": {"environment": {"device": "H100"}, "rates": [rate], **ended},
        "correct": {
            "tests": [
                {"test": "a::b", "outcome": "passed", "seconds": 1.0},
                {"test": "a::c", "outcome": "failed", "seconds": 1.0, "message": "assert 1 == 2"},
            ],
            "n_tests": 3,
            "seconds": 9.0,
            "failure": "error: 1 tests failed",
        },
        "eager": {
            "rows": [row(base, PLAIN, 6.0), row(large, PLAIN, 9.0)],
            "memory": [{"setting": "bf16", "swin_type": "base", "img_size": 480, "batch_size": 1, "peak_gib": 4.25}],
            "profiles": [profile | kernels],
            **ended,
        },
        "compiled": {
            "rows": [
                row(base, Variant("bf16", compiled=True), 0.8),
                row(base, Variant("fp16", True), 0, "no compiler"),
            ],
            "left_out": ["training base@480 batch 24, compiled bf16"],
            **ended,
        },
        "whole": {"whole": [whole | {"seconds": 20.0, "failure": ""}]},
    }
    for name, sheet in sheets.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(sheet))
    results = combine(tmp_path, "cuda", {"minutes": 8.0})
    text = markdown(results)
    for words in (
        "device: H100",
        "bf16 compiled : plain fp32, same batch | ≥ 6.00× | 7.50× (compiled bf16, batch 12) | reached |",
        "| matmul | bf16 | 700000 | mm 8192 |",
        "1 of 3 tests passed. 1 did not end in time.",
        "| a::c | failed | assert 1 == 2 |",
        "no time was left for training base@480 batch 24, compiled bf16",
        "| bf16 | base@480 | 4.25 |",
        "| train.py | 8 | yes | 99.5 | 1.4 % | 20.0 |",
        "| whole | 0 | **failed** cut off |",
        "| gemm/sm90 | 1 | 3.00 | 100.0 % |",
        "**failed** no compiler",
    ):
        assert words in text, words
    assert [(r.case, str(r.variant)) for r in results.rows] == [
        (base, "plain fp32"),
        (base, "compiled bf16"),
        (base, "compiled fp16"),
        (large, "plain fp32"),
    ]
    written = json.loads(as_json(results))
    assert written["whole"] == sheets["whole"]["whole"]
    assert [Row.of(record) for record in written["rows"]] == results.rows


# The processes that a step starts are forks, too: new ones would import everything again.
FORKED = """
import multiprocessing, os, runpy, sys
from types import SimpleNamespace
from benchmarks import peak_memory
os.setsid()
if "compiled" in sys.argv:
    import torch._inductor.compile_fx  # here, once for both cells
peak_memory.multiprocessing = SimpleNamespace(get_context=lambda _: multiprocessing.get_context("fork"))
runpy.run_module({!r}, run_name="__main__", alter_sys=True)
"""


class Forked(Script):
    """A step in a forked process, as `subprocess.Popen` would start it in a new Python."""

    def __init__(self, line: list[str], cwd: Path, stderr: IO[str], start_new_session: bool) -> None:
        assert line[:2] == [sys.executable, "-m"] and cwd == ROOT and start_new_session
        errors = Path(f"/proc/{os.getpid()}/fd/{stderr.fileno()}")
        words = ["-c", FORKED.format(line[2]), *line[3:]]
        super().__init__(words, training_runs.environment(), Path(os.devnull), errors)

    def wait(self, timeout: float = 60) -> int:
        return super().wait(timeout)


@pytest.mark.slow  # runs every step
def test_the_command_tries_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps in tiny form, each in a process of its own, end well and leave their figures."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(steps, "subprocess", SimpleNamespace(Popen=Forked, TimeoutExpired=subprocess.TimeoutExpired))
    command.main(["--quick", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("gpu-cpu-*.json")
    found = json.loads(file.read_text())
    assert [step["failure"] for step in found["steps"]] == [""] * len(steps.STEPS)
    assert {test["outcome"] for test in found["tests"]} == {"passed"}
    assert {(r["part"], r["variant"]) for r in found["rows"]} >= {
        (part, variant) for part in ("forward", "training") for variant in ("plain fp32", "eager fp16", "compiled bf16")
    }
    assert {(run["script"], run["cached"]) for run in found["whole"]} == {
        (script, cached) for script in ("train", "test") for cached in (False, True)
    }
    assert len(found["profiles"]) == 4
    assert all(profile["top"] for profile in found["profiles"])
    assert str(ROOT) not in file.read_text()
    assert str(tmp_path) not in file.read_text()
    # Had this been a whole run on a GPU, the tables of the pages would show it.
    alone = tmp_path / "alone"
    alone.mkdir()
    whole = found | {"device": "cuda", "settings": found["settings"] | {"quick": False}}
    (alone / file.name).write_text(json.dumps(whole))
    text = tables.gpu(tables.read_runs(alone))
    n_tests = len(found["tests"])
    for words in (
        f"{n_tests} of {n_tests} tests passed",
        "| training nano@40 batch 2 |",
        "| test.py | 1 | yes |",
        "compiled bf16 |",
    ):
        assert words in text, words


# ---------------------------------------------------------------- several processes

MISTAKES = {
    "sound": "distribute = utils.distribute",
    "unwrapped": "distribute = lambda model, device: model",
    "own normalizer": "mean_over_processes = lambda value: value.detach()",
}
# Compares with each mistake in turn, and notes down the error; the last is raised. Each group meets at another port.
# What one process computes, and the networks, are the same every time, and made once.
DISTRIBUTED = """
import copy, os, sys
from functools import cache
from pathlib import Path
from unittest.mock import patch
import torch
import utils
from benchmarks.gpu import distributed
from benchmarks.gpu.__main__ import main
from errors import UserError

compute = distributed.compute
alone, built = cache(compute), cache(distributed.build_network)

def compare():
    errors = []
    distributed.build_network = lambda *of: copy.deepcopy(built(*of))
    distributed.compute = lambda *of: (alone if utils.world_size() == 1 else compute)(*of)
    for folder, mistake, port in zip(*[iter(sys.argv[1:])] * 3):
        os.environ["MASTER_PORT"] = port
        changed = {}
        exec(mistake, {"utils": utils}, changed)
        with patch.multiple(utils, **changed):
            try:
                main(["--distributed", "--quick", "--out", folder])
            except UserError as error:
                errors.append(error)
                Path(folder, f"error of {os.environ['RANK']}").write_text(str(error))
        torch.distributed.destroy_process_group()
    raise errors[-1]

utils.run(compare)
"""


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of comparisons, each in a folder named after its mistake."""
    folder, words = tmp_path_factory.mktemp("comparisons"), []
    for name, mistake in MISTAKES.items():
        (folder / name).mkdir()
        words += [folder / name, mistake, free_port()]
    outcome = launch(2, "-c", DISTRIBUTED, *words)
    assert outcome.returncode == 1, outcome.stderr
    assert "compute something else than one" in outcome.stderr
    assert outcome.stdout.count("scaling efficiency") == len(MISTAKES)
    return folder


@pytest.mark.slow  # trains in two processes
@pytest.mark.parametrize("mistake", MISTAKES)
def test_two_processes_are_compared_with_one(comparisons: Path, mistake: str) -> None:
    folder = comparisons / mistake
    found = json.loads(next(folder.glob("distributed-2-*.json")).read_text())
    assert found["alone"]["scores"]["overall_iou"] > 0
    assert found["scaling_efficiency"] > 0
    errors = [file.read_text() for file in folder.glob("error of *")]
    if mistake == "sound":
        assert errors == []
        assert len(set(found["together"]["losses"])) == 5
    else:
        assert len(errors) == 2
        assert all("compute something else than one" in error for error in errors)


def test_the_comparison_asks_for_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match=r"torchrun --nproc_per_node 2 -m benchmarks\.gpu --distributed"):
        command.main(["--distributed", "--quick"])
    assert utils.world_size() == 1
