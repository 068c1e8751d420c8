"""Processes, devices, seeds, signals and messages: what every script needs and no network knows.

This is the only file that mentions `torch.distributed`. A single process without a launcher is a valid world of
size one, so callers never ask whether there is a process group.
"""

from __future__ import annotations

import errno
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

from errors import UserError, file_message, let_output_never_fail, plain, user_message

T = TypeVar("T")


def run(main: Callable[[], object]) -> None:
    """Call `main`; if the user has to act, end with one message and exit code 1, and if it was stopped, with 0."""
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
                "another process ended. Its own message says why; without one it was killed from outside, often for "
                f"want of host memory ({error})"
            )
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)  # for the launcher's report, which names the first to fail
        _fail("\n" + traceback.format_exc())
    finally:
        end_workers()
    if dist.is_initialized():
        dist.destroy_process_group()


# By what an error says that has its cause outside of this program, the cause and the remedy.
OUTER_CAUSES = {
    r"unable to (allocate|resize|mmap) shared memory|shared memory.*No space left|DataLoader.*Bus error": (
        "the shared memory in /dev/shm is full, through which data-loading workers hand on what they read: give it "
        "more room (docker run --shm-size 8g), or use fewer --workers (0 needs none) or a smaller --batch-size"
    ),
    r"DataLoader worker.* (is killed by signal|exited unexpectedly)": (
        "a data-loading worker was killed from outside, often because the host's memory is full: use fewer --workers, "
        "or give it more memory"
    ),
    r"InvalidCxxCompiler|No working C\+\+ compiler": (
        "--compile needs a C++ compiler, and there is none: install g++ or name yours in the variable CXX, or go "
        "without --compile"
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
    """Return what to tell of an error that the machine is the cause of; "" for others."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU's memory is full; use a smaller --batch-size or --img_size, or --checkpointing ({error})"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"this machine's memory is full; use a smaller --batch-size or --img_size, or fewer --workers ({error})"
    if (full := os.strerror(errno.EMFILE)) in str(error):  # a worker's error comes as a text alone
        return f"{full}: use fewer --workers, or raise the limit with ulimit -n"
    if isinstance(error, OSError) and error.filename is not None:
        return file_message(error)
    if isinstance(error, OSError) and _is_semaphore(error):
        return (
            f"data-loading workers need /dev/shm, which takes nothing ({error.strerror}): use --workers 0, or mount it"
        )
    said = f"{type(error).__name__}: {error}"
    return next((cause for pattern, cause in OUTER_CAUSES.items() if re.search(pattern, said)), "")


def _is_semaphore(error: OSError) -> bool:
    """Tell whether a semaphore could not be made; the system names no file of it."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).parts[-2:] == ("multiprocessing", "synchronize.py") for frame in frames)


def _is_lost_connection(error: Exception) -> bool:
    """Tell whether gloo found another process gone."""
    return any(f"{words} by peer" in str(error) for words in ("closed", "reset")) or "Broken pipe" in str(error)


def _fail(message: str) -> NoReturn:
    process = "" if is_main() else f" (process {rank()})"
    print(f"error{process}: {plain(message)}", file=sys.stderr, flush=True)
    sys.unraisablehook = lambda _: None  # what is half made, such as a loader, has nothing to add when it is removed
    if world_size() > 1:
        # At once: an orderly exit may wait for the other processes, which wait for this one. Data-loading workers
        # share this process's connections, and would keep them open.
        sys.stdout.flush()
        end_workers()
        os._exit(1)
    sys.exit(1)


def log(message: str) -> None:
    """Print on the main process, at once even into a pipe."""
    if is_main():
        print(plain(message), flush=True)


def seed_everything(*seed: int) -> None:
    """Seed every random generator from a few numbers, such as the run's seed, the epoch and this process."""
    value = int(np.random.SeedSequence(seed).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from generators seeded for this block alone; outside it nothing has happened. Leaves GPUs alone."""
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
BURST_SECONDS = 1.0  # a scheduler and a launcher both pass the same signal on


class Stopped(Exception):
    """The work was asked to stop, and has; every process raises it at the same place."""


class StopSignal:
    """SIGTERM, SIGINT and others ask for a stop at the next opportunity; a later second one ends the process at once.

    SIGHUP comes from a terminal that closes, through `nohup torchrun` too; SIGUSR1 and SIGUSR2 from schedulers. What
    is ignored when the process starts, such as SIGHUP under `nohup` itself, stays ignored.

    A thread counts the signals, so that a main thread which waits inside a library for another process or a GPU
    ends, too.
    """

    def __init__(self) -> None:
        self.name = ""  # of the signal that came

    def __enter__(self) -> StopSignal:
        heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._catch) for number in heeded}
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._count, args=(self._reader,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._writer)  # which ends the thread

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
        """Whether any process was asked to stop; all processes must ask together, and all get the same answer."""
        return any_process(self.came)

    def pass_on(self) -> None:
        """Let the signal that came, if one did, do what it does outside of this block; call it there."""
        if self.name:
            signal.raise_signal(signal.Signals[self.name])


def ignore_stop_signals(worker: int = 0) -> None:
    """Let a data-loading worker outlive signals that a scheduler, launcher or terminal sends to every process.

    The training decides when to stop, and needs its workers until then. See `end_workers`.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """End this process's data-loading workers; its exit would ask them with SIGTERM, which they ignore, and wait."""
    if workers := multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would call their end an error
        for worker in workers:
            worker.kill()


# Processes

# By the variable that says how many tasks there are, who sets it.
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
    """Return the device of that name; without one, the GPU if there is one. UserError if this machine has no such."""
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
    """Join the processes that a launcher started, and return this process's device.

    `torchrun` and `torch.distributed.launch` describe the world in environment variables, and SLURM's `srun` in its
    own; without them nothing is started. CUDA talks through nccl, everything else through gloo. Raises UserError
    where these variables are incomplete, the processes do not meet, or there are fewer GPUs than processes.
    """
    _allow_many_files()
    by_slurm = {} if "RANK" in os.environ else slurm_world(os.environ)
    os.environ.update(by_slurm)
    if "RANK" not in os.environ:
        refuse_lonely_tasks(os.environ)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device
    missing = [name for name in LAUNCHER_VARIABLES if name not in os.environ]
    if missing:
        raise UserError(
            f"RANK is set without {', '.join(missing)}: start several processes with torchrun, or unset RANK"
        )
    if device.type == "cuda":
        device = _own_gpu(int(os.environ["LOCAL_RANK"]), bound=bool(by_slurm))
        torch.cuda.set_device(device)
    # gloo beside nccl: processes agree over the CPU, where a lost one is noticed at once and no GPU is waited for.
    if not dist.is_initialized():
        _meet("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    if by_slurm:
        refuse_other_flags()
    return device


def _allow_many_files() -> None:
    """Raise this process's limit of open files to what it may: every batch of a data-loading worker is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _own_gpu(number: int, *, bound: bool) -> torch.device:
    """Return the GPU of this machine's process `number`; bound: a scheduler may show each process its own GPU alone."""
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
    """Join the other processes, all of which are waited for. Raises UserError where they do not come."""
    try:
        store, number, size = next(rendezvous("env://", timeout=PATIENCE))
        store.set_timeout(default_pg_timeout)
        dist.init_process_group(backend, store=dist.PrefixStore(_round(), store), rank=number, world_size=size)
    except dist.DistError as error:
        address, port, size = (os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"))
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the {size} processes did not meet at {address}:{port} ({reason}): see that all of them start, or set "
            "MASTER_ADDR to the machine of the first and MASTER_PORT to a port that is free there"
        ) from error


def slurm_world(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a launcher would set in this task of `srun`: all tasks of its step are one world.

    They meet on the step's first node, at a port that follows from job and step, unless MASTER_ADDR and MASTER_PORT
    say otherwise. Returns {} for a step of one task and where SLURM does not say enough.
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
    """Raise UserError in all processes if they were not given the same flags: they are no parts of one work."""
    if len(set(gather(tuple(sys.argv)))) > 1:
        raise UserError(
            "the tasks of this srun have different flags, so they cannot work as one: give all of them the same, or, "
            "if they are to be independent, unset SLURM_STEP_NUM_TASKS in each"
        )


def refuse_lonely_tasks(environment: Mapping[str, str]) -> None:
    """Raise UserError for one of several tasks that know nothing of each other, as `srun --ntasks 2` starts them.

    Each would train by itself on its fraction of the batch, all into the same folder.
    """
    for name, starter in TASK_COUNTS.items():
        count = environment.get(name, "")
        if count.isdecimal() and int(count) > 1:
            raise UserError(
                f"{starter} started {count} tasks ({name}), and each would work by itself: let it start one task per "
                f"machine, and that one `torchrun --nproc_per_node N {Path(sys.argv[0]).name} …`. If the tasks are to "
                f"be independent, unset {name}"
            )


def _round() -> str:
    """Return under what name the processes of this start find each other.

    A launcher on one machine keeps its store over restarts, where the addresses of the dead would still be read.
    Launchers on several machines count restarts each for itself, so their processes must not depend on the count.
    """
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}" if alone else "restart"


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


def gather(value: T) -> list[T]:
    """Return every process's CPU tensor or plain object, in the order of their ranks; shapes may differ."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process. Fails where a process has ended."""
    if world_size() == 1:
        return flag
    votes = torch.tensor(flag, dtype=torch.int32)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes)


def from_main(value: T) -> T:
    """Return the main process's value, a plain object, in every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def distribute(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the model for gradient averaging if there are several processes; see `wrap`."""
    if world_size() == 1:
        return model
    if device.type != "cuda":
        log("batch norm is not synchronised on the CPU: every process normalises with its own samples")
    return wrap(model, device)


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the model for gradient averaging, with batch norm synchronised on CUDA, in a world of any size.

    PyTorch synchronises batch norm on accelerators alone: with gloo every process normalises with the statistics of
    its own samples, and `share_buffers` makes the running averages of rank 0 everybody's.
    """
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


def without_averaging(model: nn.Module, active: bool = True) -> AbstractContextManager[None]:
    """Return a context in which backward passes add up this process's gradients without averaging them."""
    return model.no_sync() if active and isinstance(model, DistributedDataParallel) else nullcontext()
