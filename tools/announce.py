"""Print the address of a server that this make starts, once it answers.

    python tools/announce.py URL

It ends when the server answers, or with the process that started it.
"""

from __future__ import annotations

import os
import sys
import time
import urllib.request


def main(url: str) -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        if _answers(f"{url}/healthz"):
            page = "viewer/" if _answers(f"{url}/viewer/") else "ohif/"
            print(f"\nReady: open {url}/{page} in a browser. Ctrl-C stops it.\n", flush=True)
            return
        time.sleep(1)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=10):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    main(sys.argv[1])
