"""A test's scores as text: the table that is printed, the JSON of `--json`, and a line for every sentence."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence

from lib.contracts import Expressions
from lib.evaluation.protocols import NO_ANSWER, Evaluation
from lib.evaluation.published import Measurement
from lib.scores import formula_lines, score_table

# The fields of `Result` in the counts of a result's file, next to the ids of sentence and image.
COUNTED = ("intersection", "union", "predicted", "truth", "image")


def describe_scores(evaluations: Mapping[str, Evaluation], measurement: Measurement) -> str:
    """Return the scores as a table, with the rows of other rules, and the formulas of its columns.

    evaluations: by one protocol, by the name of their rows, such as a split; "" for a single one.
    """
    rows = {
        ", ".join(filter(None, (title, name))): scores.as_dict()
        for title, evaluation in evaluations.items()
        for name, scores in evaluation.rows().items()
    }
    protocol = next(iter(evaluations.values())).counting.protocol
    return f"{score_table(rows)}\nmeasured at {measurement.measured_at}\n{formula_lines(protocol)}"


def result_text(content: Mapping[str, object], evaluation: Evaluation, dataset: Expressions) -> str:
    """Return the JSON of a result: `content`, the rows of other rules, and a line for each field of the counts."""
    _, *beside = evaluation.rows().items()
    more = {"beside": {name: scores.as_dict() for name, scores in beside}} if beside else {}
    head = json.dumps({**content, **more}, indent=2).removesuffix("\n}")
    fields = ",\n".join(
        f"    {json.dumps(key)}: {json.dumps(own)}" for key, own in counts_of(evaluation, dataset).items()
    )
    return f'{head},\n  "counts": {{\n{fields}\n  }}\n}}\n'


def counts_of(evaluation: Evaluation, dataset: Expressions) -> dict[str, list[int]]:
    """Return what every sentence's numbers are made of, in the data set's order."""
    results = evaluation.results
    expressions = [dataset.expressions[result.number] for result in results]
    counts = {"sent_id": [one.sent_id for one in expressions], "image_id": [one.image_id for one in expressions]}
    counts |= {name: [getattr(result, name) for result in results] for name in COUNTED}
    if any(result.answer != NO_ANSWER for result in results):
        counts["answer"] = [result.answer for result in results]
    if evaluation.counting.protocol != "classic":
        counts["no_target"] = [int(result.no_target) for result in results]
    return counts


def sentence_rows(
    evaluation: Evaluation, dataset: Expressions, expected: Mapping[int, float]
) -> list[dict[str, str | int | float]]:
    """Return ids, image, sentence, pixel counts and IoU of every sentence, as the protocol counts them.

    IoU and expected IoU are 0 to 1. expected: see `lib.evaluation.expected`, by index of the expression. Of protocols
    with sentences without a target, the rows also tell these and the answers.
    """
    rows = []
    for result in evaluation.counted:
        one = dataset.expressions[result.number]
        row: dict[str, str | int | float] = {
            "sent_id": one.sent_id,
            "ref_id": one.ref_id,
            "image_id": one.image_id,
            "image": str(dataset.image_path(result.number)),
            "sentence": one.text,
            "intersection": result.intersection,
            "union": result.union,
            "iou": round(result.iou, 6),
            "expected_iou": expected[result.number],
        }
        if evaluation.counting.protocol != "classic":
            row |= {"no_target": int(result.no_target), "answer": result.answer}
        rows.append(row)
    return rows


def rows_as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows, which have the same entries, as CSV, the names of the entries first."""
    return "".join(_csv_line(list(cells)) for cells in (rows[0], *(row.values() for row in rows)))


def _csv_line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    # Before Python 3.13, csv quotes a carriage return only if it is also in the ends of lines.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def rows_as_json_lines(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as JSON, a line each."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
