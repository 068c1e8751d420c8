"""The comparison of variants: its pieces, that it is fair, and that its results hold what they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from pycocotools import mask as coco_mask

import train
from data.cache import open_cache
from data.sample import make, scene
from errors import UserError
from experiments import compare, plan, report, trial
from experiments.compare import JobPool
from experiments.plan import (
    FULL,
    HARD,
    LONG,
    QUICK,
    SETTINGS,
    Paths,
    Trial,
    best_rate,
    missing_sweeps,
    read_sweep,
    sweep,
)
from experiments.results import (
    COMPARED,
    NETWORKS,
    PAPER,
    RECIPE_FLAGS,
    RECIPES,
    SPLITS,
    VARIANTS,
    Variant,
    read_result,
    read_results,
    write_result,
)
from lib.evaluation.protocols import score
from refer.refer import REFER
from tests.helpers import naming
from tests.training_runs import ROOT, launch
from utils import StopSignal


@pytest.fixture
def paths(tmp_path: Path, sample_root: Path) -> Paths:
    """Empty paths of a comparison on the tests' sample data."""
    return Paths(results=tmp_path / "results", runs=tmp_path / "runs", data=sample_root, sweep=tmp_path / "sweep")


def write_sweep(paths: Paths, variant: Variant, scores: tuple[float, ...]) -> None:
    for found, overall_iou in zip(sweep(FULL, variant), scores, strict=True):
        content = {"epochs": found.epochs, "seed": found.seed, "lr": found.lr, "overall_iou": overall_iou}
        write_result(paths.result(found), content)


# ---------------------------------------------------------------- pieces


def test_every_variant_runs_with_three_seeds() -> None:
    runs = plan.all_runs(FULL)
    counts = {dataset: [run.variant for run in runs if run.dataset == dataset] for dataset in COMPARED}
    assert {variant: counts["refcoco"].count(variant) for variant in NETWORKS} == dict.fromkeys(NETWORKS, 3)
    for dataset in ("refcoco+", "refcocog"):
        assert sorted(counts[dataset]) == sorted([PAPER, Variant("vision", True)] * 3)
    assert len({run.name for run in runs}) == len(runs)
    assert all(plan.find_trial(FULL, run.name) == run for run in runs)
    with naming("'refcoco-early-seed1'", "--list"):
        plan.find_trial(FULL, "refcoco-early-seed1")


def test_variants_differ_in_their_flags_alone(paths: Paths) -> None:
    """The same data, steps, batch, schedule and seed for all."""
    own = ("fusion", "alignment", "lr", "output_dir")
    found = []
    for run in (run for run in plan.all_runs(FULL) if (run.dataset, run.seed) == ("refcoco", 2)):
        args = vars(train.parse_args(trial.training_flags(run, 0.001, FULL, paths)))
        assert (args["fusion"], args["alignment"], "") == run.variant
        found.append({name: value for name, value in args.items() if name not in own})
    assert len(found) == 6
    assert all(args == found[0] for args in found)
    assert found[0]["seed"] == 2


def test_the_best_learning_rate_of_a_sweep_is_taken(paths: Paths) -> None:
    assert [found.lr for found in missing_sweeps(FULL, paths, {PAPER})] == list(FULL.learning_rates)
    write_sweep(paths, PAPER, (30.0, 40.0, 50.0, 50.0))
    assert missing_sweeps(FULL, paths, {PAPER}) == []
    scores = read_sweep(FULL, paths, PAPER)
    assert scores == {"0.00025": 30.0, "0.0005": 40.0, "0.001": 50.0, "0.002": 50.0}
    assert best_rate(FULL, scores) == 0.001
    assert best_rate(QUICK, read_sweep(QUICK, paths, PAPER)) == QUICK.learning_rates[0]


def test_every_comparison_has_folders_a_title_and_a_place_for_its_report() -> None:
    assert set(SETTINGS) == set(plan.PATHS) == set(report.TITLES) == set(report.OUTS)
    assert len(set(plan.PATHS.values())) == len(set(report.OUTS.values())) == len(SETTINGS)


def test_a_sweep_is_as_long_as_a_run_and_has_a_seed_of_its_own() -> None:
    for variant in VARIANTS:
        run = plan.all_runs(FULL._replace(compared={"refcoco": (variant,)}))[0]
        assert {(found.epochs, found.seed) for found in sweep(FULL, variant)} == {(run.epochs, plan.SWEEP_SEED)}
    assert plan.SWEEP_SEED not in FULL.seeds


