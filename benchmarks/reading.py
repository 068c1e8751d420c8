"""Measure how long a data set of RefCOCO's size takes to be read, and how much memory.

    python -m benchmarks.reading

It writes made-up records in RefCOCO's layout, without images, into a temporary folder, and reads the split for training
in a new process, as `train.py` does.
"""

from __future__ import annotations

import argparse
import cmath
import json
import os
import pickle
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import run
from lib.arguments import Parser, positive_int
from lib.files import ROOT

# RefCOCO (unc), as published: 142,209 sentences about 50,000 objects in 19,994 images with 196,771 annotations.
IMAGES, OBJECTS, SENTENCES, ANNOTATIONS = 19_994, 50_000, 142_209, 196_771
CORNERS = 40  # of an outline
WORDS = ("the", "a", "man", "woman", "left", "right", "red", "blue", "shirt", "hat", "front", "dog")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for `sys.argv`."""
    parser = Parser(prog="python -m benchmarks.reading", description=__doc__)
    parser.add_argument("--repeats", type=positive_int, default=3, help="how often it is read")
    parser.add_argument("--share", type=positive_int, default=1, help="write and read one record in so many")
    return parser.parse_args(arguments)


def write_records(root: Path, share: int) -> None:
    """Write `refs(unc).p`, `instances.json` and `vocab.txt` below a folder; share: see `parse_args`."""
    chance = random.Random(0)
    n_images, n_objects, n_sentences, n_annotations = (n // share for n in (IMAGES, OBJECTS, SENTENCES, ANNOTATIONS))
    images = [
        {"id": number, "file_name": f"COCO_train2014_{number:012}.jpg", "height": 480, "width": 640}
        for number in range(n_images)
    ]
    annotations = [annotation(number, number % n_images, chance) for number in range(n_annotations)]
    counts = [n_sentences // n_objects + (number < n_sentences % n_objects) for number in range(n_objects)]
    refs, first = [], 0
    for number, count in enumerate(counts):
        refs.append(ref(number, number % n_images, range(first, first + count), chance))
        first += count
    folder = root / "refcoco"
    folder.mkdir(parents=True)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")


def annotation(number: int, image_id: int, chance: random.Random) -> dict[str, Any]:
    """Return the record of an annotation with one outline, without crossings: its corners go round a point."""
    x, y = chance.uniform(120, 520), chance.uniform(120, 360)
    corners = [cmath.rect(chance.uniform(60, 110), 2 * cmath.pi * corner / CORNERS) for corner in range(CORNERS)]
    outline = [round(value, 2) for corner in corners for value in (x + corner.real, y + corner.imag)]
    left, top, right, bottom = min(outline[::2]), min(outline[1::2]), max(outline[::2]), max(outline[1::2])
    place = {"segmentation": [outline], "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)]}
    return {"id": number, "image_id": image_id, "category_id": 1, **place, "area": 22_700.0, "iscrowd": 0}


def ref(number: int, image_id: int, sent_ids: range, chance: random.Random) -> dict[str, Any]:
    """Return the record of an object with its sentences."""
    texts = [" ".join(chance.choices(WORDS, k=4)) for _ in sent_ids]
    sentences = [
        {"sent_id": sent_id, "raw": text, "sent": text, "tokens": text.split()}
        for sent_id, text in zip(sent_ids, texts, strict=True)
    ]
    ids = {"ref_id": number, "ann_id": number, "image_id": image_id, "category_id": 1}
    return {**ids, "split": "train", "sentences": sentences, "sent_ids": list(sent_ids), "file_name": ""}


def read(root: str) -> None:
    """Read the split for training; print its sentences, seconds, CPU seconds, and the peak memory in GiB."""
    from bert.tokenizer import build_tokenizer
    from data.loaders import build_datasets
    from train import parse_args as parse_training

    args = parse_training(["--refer_data_root", root, "--bert_tokenizer", f"{root}/vocab.txt", "--device", "cpu"])
    begin, cpu_begin = time.perf_counter(), time.process_time()
    (dataset,) = build_datasets(args, ["train"], build_tokenizer(args.bert_tokenizer), training=True)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    print(len(dataset), seconds, cpu_seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def measure(root: str) -> list[float]:
    """Return what `read` prints in a new process."""
    line = [sys.executable, "-c", "import sys; from benchmarks.reading import read; read(sys.argv[1])", root]
    outcome = subprocess.run(line, check=True, capture_output=True, text=True, cwd=ROOT)
    return [float(number) for number in outcome.stdout.splitlines()[-1].split()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the records, read them, and print the load, each reading and the medians."""
    args = parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        write_records(Path(folder), args.share)
        print(f"written in {time.perf_counter() - begin:.1f} s", flush=True)
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")  # other programs slow the reading down
        rows = [measure(folder) for _ in range(args.repeats)]
    for _, *numbers in rows:
        print("{:.2f} s, {:.2f} s on the CPU, {:.2f} GiB".format(*numbers))
    count, seconds, cpu_seconds, memory = map(statistics.median, zip(*rows, strict=True))
    print(
        f"{count:,.0f} sentences are read in {seconds:.2f} s, {cpu_seconds:.2f} s of them on the CPU, with at most "
        f"{memory:.2f} GiB of memory in all"
    )


if __name__ == "__main__":
    run(main)
