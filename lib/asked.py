"""The flags of `predict.py` and `predict_onnx.py` about what to segment and what to write.

Imports nothing slow: flags are checked before NumPy and Pillow are imported.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from errors import UserError
from lib.outputs import check_apart, check_folder, check_output, is_same

ALWAYS, ON_REQUEST = ("masks", "overlays", "alignment"), ("cutouts", "colours")  # folders of pictures
FOLDERS = (*ALWAYS, *ON_REQUEST)


def add_requests(parser: argparse.ArgumentParser) -> None:
    """Add the flags of photos, sentences and results."""
    add = parser.add_argument
    add("--image", type=Path, help="a photo, or a folder of photos")
    add("--recursive", action="store_true", help="also take the photos in folders of that folder, except in --out")
    add("--text", nargs="+", help="one or more sentences about every photo")
    add("--jsonl", type=Path, metavar="FILE", help='instead: a file with {"image": …, "text": …} in every line')
    add("--out", type=Path, required=True, help="folder of the pictures; those of the same name are replaced")
    json_help = "write boxes, areas, expected IoUs and masks in COCO's format; to FILE.jsonl, a line at a time"
    add("--json", type=Path, metavar="FILE", help=json_help)
    add("--skip-existing", action="store_true", help="leave out what an earlier run of this command has written")


def check_requests(args: argparse.Namespace, read: Sequence[str | Path]) -> None:
    """Raise UserError for flags that contradict each other, or a file or folder that cannot be written.

    read: the other files that the command reads.
    """
    if bool(args.jsonl) == bool(args.image or args.text) or bool(args.image) != bool(args.text):
        raise UserError("name photos and sentences with --image and --text, or in a file with --jsonl")
    if args.recursive and args.jsonl:
        raise UserError(f"--recursive is for a folder of photos, but --jsonl {args.jsonl} names each: leave it out")
    if args.recursive and is_same(args.image, args.out):
        raise UserError(
            f"--recursive would read the pictures in --out {args.out}: choose another folder, such as one in it"
        )
    check_folder(args.out, "--out")
    if args.json is not None:
        check_apart(args.json, "--json", [args.out / kind for kind in FOLDERS])
        check_output(args.json, "--json", "JSON", [args.jsonl or args.image, *read])
        if args.skip_existing and not is_lines(args.json):
            raise UserError(f"--skip-existing continues lines only: let the name of --json {args.json} end in .jsonl")


def is_lines(path: Path) -> bool:
    """Return whether a file of results is written line by line, not in COCO's format."""
    return path.suffix == ".jsonl"
