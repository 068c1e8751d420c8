"""Sample data laid out as RISBench is: an image, a mask picture and a line of text for each sentence."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from data.sample import scene, sets, tiles
from data.sample.expressions import View, as_typed
from data.sample.records import Kind, Record, category_id, write_scenes
from refer.masks import compress

FOLDER = Path("RISBench_dataset")
PHRASES = "output_phrase_{}.txt"
TILE = 192  # pixels; RISBench's own are 512
# Grey values of a mask per number of its objects' category: anything above 0 is part of an object.
GREY_STEP = 30


def write_sentences(rng: Random, view: View, split: str) -> list[Record]:
    """Return the sentence of a scene: as typed, cleaned, the objects meant (by depth), and the form."""
    one = tiles.write(rng, view)
    return [{"raw": as_typed(rng, one.text), "sent": one.text, "meant": list(one.meant), "form": one.form}]


def write_files(folder: Path, scenes: list[Record]) -> None:
    """Write the masks, the lines of text and scenes.json; the images are there."""
    (folder / FOLDER / "mask").mkdir()
    for one in scenes:
        Image.fromarray(mask(one)).save(folder / FOLDER / "mask" / one["file_name"])
    for split in KIND.n_objects:
        own = (one for one in scenes if one["split"] == split)
        lines = [f"{one['file_name']} {text['raw']}\n" for one in own for text in one["sentences"]]
        (folder / FOLDER / PHRASES.format(split)).write_text("".join(lines), encoding="utf-8")
    truth = [
        {
            "file_name": one["file_name"],
            "ann_ids": [one["objects"][depth]["ann_id"] for depth in text["meant"]],
            "sent": text["sent"],
            "form": text["form"],
        }
        for one in scenes
        for text in one["sentences"]
    ]
    write_scenes(folder, scenes, {"risbench": truth})


def mask(one: Record) -> np.ndarray:
    """Return the mask of a scene's sentence, H×W uint8: 0 outside of the objects that it means."""
    grey = np.zeros((one["height"], one["width"]), np.uint8)
    for text in one["sentences"]:
        for depth in text["meant"]:
            parts = compress(one["polygons"][depth], one["height"], one["width"])
            grey[coco_mask.decode(coco_mask.merge(parts)) > 0] = GREY_STEP * category_id(one["objects"][depth])
    return grey


KIND = Kind(
    n_objects={"train": (4, 10), "val": (4, 10), "test": (4, 10)},
    image=str(FOLDER / "img_rgb" / "{:05d}.png"),
    compose=partial(scene.compose, alike=True, tile=TILE),
    write_sentences=write_sentences,
    write_files=write_files,
    words=sorted({*sets.words(), *tiles.words()}),
)
