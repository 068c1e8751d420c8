"""Make the sample data set: referring expressions for drawn scenes, in the layout of the real data sets.

    python -m data.sample --root ./refer/data/sample
    python -m data.sample --root ./refer/data/sample --images 200 --seed 1
    python -m data.sample --root ./refer/data/hard --hard
    python -m data.sample --root ./refer/data/easy --version 1
    python -m data.sample --root ./refer/data/several --like grefcoco
    python -m data.sample --root ./refer/data/tiles --like risbench

Writes refcoco, refcoco+ and refcocog for `--images` training images (and a tenth of that per other split) in seconds;
the same options give the same bytes. To train and test on it, set `--refer_data_root` to this folder and
`--bert_tokenizer` to its `vocab.txt`, and train from scratch, as shown in docs/training.md.

    ROOT/{refcoco,refcoco+}/instances.json, refs(unc).p    ROOT/images/mscoco/images/train2014/*.jpg
    ROOT/refcocog/instances.json, refs(umd).p              ROOT/vocab.txt     WordPiece, 1000 lines
    ROOT/sample.json   the options                         ROOT/scenes.json   content of every scene and sentence

A data set leaves out objects that none of its sentences can single out, such as two twins in refcoco+. All data sets
share their images. The splits have different images: train and val any scene, testA few objects (3 to 5), testB many
(6 to 8). The test split of refcocog is testA and testB together.

`scenes.json` lists the objects of each image from back to front (`depth` 0 is the back; `hidden_by`: nearer object →
covered fraction of the whole area), and the kinds of information in every sentence of each data set.

`--like grefcoco` instead writes the layout of gRefCOCO, with sentences that mean one object, several ("the two red
stars", "everything on the left") or none. `--like risbench` writes that of RISBench: square tiles, masks of all objects
of a class, sentences of up to 50 tokens. Each of them adds its words to `vocab.txt`.

    ROOT/grefcoco/instances.json, grefs(unc).json          ROOT/RISBench_dataset/img_rgb/*.png, mask/*.png
    ROOT/images/mscoco/images/train2014/*.jpg              ROOT/RISBench_dataset/output_phrase_{train,val,test}.txt

Colours alone decide little: objects share colours, shapes and textures. Every sentence has a `kind` in scenes.json,
which is what it takes to find the object: colour, shape, texture, size, several of them (looks), place, ordinal,
relation1, relation2 (of two steps) or negation. Sentences have one word to 27, and now and then a typing error; some
are repeated.

With `--version 1` most objects of a scene have a colour of their own, and most sentences name it, so minutes of
training show something. `--hard` and `--like risbench` are version 1's. With `--hard` the objects of a scene share few
colours and shapes, so that neither singles out most objects. Relations are longer ("big circle left of the topmost
star"), and some words are rarer ("crimson").
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from data.sample.versions import VERSION, VERSIONS
from errors import answer_first, run
from lib.arguments import Parser, non_negative_int, positive_int

# Keys of `data.sample.make.KINDS`, which takes seconds to import; the first stands for refcoco, refcoco+ and refcocog.
LIKE = ("refcoco", "grefcoco", "risbench")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description="Make the sample data set.")
    parser.add_argument("--root", required=True, help="folder to write; must be missing or empty")
    parser.add_argument("--images", type=positive_int, default=2000, help="number of training images")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of the scenes and sentences")
    parser.add_argument("--hard", action="store_true", help="objects that look alike, longer relations, rarer words")
    parser.add_argument("--like", choices=LIKE, default=LIKE[0], help="data set whose layout to draw")
    of_data = f"version of the data; default: {VERSION}, or 1 of what has no other"
    parser.add_argument("--version", type=int, choices=VERSIONS, help=of_data)
    options = parser.parse_args(arguments)
    if options.hard and options.like != LIKE[0]:
        parser.error(f"--hard is for --like {LIKE[0]} alone")
    if options.version == 2 and (options.hard or options.like == "risbench"):
        parser.error("--version 2 goes neither with --hard nor with --like risbench")
    return options


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

from data.sample.make import make_sample


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the data set as the flags say."""
    options = parse_args(arguments)
    make_sample(
        options.root, options.images, options.seed, hard=options.hard, like=options.like, version=options.version
    )


if __name__ == "__main__":
    run(main)
