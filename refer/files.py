"""Reading and checking the files of a data set: `refs(...).p`, its JSON copy, and `instances.json`."""

from __future__ import annotations

import hashlib
import json
import pickle
from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from errors import UserError
from lib.texts import IS_POINTER, LFS_POINTER
from refer.datasets import COCO_FOLDERS
from refer.splits import MANUAL

Record: TypeAlias = dict[str, Any]  # a ref, sentence, image or annotation, as in the file
Change: TypeAlias = Callable[[Record], Record]
Fields: TypeAlias = Mapping[str, type | tuple[type, ...]]  # the type of every key that a record must have


class Instances(TypedDict):
    """The content of an `instances.json` in COCO's format."""

    images: list[Record]
    annotations: list[Record]
    categories: list[Record]


LAYOUT = (
    "DATA_ROOT/DATASET/instances.json, DATA_ROOT/DATASET/refs(SPLITBY).p and "
    f"images in DATA_ROOT/{COCO_FOLDERS[0]} (of other data sets than RefCOCO's: docs/data.md)"
)

# The keys that the index reads; other keys are kept but not checked.
REF: Fields = {"ref_id": int, "ann_id": int, "category_id": int, "image_id": int, "split": str, "sentences": list}
# … of data sets whose refs mean any number of objects. What means nothing may have no category.
SET: Fields = {**REF, "ann_id": (int, list), "category_id": (int, list, type(None))}
SENTENCE: Fields = {"sent_id": int, "raw": str, "tokens": list}
IMAGE: Fields = {"id": int, "file_name": str, "height": int, "width": int}
ANNOTATION: Fields = {"id": int, "image_id": int, "category_id": int, "bbox": list, "segmentation": (list, dict)}
CATEGORY: Fields = {"id": int, "name": str}


def sentence_record(sent_id: int, text: str) -> Record:
    """Return the record of a sentence that comes without one."""
    return {"sent_id": sent_id, "raw": text, "sent": text, "tokens": text.split()}


