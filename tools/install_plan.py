"""Say what the installation downloads and about how long that takes; install numpy meanwhile.

    .venv/bin/python tools/install_plan.py

The rate is that of one package, which is needed anyway. Without a network pip's message is printed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

DOWNLOAD_MB = 3700
"""DOWNLOAD_MB: size of all packages in constraints.txt for Linux x86-64, torch with CUDA included.
pip prints the size of each one; `.venv/install.log` has them."""

PACKAGE = re.compile(r"Downloading \S+ \(([\d.]+) MB\)")
"""PACKAGE: the line of pip at the start of a download."""

FIRST = "numpy"
"""FIRST: package whose download is timed."""

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


def main() -> int:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-input"]
    process = subprocess.Popen(
        [*pip, "-c", str(CONSTRAINTS), FIRST],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = [(time.monotonic(), line.strip()) for line in process.stdout]
    print(plan(lines), flush=True)
    if process.wait():
        print("\n".join(line for _, line in lines[-5:]), file=sys.stderr)
    return process.returncode


def plan(lines: Sequence[tuple[float, str]]) -> str:
    """Return what to expect. lines: seconds and text of each line of pip's output."""
    size = f"The installation downloads about {DOWNLOAD_MB / 1000:.1f} GB, once"
    started = [(when, PACKAGE.search(text)) for when, text in lines]
    found = [(when, float(match[1])) for when, match in started if match]
    ends = [when for when, text in lines if text.startswith("Installing")]
    if not (found and ends):
        return (
            f"{size}; packages of an earlier try are in pip's cache and are not downloaded again."
        )
    rate = found[0][1] / max(ends[0] - found[0][0], 0.1)
    minutes = max(1, round(DOWNLOAD_MB / rate / 60))
    return (
        f"{size}: about {minutes} min at {rate:.1f} MB/s (measured on {FIRST}), and minutes to "
        "unpack 9 GB.\nCtrl-C is safe: the next make goes on with the packages that are there."
    )


if __name__ == "__main__":
    sys.exit(main())
