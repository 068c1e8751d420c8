"""The small tools around a run: summary, curves, sheets of overlays, progress."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageFont
from skimage.morphology import isotropic_dilation
from skimage.segmentation import find_boundaries

from bert.tokenizer import build_tokenizer
from data.dataset_refer_bert import ReferDataset
from data.loaders import collate
from data.transforms import PairTransform
from errors import UserError
from lib import engine, logs
from lib.contracts import Batch, Output
from lib.evaluation import __main__ as evaluation
from lib.evaluation.writer import PredictionWriter
from lib.network.resize import predicted_mask
from lib.pictures import __main__ as pictures
from lib.pictures import curves, panels, tiles
from lib.pictures.overlay import TINT, colour_of, cut_out, edge_of, grown, middle_of, overlay, overlay_several
from lib.pictures.panels import PANEL_SIZE, side_by_side, with_legend
from lib.pictures.preview import PreviewSheet
from refer.refer import REFER
from tests.helpers import naming

PRECISION = {"0.5": 80.0, "0.6": 70.0, "0.7": 60.0, "0.8": 40.0, "0.9": 10.0}


def call(module: ModuleType, *flags: object) -> None:
    module.main(list(map(str, flags)))


def result(folder: Path, name: str, overall_iou: float, **more: str | int) -> Path:
    content = more | {"dataset": "refcoco", "split": "val", "n_expressions": 7, "precision": PRECISION}
    file = folder / name
    file.write_text(json.dumps(content | {"mean_iou": 61.5, "overall_iou": overall_iou}))
    return file


def test_summary_puts_results_and_control_into_one_table(tmp_path: Path) -> None:
    files = (
        result(tmp_path, "val.json", 63.25, img_size=480),
        "--control",
        result(tmp_path, "shuffled.json", 20.0, img_size=480, expressions="shuffled"),
    )
    call(evaluation, "table", *files, "--out", tmp_path / "table.md", "--least", 63.25, "--drop", 43.25)
    call(evaluation, "table", *files, "--out", tmp_path / "table.md", "--drop", -100)  # whatever the control reaches
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2] == "| refcoco val, at 480×480 pixels | 7 | 80.00 | 70.00 | 60.00 | 40.00 | 10.00 | 61.50 | 63.25 |"
    assert lines[3].startswith("| refcoco val, expressions shuffled, at 480×480 pixels | 7 |")
    assert lines[3].endswith("| 20.00 |")


def test_rows_of_several_checkpoints_name_them(tmp_path: Path) -> None:
    files = [result(tmp_path, f"{name}.json", 63.25, checkpoint=f"runs/{name}.pth") for name in ("minutes", "hours")]
    call(evaluation, "table", *files, "--out", tmp_path / "table.md")
    rows = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| minutes.pth: refcoco val", "| hours.pth: refcoco val"]


def test_summary_lists_departures_from_the_published_protocol(tmp_path: Path) -> None:
    file = result(tmp_path, "val.json", 63.25, measured_at="image size", overlap="object", max_tokens=30)
    call(evaluation, "table", file, "--out", tmp_path / "table.md")
    row = (tmp_path / "table.md").read_text().splitlines()[2]
    assert row.startswith("| refcoco val, at image size, overlap counts as object, 30 tokens of a sentence | 7 |")


@pytest.mark.parametrize(
    ("flag", "value", "message"), [("--least", 64, r"63\.25.* 64"), ("--drop", 44, r"63\.25 .*20\.00.* 44")]
)
def test_summary_judges(tmp_path: Path, flag: str, value: int, message: str) -> None:
    files = (
        result(tmp_path, "val.json", 63.25),
        "--control",
        result(tmp_path, "shuffled.json", 20.0, expressions="shuffled"),
    )
    with pytest.raises(UserError, match=message):
        call(evaluation, "table", *files, flag, value)


@pytest.mark.parametrize("flags", [("--drop", 25), ("--drop", "nan"), ("--least", "nan"), ("--least", -1)])
def test_summary_refuses_an_unused_limit(tmp_path: Path, flags: tuple) -> None:
    with pytest.raises((UserError, SystemExit)):
        call(evaluation, "table", result(tmp_path, "val.json", 63.25), *flags)


@pytest.mark.parametrize("content", ["{}", "[1]", "no json", '{"precision": 3}'])
def test_summary_names_files_other_than_results(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json .*--json"):
        call(evaluation, "table", tmp_path / "x.json")


def write_log(folder: Path, *records: dict, end: str = "\n", name: str = "log_refcoco.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text("\n".join(map(json.dumps, records)) + end)
    return file


def step_line(epoch: int, step: int, **more: object) -> dict:
    position = {"epoch": epoch, "step": step, "global_step": 8 * epoch + max(step, 1)}
    losses = {"loss": 2.0 - 0.1 * epoch, "mask_loss": 0.5, "alignment_loss": [0.2] * 4}
    return {"kind": "step", "lr": 1e-3, "grad_norm": 1.0 + step} | position | losses | more


def epoch_line(epoch: int, overall_iou: float | None = 50.0) -> dict:
    val = {"n_expressions": 4, "overall_iou": overall_iou, "mean_iou": 49.0, "precision": PRECISION}
    return step_line(epoch, 0) | {"kind": "epoch", "val": val if overall_iou else None}


def drawn(monkeypatch: pytest.MonkeyPatch, logs: dict[str, list[dict]], out: Path) -> dict[str, list]:
    """Draw the curves and return the lines of each panel, by its title."""
    figures = []
    save = Figure.savefig

    def keep(figure: Figure, *args: Any, **named: Any) -> None:
        figures.append(figure)
        save(figure, *args, **named)

    monkeypatch.setattr(Figure, "savefig", keep)
    curves.plot_curves(logs, out)
    return {axis.get_title(): axis.get_lines() for axis in figures[0].axes}


@pytest.mark.slow  # draws pictures
def test_curves_of_several_runs_come_into_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Also of runs whose folders have the same name, and of a folder that is named twice."""
    records = [line for epoch in range(3) for line in (step_line(epoch, 5), step_line(epoch, 8), epoch_line(epoch))]
    for run in ("a", "b"):
        write_log(tmp_path / run / "run", *records)
    out = tmp_path / "deep" / "curves.png"
    call(
        pictures,
        "curves",
        tmp_path / "a" / "run",
        tmp_path / "b" / "run",
        tmp_path / "a" / ".." / "b" / "run",
        "--out",
        out,
    )
    assert "curves of a/run refcoco, b/run refcoco in" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_names_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    folders = [tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "y"]
    assert list(logs.unique_names(folders)) == ["x/run", "y/run", f"{tmp_path.name}/y"]
    assert list(logs.unique_names(folders[1:])) == ["run", "y"]


