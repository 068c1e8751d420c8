"""Optimizer groups and learning-rate schedule, as in the paper (arXiv 2408.07539) and its released code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lib.weights.pretrained import is_pretrained

GROUPS = ("backbone_no_decay", "backbone", "classifier", "lang_stage1", "lang_stage2", "lang_stage3", "lang_stage4")
# Groups that exist only if these are trained; both are frozen by default.
EMBEDDINGS = "embeddings"
TEMPERATURE = "temperature"
ALIGN_BIAS = "align_bias"  # if the network has one
NO_TARGET_HEAD = "no_target_head"  # if the network has one
NO_DECAY = ("norm", "absolute_pos_embed", "relative_position_bias_table")
UNDECAYED = ("backbone_no_decay", TEMPERATURE, ALIGN_BIAS)
ENCODER = " encoder"  # end of the names of groups with their own learning rate
POLY_POWER = 0.9
WARMUP_START = 1e-3  # of the learning rate


def parameter_group(name: str) -> str:
    """Return the optimizer group of a trainable parameter; name: in the state dict.

    Raises ValueError if there is no group for this name, so that a new module cannot be left untrained by mistake.
    """
    if name == "temp":
        return TEMPERATURE
    if name.startswith("lang_stage1.embeddings."):
        return EMBEDDINGS
    group = name.split(".", 1)[0]
    if group == "backbone" and any(part in name for part in NO_DECAY):
        return "backbone_no_decay"
    if group not in (*GROUPS, NO_TARGET_HEAD, ALIGN_BIAS):
        raise ValueError(f"parameter {name} belongs to no optimizer group: freeze it or extend lib/training/optim.py")
    return group


def build_optimizer(
    model: nn.Module, lr: float, weight_decay: float, amsgrad: bool = False, *, encoder_lr_scale: float = 1.0
) -> torch.optim.AdamW:
    """Return AdamW with the groups above; every trainable parameter is in exactly one of them.

    encoder_lr_scale: of the learning rate of Swin and BERT, that is, of all parameters that pretrained files can fill;
    unless it is 1, they are in groups of their own.
    """
    members: dict[str, list[nn.Parameter]] = {group: [] for group in GROUPS}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            apart = ENCODER if encoder_lr_scale != 1 and is_pretrained(name) else ""
            members.setdefault(parameter_group(name) + apart, []).append(parameter)
    groups = [
        {
            "name": name,
            "params": params,
            "lr": lr * encoder_lr_scale if name.endswith(ENCODER) else lr,
            "weight_decay": 0.0 if name.removesuffix(ENCODER) in UNDECAYED else weight_decay,
        }
        for name, params in members.items()
    ]
    return torch.optim.AdamW(groups, lr=lr, amsgrad=amsgrad, fused=True)  # fused: one pass over memory, not eight


def describe_groups(optimizer: torch.optim.Optimizer) -> str:
    """Return one line per group: its name, tensors, parameters, weight decay and learning rate."""
    lines = []
    for group in optimizer.param_groups:
        count = sum(parameter.numel() for parameter in group["params"])
        lines.append(
            f"{group['name']:<26}{len(group['params']):>4} tensors {count:>12,} parameters, "
            f"weight decay {group['weight_decay']:g}, learning rate {group.get('initial_lr', group['lr']):g}"
        )
    return "\n".join(lines)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Return the L2 norm of all gradients together before clipping, () float32, without synchronising the device.

    max_norm: if the norm is larger, scale the gradients down to this norm, in place. None: do not clip.
    """
    with_grad = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in with_grad if parameter.grad is not None])
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(with_grad, max_norm, norm)
    return norm


def build_scheduler(
    optimizer: torch.optim.Optimizer, total_steps: int, warmup: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the polynomial decay lr·(1 − step/total_steps)^0.9; call its `step` after every optimizer step.

    warmup: number of first steps whose rates are multiplied with a factor that rises linearly from 0.001 to 1.
    """

    def factor(step: int) -> float:
        decayed: float = max(0.0, 1 - step / total_steps) ** POLY_POWER
        return decayed if step >= warmup else decayed * (WARMUP_START + (1 - WARMUP_START) * step / warmup)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters of all groups, in the order of their numbers in a saved state."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def moment_names(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Return the names of AdamW's state entries for each parameter."""
    amsgrad = optimizer.defaults["amsgrad"]
    return ("step", "exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if amsgrad else ()))


def rates_after(scheduler: torch.optim.lr_scheduler.LambdaLR, steps: int) -> list[float]:
    """Return the learning rate of every group after `steps` steps."""
    return [float(rate) * factor(steps) for rate, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
    moments: Mapping[int, Mapping[str, Tensor]],
    steps: int,
) -> None:
    """Restore the state of a new optimizer and its schedule after `steps` steps.

    moments: the optimizer's state of each parameter, by the parameter's number; unknown entries are ignored. The values
    are copied, because in a file they may have another memory layout, or share memory, which two kernels would write.
    """
    rates = rates_after(scheduler, steps)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    copies = {
        number: {name: _copy(moments[number][name], parameter) for name in moment_names(optimizer)}
        for number, parameter in enumerate(parameters_of(optimizer))
        if steps
    }
    optimizer.load_state_dict({"state": copies, "param_groups": optimizer.state_dict()["param_groups"]})
    position = {"last_epoch": steps, "_step_count": steps + 1, "_last_lr": rates}
    scheduler.load_state_dict(scheduler.state_dict() | position)


def _copy(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a copy of a tensor, in the memory layout of `parameter` if the shapes are equal."""
    layout = parameter if value.shape == parameter.shape else value
    return torch.empty_like(layout, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value.detach())
