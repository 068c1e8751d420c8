"""Scores on drawn data by kind of sentence, as scenes.json tells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

from errors import UserError
from lib.contents import COUNTS
from lib.schema import check

Counts: TypeAlias = list[tuple[int, int]]  # intersection and union of sentences, in pixels
Entry: TypeAlias = dict[str, Any]  # a sentence in scenes.json
THRESHOLDS = (0.5, 0.9)


def read_sentences(scenes: Path) -> dict[str, list[Entry]]:
    """Return the sentences of a scenes.json by data set; UserError if it holds none with kinds."""
    try:
        sentences: dict[str, list[Entry]] = json.loads(scenes.read_text(encoding="utf-8"))["sentences"]
        told = all("sent_id" in entry and "kinds" in entry for entries in sentences.values() for entry in entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        told = False
    if not told:
        raise UserError(f"{scenes} does not tell the kinds of sentences; drawn data of refcoco have such a file")
    return sentences


def table_by_kind(result: dict[str, Any], sentences: dict[str, list[Entry]], path: Path) -> str:
    """Return a result of `test.py --json` as a Markdown table of percentages, a row for each kind that it has.

    sentences: of `read_sentences`. path: the result's file, for messages.
    """
    if "counts" not in result or result["dataset"] not in sentences:
        raise UserError(f"{path} has no counts for sentences of {', '.join(sentences)}: test again with --json")
    said = {entry["sent_id"]: entry for entry in sentences[result["dataset"]]}
    groups: dict[str, Counts] = {name: [] for name in ordered(said)}
    check(result["counts"], COUNTS, path)
    columns = [result["counts"][name] for name in ("sent_id", "intersection", "union")]
    if len(set(map(len, columns))) > 1:
        raise UserError(f"{path} has lists of different lengths in its counts: test again with --json")
    for sent_id, intersection, union in zip(*columns, strict=True):
        if sent_id not in said:
            raise UserError(f"{path} has the sentence {sent_id}, which is not among those of scenes.json")
        for name in groups_of(said[sent_id]):
            groups[name].append((intersection, union))
    lines = ["| sentences | number | mIoU | oIoU | P@0.5 | P@0.9 |", "|---|---:|---:|---:|---:|---:|"]
    return "\n".join([*lines, *(row(name, own) for name, own in groups.items() if own)])


def ordered(said: dict[int, Entry]) -> list[str]:
    """Return the names of all groups: kinds, then information that sentences hold, then all."""
    found = {name for entry in said.values() for name in groups_of(entry)}
    return sorted(found, key=lambda name: (name == "all", name.startswith("with"), name))


def groups_of(entry: Entry) -> list[str]:
    """Return the groups of a sentence: its kind, if it has one, the information it holds, and all."""
    kind = [entry["kind"]] if "kind" in entry else []
    without = ["without colour"] if "colour" not in entry["kinds"] else []
    return [*kind, *(f"with {name}" for name in entry["kinds"]), *without, "all"]


def row(name: str, counts: Counts) -> str:
    """Return the scores of a group as a row of the table."""
    ious = [intersection / union if union else 0.0 for intersection, union in counts]
    overall = sum(own for own, _ in counts) / max(1, sum(own for _, own in counts))
    shares = [sum(iou >= threshold for iou in ious) / len(ious) for threshold in THRESHOLDS]
    values = " | ".join(f"{100 * value:.2f}" for value in (sum(ious) / len(ious), overall, *shares))
    return f"| {name} | {len(ious)} | {values} |"