def test_recipes_differ_in_their_flags_alone_and_half_of_the_steps_is_the_same_time(paths: Paths) -> None:
    runs = [run for run in plan.all_runs(plan.OTHER_RECIPES) if run.seed == 1]
    assert [run.variant for run in runs] == [PAPER, *RECIPES]
    paper, *others = (vars(train.parse_args(trial.training_flags(run, 0.001, FULL, paths))) for run in runs)
    for run, args in zip(runs[1:], others, strict=True):
        set_by_flags = {flag.removeprefix("--").replace("-", "_") for flag in run.variant.flags if flag[:2] == "--"}
        changed = {name for name, value in args.items() if value != paper[name]}
        assert changed - {"output_dir"} == set_by_flags | ({"epochs"} if run.variant.halved else set())
        passes = 2 if args["mask_image"] else 1
        assert args["epochs"] * passes == paper["epochs"] * (1 if run.variant.halved else passes)
    assert set(RECIPE_FLAGS["all"]) == {flag for flags in RECIPE_FLAGS.values() for flag in flags}


def test_harder_data_have_a_sweep_of_their_own() -> None:
    swept = [(found.variant, found.lr) for found in plan.all_trials(HARD) if found.lr is not None]
    assert swept == [(variant, rate) for variant in HARD.compared["refcoco"] for rate in HARD.learning_rates]
    assert plan.PATHS["hard"].sweep != plan.PATHS[""].sweep


@pytest.mark.parametrize("data", ["", "hard"])
def test_longer_trainings_take_the_learning_rates_of_the_usual_ones(paths: Paths, data: str) -> None:
    name = f"{data}-long".strip("-")
    assert plan.PATHS[name].sweep == plan.PATHS[data].sweep
    assert SETTINGS[name].learning_rates == SETTINGS[data].learning_rates
    assert all(found.lr is None for found in plan.all_trials(SETTINGS[name]))
    places = [f"--{name}={path}" for name, path in paths._asdict().items()]
    with naming("--long", paths.sweep):
        compare.main([*SETTINGS[name].flags, *places])


# ---------------------------------------------------------------- one piece


@pytest.mark.slow  # trains and tests
@pytest.mark.parametrize("variant", [Variant("cross", True, "align"), Variant("vision", True), Variant("none", False)])
def test_a_trial_leaves_a_complete_result(paths: Paths, variant: Variant) -> None:
    run = Trial("refcocog", variant, 1, epochs=1)
    open_cache(trial.cache_path(paths, "refcocog", QUICK), REFER(paths.data, "refcocog", "umd"), QUICK.img_size, 1)
    trial.run_trial(run, QUICK, paths)
    result = read_result(paths.result(run))
    assert (result.dataset, result.variant, result.seed, result.lr) == ("refcocog", variant, 1, 0.001)
    assert len(result.maps) == (4 if variant.alignment else 0)
    assert tuple(result.counts) == SPLITS["refcocog"]
    for split, counts in result.counts.items():
        assert score(list(zip(*counts, strict=True))).as_dict() == result.metrics[split]
    assert result.steps == result.curve["step"][-1] == result.curve["val"]["step"][-1]
    assert len(result.examples) == trial.N_EXAMPLES
    size = [QUICK.img_size] * 2
    areas = [coco_mask.area({"size": size, "counts": example["mask"].encode()}) for example in result.examples]
    assert all(0 <= area <= QUICK.img_size**2 for area in areas)
    sides = [[len(stage) for stage in example["maps"]] for example in result.examples]
    assert sides == [[14, 7, 4, 2] if variant.alignment else []] * trial.N_EXAMPLES


