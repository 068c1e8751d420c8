"""The metrics of the field, by three protocols: classic, gRefCOCO's (GRES) and Ref-ZOM's.

Every expression is one sample, and all scores are computed from pixel counts. Classic, as in the published table: mean
IoU, overall IoU and precision at IoU thresholds; the IoU of a sample is 0 if its union is empty. The others also have
sentences without a target. A network answers "no target" with its no-target head or, without one, with a mask of fewer
than a number of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from lib.scores import SET_THRESHOLDS, RoundedScores, score_table
from lib.variants import THRESHOLDS

# What counts as the answer "no target": a mask of fewer pixels than the rule, or the no-target head.
HEAD = 0
ALWAYS = 2**62  # more pixels than any mask has: "no target" for every sentence
PIXEL_RULES = (1, 50)  # an empty mask, and the rule of the published comparison
NO_ANSWER = -1  # of a network without a no-target head


class Result(NamedTuple):
    """The pixel counts of one expression, at the size of its target."""

    number: int  # index of the expression in its data set
    intersection: int
    union: int
    predicted: int
    truth: int
    image: int
    answer: int = NO_ANSWER  # of the no-target head: 1 for no target, 0 for a target
    no_target: bool = False  # the sentence has no target

    @property
    def iou(self) -> float:
        """The IoU, 0 to 1; 1 for a correct answer of no target."""
        return 1.0 if self.no_target and self.answer == 1 else iou(self.intersection, self.union)

    @property
    def percent(self) -> float:
        """The IoU in percent, rounded once: exactly 50 for one half."""
        return 100.0 if self.no_target and self.answer == 1 else iou(100 * self.intersection, self.union)


class Scores(NamedTuple):
    """Scores of a split, in percent."""

    n_expressions: int
    mean_iou: float
    overall_iou: float
    precision: dict[float, float]  # by threshold: percentage of samples with at least that IoU

    def table(self) -> str:
        """Return the row of the published table as text, with two decimals."""
        return score_table({"": self.as_dict()})

    def as_dict(self) -> RoundedScores:
        """Return plain types for JSON, rounded to two decimals as in the published table."""
        return {
            "n_expressions": self.n_expressions,
            "mean_iou": round(self.mean_iou, 2),
            "overall_iou": round(self.overall_iou, 2),
            "precision": {str(threshold): round(value, 2) for threshold, value in self.precision.items()},
        }


class SetScores(NamedTuple):
    """Scores by gRefCOCO's protocol, in percent; None if no sentence is of that kind."""

    n_expressions: int
    n_no_target: int
    giou: float
    ciou: float
    n_acc: float | None
    t_acc: float | None
    precision: dict[float, float | None]  # by threshold: percentage of samples with a target
    no_target_pixels: int | None  # the pixel rule; None for a no-target head

    def table(self) -> str:
        """Return the row as text, with two decimals."""
        return score_table({"": self.as_dict()})

    def as_dict(self) -> RoundedScores:
        """Return plain types for JSON, rounded to two decimals."""
        return {
            "protocol": "gres",
            "n_expressions": self.n_expressions,
            "n_no_target": self.n_no_target,
            "no_target_pixels": self.no_target_pixels,
            "giou": round(self.giou, 2),
            "ciou": round(self.ciou, 2),
            "n_acc": rounded(self.n_acc),
            "t_acc": rounded(self.t_acc),
            "precision": {str(threshold): rounded(value) for threshold, value in self.precision.items()},
        }


class ZeroScores(NamedTuple):
    """Scores by Ref-ZOM's protocol: classic scores of the sentences with a target, accuracy of the others."""

    n_expressions: int
    n_no_target: int
    targets: Scores | None  # of the sentences with a target; None if there is none
    accuracy: float | None  # percent; None if every sentence has a target

    def table(self) -> str:
        """Return the row as text, with two decimals."""
        return score_table({"": self.as_dict()})

    def as_dict(self) -> RoundedScores:
        """Return plain types for JSON, rounded to two decimals."""
        targets = self.targets
        return {
            "protocol": "ref-zom",
            "n_expressions": self.n_expressions,
            "n_no_target": self.n_no_target,
            "mean_iou": rounded(targets and targets.mean_iou),
            "overall_iou": rounded(targets and targets.overall_iou),
            "precision": {str(one): rounded(targets and targets.precision[one]) for one in THRESHOLDS},
            "accuracy": rounded(self.accuracy),
        }


AnyScores: TypeAlias = Scores | SetScores | ZeroScores


def rounded(value: float | None) -> float | None:
    """Return a score with two decimals."""
    return None if value is None else round(value, 2)


class Counting(NamedTuple):
    """How a split is scored."""

    protocol: str = "classic"  # a key of PROTOCOLS
    no_target: Sequence[bool] = ()  # by index of the expression; () if all have a target
    no_target_pixels: int = 1  # without a no-target head, a mask of fewer pixels is the answer "no target"

    def means_nothing(self, number: int) -> bool:
        """Return whether an expression has no target."""
        return bool(self.no_target) and self.no_target[number]


