"""Train with the flags given and stop by a signal after some steps: stop_worker.py STEPS [flags of train.py]."""

from __future__ import annotations

import sys

import train
import utils
from tests.resume_worker import after, send_signal


def main() -> None:
    with after("train_step", int(sys.argv[1]), send_signal):
        train.main(sys.argv[2:])


if __name__ == "__main__":
    utils.run(main)
