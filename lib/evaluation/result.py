"""A test's scores as text: the table that is printed, and the JSON of `--json`, with every sentence's counts."""

from __future__ import annotations

import json
from collections.abc import Mapping

from lib.contracts import Expressions
from lib.evaluation.protocols import NO_ANSWER, Evaluation
from lib.evaluation.published import Measurement
from lib.scores import formula_lines, score_table

# The fields of `Result` in the counts of a result's file, next to the ids of sentence and image.
COUNTED = ("intersection", "union", "predicted", "truth", "image")


def describe_scores(evaluation: Evaluation, measurement: Measurement) -> str:
    """Return the scores as a table, with the rows of other rules, and the formulas of its columns."""
    rows = {name: scores.as_dict() for name, scores in evaluation.rows().items()}
    table = score_table(rows)
    return f"{table}\nmeasured at {measurement.measured_at}\n{formula_lines(evaluation.counting.protocol)}"


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
