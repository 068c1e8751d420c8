"""The sample data set: referring expressions over drawn scenes, laid out exactly as the real ones.

    python -m data.sample --root ./refer/data/sample
    python -m data.sample --root ./refer/data/sample --images 200 --seed 1
    python -m data.sample --root ./refer/data/hard --hard

writes refcoco, refcoco+ and refcocog for `--images` training images (and a tenth of that per other split)
in seconds; the same options give the same bytes. Then train and test with `--refer_data_root` pointing there,
`--bert_tokenizer` at its `vocab.txt` and a network from scratch, as the commands in docs/training.md do.

    ROOT/{refcoco,refcoco+}/instances.json, refs(unc).p    ROOT/images/mscoco/images/train2014/*.jpg
    ROOT/refcocog/instances.json, refs(umd).p              ROOT/vocab.txt     WordPiece, 1000 lines
    ROOT/sample.json   the options                         ROOT/scenes.json   what each scene and sentence holds

An object that no sentence tells apart in a kind, such as one of two twins in refcoco+, is left out there.
All sets share their images. The splits hold different images: train and val any scene; testA few objects
(3 to 5); testB crowded scenes (6 to 8). The test split of refcocog is testA and testB together.

`scenes.json` holds, per image, its objects back to front (`depth` counts from there; `hidden_by`: nearer
object → covered share of the whole area) and, per data set and sentence, the kinds of information in it.

`--hard` draws scenes of few colours and shapes, so that neither tells most objects apart, with longer relations ("big
circle left of the topmost star") and, now and then, rarer words ("crimson").
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from errors import run
from lib.arguments import Parser, non_negative_int, positive_int


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description="Make the sample data set.")
    parser.add_argument("--root", required=True, help="folder to make; missing or empty")
    parser.add_argument("--images", type=positive_int, default=2000, help="number of training images")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="another seed draws other scenes")
    parser.add_argument("--hard", action="store_true", help="objects that look alike, longer relations, rarer words")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

from data.sample.make import make_sample


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the data set the command line asks for."""
    options = parse_args(arguments)
    make_sample(options.root, options.images, options.seed, hard=options.hard)


if __name__ == "__main__":
    run(main)
