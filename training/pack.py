"""Take the pretraining to a GPU machine without internet, and bring back its weights in parts.

python -m training.pack --data DIR --atlases DIR --out FOLDER   # to copy there; then bash run.sh
python -m training.pack --join FOLDER --out FILE                # of what it leaves in its $OUT

The pack holds code, the data that may be trained on, and the wheels of what that machine lacks, in
at most 64 MiB; no part of the weights is larger than 16 MiB.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lib.errors import InputError

MIB = 1 << 20
PACK_BYTES = 64 * MIB
PART_BYTES = 16 * MIB
MOST_FILES = 8
"""That are brought back, the checksums among them."""

WEIGHTS = "weights.safetensors"
BESIDE_WEIGHTS = ("log.csv", "curves.png")
SUMS = "SHA256SUMS"

NEEDS = ("torch", "numpy", "scipy", "nibabel", "isal", "safetensors", "tqdm", "matplotlib")
"""What the pretraining imports; also what each is called on a package index."""

WHEELS = ("nibabel", "isal")
"""Images with PyTorch have the others; scipy, 34 MiB, fits if it is for one version of Python."""

PYTHONS = ("3.11", "3.12")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

REPOSITORY = Path(__file__).resolve().parents[1]

# What needs more than the standard library is imported where it is used: `check` has to say what is
# missing.


def pack(
    data: Path,
    atlases: Path,
    out: Path,
    minutes: int = 25,
    wheels: Sequence[str] = WHEELS,
    pythons: Sequence[str] = PYTHONS,
    start: Path | None = None,
) -> int:
    """Write the folder `out`, which must not exist; -> its bytes.

    data: with `manifest.csv`. atlases: of mricron-data. minutes: of `run.sh`, start to end. wheels:
    packages to carry, for each of `pythons`. start: weights to go on from. Raises InputError where
    it would be larger than `PACK_BYTES`, and where something is missing; nothing is left then.
    """
    if out.exists():
        raise InputError(f"{out} exists already; remove it, or name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        folder = Path(temporary, out.name)
        folder.mkdir()
        copy_code(folder, minutes)
        copy_data(data, folder / "data")
        copy_atlases(atlases, folder / "atlases")
        if wheels:
            download_wheels(wheels, pythons, folder / "wheels")
        if start:
            shutil.copyfile(start, folder / "start.safetensors")
        size = _bytes_of(folder)
        if size > PACK_BYTES:
            parts = ", ".join(f"{p.name} {_mib(_bytes_of(p))}" for p in sorted(folder.iterdir()))
            raise InputError(
                f"the pack has {_mib(size)}, more than {_mib(PACK_BYTES)} ({parts}); carry fewer "
                "wheels, for one version of Python (--wheels, --pythons), or less data"
            )
        folder.rename(out)
    return size


def copy_code(folder: Path, minutes: int) -> None:
    """`training`, what it uses of the app, and `run.sh`."""
    pairs = ((REPOSITORY / "training", "*.py"), (REPOSITORY / "apps/fastsam3d/lib", "**/*.py"))
    for source, pattern in pairs:
        for path in sorted(source.glob(pattern)):
            target = folder / path.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    script = (REPOSITORY / "training/run.sh").read_text(encoding="utf-8")
    (folder / "run.sh").write_text(script.replace("@MINUTES@", str(minutes)), encoding="utf-8")


def copy_data(data: Path, folder: Path) -> None:
    """The rows of the manifest that may be trained on, and their files; nothing else."""
    from .sources import may_train

    with open(data / "manifest.csv", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows, columns = [row for row in reader if may_train(row)], reader.fieldnames or ()
    if not rows:
        raise InputError(f"nothing in {data / 'manifest.csv'} may be trained on")
    for name in (row[column] for row in rows for column in ("image", "label") if row[column]):
        if not (data / name).is_file() or not name.endswith((".nii", ".nii.gz")):
            raise InputError(f"{data / 'manifest.csv'} names {name}: no NIfTI file there")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data / name, folder / name)
    with open(folder / "manifest.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def copy_atlases(atlases: Path, folder: Path) -> None:
    from .sources import ATLAS_FILES

    folder.mkdir()
    for name in ATLAS_FILES:
        if not (atlases / name).is_file():
            raise InputError(
                f"{atlases} has no {name}: install mricron-data, or give --atlases the folder "
                "usr/share/mricron/templates of that Debian package"
            )
        shutil.copyfile(atlases / name, folder / name)


def download_wheels(packages: Sequence[str], pythons: Sequence[str], folder: Path) -> None:
    """Wheels for Linux on x86-64, in the tested versions; without what they need in their turn."""
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    for python in pythons:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary=:all:", "--implementation=cp", *platforms),
            *(f"--python-version={python}", f"--constraint={REPOSITORY / 'constraints.txt'}"),
            *(f"--dest={folder}", *packages),
        ]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise InputError(
                f"pip found no wheels of {', '.join(packages)} for Python {python}: "
                f"{result.stderr.strip()}"
            )
    lines = "".join(f"{package}\n" for package in packages)
    (folder / "requirements.txt").write_text(lines, encoding="utf-8")


def check(device: str) -> None:
    """Raises InputError where this machine cannot run the pretraining, before it costs minutes."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{sys.executable} has no {', '.join(missing)}: pack again with --wheels "
            f"{' '.join(dict.fromkeys((*WHEELS, *missing)))}"
        )
    import torch

    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"torch {torch.__version__} sees no GPU here; DEVICE=cpu trains without")