def test_epochs_are_counted_in_steps() -> None:
    """Of three epochs of 8 steps; the last one is not finished."""
    records = [
        *(step_line(0, 5), step_line(0, 8), epoch_line(0)),
        *(step_line(1, 5), step_line(1, 8), epoch_line(1)),
        step_line(2, 2),
    ]
    assert curves.epochs_done(records, records) == [0.625, 1, 1, 1.625, 2, 2, 2.25]
    first = [step_line(0, 2), step_line(0, 4)]
    assert curves.epochs_done(first, first) == [0.5, 1]
    # A stop between an epoch's last step and its validation.
    unvalidated = [*records[:3], step_line(1, 8)]
    assert curves.epochs_done(unvalidated, unvalidated)[-1] == 2


def test_a_run_in_its_first_epoch_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [step_line(0, 1), step_line(0, 2, grad_norm=None), step_line(0, 4)]
    panels = drawn(monkeypatch, {"run": records}, tmp_path / "curves.png")
    assert {title: len(lines) for title, lines in panels.items()} == {
        "training loss": 3,
        "validation, percent": 0,
        "learning rate": 1,
        "gradient norm": 1,
    }
    (norm,) = panels["gradient norm"]
    assert norm.get_xdata().tolist() == [0.25, 0.5, 1]
    assert np.array_equal(norm.get_ydata(), [2, np.nan, 5], equal_nan=True), "a gap for a missing number"
    assert (tmp_path / "curves.png").exists()


def test_existing_scores_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(step_line(epoch, 8), epoch_line(epoch, iou)) for epoch, iou in enumerate((None, 40.0, None, 60.0))]
    panels = drawn(monkeypatch, {"run": [line for pair in pairs for line in pair]}, tmp_path / "curves.png")
    overall = panels["validation, percent"][0]
    assert (overall.get_xdata().tolist(), overall.get_ydata().tolist()) == ([2, 4], [40, 60])


