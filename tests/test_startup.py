"""What commands import before they answer `--help` or name a mistake in the flags: nothing that takes seconds."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Every library of requirements*.txt, and what they bring along; NumPy alone takes as long as an answer may.
HEAVY = {"torch", "torchvision", "timm", "transformers", "tokenizers", "huggingface_hub", "safetensors", "numpy"}
HEAVY |= {"PIL", "h5py", "skimage", "scipy", "pycocotools", "matplotlib", "jinja2", "tqdm", "tensorboard", "gradio"}
HEAVY |= {"onnx", "onnxruntime", "onnxscript"}
# By command, a mistake in its flags.
MISTAKES = {
    "train.py": "--swin_type huge",
    "test.py": "--split val",  # no --resume
    "predict.py": "--out out",  # and nothing to look at
    "predict_onnx.py": "--image a.png --text b --out c",  # no --resume
    "score.py": "masks-that-are-not-there --split val",
    "app.py": "--port 80",
    "-m data.sample": "--root sample --images 0",
    "-m refer.prepare": "--dataset refcoco --splitBy umd",
    "-m benchmarks": "--types huge",
    "-m benchmarks.gpu": "--quick",  # no --out
    "-m benchmarks.memory": "--batch-size 0",
    "-m benchmarks.packed": "--repeats 0",
    "-m benchmarks.exported": "--repeats 0",
    "-m benchmarks.tables": "--results",  # and no folder
    "-m lib.weights": "export weights.pth weights.tflite",
    "-m lib.pictures sheet": "demo/run/val --count 0",
    "-m lib.pictures curves": "demo/run --out lib",
    "-m lib.evaluation table": "demo/run/val.json --out lib",
    "-m experiments.compare": "--quick --hard",
    "-m experiments.trial": "no-such-piece",
    "-m experiments.report": "--quick --hard",
    "-m tests.fault_drill": "--kills -1",
    "-m tests.versions": "--only new",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_help_and_mistakes_are_answered_before_anything_heavy_is_imported(command: str) -> None:
    assert answer(command, "--help").returncode == 0
    assert answer(command, MISTAKES[command]).returncode in (1, 2)  # of a UserError, and of argparse


def test_a_taken_port_is_answered_before_anything_heavy_is_imported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = answer("app.py", f"--port {port}")
    assert result.returncode == 1
    assert f"error: --port {port}: " in result.stderr


def answer(command: str, flags: str) -> subprocess.CompletedProcess[str]:
    """Run a command that is to end with an answer to its flags alone."""
    line = [sys.executable, "-X", "importtime", *command.split(), *flags.split()]
    result = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)
    imported = set(re.findall(r"^import time:.*\| +(\w+)", result.stderr, flags=re.MULTILINE))
    assert "argparse" in imported
    assert not imported & HEAVY
    assert "Traceback" not in result.stderr
    return result


@pytest.mark.slow  # starts Python with the whole stack
def test_testing_imports_only_what_it_uses() -> None:
    """A test that writes no pictures and no page, from a file of weights: of all libraries only these."""
    code = "import sys, test; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    used = {"torch", "numpy", "PIL", "tqdm", "pycocotools", "tokenizers", "safetensors", "huggingface_hub"}
    assert HEAVY & set(result.stdout.split()) <= used
