"""Fetch the built OHIF viewer that the server shows at /viewer/, once.

    python tools/fetch_viewer.py [--archive app-3.13.2.tgz]

npm downloads one pinned package, whose sha512 is checked. The cache is in the user's cache folder;
FASTSAM3D_VIEWER_CACHE names another place, for this command and for the server. On a machine
without a network, give the package's archive.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "fastsam3d"))

from lib.server.viewer_package import (
    MANIFEST,
    PACKAGE,
    VERSION,
    ViewerError,
    cache_folder,
    fetch_viewer,
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", type=Path, help="the package's .tgz, instead of a download")
    options = parser.parse_args(arguments)
    if not (cache_folder() / MANIFEST).is_file():
        print(f"Fetching the viewer, {PACKAGE} {VERSION} (MIT licence): 49 MB, once", flush=True)
    try:
        folder = fetch_viewer(options.archive)
    except (ViewerError, OSError) as error:
        print(f"The viewer is missing: {error}", file=sys.stderr)
        return 1
    print(f"The viewer is in {folder}; licences: /viewer/LICENSE.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
