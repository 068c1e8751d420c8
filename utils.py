"""Processes, devices, seeds, signals and messages for all scripts.

This is the only file that uses `torch.distributed`. A single process without a launcher is a world of size one, so
callers need not check whether there is a process group.
"""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from errors import UserError, end_imports, file_message, let_output_never_fail, plain, user_message

T = TypeVar("T")


def run(main: Callable[[], object]) -> None:
    """Call `main`; for a UserError print one message and exit with code 1, and after a stop exit with code 0."""
    end_imports()
    let_output_never_fail()
    try:
        main()
    except Stopped as error:
        log(str(error))
    except UserError as error:
        _fail(user_message(error))
    except KeyboardInterrupt:
        _fail("interrupted")
    except Exception as error:
        if cause := _cause_outside(error):
            _fail(cause)
        if world_size() == 1:
            raise
        if _is_lost_connection(error):
            _fail(
                "another process ended. See its own message; if it has none, it was killed from outside, often for "
                f"lack of host memory ({error})"
            )
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)  # for the launcher's report on the first failure
        _fail("\n" + traceback.format_exc())
    finally:
        end_workers()
    if dist.is_initialized():
        dist.destroy_process_group()


# For patterns of error messages, a cause outside of this program and its remedy.
OUTER_CAUSES = {
    r"unable to (allocate|resize|mmap) shared memory|shared memory.*No space left|DataLoader.*Bus error": (
        "the shared memory in /dev/shm, which data-loading workers need, is full: enlarge it (docker run --shm-size "
        "8g), or use fewer --workers (0 needs none) or a smaller --batch-size"
    ),
    r"DataLoader worker.* (is killed by signal|exited unexpectedly)": (
        "a data-loading worker was killed from outside, often because the host's memory is full: use fewer --workers, "
        "or give it more memory"
    ),
    r"InvalidCxxCompiler|No working C\+\+ compiler": (
        "--compile needs a C++ compiler, and there is none: install g++, name your compiler in the variable CXX, or "
        "do not use --compile"
    ),
    r"Failed to find C compiler": (  # Triton's, for GPUs
        "--compile needs a C compiler, and there is none: install gcc or name yours in the variable CC, or go without "
        "--compile"
    ),
    r"Duplicate GPU detected": (
        "two processes were given the same GPU: start as many on a machine as it has GPUs, and let the scheduler show "
        "each of them all, or its own (--gpus-per-task 1)"
    ),
}


def _cause_outside(error: Exception) -> str:
    """Return the message for an error that is caused by the machine; "" for others."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU's memory is full; use a smaller --batch-size or --img_size, or --checkpointing ({error})"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"this machine's memory is full; use a smaller --batch-size or --img_size, or fewer --workers ({error})"
    if (full := os.strerror(errno.EMFILE)) in str(error):  # an error of a worker arrives only as text
        return f"{full}: use fewer --workers, or raise the limit with ulimit -n"
    if isinstance(error, OSError) and error.filename is not None:
        return file_message(error)
    if isinstance(error, OSError) and _is_semaphore(error):
        return (
            f"data-loading workers need /dev/shm, which takes nothing ({error.strerror}): use --workers 0, or mount it"
        )
    text = f"{type(error).__name__}: {error}"
    return next((cause for pattern, cause in OUTER_CAUSES.items() if re.search(pattern, text)), "")


def _is_semaphore(error: OSError) -> bool:
    """Return whether a semaphore could not be created; such an error has no file name."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).parts[-2:] == ("multiprocessing", "synchronize.py") for frame in frames)


def _is_lost_connection(error: Exception) -> bool:
    """Return whether gloo reports that another process has ended."""
    return any(f"{event} by peer" in str(error) for event in ("closed", "reset")) or "Broken pipe" in str(error)


def _fail(message: str) -> NoReturn:
    process = "" if is_main() else f" (process {rank()})"
    print(f"error{process}: {plain(message)}", file=sys.stderr, flush=True)
    sys.unraisablehook = lambda _: None  # no further errors from objects, such as a loader, that are destroyed at exit
    if world_size() > 1:
        # Exit immediately: a normal exit may wait for the other processes, which wait for this one. End the workers,
        # because they share this process's connections and would keep them open.
        sys.stdout.flush()
        end_workers()
        os._exit(1)
    sys.exit(1)


def log(message: str) -> None:
    """Print on the main process, and flush."""
    if is_main():
        print(plain(message), flush=True)