def test_a_stopped_trial_leaves_no_result(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Trial("refcoco", PAPER, 1, epochs=1)

    def stopped(flags: list[str]) -> None:
        args = train.parse_args(flags)
        Path(args.output_dir).mkdir(parents=True)
        (Path(args.output_dir) / "log_refcoco.jsonl").write_text('{"kind": "step"}\n')

    monkeypatch.setattr(train, "main", stopped)
    trial.run_trial(run, QUICK, paths)
    assert not paths.result(run).exists()


# ---------------------------------------------------------------- many pieces


class Pretended(JobPool):
    """A pool whose processes only sleep, write a result, or fail."""

    def __init__(self, paths: Paths, stop: StopSignal, jobs: int) -> None:
        super().__init__(jobs, QUICK, paths, stop)
        self.most = 0

    def start(self, found: Trial) -> subprocess.Popen[bytes]:
        path = self.paths.result(found)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"lr": 1.0, "sweep": {}, "mean_iou": 2.0, "overall_iou": 3.0})
        deed = "sys.exit(1)" if found.variant.fusion == "late" else f"open({str(path)!r}, 'w').write({content!r})"
        self.most = max(self.most, len(self.running) + 1)
        return subprocess.Popen([sys.executable, "-c", f"import sys, time; time.sleep(0.3); {deed}"])


def test_a_pool_runs_a_few_trials_at_a_time(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run for run in plan.all_runs(QUICK) if run.dataset == "refcoco"]
    with StopSignal() as stop:
        pool = Pretended(paths, stop, jobs=2)
        pool.work(runs)
    assert pool.most == 2
    assert pool.failed == ["refcoco-late-seed1"]
    assert pool.ends
    assert sum(paths.result(run).exists() for run in runs) == 5
    out = capsys.readouterr().out
    assert "refcoco-cross-seed1: learning rate 1, mean IoU 2.00, overall IoU 3.00 on val" in out
    assert "refcoco-late-seed1: failed" in out


@pytest.mark.slow  # starts the server
def test_a_trial_that_fails_in_its_fork_says_why_in_its_output(tmp_path: Path) -> None:
    launch(1, "-c", "")  # starts the server of all tests, with the modules that they need
    output = tmp_path / "output.txt"
    output.write_text("before\n")
    fork = compare.Fork(["refcoco-early-seed1"], output, threads=1)
    assert fork.wait() == fork.poll() == 1
    text = output.read_text()
    assert text.startswith("before\n") and "--list" in text


