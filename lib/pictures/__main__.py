"""Pictures of runs: training curves, sheets of the overlays of `test.py --save-masks`, IoU by expected IoU.

python -m lib.pictures curves ./checkpoints --out curves.png
python -m lib.pictures curves run_a run_b --out compared.png
python -m lib.pictures sheet DIR --out sheet.png
python -m lib.pictures sheet DIR OTHER --out sheet.png
python -m lib.pictures reliability val.csv --out reliability.png
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from errors import UserError, answer_first, run
from lib.arguments import Parser, positive_int
from lib.outputs import check_output


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for `sys.argv`."""
    parser = Parser(f"python -m {__package__}", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    curves = commands.add_parser("curves", help="draw training curves, also of runs that are still training")
    curves.add_argument("runs", type=Path, nargs="+", help="output folders of trainings")
    curves.add_argument("--out", type=Path, default=Path("curves.png"), help="a PNG file")
    sheet = commands.add_parser("sheet", help="put overlays onto one sheet")
    sheet.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="of test.py --save-masks; several are compared in one row"
    )
    sheet.add_argument("--out", type=Path, default=Path("sheet.png"), help="a PNG file")
    sheet.add_argument("--count", type=positive_int, default=18, help="sentences on the sheet")
    reliability = commands.add_parser("reliability", help="draw the IoU of sentences by the IoU that was expected")
    reliability.add_argument("rows", type=Path, help="the file of test.py --csv or --jsonl")
    reliability.add_argument("--out", type=Path, default=Path("reliability.png"), help="a PNG file")
    args = parser.parse_args(arguments)
    check_output(args.out, "--out", "a PNG picture")
    return args


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

from PIL import Image

from lib.files import write_atomically
from lib.logs import read_logs
from lib.photo import open_photo
from lib.pictures.panels import Parts, evenly_spaced, named, parts_of, sheet
from lib.pictures.reliability import bins_of, draw_reliability, read_pairs
from lib.pictures.tiles import below


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw curves, a sheet or a reliability diagram, as the flags say."""
    args = parse_args(arguments)
    {"curves": draw_curves, "sheet": draw_sheet, "reliability": show_reliability}[args.command](args)


def draw_curves(args: argparse.Namespace) -> None:
    """Draw the training curves of runs."""
    from lib.pictures.curves import plot_curves  # imports matplotlib

    logs = read_logs(args.runs)
    plot_curves(logs, args.out)
    print(f"curves of {', '.join(logs)} in {args.out}")


def draw_sheet(args: argparse.Namespace) -> None:
    """Write a sheet of evenly spaced overlays; of several folders those that all have, in one row."""
    names = shared_overlays(args.folders)
    chosen = [names[number] for number in evenly_spaced(len(names), args.count)]
    rows = [[folder / "overlays" / name for folder in args.folders] for name in chosen]
    check_output(args.out, "--out", "a PNG picture", [file for row in rows for file in row])
    if len(args.folders) == 1:
        page = sheet([open_photo(file) for (file,) in rows])
    else:
        page = sheet([compared_overlays(args.folders, row) for row in rows], columns=1)
    write_atomically(args.out, lambda file: page.save(file, format="PNG"))
    print(f"{len(chosen)} of {len(names)} overlays on {args.out}")


def shared_overlays(folders: Sequence[Path]) -> list[str]:
    """Return the sorted names of the overlays that all folders have; UserError if there is none."""
    of_each = [{file.name for file in (folder / "overlays").glob("*.png")} for folder in folders]
    for folder, names in zip(folders, of_each, strict=True):
        if not names:
            raise UserError(f"{folder} has no overlays/*.png: make them with test.py --save-masks {folder}")
    shared = sorted(set.intersection(*of_each))
    if not shared:
        raise UserError(f"{', '.join(map(str, folders))} are not of the same sentences: no overlay has the same name")
    return shared


def compared_overlays(folders: Sequence[Path], files: Sequence[Path]) -> Image.Image:
    """Return image and truth of a sentence, and the prediction of each folder under its short name.

    Raises UserError for a file that `test.py --save-masks` did not write.
    """
    overlays = [open_overlay(file) for file in files]
    image, truth, _ = overlays[0].panels
    predictions = zip(short_names(folders), (one.panels[-1] for one in overlays), strict=True)
    return below([overlays[0].caption, named([("image", image), ("truth", truth), *predictions])])


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the names of folders without the folders that all are in: of a/b/one and a/b/c/two one and c/two."""
    shared = os.path.commonpath([folder.absolute().parent for folder in folders])
    return [str(folder.absolute().relative_to(shared)) for folder in folders]


def open_overlay(file: Path) -> Parts:
    """Return the parts of an overlay; UserError if it is none of `test.py --save-masks`."""
    try:
        return parts_of(open_photo(file))
    except ValueError as error:
        raise UserError(f"{file} is no overlay of test.py --save-masks: {error}") from error


def show_reliability(args: argparse.Namespace) -> None:
    """Print and draw the mean IoU of sentences by the IoU that was expected."""
    pairs = read_pairs(args.rows)
    check_output(args.out, "--out", "a PNG picture", [args.rows])
    bins = bins_of(pairs)
    print("expected IoU     IoU  sentences")
    for one in bins:
        print(f"{one.expected:12.3f}  {one.iou:6.3f}  {one.n_sentences:9,}")
    draw_reliability(bins, args.out)
    print(f"{len(pairs):,} sentences of {args.rows} in {args.out}")


if __name__ == "__main__":
    run(main)