@pytest.mark.slow  # draws pictures
@pytest.mark.parametrize("norm", [None, 0.0])
def test_a_long_noisy_line_is_drawn_faintly_under_its_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norm: float | None
) -> None:
    """Beside gradient norms that have no logarithm."""
    n = 4 * curves.MAX_NOISY
    records = [step_line(0, step, loss=2.0 + (-1) ** step, grad_norm=norm) for step in range(1, n + 1)]
    panels = drawn(monkeypatch, {"run": records}, tmp_path / "curves.png")
    raw, means = panels["training loss"][:2]
    assert (len(raw.get_xdata()), raw.get_alpha()) == (n, 0.25)
    assert means.get_ydata().tolist() == [2.0] * curves.MAX_NOISY
    assert means.get_xdata()[0] == pytest.approx(2.5 / n)


def test_a_half_written_last_line_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write_log(tmp_path, step_line(0, 1), step_line(0, 2), end='\n{"kind": "st')
    assert logs.read_log(file) == [step_line(0, 1), step_line(0, 2)]
    assert "log_refcoco.jsonl: line 3 is incomplete and left out" in capsys.readouterr().out
    call(pictures, "curves", tmp_path, "--out", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "7",
        "broken",
        "",
        '{"epoch": 1}',
        '{"kind": "other"}',
        '{"kind": "step", "epoch": 1}',
        json.dumps(epoch_line(0) | {"val": {"overall_iou": 50.0}}),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    write_log(tmp_path, step_line(0, 1), end=f"\n{line}\n{json.dumps(step_line(0, 2))}\n")
    with pytest.raises(UserError, match=r"log_refcoco\.jsonl, line 2 "):
        call(pictures, "curves", tmp_path, "--out", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "log_.*--output-dir"), ("", "--print-freq"), ("{", "--print-freq")]
)
def test_curves_name_files_other_than_logs(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "log_refcoco.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        call(pictures, "curves", tmp_path, "--out", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_sheet_holds_as_many_overlays_as_asked(tmp_path: Path) -> None:
    (tmp_path / "overlays").mkdir()
    for number in range(10):
        Image.new("RGB", (30, 20), (20 * number, 0, 0)).save(tmp_path / "overlays" / f"{number}.png")
    call(pictures, "sheet", tmp_path, "--out", tmp_path / "sheet.png", "--count", 5)
    with Image.open(tmp_path / "sheet.png") as page:
        colours = {colour for _, colour in page.convert("RGB").getcolors()}
    assert colours == {(20 * number, 0, 0) for number in (0, 2, 4, 6, 8)} | {(255, 255, 255)}


SCENE = Image.new("RGB", (40, 30), (0, 0, 250))


def write_overlays(folder: Path, colours: dict[str, tuple[int, int, int]]) -> Path:
    """Write overlays of one blue scene, whose predictions are covered by a colour."""
    (folder / "overlays").mkdir(parents=True)
    for name, colour in colours.items():
        picture = side_by_side(SCENE, name, np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8))
        prediction = (picture.width - PANEL_SIZE, picture.height - PANEL_SIZE, picture.width, picture.height)
        picture.paste(colour, prediction)
        picture.save(folder / "overlays" / f"{name}.png")
    return folder


def test_a_sheet_of_two_models_has_the_same_sentences_side_by_side(tmp_path: Path) -> None:
    """Those that both have, in rows, with one image and one truth; what one of them lacks is left out."""
    one = write_overlays(tmp_path / "one", {"1": (200, 0, 0), "2": (0, 200, 0), "3": (9, 200, 9)})
    two = write_overlays(tmp_path / "two", {"1": (100, 0, 0), "2": (0, 100, 0)})
    call(pictures, "sheet", one, two, "--out", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as page:
        pixels = np.asarray(page.convert("RGB"))
    places = {
        colour: np.argwhere((pixels == colour).all(-1)).mean(0)
        for colour in ((200, 0, 0), (100, 0, 0), (0, 200, 0), (0, 100, 0))
    }
    rows, columns = ([round(place[axis]) for place in places.values()] for axis in (0, 1))
    assert rows[0] == rows[1] < rows[2] == rows[3]
    assert columns[0] == columns[2] < columns[1] == columns[3]
    assert not (pixels == (9, 200, 9)).all(-1).any()
    in_two_rows = 2 * PANEL_SIZE * PANEL_SIZE * SCENE.height / SCENE.width
    assert (pixels == (0, 0, 250)).all(-1).sum() == pytest.approx(in_two_rows, rel=0.05)


def test_folders_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "run/val", tmp_path / "run/shipped/val", tmp_path / "run/val/inner"]
    assert pictures.short_names(folders) == ["val", "shipped/val", "val/inner"]
    assert pictures.short_names([Path("one"), Path("two")]) == ["one", "two"]


