"""Say what the installation downloads and about how long that takes; install numpy meanwhile.

    .venv/bin/python tools/install_plan.py

The size comes at once. The rate is that of one package, which is needed anyway; a later try uses
the rate of the first one. Without a network pip's message is printed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

DOWNLOAD_MB = 3700
"""DOWNLOAD_MB: size of all packages in constraints.txt for Linux x86-64, torch with CUDA included.
pip prints the size of each one; `.venv/install.log` has them."""

DISK_MB = 9000
"""DISK_MB: size of the environment on the disk."""

BARE_MB = 300
"""BARE_MB: an environment that is larger than this holds packages of an earlier try."""

PACKAGE = re.compile(r"Downloading \S+ \(([\d.]+) MB\)")
"""PACKAGE: the line of pip at the start of a download."""

FIRST = "numpy"
"""FIRST: package whose download is timed."""

SLOW_SECONDS = 20
"""SLOW_SECONDS: a download of FIRST that takes longer gives a lower bound of the whole time."""

RATE_FILE = Path(sys.prefix) / "download-rate"
"""RATE_FILE: holds the MB a second of an earlier try."""

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


def main() -> int:
    there_mb = _size_mb(sys.prefix)
    print(size(there_mb), flush=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-input"]
    process = subprocess.Popen(
        [*pip, "-c", str(CONSTRAINTS), FIRST],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    rate, lines = _read(process)
    if rate:
        RATE_FILE.write_text(str(rate))
    elif RATE_FILE.is_file():
        rate = float(RATE_FILE.read_text())
    print(duration(to_download_mb(there_mb), rate), flush=True)
    if process.wait():
        print("\n".join(lines[-5:]), file=sys.stderr)
    return process.returncode


def to_download_mb(there_mb: float) -> float:
    """Return what is still to download; there_mb: size of the environment so far."""
    share = 0.0 if there_mb < BARE_MB else min(1.0, there_mb / DISK_MB)
    return DOWNLOAD_MB * (1 - share)


def size(there_mb: float) -> str:
    """Return the sentence about the size."""
    if there_mb < BARE_MB:
        return f"The installation downloads about {DOWNLOAD_MB / 1000:.1f} GB, once."
    return (
        f"The installation goes on: {there_mb / 1000:.1f} of about {DISK_MB / 1000:.0f} GB are in "
        f"place, about {to_download_mb(there_mb) / 1000:.1f} GB are still to download."
    )


def duration(mb: float, rate: float) -> str:
    """Return the sentence about the time; rate: MB a second, 0 if it is unknown."""
    safe = "Ctrl-C is safe: the next make goes on with the packages that are there."
    if not rate:
        return safe
    minutes = max(1, round(mb / rate / 60))
    return (
        f"That takes about {minutes} min at {rate:.1f} MB/s (measured on {FIRST}), and minutes to "
        f"unpack {DISK_MB / 1000:.0f} GB.\n{safe}"
    )


def at_least(mb: float, seconds: float) -> str:
    """Return the sentence after a download of so many MB has taken longer than some seconds."""
    minutes = round(DOWNLOAD_MB / mb * seconds / 60)
    return f"The network is slow: that takes more than {minutes} min."


def _read(process: subprocess.Popen[str]) -> tuple[float, list[str]]:
    """Return the rate of the download in MB a second, 0 without one, and the output of pip."""
    lines: list[str] = []
    rate = start = mb = 0.0
    slow = Timer(SLOW_SECONDS, lambda: print(at_least(mb, SLOW_SECONDS), flush=True))
    slow.daemon = True
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.strip())
        found = PACKAGE.search(line)
        if found and not mb:
            start, mb = time.monotonic(), float(found[1])
            slow.start()
        elif line.startswith("Installing") and mb:
            slow.cancel()
            rate = mb / max(time.monotonic() - start, 0.1)
    slow.cancel()
    return rate, lines


def _size_mb(folder: str) -> float:
    """Return the size of a folder on the disk."""
    result = subprocess.run(["du", "-sm", folder], capture_output=True, text=True, check=False)
    return float(result.stdout.split()[0]) if result.stdout else 0.0


if __name__ == "__main__":
    sys.exit(main())
