"""The processor that the numbers were measured on."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """Return the processor's model name; on Linux from /proc/cpuinfo."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names)) or platform.processor() or platform.machine()
