"""A process that meets the other one, fails, and meets it again after each restart; one of them comes late."""

from __future__ import annotations

import os
import time

import torch

import utils

RESTARTS = 3


def main() -> None:
    """Meet; fail until the last restart."""
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if restarts and os.environ["RANK"] == "1":
        time.sleep(3)  # so that process 0 asks for an address while none but the old one can be there
    utils.start_processes(torch.device("cpu"))
    if restarts < RESTARTS:
        raise RuntimeError("failed on purpose")
    utils.log(f"{int(utils.mean_over_processes(torch.tensor(2.0)))} met again")


if __name__ == "__main__":
    utils.run(main)