class Evaluation(NamedTuple):
    """The scores of a split, and the pixel counts they were computed from."""

    scores: AnyScores
    results: list[Result]  # of every expression, in the order of the data set
    counting: Counting = Counting()

    @property
    def rule(self) -> int:
        """What counts as the answer "no target": HEAD or a number of pixels."""
        return rule_of(self.results, self.counting)

    @property
    def counted(self) -> list[Result]:
        """The results as the protocol counts them: see `counted`."""
        return count_all(self.results, self.rule, self.counting.protocol)

    def rows(self) -> dict[str, AnyScores]:
        """Return the scores by name: of this test, then by other rules and of always answering "no target"."""
        if self.counting.protocol == "classic":
            return {"": self.scores}
        rules = dict.fromkeys([self.rule, *(PIXEL_RULES if self.counting.protocol == "gres" else PIXEL_RULES[:1])])
        score_them = PROTOCOLS[self.counting.protocol]
        return {name_of(rule): score_them(self.results, rule) for rule in (*rules, ALWAYS)}


def score(counts: Sequence[tuple[int, int]]) -> Scores:
    """Return the scores of samples. counts: intersection and union of each, in pixels. ValueError if there are none."""
    if not counts:
        raise ValueError("no sample was counted: there is nothing to score")
    ious = [iou(*sample) for sample in counts]
    total_union = sum(union for _, union in counts)
    overall = sum(intersection for intersection, _ in counts) / total_union if total_union else 0.0
    precision = {t: 100 * sum(value >= t for value in ious) / len(ious) for t in THRESHOLDS}
    return Scores(len(ious), 100 * math.fsum(ious) / len(ious), 100 * overall, precision)


def iou(intersection: int, union: int) -> float:
    """Return a sample's IoU, 0 to 1; 0 if the union is empty."""
    return intersection / union if union else 0.0


# ---------------------------------------------------------------- sentences without a target


def rule_of(results: Sequence[Result], counting: Counting) -> int:
    """Return what counts as the answer "no target": the head if there is one, otherwise a number of pixels.

    Ref-ZOM's protocol always counts empty masks only.
    """
    if results and results[0].answer != NO_ANSWER:
        return HEAD
    return counting.no_target_pixels if counting.protocol == "gres" else 1


def name_of(rule: int) -> str:
    """Return the name of a rule in tables."""
    if rule == ALWAYS:
        return 'always "no target"'
    return "empty by the head" if rule == HEAD else f"empty below {rule} pixel{'s' * (rule > 1)}"


def count_all(results: Sequence[Result], rule: int, protocol: str) -> list[Result]:
    """Return results as a protocol counts them by a rule; see `counted`."""
    if protocol == "classic":
        return list(results)
    return [counted(result, rule, empties=rule != HEAD or protocol != "gres") for result in results]


def counted(result: Result, rule: int, *, empties: bool) -> Result:
    """Return a result with `answer` set by the rule, and with the pixels that it adds to the sums.

    The answer "no target" has no intersection. empties: its mask is also emptied; otherwise the union is that of the
    predicted mask, as in gRefCOCO's own code for a no-target head.
    """
    empty = result.answer == 1 if rule == HEAD else result.predicted < rule
    if not empty:
        return result._replace(answer=0)
    union = result.truth if empties else result.union
    return result._replace(intersection=0, union=0 if result.no_target else union, predicted=0, answer=1)


def score_classic(results: Sequence[Result], _: int = 1) -> Scores:
    """Return the classic scores, which have no rule."""
    return score([(result.intersection, result.union) for result in results])


def score_sets(results: Sequence[Result], rule: int) -> SetScores:
    """Return the scores of gRefCOCO's protocol. Raises ValueError if there is no result."""
    rows = count_all(results, rule, "gres")
    if not rows:
        raise ValueError("no sample was counted: there is nothing to score")
    nothing, something = ([row for row in rows if row.no_target is is_nothing] for is_nothing in (True, False))
    union = sum(row.union for row in rows)
    return SetScores(
        n_expressions=len(rows),
        n_no_target=len(nothing),
        giou=100 * math.fsum(row.iou for row in rows) / len(rows),
        ciou=100 * sum(row.intersection for row in rows) / union if union else 0.0,
        n_acc=share([row.answer == 1 for row in nothing]),
        t_acc=share([row.answer == 0 for row in something]),
        precision={threshold: share([row.iou >= threshold for row in something]) for threshold in SET_THRESHOLDS},
        no_target_pixels=None if rule == HEAD else rule,
    )


def score_zero(results: Sequence[Result], rule: int) -> ZeroScores:
    """Return the scores of Ref-ZOM's protocol. Raises ValueError if there is no result."""
    rows = count_all(results, rule, "ref-zom")
    if not rows:
        raise ValueError("no sample was counted: there is nothing to score")
    nothing, something = ([row for row in rows if row.no_target is is_nothing] for is_nothing in (True, False))
    targets = score_classic(something) if something else None
    return ZeroScores(len(rows), len(nothing), targets, share([row.predicted == 0 for row in nothing]))


def share(holds: Sequence[bool]) -> float | None:
    """Return the percentage of true values; None if there are none."""
    return 100 * sum(holds) / len(holds) if holds else None


# The function of each protocol; it takes results and a rule.
PROTOCOLS: Mapping[str, Callable[[Sequence[Result], int], AnyScores]] = {
    "classic": score_classic,
    "gres": score_sets,
    "ref-zom": score_zero,
}


def evaluation_of(results: list[Result], counting: Counting) -> Evaluation:
    """Return the scores of results by a protocol. Raises ValueError as the protocol's function does."""
    return Evaluation(PROTOCOLS[counting.protocol](results, rule_of(results, counting)), results, counting)