class _PlainUnpickler(pickle.Unpickler):
    """Loads only lists, dicts, strings and numbers; refuses a pickle that names any class or function."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, but only plain data is allowed")


def read_refs(path: Path) -> list[Record]:
    """Return the refs of a `refs(...).p`, a pickle of Python 2 or 3. No code in the file is ever run.

    The refs are read from the JSON copy of `refer.prepare` (`refs(...).json`) if there is one and it was made from this
    pickle, or if there is no pickle. Python 2 stored text as bytes, which are decoded as UTF-8; the published files
    contain only ASCII. Raises UserError with the file's name if it is missing, damaged, contains code, or is not a list
    of refs.
    """
    json_path = path.with_suffix(".json")
    if not path.exists() and json_path.exists():
        return _read_refs_json(json_path, source=None)
    content = _read_file(path)
    if json_path.exists():
        # If the copy is damaged, the pickle still has the refs.
        with suppress(UserError):
            return _read_refs_json(json_path, source=content)
    return _check_refs(_unpickle(content, path), path)


def read_sets(path: Path) -> list[Record]:
    """Return the refs, each of any number of objects, of a pickle (`.p`) or of JSON that holds their list.

    Nothing in the file is ever run. Raises UserError as `read_refs` does. A ref without a category gets none: [].
    """
    content = _read_file(path)
    refs = _parse_json(content, path) if path.suffix == ".json" else _unpickle(content, path)
    checked = _check_refs(refs, path, SET)
    return [ref if ref.get("category_id") is not None else ref | {"category_id": []} for ref in checked]


def _unpickle(content: bytes, path: Path) -> Any:
    try:
        # Buffered: of a reader that cannot peek, the unpickler asks every few bytes singly.
        return _PlainUnpickler(BufferedReader(BytesIO(content)), encoding="utf-8").load()
    except Exception as error:  # a damaged pickle may raise anything: IndexError, KeyError, MemoryError, …
        raise _damaged(path, f"is no pickle of plain data ({str(error) or type(error).__name__})") from error


def refs_as_json(path: Path) -> bytes:
    """Return the refs of a pickle as the JSON that `read_refs` reads, with the pickle's SHA-256.

    Raises UserError as `read_refs` does, and ValueError if JSON cannot represent exactly these refs.
    """
    refs = read_refs(path)
    try:
        content = json.dumps({"pickle_sha256": _sha256(path.read_bytes()), "refs": refs}, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(f"JSON cannot represent {path} ({error})") from error
    if json.loads(content)["refs"] != refs:
        raise ValueError(f"JSON cannot represent {path}, which may have tuples, or numbers as keys")
    return content.encode()


def _read_refs_json(path: Path, source: bytes | None) -> list[Record]:
    """Return the refs in the JSON file; UserError if it was made from another pickle than `source`."""
    content = read_json(path)
    if source is not None and content.get("pickle_sha256") != _sha256(source):
        raise _damaged(path, "was made from another pickle")
    return _check_refs(content.get("refs"), path)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_refs(refs: Any, path: Path, fields: Fields = REF) -> list[Record]:
    checked = _check_records(refs, fields, path, "ref")
    for ref in checked:
        if ref["sentences"]:  # a ref without sentences is allowed, see data/dataset_refer_bert.py
            _check_records(ref["sentences"], SENTENCE, path, f"sentence of ref_id {ref['ref_id']}")
    return checked


def read_instances(path: Path) -> Instances:
    """Return images, annotations and categories of an `instances.json` in COCO's format.

    Raises UserError with the file's name if it is missing, damaged or has another format.
    """
    instances = read_json(path, _pack_polygons)
    return {
        "images": _check_records(instances.get("images"), IMAGE, path, "images"),
        "annotations": _check_records(instances.get("annotations"), ANNOTATION, path, "annotations"),
        "categories": _check_records(instances.get("categories"), CATEGORY, path, "categories"),
    }


def read_json(path: Path, change: Change | None = None) -> Record:
    """Return the object in a JSON file; UserError, naming the file, if it is missing, damaged or something else.

    change: applied to every object in it, innermost first.
    """
    value = _parse_json(_read_text(path), path, change)
    if not isinstance(value, dict):
        raise _damaged(path, f"contains a {type(value).__name__}, not a dict")
    return value


def _parse_json(content: bytes | str, path: Path, change: Change | None = None) -> Any:
    try:
        return json.loads(content, object_hook=change)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"is no JSON ({error})") from error


def _pack_polygons(record: Record) -> Record:
    """Pack the polygons of an annotation into arrays, which take a quarter of the memory of lists of numbers."""
    if isinstance(parts := record.get("segmentation"), list):
        record["segmentation"] = [_packed(part) for part in parts]
    return record


def _packed(part: Any) -> Any:
    if not isinstance(part, list):
        return part
    try:  # `suppress` would take as long as the rest
        return array("d", part)
    except (TypeError, OverflowError):  # whatever is no list of numbers is refused when it is needed
        return part


def _read_text(path: Path) -> str:
    """Return a JSON file's text; its bytes are gone when the objects are made, which saves as much memory."""
    content = _read_file(path)
    try:
        return content.decode(json.detect_encoding(content), "surrogatepass")
    except UnicodeDecodeError as error:
        raise _damaged(path, f"is no JSON ({error})") from error


def _read_file(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no file {path}. The layout is {LAYOUT}. {MANUAL} for where to get it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). {MANUAL}") from error
    if content.startswith(LFS_POINTER):
        raise UserError(f"{path} {IS_POINTER}")
    return content


def _check_records(records: Any, fields: Fields, path: Path, kind: str) -> list[Record]:
    """Return `records`; UserError unless they are a non-empty list of dicts with all `fields` in their types."""
    if not isinstance(records, list) or not records:
        raise _damaged(path, f"has no list of records in '{kind}'")
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise _damaged(path, f"has a {type(record).__name__} as {kind} number {number}, not a dict")
        for key, expected in fields.items():
            if not isinstance(record.get(key), expected):
                raise _damaged(path, f"has no valid '{key}' in {kind} number {number} ({record.get(key)!r:.60})")
    return records


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(f"{path} {problem}. Get the file again: {MANUAL[0].lower() + MANUAL[1:]}")