def test_a_model_may_be_called_truth(tmp_path: Path) -> None:
    """It has a column of its own beside the truth."""
    for names in (("one", "two"), ("image", "truth")):
        folders = [write_overlays(tmp_path / name, {"1": (9, 200, 9)}) for name in names]
        call(pictures, "sheet", *folders, "--out", tmp_path / f"{names[0]}.png")
    sizes = [Image.open(tmp_path / f"{name}.png").size for name in ("one", "image")]
    assert sizes[0] == sizes[1]


def test_a_sheet_of_two_models_names_what_is_no_overlay(tmp_path: Path) -> None:
    one, two = (write_overlays(tmp_path / name, {"1": (9, 9, 9)}) for name in ("one", "two"))
    Image.new("RGB", (30, 20)).save(two / "overlays" / "1.png")
    with naming(str(two / "overlays" / "1.png"), "--save-masks", "30×20"):
        call(pictures, "sheet", one, two, "--out", tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_a_sheet_needs_the_same_sentences(tmp_path: Path) -> None:
    one, two = (write_overlays(tmp_path / name, {name: (9, 9, 9)}) for name in ("one", "two"))
    with naming(str(one), str(two), "same sentences"):
        call(pictures, "sheet", one, two, "--out", tmp_path / "sheet.png")
    with naming(str(tmp_path / "none"), "--save-masks"):
        call(pictures, "sheet", one, tmp_path / "none", "--out", tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_sheet_without_overlays_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"overlays.*--save-masks"):
        call(pictures, "sheet", tmp_path, "--out", tmp_path / "sheet.png")


def test_overlay_keeps_the_object_outlines_it_and_fades_the_rest() -> None:
    mask = np.zeros((10, 12), np.uint8)
    mask[2:8, 3:9] = 1
    picture = np.asarray(overlay(Image.new("RGB", (12, 10), (100, 20, 50)), mask, (200, 0, 0)))
    assert (picture[3:7, 4:8] == (100, 20, 50)).all()
    assert (picture[2, 3:9] == (200, 0, 0)).all()
    outside = picture[0]
    assert (outside == outside[0, 0]).all() and outside[0, 0] > 150, "faded to a light grey"


def test_overlay_of_nothing_has_no_outline() -> None:
    """However wide it would be."""
    for wider in (0, 2):
        picture = overlay(Image.new("RGB", (12, 10), "blue"), np.zeros((10, 12), np.uint8), (200, 0, 0), wider=wider)
        assert len(picture.getcolors() or ()) == 1


def squares(*lefts: int) -> list[np.ndarray]:
    """Return a mask (60, 200) for each square of 40 pixels, by its left edge."""
    masks = np.zeros((len(lefts), 60, 200), np.uint8)
    for mask, left in zip(masks, lefts, strict=True):
        mask[10:50, left : left + 40] = 1
    return list(masks)


def test_several_objects_have_colours_numbers_and_one_faded_background() -> None:
    masks = [*squares(10, 110), np.zeros((60, 200), np.uint8)]
    picture = np.asarray(overlay_several(Image.new("RGB", (200, 60), "black"), masks))
    tints = [tuple(picture[12, left + 3]) for left in (10, 110)]
    assert tints == [tuple(int(TINT * value) for value in colour_of(number)) for number in (0, 1)]
    assert tuple(picture[9, 30]) == colour_of(0) and tuple(picture[9, 130]) == colour_of(1)
    assert (picture[0] == picture[0, 0]).all() and picture[0, 0, 0] > 150
    for left in (10, 110):
        assert (picture[15:45, left + 5 : left + 35] == 255).all(-1).any(), "a white number"
    assert not (picture == colour_of(2)).all(-1).any(), "nothing was found for the third"


@pytest.mark.parametrize("rows", [slice(900, 1800), slice(1001, 1002)])  # seen among few rows and columns, or not
def test_the_middle_of_a_large_mask_lies_in_it(rows: slice) -> None:
    mask = np.zeros((3000, 4000), bool)
    mask[rows, 1200:2400] = True
    column, row = middle_of(mask)
    assert mask[row, column]
    assert abs(column - 1800) <= 4 and abs(row - (rows.start + rows.stop - 1) / 2) <= 4


def test_objects_that_overlap_show_both_tints_and_outlines() -> None:
    picture = np.asarray(overlay_several(Image.new("RGB", (200, 60), "white"), squares(10, 35))).astype(int)
    alone, both, other = picture[12, 20], picture[12, 42], picture[12, 60]
    assert (alone != both).any() and (both != other).any()
    assert tuple(picture[20, 10]) == colour_of(0) and tuple(picture[20, 35]) == colour_of(1)


def test_a_legend_has_every_sentence_below_the_picture() -> None:
    picture = overlay_several(Image.new("RGB", (200, 60)), squares(10, 110))
    page = with_legend(picture, ["a heart", "many words " * 20])
    assert page.width >= 200 and page.height > 60 + 5 * 20, "the long sentence is wrapped"
    assert np.array_equal(np.asarray(page.crop((0, 0, 200, 60))), np.asarray(picture))
    legend = np.asarray(page.crop((0, 60, page.width, page.height)))
    assert all((legend == colour_of(number)).all(-1).any() for number in (0, 1))


def test_a_cut_out_has_the_object_alone() -> None:
    picture = np.array(cut_out(Image.new("RGB", (200, 60), (9, 8, 7)), squares(10)[0]))
    assert picture.shape == (60, 200, 4)
    assert (picture[10:50, 10:50] == (9, 8, 7, 255)).all()
    picture[10:50, 10:50] = 0
    assert not picture.any(), "hidden pixels keep no colour"


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (13, 17)])
@pytest.mark.parametrize("share", [0, 0.05, 0.5, 1])
def test_edges_and_growth_are_those_of_skimage(size: tuple[int, int], share: float) -> None:
    places = np.random.default_rng(0).random(size) < share
    assert np.array_equal(edge_of(places), find_boundaries(places, mode="thick"))
    for radius in (0, 1, 2, 5):
        expected = isotropic_dilation(places, radius) if places.any() and radius else places
        assert np.array_equal(grown(places, radius), expected)


