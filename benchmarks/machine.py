"""The machine that the numbers were measured on."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = ("monailabel", "monai", "torch", "numpy", "nibabel", "SimpleITK", "isal", "uvicorn")
"""PACKAGES: packages whose versions affect the time of a click."""


def machine() -> dict[str, Any]:
    """Return what the times of clicks depend on besides the code."""
    return {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "processor": cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def cpu_name() -> str:
    """Return the processor's model name; on Linux from /proc/cpuinfo."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names)) or platform.processor() or platform.machine()
