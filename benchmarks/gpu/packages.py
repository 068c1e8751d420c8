"""Detecting missing packages without importing any."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from lib.files import ROOT

REQUIREMENTS = ROOT / "requirements.txt"


def required(path: Path = REQUIREMENTS) -> list[str]:
    """Return the lines of a requirements file that name packages."""
    lines = map(str.strip, path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def missing(path: Path = REQUIREMENTS) -> list[str]:
    """Return those that are not installed in any version."""
    return [line for line in required(path) if version_of(line) is None]


def version_of(requirement: str) -> str | None:
    """Return the installed version of the package that a line begins with; None if there is none."""
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
