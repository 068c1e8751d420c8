"""Processes, devices, seeds and messages: what every script needs and no network knows.

This is the only file that mentions `torch.distributed`. A single process without a launcher is a valid world of
size one, so callers never ask whether there is a process group.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class UserError(Exception):
    """A mistake of the user: says what was expected, what came, where, and what to do.

    Scripts print it as one message without a traceback and exit with 1 (see `run`).
    """


def user_message(error: UserError) -> str:
    """Return the message alone; data-loader workers wrap it in their own traceback."""
    return str(error).rsplit("UserError: ", 1)[-1].strip()


def run(main: Callable[[], None]) -> None:
    """Call `main`; where the user has to act, end with one message and exit code 1."""
    try:
        main()
    except UserError as error:
        _fail(user_message(error))
    except torch.OutOfMemoryError as error:
        _fail(f"the GPU's memory is full; use a smaller --batch-size or --img_size ({error})")
    except KeyboardInterrupt:
        _fail("interrupted")
    if dist.is_initialized():
        dist.destroy_process_group()


def _fail(message: str) -> NoReturn:
    # Printed before anything else: leaving the other processes may take its time.
    process = "" if is_main() else f" (process {rank()})"
    print(f"error{process}: {message}", file=sys.stderr, flush=True)
    sys.exit(1)


def log(message: str) -> None:
    """Print on the main process, at once even into a pipe."""
    if is_main():
        print(message, flush=True)


def seed_everything(*seed: int) -> None:
    """Seed every random generator from a few numbers, such as the run's seed, the epoch and this process."""
    value = int(np.random.SeedSequence(seed).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


# Processes

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def start_processes(device: torch.device) -> torch.device:
    """Join the processes that a launcher started, and return this process's device.

    `torchrun` and `torch.distributed.launch` describe the world in environment variables; without them nothing is
    started. CUDA talks through nccl, everything else through gloo. Raises UserError where the launcher's variables
    are incomplete or there are fewer GPUs than processes.
    """
    if "RANK" not in os.environ:
        return device
    missing = [name for name in LAUNCHER_VARIABLES if name not in os.environ]
    if missing:
        raise UserError(
            f"RANK is set without {', '.join(missing)}: start several processes with torchrun, or unset RANK"
        )
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if device.index >= torch.cuda.device_count():
            raise UserError(f"process {device.index} finds {torch.cuda.device_count()} GPUs: lower --nproc_per_node")
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def rank() -> int:
    """Return this process's number, 0 to world_size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this process writes files and prints."""
    return rank() == 0


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, detached; the tensor itself in a world of one."""
    if world_size() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def gather(value: Tensor) -> list[Tensor]:
    """Return every process's CPU tensor, in the order of their ranks; shapes may differ."""
    if world_size() == 1:
        return [value]
    values: list[Tensor] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def distribute(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the model for gradient averaging, with batch norm synchronised on CUDA.

    PyTorch synchronises batch norm on accelerators alone: with gloo every process normalises with the statistics of
    its own samples, and `share_buffers` makes the running averages of rank 0 everybody's.
    """
    if world_size() == 1:
        return model
    if device.type != "cuda":
        return DistributedDataParallel(model)
    return DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(model), device_ids=[device])


def share_buffers(model: nn.Module) -> None:
    """Give every process the buffers (running averages) of rank 0."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside a distributed wrapper."""
    return model.module if isinstance(model, DistributedDataParallel) else model
