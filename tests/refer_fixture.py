"""A data set of a few objects in REFER's layout, and a writer of Python 2 pickles."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

WIDTH, HEIGHT = 40, 30
IMAGES = Path("images/mscoco/images/train2014")
VOCABULARY = "[PAD] [unused0] [UNK] [CLS] [SEP] the red green car man ##s left right of , thing"
WORDS = VOCABULARY.split()
SIZE = [HEIGHT, WIDTH]


def box(x: int, y: int, w: int, h: int) -> list[float]:
    """Return a rectangle of whole pixels as a polygon."""
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def box_mask(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def compressed(mask: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(mask))["counts"].decode("ascii")


def runs(mask: np.ndarray) -> list[int]:
    """Return COCO's uncompressed run lengths: columns one after another, background first."""
    flat = mask.flatten(order="F").astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return np.diff(np.concatenate([[0], edges])).tolist()


def tiny_refs() -> list[dict[str, Any]]:
    """Return six objects in three images; object n has ann_id 100 + n."""
    rows = [
        (1, 1, 5, "train", ["the red car", "red car left", "car, left of the green thing"]),
        (2, 1, 6, "train", ["green thing"]),
        (3, 2, 5, "val", ["the man"]),
        (4, 2, 5, "testA", ["the left man", "man left"]),
        (5, 3, 6, "testB", ["green cars"]),
        (6, 3, 6, "testAB", ["right car"]),
    ]
    refs, sent_id = [], 0
    for ref_id, image_id, category_id, split, texts in rows:
        sentences = []
        for text in texts:
            sentences.append({"raw": text, "sent": text, "sent_id": sent_id, "tokens": text.split()})
            sent_id += 1
        refs.append(
            {
                "ref_id": ref_id,
                "ann_id": 100 + ref_id,
                "category_id": category_id,
                "image_id": image_id,
                "file_name": f"{image_id}_{ref_id}.png",
                "split": split,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
            }
        )
    return refs


def tiny_instances() -> dict[str, Any]:
    """Return every kind of segmentation, and one annotation (200) without a sentence."""
    full = box_mask(5, 5, 10, 8)
    segmentations = {
        101: [box(5, 5, 10, 8)],
        102: [box(0, 0, 20, 10), box(10, 0, 20, 10)],  # columns 10 to 19 are covered twice
        103: [{"size": SIZE, "counts": compressed(full)}],
        104: [{"size": SIZE, "counts": runs(full)}],
        105: {"size": SIZE, "counts": compressed(full)},
        106: [box(0, 0, 5, 5), box(20, 20, 5, 5)],
        200: [box(1, 1, 3, 3)],
    }
    image_of = {101: 1, 102: 1, 103: 2, 104: 2, 105: 3, 106: 3, 200: 3}
    annotations = [
        {
            "id": ann_id,
            "image_id": image_of[ann_id],
            "category_id": 6 if ann_id in (102, 105, 106) else 5,
            "bbox": [5, 5, 10, 8],
            "segmentation": segmentation,
            "iscrowd": 0,
        }
        for ann_id, segmentation in segmentations.items()
    ]
    images = [{"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in (1, 2, 3)]
    categories = [{"id": 5, "name": "car"}, {"id": 6, "name": "thing"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_refer(
    root: Path,
    refs: Any = None,
    instances: Any = None,
    *,
    dataset: str = "refcoco",
    split_by: str = "unc",
) -> Path:
    """Write a data set without images, its refs as a Python 2 pickle; return its root. Default: the tiny one."""
    folder = root / dataset
    folder.mkdir(parents=True, exist_ok=True)
    refs = tiny_refs() if refs is None else refs
    instances = tiny_instances() if instances is None else instances
    (folder / f"refs({split_by}).p").write_bytes(refs if isinstance(refs, bytes) else python2_pickle(refs))
    (folder / "instances.json").write_text(instances if isinstance(instances, str) else json.dumps(instances))
    return root


def write_images(root: Path) -> Path:
    """Write the images of the tiny data set: different noise for each."""
    folder = root / IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    for number in (1, 2, 3):
        noise = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


def write_vocabulary(path: Path) -> Path:
    path.write_text("".join(f"{word}\n" for word in WORDS))
    return path


class Unicode(str):
    """Text that was `unicode` in Python 2. A plain str below represents Python 2's `str`, which is bytes."""


def python2_pickle(value: Any, protocol: int = 2) -> bytes:
    """Return what Python 2 wrote for lists, dicts, text and numbers (opcodes: `pickletools`)."""
    start = b"\x80\x02" if protocol == 2 else b""
    return start + (_text_opcodes if protocol == 0 else _binary_opcodes)(value) + b"."


def _text_opcodes(value: Any) -> bytes:
    if isinstance(value, list):
        return b"(l" + b"".join(_text_opcodes(item) + b"a" for item in value)
    if isinstance(value, dict):
        items = (_text_opcodes(key) + _text_opcodes(item) + b"s" for key, item in value.items())
        return b"(d" + b"".join(items)
    if isinstance(value, Unicode):
        return b"V" + value.encode("raw-unicode-escape") + b"\n"
    if isinstance(value, str):
        return b"S" + repr(value.encode())[1:].encode("ascii") + b"\n"
    return (b"F" if isinstance(value, float) else b"I") + repr(value).encode("ascii") + b"\n"


def _binary_opcodes(value: Any) -> bytes:
    if isinstance(value, list):
        return b"](" + b"".join(map(_binary_opcodes, value)) + b"e"
    if isinstance(value, dict):
        items = (_binary_opcodes(key) + _binary_opcodes(item) for key, item in value.items())
        return b"}(" + b"".join(items) + b"u"
    if isinstance(value, Unicode):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, str):
        content = value.encode()
        short = len(content) < 256
        return (b"U" + bytes([len(content)]) if short else b"T" + struct.pack("<I", len(content))) + content
    return b"G" + struct.pack(">d", value) if isinstance(value, float) else b"J" + struct.pack("<i", value)