def split(work: Path, out: Path) -> list[Path]:
    """Write the weights of a run in parts, its log and curves, and their checksums; -> all files.

    Raises InputError where there are no weights, or where they do not fit into so few files.
    """
    if not (work / WEIGHTS).is_file():
        raise InputError(f"{work} has no {WEIGHTS}: the training did not end")
    content = (work / WEIGHTS).read_bytes()
    beside = [work / name for name in BESIDE_WEIGHTS if (work / name).is_file()]
    parts = [content[n : n + PART_BYTES] for n in range(0, len(content), PART_BYTES)]
    if len(parts) + len(beside) + 1 > MOST_FILES:
        raise InputError(
            f"{work / WEIGHTS} has {_mib(len(content))}, more than "
            f"{MOST_FILES - len(beside) - 1} parts of {_mib(PART_BYTES)}"
        )
    for old in out.glob(f"{WEIGHTS}.part*"):
        old.unlink()
    files = [out / f"{WEIGHTS}.part{number}" for number in range(1, len(parts) + 1)]
    for path, part in zip(files, parts, strict=True):
        path.write_bytes(part)
    files += [Path(shutil.copyfile(path, out / path.name)) for path in beside]
    sums = {path.name: _sha256(path.read_bytes()) for path in files} | {WEIGHTS: _sha256(content)}
    lines = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    (out / SUMS).write_text(lines, encoding="utf-8")
    return [*files, out / SUMS]


def join(folder: Path, out: Path) -> str:
    """Put the parts in `folder` together; -> the SHA-256 sum of the weights.

    Raises InputError for a part that is missing or not what was written; then `out` is as before.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{folder} has no {SUMS}: copy all that the run left there") from error
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    content = b""
    for name in sums:
        if not name.startswith(f"{WEIGHTS}.part"):
            continue
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing; copy it again")
        part = (folder / name).read_bytes()
        if _sha256(part) != sums[name]:
            raise InputError(f"{folder / name} is damaged ({len(part)} bytes); copy it again")
        content += part
    if _sha256(content) != sums.get(WEIGHTS):
        raise InputError(f"{folder / SUMS} is damaged; copy it again")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(content)
    return sums[WEIGHTS]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _bytes_of(path: Path) -> int:
    return sum(each.stat().st_size for each in (path, *path.rglob("*")) if each.is_file())


def _mib(count: int) -> str:
    return f"{count / MIB:.1f} MiB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="pack: folder with manifest.csv")
    what.add_argument("--join", type=Path, metavar="FOLDER", help="put the parts there together")
    what.add_argument("--split", type=Path, metavar="FOLDER", help="used by run.sh")
    what.add_argument("--check", metavar="DEVICE", help="used by run.sh")
    parser.add_argument("--out", type=Path, help="what is written")
    packing = parser.add_argument_group("packing")
    packing.add_argument("--atlases", type=Path, default=Path("/usr/share/mricron/templates"))
    packing.add_argument("--minutes", type=int, default=25, help="of run.sh, start to end (25)")
    packing.add_argument("--wheels", nargs="*", default=WHEELS, metavar="PACKAGE", help="to carry")
    packing.add_argument("--pythons", nargs="+", default=PYTHONS, metavar="X.Y", help="for which")
    packing.add_argument("--start", type=Path, metavar="FILE", help="weights to go on from")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    given = parser.parse_args(arguments)
    if not given.check and not given.out:
        parser.error("--out is missing")
    try:
        if given.check:
            check(given.check)
        elif given.split:
            for path in split(given.split, given.out):
                print(f"{path}: {_mib(path.stat().st_size)}")
        elif given.join:
            print(f"{given.out}: SHA-256 {join(given.join, given.out)}")
        else:
            size = pack(
                *(given.data, given.atlases, given.out, given.minutes),
                *(given.wheels, given.pythons, given.start),
            )
            print(f"{given.out}: {_mib(size)}; copy it to the GPU machine, and there: bash run.sh")
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
