"""The schema of a saved training state, which is checked entry by entry before a training resumes.

Values that follow from the options and the position, such as learning rates, are compared with those of the training,
and never taken from the file. Only weights, moments, the scaler's scale, position, losses and log are read from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lib.contents import STAGES, best_score, log_line
from lib.schema import Kind, Misfit, both, each_of, exactly, leaf, list_of, near, number, record, whole
from lib.training.optim import moment_names, parameters_of, rates_after
from lib.weights.tensors import tensor

# The constants of an optimizer group.
COEFFICIENTS = ("eps", "weight_decay", "amsgrad", "maximize", "initial_lr")
# The constants of a gradient scaler.
FACTORS = ("growth_factor", "backoff_factor", "growth_interval")
SMALLEST_SCALE = 2.0**-149

# The names come from the data, so they may be any texts; messages escape them.
digests = leaf(
    "a dictionary of digests by name",
    lambda value: isinstance(value, Mapping) and all(isinstance(part, str) for pair in value.items() for part in pair),
)
nothing = leaf("an empty dictionary", lambda value: isinstance(value, Mapping) and not value)


def position_kind(options: Mapping[str, Any]) -> Kind:
    """Return the kind of the entries with the position of a training with these options."""
    position = record({"epoch": whole(0, options["epochs"]), "step": whole(0, options["steps_per_epoch"])})

    def not_beyond(value: Any, entry: str) -> None:
        if value["epoch"] == options["epochs"] and value["step"]:
            raise Misfit("step", "0 after the last epoch", str(value["step"]))

    return both(position, not_beyond)


def state_kind(
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
    scaler: torch.amp.GradScaler,
    options: Mapping[str, Any],
    epoch: int,
    step: int,
) -> Kind:
    """Return the kind of a training state at one position, without its weights.

    optimizer, scheduler, scaler: of the training, in any state. epoch, step: of the saved state, already checked.
    """
    done = epoch * options["steps_per_epoch"] + step
    losses = (2 + STAGES * options["alignment"] + bool(options["no_target_head"]),)
    rates = [exactly(float(rate)) for rate in scheduler.base_lrs]
    state = record(
        {
            "optimizer": optimizer_kind(optimizer, rates_after(scheduler, done), done, scaled=scaler.is_enabled()),
            "lr_scheduler": record(
                {
                    "last_epoch": exactly(done),
                    "base_lrs": each_of(rates),
                }
            ),
            "scaler": scaler_kind(scaler),
            "meter": record(
                {
                    "rows": tensor(torch.float64, (step, *losses) if step else (0,)),
                    "seconds": number(0),
                    "waiting": number(0),
                }
            ),
            "log": log_kind(epoch, done),
        },
        optional={"images": digests},
    )

    def best(value: Any, entry: str) -> None:
        record({"best_oIoU": near(best_score(value["log"]))})(value, entry)

    return both(state, best)


def optimizer_kind(optimizer: torch.optim.Optimizer, rates: Sequence[float], done: int, *, scaled: bool) -> Kind:
    """Return the kind of AdamW's state after `done` steps; scaled: steps with overflowing gradients were skipped."""
    ours = optimizer.state_dict()["param_groups"]
    names = moment_names(optimizer)
    moments = {
        number: moments_kind(parameter, names, done, scaled=scaled)
        for number, parameter in enumerate(parameters_of(optimizer))
    }
    groups = [
        record(
            {
                "lr": near(rate),
                "betas": each_of([*map(exactly, group["betas"])]),
                **{name: exactly(group[name]) for name in COEFFICIENTS},
                "params": each_of([*map(exactly, group["params"])]),
            }
        )
        for group, rate in zip(ours, rates, strict=True)
    ]
    return record({"state": record(moments) if done else nothing, "param_groups": each_of(groups)})


def moments_kind(parameter: Tensor, names: Sequence[str], done: int, *, scaled: bool) -> Kind:
    """Return the kind of AdamW's state of one parameter."""
    count = tensor(torch.float32, ())

    def counted(value: Any, entry: str) -> None:
        count(value, entry)
        steps = value.item()
        if not (0 <= steps <= done if scaled else steps == done):
            raise Misfit(entry, f"{'at most ' if scaled else ''}{done}, the number of steps so far", f"{steps:g}")

    mean, square = (tensor(parameter.dtype, parameter.shape, least=least) for least in (None, 0))
    return record({name: {"step": counted, "exp_avg": mean}.get(name, square) for name in names})


def scaler_kind(scaler: torch.amp.GradScaler) -> Kind:
    """Return the kind of a gradient scaler's state."""
    ours = scaler.state_dict()
    if not ours:
        return nothing
    same = {name: exactly(ours[name]) for name in FACTORS}
    return record({"scale": number(SMALLEST_SCALE), "_growth_tracker": whole()} | same)


def log_kind(epoch: int, done: int) -> Kind:
    """Return the kind of the log of a training after `epoch` finished epochs and `done` steps in total."""

    def kind(value: Any, entry: str) -> None:
        list_of(log_line)(value, entry)
        steps = [line["global_step"] for line in value]
        if steps != sorted(steps) or (steps and steps[-1] > done):
            raise Misfit(entry, f"a log of {done} steps in their order", "one of other steps")
        finished = [line["epoch"] for line in value if line["kind"] == "epoch"]
        if finished != list(range(epoch)):
            raise Misfit(entry, f"a log with a line for each of {epoch} epochs", f"one with {len(finished)}")

    return kind