def seed_everything(*seed: int) -> None:
    """Seed all random generators from a few numbers, such as seed, epoch, step and rank."""
    value = int(np.random.SeedSequence(seed).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's random generators for this block, and restore their states afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


# Signals

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
BURST_SECONDS = 1.0  # scheduler and launcher may both forward the same signal; further ones within this time count once


@contextmanager
def garbage_uncollected() -> Iterator[None]:
    """Keep Python from looking for unreachable objects; also a decorator.

    While a million records are read, it would search all of them again and again, and find none.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Stopped(Exception):
    """The work was stopped on request; all processes raise it at the same step."""


class StopSignal:
    """Requests a graceful stop on SIGTERM, SIGINT and others; a second signal a second later exits immediately.

    A closing terminal sends SIGHUP, also through `nohup torchrun`; schedulers send SIGUSR1 and SIGUSR2. Signals that
    are ignored when the process starts, such as SIGHUP under `nohup`, stay ignored.

    A thread counts the signals, so that a second one also ends a main thread that is blocked inside a library, waiting
    for another process or a GPU.
    """

    def __init__(self) -> None:
        self.name = ""  # of the received signal

    def __enter__(self) -> StopSignal:
        handled = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._catch) for number in handled}
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._count, args=(self._reader,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._writer)  # ends the thread

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name

    def _count(self, reader: int) -> None:
        first = None
        while number := os.read(reader, 1):
            if number[0] not in self._handlers:
                continue
            first = first or time.monotonic()
            if time.monotonic() - first > BURST_SECONDS:
                os._exit(128 + number[0])
        os.close(reader)

    @property
    def came(self) -> bool:
        """Whether this process was asked to stop."""
        return bool(self.name)

    def agreed(self) -> bool:
        """Return whether any process was asked to stop; all processes must call this together."""
        return any_process(self.came)

    def pass_on(self) -> None:
        """Raise the received signal again, if there was one; call this outside of the block."""
        if self.name:
            signal.raise_signal(signal.Signals[self.name])


def ignore_stop_signals(worker: int = 0) -> None:
    """Let a data-loading worker ignore the signals that a scheduler, launcher or terminal sends to all processes.

    The training decides when to stop, and needs its workers until then. See `end_workers`.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """Kill the data-loading workers: a normal exit would wait for them after a SIGTERM, which they ignore."""
    if workers := multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise an error
        for worker in workers:
            worker.kill()


# Processes

# Environment variables with the number of tasks, and the launcher that sets each.
TASK_COUNTS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
    "MV2_COMM_WORLD_SIZE": "mpiexec",
}
# Where tasks of `srun` meet: above the ports of services, below those that systems give to anybody.
FIRST_PORT, PORTS, PRIME = 10_000, 20_000, 997
MANY_FILES = 65_536
PATIENCE = timedelta(minutes=10)  # to wait for other processes that start
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def find_device(name: str | None = None) -> torch.device:
    """Return the device of this name; None: the GPU if there is one, else the CPU. UserError if it does not exist."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: PyTorch finds no CUDA GPU here; use --device cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    return device


def start_processes(device: torch.device) -> torch.device:
    """Join the process group of the launcher, if there is one, and return this process's device.

    `torchrun` and `torch.distributed.launch` define the group by environment variables, SLURM's `srun` by its own;
    without them nothing is started. CUDA uses nccl, everything else gloo. A GPU is returned with its number. Raises
    UserError if the variables are incomplete, the processes do not connect, there are fewer GPUs than processes, or
    `device` is another GPU than this process's.
    """
    _allow_many_files()
    by_slurm = {} if "RANK" in os.environ else slurm_world(os.environ)
    os.environ.update(by_slurm)
    if "RANK" not in os.environ:
        refuse_lonely_tasks(os.environ)
        return make_current(device)
    missing = [name for name in LAUNCHER_VARIABLES if name not in os.environ]
    if missing:
        raise UserError(
            f"RANK is set, but not {', '.join(missing)}: start several processes with torchrun, or unset RANK"
        )
    if device.type == "cuda":
        own = _own_gpu(int(os.environ["LOCAL_RANK"]), bound=bool(by_slurm))
        if device.index not in (None, own.index):
            raise UserError(
                f"--device {device}: the launcher gives this process GPU {own.index}. Use --device cuda, and name the "
                "GPUs that it may use in the variable CUDA_VISIBLE_DEVICES"
            )
        device = make_current(own)
    # gloo in addition to nccl: over the CPU, a lost process is noticed at once, without waiting for a GPU.
    if not dist.is_initialized():
        _meet("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    if by_slurm:
        refuse_other_flags()
    return device


def make_current(device: torch.device) -> torch.device:
    """Make a GPU the current one of this process, and return it with its number; the CPU is returned unchanged."""
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)  # PyTorch refuses one without a number
        torch.cuda.set_device(device)
    return device


def _allow_many_files() -> None:
    """Raise the limit of open files as far as allowed: each batch of a data-loading worker is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _own_gpu(number: int, *, bound: bool) -> torch.device:
    """Return the GPU of this machine's process `number`; bound: a scheduler may show each process only its own GPU."""
    count = torch.cuda.device_count()
    if bound and count == 1:
        number = 0
    if number >= count:
        raise UserError(
            f"process {number} finds {count} GPUs: start one process for each GPU of a machine (--nproc_per_node of "
            "torchrun, --ntasks-per-node of srun)"
        )
    return torch.device("cuda", number)


