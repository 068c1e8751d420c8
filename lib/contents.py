"""The schemas of this project's files, by which every reader checks them.

A file of weights may come from anybody: entries without a schema are not touched. `lib.training.saved_state` has the
schemas of entries that depend on the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lib.arguments import MAX_IMAGE_SIDE
from lib.schema import (
    LARGEST_WHOLE,
    Misfit,
    both,
    describe,
    exactly,
    flag,
    leaf,
    list_of,
    maybe,
    number,
    option,
    record,
    text,
    whole,
)
from lib.scores import SET_THRESHOLDS, leading, protocol_of
from lib.variants import MOST_TOKENS, THRESHOLDS

STAGES = 4


# `lib.scores.RoundedScores`.
PERCENT = number(0, 100)
_CLASSIC = record(
    {
        "n_expressions": whole(1),
        "mean_iou": PERCENT,
        "overall_iou": PERCENT,
        "precision": record({str(threshold): PERCENT for threshold in THRESHOLDS}, others=PERCENT),
    }
)
_SETS = record(
    {
        "n_expressions": whole(1),
        "n_no_target": whole(),
        "no_target_pixels": maybe(whole(1)),
        **dict.fromkeys(("giou", "ciou"), PERCENT),
        **dict.fromkeys(("n_acc", "t_acc"), maybe(PERCENT)),
        "precision": record({str(threshold): maybe(PERCENT) for threshold in SET_THRESHOLDS}),
    }
)
_ZERO = record(
    {
        "n_expressions": whole(1),
        "n_no_target": whole(),
        **dict.fromkeys(("mean_iou", "overall_iou", "accuracy"), maybe(PERCENT)),
        "precision": record({str(threshold): maybe(PERCENT) for threshold in THRESHOLDS}),
    }
)


def SCORES(value: Any, entry: str) -> None:
    """The kind of a split's scores, by the protocol that they name."""
    record({}, optional={"protocol": text()})(value, entry)
    kinds = {"classic": _CLASSIC, "gres": _SETS, "ref-zom": _ZERO}
    name = protocol_of(value)
    if name not in kinds:
        raise Misfit(f"{entry}.protocol".lstrip("."), "classic, gres or ref-zom", describe(name))
    kinds[name](value, entry)


# The content of a file of `test.py --json`.
RESULT = both(
    SCORES,
    record(
        {"dataset": text(), "split": text()},
        optional={
            "name": text(),
            "expressions": text(),
            "measured_at": text(),
            "overlap": text(),
            "img_size": whole(1, MAX_IMAGE_SIDE),
            "max_tokens": whole(1, MOST_TOKENS),
            "limit": whole(1),
        },
    ),
)

# Its counts by sentence: lists of the same length.
COUNTS = record(
    {name: list_of(whole(-LARGEST_WHOLE)) for name in ("sent_id", "image_id")}
    | {name: list_of(whole()) for name in ("intersection", "union", "predicted", "truth", "image")},
    optional={"answer": list_of(whole(-1, 1)), "no_target": list_of(whole(0, 1))},
)

# A line of a training log; None replaces infinite numbers and NaN. It is written again when a training resumes.
MEASURED = maybe(number())
ANY_TEXT = leaf("a text", lambda value: isinstance(value, str))
_LINE = {
    "epoch": whole(),
    "global_step": whole(1),
    "loss": MEASURED,
    "mask_loss": MEASURED,
    "alignment_loss": list_of(MEASURED, longest=STAGES),
    "lr": number(0),
}
_MORE = {"model_id": ANY_TEXT, "no_target_loss": MEASURED, "seconds": MEASURED, "samples_per_second": MEASURED}
_MORE |= {"data_wait": MEASURED, "memory_gib": MEASURED, "time": ANY_TEXT, "host": ANY_TEXT}
_STEP = record(_LINE | {"kind": exactly("step"), "step": whole(1), "grad_norm": MEASURED}, _MORE, option)
_EPOCH = record(_LINE | {"kind": exactly("epoch"), "val": maybe(SCORES)}, _MORE, option)


def log_line(value: Any, entry: str) -> None:
    """The kind of a line of a training log, about some steps or an epoch."""
    record({"kind": text()})(value, entry)
    kind = {"step": _STEP, "epoch": _EPOCH}.get(value["kind"])
    if kind is None:
        raise Misfit(f"{entry}.kind".lstrip("."), "step or epoch", describe(value["kind"]))
    kind(value, entry)


# The options of a training that a test uses as well.
REPEATED = record(
    {},
    optional={
        "img_size": maybe(whole(1, MAX_IMAGE_SIDE)),
        "max_tokens": maybe(whole(1, MOST_TOKENS)),
        "bert_tokenizer": maybe(text()),
    },
)

# The entries next to weights that influence what they compute.
WORDS = list_of(ANY_TEXT)
BESIDE_WEIGHTS = record(
    {},
    optional={
        "args": maybe(REPEATED),
        "vocabulary": maybe(WORDS),
    },
)

# The metadata of this project's safetensors files.
ABOUT = both(record({"args": record({}), "state": record({}), "vocabulary": maybe(WORDS)}), BESIDE_WEIGHTS)

# The metadata of an ONNX file of this project: all that a program needs besides the graph.
ONNX_ABOUT = record(
    {
        "img_size": whole(1, MAX_IMAGE_SIDE),
        "mean": list_of(number(), length=3),
        "std": list_of(number(1e-6), length=3),
        "max_tokens": whole(3, MOST_TOKENS),
        "vocabulary": WORDS,
    }
)

# The entries that are only displayed.
SHOWN = record(
    {},
    optional={
        "epoch": maybe(whole()),
        "best_oIoU": maybe(number()),
        "scores": maybe(SCORES),
        "log": maybe(list_of(record({}, optional={"val": maybe(SCORES)}))),
    },
)

# The entries of `run_{dataset}.json` that a later start reads.
RUN = record({"earlier": list_of(record({}))})

# `config.json` of weights on the hub: the arguments of `CrossVLT.SegModel`.
CONFIG = record(
    {},
    optional={
        **dict.fromkeys(("swin_type", "bert_type", "fusion"), text()),
        **dict.fromkeys(("dropout", "drop_path"), number(0, 1)),
        **dict.fromkeys(("checkpointing", "freeze_bert", "train_embeddings", "train_temperature"), flag),
        **dict.fromkeys(("alignment", "no_target_head", "align_bias"), flag),
        "vocab_size": whole(1),
    },
)


def best_score(log: Sequence[Mapping[str, Any]]) -> float:
    """Return the best leading number of any validation in a log, in percent; -1 before the first."""
    return max((leading(line["val"]) for line in log if line.get("val")), default=-1.0)
