"""List the copies of patients' scans that a server keeps on its disk, and remove them.

    python apps/fastsam3d/forget.py                              # list all
    python apps/fastsam3d/forget.py --remove                     # remove all
    python apps/fastsam3d/forget.py --remove --older-than 30     # those of more than 30 days
    python apps/fastsam3d/forget.py --remove 1.2.840.1 1.2.840.2 # these series or sessions

Run it with the account and in the folder of the server, whose settings it reads. Labels, journals
and images that clients added to the studies stay. The server may run meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from monailabel.config import settings

from lib.datastore.cached_scans import (
    TRAINING,
    CachedScan,
    find_series,
    find_sessions,
    find_training_copies,
)
from lib.server.temporary_folder import remove_abandoned

APP = Path(__file__).resolve().parent
CACHE = Path.home() / ".cache" / "monailabel"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="ID",
        help="series and sessions (all); the copies of trainings belong to each of them",
    )  # fmt: skip
    parser.add_argument("--remove", action="store_true", help="remove what is listed")
    parser.add_argument(
        "--older-than", type=float, default=0, metavar="DAYS",
        help="only copies that were fetched or used longer ago",
    )  # fmt: skip
    parser.add_argument(
        "--model-dir", type=Path, default=APP / "model", help="the server's --conf model_dir"
    )
    return parser.parse_args(arguments)


def find_scans(model_dir: Path) -> list[CachedScan]:
    """Return all copies, by the settings of the server."""
    dicom = settings.MONAI_LABEL_DICOMWEB_CACHE_PATH.strip() or CACHE / "dicom"
    sessions = settings.MONAI_LABEL_SESSION_PATH.strip() or CACHE / "sessions"
    return [
        *find_series(Path(dicom)),
        *find_sessions(Path(sessions)),
        *find_training_copies(model_dir),
    ]


def main(arguments: list[str] | None = None) -> int:
    """List or remove copies; return the exit status, 1 if something could not be removed."""
    options = parse(arguments)
    scans = [
        scan
        for scan in find_scans(options.model_dir)
        if scan.age_days >= options.older_than
        # nobody can tell whose ROIs a training has copied
        and (not options.names or scan.name in options.names or scan.kind == TRAINING)
    ]
    failed = 0
    for scan in scans:
        line = f"{scan.kind} {scan.name}: {scan.nbytes / 1e6:.1f} MB, {scan.age_days:.0f} days"
        try:
            if options.remove:
                scan.remove()
            print(f"{line}, in {scan.paths[-1].parent}")
        except OSError as error:
            failed += 1
            print(f"{line}, not removed: {error}", file=sys.stderr)
    if options.remove:
        remove_abandoned(Path(tempfile.gettempdir()))  # temporary files of killed servers
    print(f"{'removed' if options.remove else 'found'}: {len(scans) - failed} of {len(scans)}")
    missing = set(options.names) - {scan.name for scan in scans}
    for name in sorted(missing):
        print(f"there is no copy of {name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