def test_a_stopped_pool_starts_no_more_jobs(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    with StopSignal() as stop:
        pool = Pretended(paths, stop, jobs=1)
        first, *others = plan.all_runs(QUICK)
        pool.running[first] = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        stop.name = "SIGTERM"
        pool.work(others)
    assert pool.failed == []
    assert not any(paths.result(run).exists() for run in others)
    assert f"{first.name}: stopped and saved; the same command, without --again, resumes" in capsys.readouterr().out


def test_the_command_names_and_repeats_runs(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    run = Trial("refcoco", PAPER, 1, epochs=1)
    write_result(paths.result(run), {"lr": 1.0, "sweep": {}})
    places = [f"--{name}={path}" for name, path in paths._asdict().items()]
    compare.main(["--quick", "--list", "--only", "refcoco-cross-*", *places])
    assert capsys.readouterr().out.split() == ["done", "refcoco-cross-seed1", "-", "refcoco-cross-unaligned-seed1"]
    with naming("--again", "--only"):
        compare.main(["--quick", "--again", *places])
    assert paths.result(run).exists()
    with naming("--only refcoco-early-*", "--list"):
        compare.main(["--only", "refcoco-early-*", *places])
    with naming("--quick", "--hard", "--long"):
        compare.main(["--quick", "--hard", *places])


def test_again_removes_nothing_before_it_can_begin(paths: Paths) -> None:
    run = plan.all_runs(LONG)[0]
    write_result(paths.result(run), {"lr": 1.0})
    places = [f"--{name}={path}" for name, path in paths._asdict().items()]
    line = ["--long", "--only", run.name, "--again", *places]
    with naming("--long", paths.sweep):
        compare.main(line)
    for variant in VARIANTS:
        write_sweep(paths, variant, (1.0, 2.0, 3.0, 4.0))
    with naming(paths.data, "--root"):
        compare.main(line)
    assert paths.result(run).exists()


def test_results_of_another_sweep_are_named_and_kept(paths: Paths) -> None:
    run = Trial("refcoco", PAPER, 1, FULL.epochs)
    write_sweep(paths, PAPER, (1.0, 2.0, 3.0, 4.0))
    write_result(paths.result(run), {"lr": 0.002, "sweep": read_sweep(FULL, paths, PAPER)})
    assert not plan.is_outdated(FULL, paths, run)
    write_sweep(paths, PAPER, (1.0, 5.0, 3.0, 4.0))
    with StopSignal() as stop, naming("refcoco-cross-seed1", "--only", "--again"):
        JobPool(1, FULL, paths, stop).work_on_missing([run])
    assert paths.result(run).exists()
    rate, *_ = sweep(FULL, PAPER)
    assert not plan.is_outdated(FULL, paths, rate)
    assert plan.is_outdated(FULL, paths, rate._replace(epochs=1))


def test_a_sweep_that_was_stopped_begins_no_runs(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobPool, "start", lambda *_: subprocess.Popen([sys.executable, "-c", ""]))
    with StopSignal() as stop:
        pool = JobPool(1, FULL, paths, stop)
        pool.work_on_missing(sweep(FULL, PAPER))
        assert pool.ends
        pool.work_on_missing([Trial("refcoco", PAPER, 1, FULL.epochs)])
    assert pool.failed == []


def test_a_command_that_was_stopped_does_not_look_done(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobPool, "start", lambda *_: subprocess.Popen([sys.executable, "-c", ""]))
    monkeypatch.setattr(compare, "build_caches", lambda *_: None)
    places = [f"--{name}={path}" for name, path in paths._asdict().items()]
    with pytest.raises(UserError, match=r"^stopped .*--again"):
        compare.main(["--quick", *places])


# ---------------------------------------------------------------- what is committed

KEPT = {name: ROOT / paths.results for name, paths in plan.PATHS.items() if name != "quick"}
COMMITTED = [(name, path) for name, folder in KEPT.items() for path in sorted(folder.glob("*.json"))]


@pytest.mark.parametrize("name", KEPT)
def test_committed_results_are_a_whole_and_fair_comparison(name: str) -> None:
    setting, results = SETTINGS[name], read_results(KEPT[name])
    made = {(result.dataset, result.variant, result.seed) for result in results}
    assert made == {(run.dataset, run.variant, run.seed) for run in plan.all_runs(setting)}
    for same in ("sample", "img_size", "batch_size"):
        assert len({json.dumps(getattr(result, same)) for result in results}) == 1
    for dataset in setting.compared:
        assert len({r.steps * (2 if r.variant.halved else 1) for r in results if r.dataset == dataset}) == 1


@pytest.mark.parametrize(("name", "path"), COMMITTED, ids=lambda value: getattr(value, "stem", value))
def test_committed_results_hold_what_they_say(name: str, path: Path) -> None:
    setting, result = SETTINGS[name], read_result(path)
    for split, counts in result.counts.items():
        assert score(list(zip(*counts, strict=True))).as_dict() == result.metrics[split]
    paths = Paths(*(ROOT / folder for folder in plan.PATHS[name]))
    assert len(result.curve["val"]["step"]) == plan.epochs_of(result.variant, setting.epochs)
    assert not any(plan.is_outdated(setting, paths, found) for found in sweep(setting, result.variant))
    assert result.sweep == read_sweep(setting, paths, result.variant)
    assert result.lr == best_rate(setting, result.sweep)
    assert (result.sample["images"], result.sample.get("hard", False)) == (setting.images, setting.hard)
    assert (result.img_size, result.batch_size) == (setting.img_size, setting.batch_size)
    assert not any(str(ROOT) in command for command in result.commands)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for the sample data of the committed results, usual and hard, which the first report of each draws."""
    return tmp_path_factory.mktemp("drawn")


@pytest.mark.slow  # makes 300 scenes of both kinds, and 10,000 resamples of every difference
@pytest.mark.parametrize("name", KEPT)
def test_committed_reports_are_what_the_code_writes(
    name: str, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for figure in report.FIGURES:
        monkeypatch.setitem(report.FIGURES, figure, report.FIGURES[figure]._replace(draw=lambda *_: True))
    monkeypatch.setattr(scene, "draw_scene", lambda *_: np.zeros((1, 1, 3), np.uint8))  # no figure shows them
    planned = make.numbered_splits  # a report is about the other splits
    monkeypatch.setattr(make, "numbered_splits", lambda *about: [one for one in planned(*about) if one[1] != "train"])
    setting = SETTINGS[name]
    data = drawn / ("hard" if setting.hard else "usual")
    report.main([*setting.flags, f"--results={KEPT[name]}", f"--data={data}", f"--out={tmp_path}"])
    committed = ROOT / report.OUTS[name]
    text = (committed / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == text
    linked = {unquote(path) for path in re.findall(r"!\[[^]]*]\(([^)]+)\)", text)}
    assert {str(path.relative_to(committed)) for path in committed.glob("pictures/*.png")} == linked


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of a Markdown text's table rows by their first one, rows of the same name one after another."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("| "):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            found.setdefault(name, []).extend(cells)
    return found


def test_the_page_repeats_the_report() -> None:
    text = (ROOT / "experiments" / "report.md").read_text(encoding="utf-8").split("\n## refcoco\n")[1]
    scores, differences = map(rows, text.split("\n### ", 3)[1:3])
    page = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    told = rows(page.split("\n## What came out\n")[1].split("\n\n![")[0])
    for variant, name in NETWORKS.items():
        mean, overall, difference = told[name]
        assert [mean, overall] == scores[name][4:6]
        assert variant == PAPER or difference == "{} ({})".format(*differences[name])


@pytest.mark.parametrize(
    ("row", "folder", "dataset"),
    [
        ("refcoco | 676", "", "refcoco"),
        ("refcoco | 1352", "long", "refcoco"),
        ("refcoco+ | 606", "", "refcoco+"),
        ("refcocog | 646", "", "refcocog"),
        ("refcocog | 1292", "long", "refcocog"),
        ("harder refcoco | 686", "hard", "refcoco"),
        ("harder refcoco | 1372", "hard-long", "refcoco"),
    ],
)
def test_the_differences_in_the_readme_are_those_of_the_reports(row: str, folder: str, dataset: str) -> None:
    told = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8").split(f"\n| {row} | ")[1].splitlines()[0]
    text = (ROOT / "experiments" / folder / "report.md").read_text(encoding="utf-8")
    part = text.split(f"\n## {dataset}\n")[1].split("\n## ")[0].split(f"\n### {VARIANTS[PAPER]} minus the others\n")[1]
    assert told == "{} | {} |".format(*rows(part.split("\n### ")[0])["vision-only early fusion"])


def turned(mean: str, interval: str) -> str:
    """Return a difference and its interval the other way round."""
    low, high = (end.translate(str.maketrans("+−", "−+")) for end in interval.split(" to "))
    return f"{mean.translate(str.maketrans('+−', '−+'))} ({high} to {low})"


@pytest.mark.parametrize("variant", SETTINGS["recipes"].compared["refcoco"], ids=lambda variant: variant.name)
def test_the_page_repeats_the_report_of_recipes(variant: Variant) -> None:
    text = (ROOT / "experiments" / "recipes" / "report.md").read_text(encoding="utf-8").split("\n## refcoco\n")[1]
    parts = {part.split("\n")[0]: rows(part) for part in text.split("\n### ")}
    page = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    told = rows(page.split("\n## Other recipes: what came out\n")[1].split("\n\n![")[0])
    name = VARIANTS[variant]
    steps, minutes, mean, overall, *differences = told[name]
    assert [mean, overall] == parts["Scores"][name][4:6]
    taken, each = parts["Steps and time"][name]
    assert steps == taken
    assert float(minutes) == pytest.approx(sum(map(float, each.split(", "))) / 3, abs=0.06)
    if variant == PAPER:
        assert differences == ["", ""]
    else:
        found = parts[f"{VARIANTS[PAPER]} minus the others"][name]
        assert differences == [turned(*found[:2]), turned(*found[3:5])]


def test_the_page_about_recipes_repeats_their_differences() -> None:
    text = (ROOT / "experiments" / "recipes" / "report.md").read_text(encoding="utf-8").split("\n## refcoco\n")[1]
    found = rows(text.split(f"\n### {VARIANTS[PAPER]} minus the others\n")[1].split("\n### ")[0])
    told = " ".join((ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").split())
    names = ("warm-up, clipping, trained embeddings", "dice over both classes", "MaskRIS")
    schedule, dice, masking = (-float(found[f"with {name}"][0].replace("−", "-")) for name in names)
    sentence = (
        "the schedule adds {:.1f} points of mean IoU, dice over both classes {:.1f}, and MaskRIS takes away {:.1f}:"
    )
    assert sentence.format(schedule, dice, -masking) in told
    mean, overall = (turned(*found["with alignment that learns"][place : place + 2]) for place in (0, 3))
    assert "({}, 95 % interval {} to {})".format(*re.findall(r"[+−][\d.]+", mean)) in told
    first, *interval = re.findall(r"[+−][\d.]+", overall)
    assert "the overall IoU {} higher ({} to {})".format(first.removeprefix("+"), *interval) in told