def _meet(backend: str) -> None:
    """Join the other processes and wait for all of them. Raises UserError if they do not connect in time."""
    try:
        store, number, size = next(rendezvous("env://", timeout=PATIENCE))
        store.set_timeout(default_pg_timeout)
        dist.init_process_group(backend, store=dist.PrefixStore(_store_prefix(), store), rank=number, world_size=size)
    except dist.DistError as error:
        address, port, size = (os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"))
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the {size} processes did not meet at {address}:{port} ({reason}): see that all of them start, or set "
            "MASTER_ADDR to the machine of the first and MASTER_PORT to a port that is free there"
        ) from error


def slurm_world(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a launcher would set in this task of `srun`: all tasks of its step are one group.

    They connect on the step's first node, at a port computed from job and step, unless MASTER_ADDR and MASTER_PORT
    are set. Returns {} for a step of one task, and if SLURM's variables are incomplete.
    """
    size = environment.get("SLURM_STEP_NUM_TASKS", "")
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    address = environment.get("MASTER_ADDR") or _first_node(nodes)
    own = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID"}
    world = {name: environment.get(variable, "") for name, variable in own.items()} | {"WORLD_SIZE": size}
    if not (address and all(value.isdecimal() for value in world.values()) and int(size) > 1):
        return {}
    ids = (environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    job, step = (int(value) if value.isdecimal() else 0 for value in ids)
    port = environment.get("MASTER_PORT") or str(FIRST_PORT + (job + PRIME * step) % PORTS)
    return world | {"MASTER_ADDR": address, "MASTER_PORT": port}


def _first_node(nodes: str) -> str:
    """Return the first of SLURM's nodes, written as `node[07-12,20],other`; "" for none."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0]) if first else ""


def refuse_other_flags() -> None:
    """Raise UserError in all processes if their flags differ: they cannot be parts of one training or evaluation."""
    if len(set(gather(tuple(sys.argv)))) > 1:
        raise UserError(
            "the tasks of this srun have different flags, so they cannot work as one: give all of them the same, or, "
            "if they are to be independent, unset SLURM_STEP_NUM_TASKS in each"
        )


def refuse_lonely_tasks(environment: Mapping[str, str]) -> None:
    """Raise UserError for one of several independent tasks, as started by `srun --ntasks 2`.

    Each of them would train alone, all into the same folder.
    """
    for name, starter in TASK_COUNTS.items():
        count = environment.get(name, "")
        if count.isdecimal() and int(count) > 1:
            raise UserError(
                f"{starter} started {count} tasks ({name}), and each would work alone: let it start one task per "
                f"machine, which runs `torchrun --nproc_per_node N {Path(sys.argv[0]).name} …`. If the tasks should "
                f"be independent, unset {name}"
            )


def _store_prefix() -> str:
    """Return the prefix of this start in the rendezvous store.

    A launcher on one machine keeps its store over restarts, so each restart needs a new prefix: otherwise workers may
    find stale addresses (https://docs.pytorch.org/docs/stable/elastic/run.html). Launchers on several machines count
    their restarts separately, so there the prefix must not depend on the count.
    """
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}" if alone else "restart"


def rank() -> int:
    """Return the rank of this process, 0 to world_size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is the main process, which writes files and prints."""
    return rank() == 0


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, detached."""
    if world_size() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def gather(value: T) -> list[T]:
    """Return the values of all processes in the order of ranks: CPU tensors, whose shapes may differ, or objects."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def together(step: Callable[[], object]) -> None:
    """Run a step of each process; all must call this together, and wait here for each other.

    Raises UserError in all of them if the step raises it in any, with the messages of all.
    """
    problem = ""
    try:
        step()
    except UserError as error:
        problem = user_message(error)
    if lines := dict.fromkeys("\n".join(filter(None, gather(problem))).splitlines()):
        raise UserError("\n".join(lines))


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process. Raises an error if a process has ended."""
    if world_size() == 1:
        return flag
    votes = torch.tensor(flag, dtype=torch.int32)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes)


def from_main(value: T) -> T:
    """Return the value of the main process, a plain object, in every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def distribute(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model, wrapped for gradient averaging if there are several processes; see `wrap`."""
    if world_size() == 1:
        return model
    if device.type != "cuda":
        log("batch norm is not synchronised on the CPU: every process normalises with its own samples")
    return wrap(model, device)


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model, wrapped for gradient averaging in a world of any size, with synchronised batch norm on CUDA.

    PyTorch synchronises batch norm only on accelerators. With gloo every process normalises with the statistics of its
    own samples, and `share_buffers` copies the running statistics of rank 0 to all processes.
    """
    if device.type != "cuda":
        return DistributedDataParallel(model)
    return DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(model), device_ids=[device])


def share_buffers(model: nn.Module) -> None:
    """Copy the buffers (running statistics) of rank 0 to all processes."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside a distributed wrapper."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def without_averaging(model: nn.Module, active: bool = True) -> AbstractContextManager[None]:
    """Return a context in which backward passes accumulate gradients without averaging them over processes."""
    return model.no_sync() if active and isinstance(model, DistributedDataParallel) else nullcontext()
