"""Pictures of runs: training curves, sheets of the overlays of `test.py --save-masks`, IoU by expected IoU.

python -m lib.pictures curves ./checkpoints --out curves.png
python -m lib.pictures curves run_a run_b --out compared.png
python -m lib.pictures sheet DIR --out sheet.png
python -m lib.pictures reliability val.csv --out reliability.png
"""

from __future__ import annotations

import argparse
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
    sheet.add_argument("folder", type=Path, help="folder of test.py --save-masks")
    sheet.add_argument("--out", type=Path, default=Path("sheet.png"), help="a PNG file")
    sheet.add_argument("--count", type=positive_int, default=18, help="overlays on the sheet")
    reliability = commands.add_parser("reliability", help="draw the IoU of sentences by the IoU that was expected")
    reliability.add_argument("rows", type=Path, help="the file of test.py --csv or --jsonl")
    reliability.add_argument("--out", type=Path, default=Path("reliability.png"), help="a PNG file")
    args = parser.parse_args(arguments)
    check_output(args.out, "--out", "a PNG picture")
    return args


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

from lib.files import write_atomically
from lib.logs import read_logs
from lib.photo import open_photo
from lib.pictures.panels import evenly_spaced, sheet
from lib.pictures.reliability import bins_of, draw_reliability, read_pairs


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
    """Write a sheet of evenly spaced overlays."""
    files = sorted((args.folder / "overlays").glob("*.png"))
    if not files:
        raise UserError(f"{args.folder} has no overlays/*.png: make them with test.py --save-masks {args.folder}")
    check_output(args.out, "--out", "a PNG picture", files)
    chosen = [files[number] for number in evenly_spaced(len(files), args.count)]
    page = sheet([open_photo(file) for file in chosen])
    write_atomically(args.out, lambda file: page.save(file, format="PNG"))
    print(f"{len(chosen)} of {len(files)} overlays on {args.out}")


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