@pytest.fixture(scope="module")
def val_set(sample_root: Path) -> ReferDataset:
    tokenizer = build_tokenizer(str(sample_root / "vocab.txt"))
    return ReferDataset(REFER(sample_root, "refcoco", "unc"), "val", tokenizer, PairTransform(32))


def test_a_strip_takes_evenly_spaced_expressions(val_set: ReferDataset) -> None:
    n = len(val_set)
    assert PreviewSheet(val_set).indices == [number * n // 6 for number in range(6)]
    assert PreviewSheet(val_set, 2, limit=10).indices == [0, 5]
    assert PreviewSheet(val_set, limit=4).indices == [0, 1, 2, 3]
    assert PreviewSheet(val_set, n + 1, limit=n + 1).indices == list(range(n))


def test_a_strip_shows_what_is_predicted(val_set: ReferDataset) -> None:
    """Everything keeps the image as it is, nothing fades it, the truth's own mask outlines it."""
    strip = PreviewSheet(val_set, 2)
    background = torch.zeros(2, 1, 32, 32)
    nothing, everything = (strip.draw(torch.cat([background, background + sign], 1)) for sign in (-1, 1))
    size, gap, top = panels.PANEL_SIZE, tiles.GAP, tiles.CAPTION_HEIGHT
    width = 3 * size + 2 * gap
    assert everything.size == nothing.size == (2 * (width + 3 * gap), top + size + 3 * gap)
    for left in (0, width + 3 * gap):
        image, truth, prediction = (left + column * (size + gap) for column in range(3))
        shown = [
            [np.asarray(page.crop((start, top, start + size, top + size))) for start in (image, truth, prediction)]
            for page in (nothing, everything)
        ]
        assert np.array_equal(shown[0][0], shown[1][0]) and np.array_equal(shown[0][1], shown[1][1])
        assert np.array_equal(shown[1][2], shown[1][0])
        assert (np.ptp(shown[0][2], axis=-1) == 0).all(), "grey all over"
        assert not np.array_equal(shown[0][1], shown[0][2]), "the truth is neither nothing nor everything"


@pytest.mark.parametrize("size", [(1000, 2), (2, 1000), (1, 339), (1, 1)])
def test_an_image_of_any_shape_has_panels(size: tuple[int, int]) -> None:
    """A strip keeps a line of pixels."""
    nothing = np.zeros(size[::-1], np.uint8)
    shown = side_by_side(Image.new("RGB", size, "blue"), "the strip", nothing, nothing)
    image = np.asarray(panels.parts_of(shown).panels[0])
    assert image.shape == (PANEL_SIZE, PANEL_SIZE, 3)
    assert (image == (0, 0, 255)).all(-1).any(0 if size[0] >= size[1] else 1).all()


def one_batch(dataset: ReferDataset, n: int) -> tuple[Batch, Output, list[torch.Tensor]]:
    """Return the first n sentences, with the logits of a network that finds the left half of every image."""
    logits = torch.zeros(n, 2, 8, 8)
    logits[:, 1, :, :4] = 1
    return collate([dataset[index] for index in range(n)]), Output(logits, ()), [torch.ones(8, 8)] * n


def test_saved_pictures_are_those_of_each_sentence(val_set: ReferDataset, tmp_path: Path) -> None:
    """Though sentences about one object share their panels, and those about one image its views."""
    writer = PredictionWriter(tmp_path, val_set)
    assert val_set.object_of[0] == val_set.object_of[1], "the first two sentences are about one object"
    batch, output, masks = one_batch(val_set, 6)
    masks[2] = torch.zeros(8, 8)
    writer(batch, output, masks)
    writer.finish()
    saved = [sorted((tmp_path / folder).iterdir()) for folder in ("masks", "overlays")]
    assert len(saved[0]) == len(saved[1]) == 6
    for index, (mask_file, overlay_file) in enumerate(zip(*saved, strict=True)):
        image, truth = val_set.load(index)
        expected = predicted_mask(output.logits[index], truth.shape) * (index != 2)
        assert np.array_equal(np.asarray(Image.open(mask_file)), expected * 255)
        shown = panels.side_by_side(image, val_set.expressions[index].text, truth, expected)
        assert np.array_equal(np.asarray(Image.open(overlay_file)), np.asarray(shown))


def test_pictures_of_one_image_open_it_once(
    val_set: ReferDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = val_set.expressions[0].image_id
    n = next(number for number, one in enumerate(val_set.expressions) if one.image_id != image_id)
    assert len(set(val_set.object_of[:n])) > 1, "the sentences are about several objects"
    opened: list[int] = []
    load = ReferDataset.load

    def noted(self: ReferDataset, index: int) -> tuple[Image.Image, np.ndarray]:
        opened.append(index)
        return load(self, index)

    monkeypatch.setattr(ReferDataset, "load", noted)
    writer = PredictionWriter(tmp_path, val_set)
    writer(*one_batch(val_set, n))
    writer.finish()
    assert opened == [0]
    assert len(list((tmp_path / "overlays").iterdir())) == n


def test_a_picture_of_a_test_is_complete_or_missing(
    val_set: ReferDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it fails while the test goes on, or after it."""
    writer = PredictionWriter(tmp_path, val_set)
    monkeypatch.setattr(Image.Image, "save", fail_on_a_full_disk)
    with pytest.raises(UserError, match=r"masks/000000_ref.*No space left"):
        writer(*one_batch(val_set, 1))
        writer.finish()
    assert not list((tmp_path / "masks").iterdir())


def fail_on_a_full_disk(_: Image.Image, file: BinaryIO, **__: object) -> None:
    file.write(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_strip_needs_every_sample(val_set: ReferDataset) -> None:
    with pytest.raises(ValueError, match="shorter"):
        PreviewSheet(val_set, 2).draw(torch.zeros(1, 2, 8, 8))


def test_long_sentences_are_cut_to_one_line() -> None:
    font = ImageFont.load_default(size=tiles.CAPTION_SIZE)
    assert tiles.truncate("the red\ncup", font, 200) == "the red cup"
    assert tiles.truncate("y" * 100_000, font, 200) == tiles.truncate("y" * 100, font, 200)  # and that at once
    cut = tiles.truncate("the red cup " * 20, font, 200)
    assert cut.startswith("the red cup the") and cut.endswith(" …")
    assert 190 < font.getlength(cut) <= 200


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with engine.progress("epoch 0", total=3, done=1) as bar:
        for step in (2, 3):
            bar.update()
            engine.show_progress(bar, f"epoch 0  step {step}/3", "loss 1.5")
    out, err = capsys.readouterr()
    assert ("epoch 0  step 2/3  loss 1.5" in out) is not terminal
    assert ("loss 1.5" in err and "3/3" in err) is terminal
