"""Say what the installation downloads and about how long that takes; install numpy meanwhile.

    .venv/bin/python tools/install_plan.py

The rate is that of one package, which is needed anyway. Without a network pip's message is printed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

DOWNLOAD_MB = 3300
"""DOWNLOAD_MB: size of all packages in constraints.txt for Linux x86-64, torch with CUDA included.
pip prints the size of each one; `.venv/install.log` has them."""

FIRST = "numpy"
"""FIRST: package whose download is timed."""

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


def main() -> int:
    started = time.monotonic()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-input"]
    result = subprocess.run(
        [*pip, "-c", str(CONSTRAINTS), FIRST], capture_output=True, text=True, check=False
    )
    print(plan(result.stdout, time.monotonic() - started), flush=True)
    if result.returncode:
        print(result.stderr.strip()[-1000:], file=sys.stderr)
    return result.returncode


def plan(output: str, seconds: float) -> str:
    """Return what to expect. output: of pip for the first package. seconds: that it took."""
    size = f"The installation downloads about {DOWNLOAD_MB / 1000:.1f} GB, once"
    found = re.search(r"Downloading \S+ \(([\d.]+) MB\)", output)
    if found is None:
        return (
            f"{size}; packages of an earlier try are in pip's cache and are not downloaded again."
        )
    rate = float(found[1]) / max(seconds, 0.1)
    minutes = max(1, round(DOWNLOAD_MB / rate / 60))
    return (
        f"{size}: about {minutes} min at {rate:.1f} MB/s (measured on {FIRST}), and minutes to "
        "unpack 9 GB.\nCtrl-C is safe: the next make goes on with the packages that are there."
    )


if __name__ == "__main__":
    sys.exit(main())
