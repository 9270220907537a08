"""Replace the default weights, measure them, and write the numbers into files and pages.

python -m benchmarks.replace_weights --data data
    --teacher FILE --teacher-description TEXT --student FILE --student-description TEXT

The files are written in half precision into apps/fastsam3d/weights, where the app takes them by
default. So the commands in the reports need no path, and everybody can repeat them. Then come the
reports in benchmarks/results, the Dice in the files' metadata, the pages, and SHA256SUMS. Without
--teacher or --student that file stays; it is measured all the same. A report that has measured the
present files by the present command stays, so the same command without both goes on after an
interruption.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from training.publish import publish, read_report, record_publication

from lib.errors import AppError
from lib.weights.files import file_weights

from . import accuracy, accuracy_pictures, model_card
from .accuracy_report import markdown
from .paper_table import STUDENT, TEACHER

CLICKS = "--clicks 1,3,5,10"
REPORTS = {
    "accuracy-eval": (
        "--models fastsam3d,sam_med3d,ball,region_growing,random_walker --protocol random "
        f"{CLICKS} --per-source 10 --seed 0 --repeats 6"
    ),
    "accuracy-cvpr2025": (
        "--models fastsam3d,sam_med3d,ball,region_growing,random_walker --protocol cvpr2025 "
        f"{CLICKS} --per-source 5 --seed 0"
    ),
    "accuracy-replay": (
        f"--models fastsam3d,sam_med3d,random_walker {CLICKS} --per-source 5 --seed 0 "
        "--replay random_walker"
    ),
    "accuracy-prompts": (
        f"--models fastsam3d,sam_med3d {CLICKS} --per-source 5 --seed 0 "
        "--prompts point,stock,box,box_in_plane,lasso,scribble"
    ),
}
"""REPORTS: by name, the options of benchmarks/accuracy.py beside data, part and files."""

IN_METADATA = "accuracy-eval"
"""IN_METADATA: the report whose Dice is written into the files."""


class Folders(NamedTuple):
    """Where the default weights, the reports and the pictures of the accuracy report lie."""

    weights: Path = model_card.WEIGHTS
    results: Path = model_card.RESULTS
    pictures: Path = model_card.REPOSITORY / "docs" / "images" / "accuracy"

    def file(self, model: str) -> Path:
        """Return the default weights of a model; "fastsam3d, box" is fastsam3d too."""
        return self.weights / f"{model.partition(',')[0]}_default.safetensors"


def measure(data: Path, name: str, folders: Folders, jobs: int = 1) -> None:
    """Write a report of REPORTS, JSON and Markdown, unless it is there already."""
    path = folders.results / f"{name}.json"
    words = ["--data", str(data), "--part", "eval", *REPORTS[name].split()]
    if _is_measured(path, accuracy.report_command(accuracy.parse_arguments(words)), folders):
        print(f"{path.name} has measured these weights")
        return
    words += ["--json", str(path), "--markdown", str(path.with_suffix(".md"))]
    words += ["--jobs", str(jobs)]
    if name == IN_METADATA:
        words += ["--pictures", str(folders.pictures)]
    accuracy.main(words)
    if name == "accuracy-prompts":
        picture = folders.pictures / "prompts.png"
        accuracy_pictures.main(["--reports", str(path), "--prompts", str(picture)])


def _is_measured(path: Path, command: str, folders: Folders) -> bool:
    if not path.is_file():
        return False
    report = read_report(path)
    return report["command"] == command and all(
        facts["sha256"] == file_weights(folders.file(model)).network_id
        for model, facts in report["weights"].items()
    )


def write_dice(folders: Folders) -> None:
    """Write the measured Dice into new files, and name these files in all reports.

    A file that has the Dice of an earlier measurement stays as it is. A new student names its
    teacher's file, whose hash may change here too.
    """
    report = read_report(folders.results / f"{IN_METADATA}.json")
    paths = [folders.results / f"{name}.json" for name in REPORTS]
    for model in sorted(report["weights"], key=lambda model: model != TEACHER):
        file = folders.file(model)
        if "measured_with" in file_weights(file).metadata:
            continue
        teacher = file_weights(folders.file(TEACHER)).network_id if model == STUDENT else ""
        with tempfile.TemporaryDirectory(dir=folders.weights) as folder:
            final = Path(folder, file.name)
            publish(file, final, report=report, model=model, teacher_sha256=teacher)
            for path in paths:
                for name in read_report(path)["weights"]:
                    if folders.file(name) == file:
                        record_publication(path, name, file, final)
            final.replace(file)
    for path in paths:
        path.with_suffix(".md").write_text(markdown(read_report(path)), encoding="utf-8")


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS, as `sha256sum *.safetensors` does."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.glob("*.safetensors"))
    ]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


DEFAULTS = Folders()


def main(arguments: Sequence[str] | None = None, folders: Folders = DEFAULTS) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    for model in ("teacher", "student"):
        parser.add_argument(f"--{model}", type=Path, help=f"trained weights of the {model}")
        parser.add_argument(
            f"--{model}-description", default="", help="data with licences, time, machine"
        )
    parser.add_argument("--jobs", type=int, default=1, help="processes of each report")
    options = parser.parse_args(arguments)
    try:
        for weights, description, model in (
            (options.teacher, options.teacher_description, TEACHER),
            (options.student, options.student_description, STUDENT),
        ):
            if weights:
                publish(weights, folders.file(model), description)
        for name in REPORTS:
            measure(options.data, name, folders, options.jobs)
        write_dice(folders)
    except AppError as error:
        sys.exit(f"replace_weights: {error}")
    write_checksums(folders.weights)
    model_card.main([])


if __name__ == "__main__":
    main()
