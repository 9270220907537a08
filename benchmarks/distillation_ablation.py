"""Measure what parts of stage 1 are worth: distil once without each of them.

python -m benchmarks.distillation_ablation --studies DIR --out DIR [--without neck,clipping,order]
    --data DIR ...

Each student starts as the teacher's copy with new blocks and learns stage 1 alone, for the paper's
36 epochs. `neck` leaves the embedding after the neck out of the loss, `clipping` the limit
of each update, and `order` Eq. 2: all pairs of blocks learn from the first update on. `nothing` is
the whole method. Then benchmarks/accuracy.py, with the further options, measures all of them.
Students that are in the folder of results already are not trained again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from monailabel.datastore.local import LocalDatastore
from torch import Tensor
from training.student import write_student

from lib.errors import AppError, InputError
from lib.infers.served_masks import ServedMasks
from lib.trainers import stages
from lib.trainers.data.studies import ExaminedStudy, examine, find_studies
from lib.trainers.data.study_split import Split, split
from lib.trainers.run import Run, RunWeights
from lib.trainers.run_state import RunFolder
from lib.trainers.schedule import Schedule
from lib.trainers.train_options import TrainOptions
from lib.weights.files import file_weights, save_weights

from . import accuracy
from .untrained_encoder import WEIGHTS

PARTS = ("nothing", "neck", "clipping", "order")
NO_LIMIT = 1e9

STAGE_1 = TrainOptions(
    device="cpu", start="teacher", max_epochs=36, stage1_fraction=1.0, iterations_per_epoch=5,
    train_batch_size=12, rois=240, val_rois=16, val_interval=36, val_split=0.06,
)  # fmt: skip
"""STAGE_1: the paper's 36 epochs; the default student has more of them (`make weights`)."""


def distil_without(
    part: str, teacher: Path, studies: Split[ExaminedStudy], options: TrainOptions, out: Path
) -> dict[str, Any]:
    """Train a student without a part, write it to `out`, and return its facts.

    Facts: mean Dice and the errors of the pairs on the validation ROIs, before and after.
    """
    if part == "clipping":
        options = replace(options, clip_update=NO_LIMIT)
    masks = ServedMasks()
    with tempfile.TemporaryDirectory() as folder, _left_out(part):
        start = Path(folder, "student.safetensors")
        write_student(teacher, start, options.seed)
        student = file_weights(start)
        run = Run(
            RunFolder(Path(folder, "run")),
            options,
            studies,
            RunWeights(student.network_id, student, file_weights(teacher)),
            masks.spacing_mm,
            torch.device(options.device),
            masks.spacing_mm_at,
        )
        run.begin({})
        run.train()
        save_weights(run.candidate(), out, {"description": f"stage 1 without {part}"})
        return {"dice": run.progress.best["dice"], **run.progress.facts["pair_errors"]}


def _left_out(part: str) -> AbstractContextManager[Any]:
    """Return a context in which a part of stage 1 is left out."""
    if part == "neck":
        return mock.patch.object(stages, "embedding_error", _no_error)
    if part == "order":
        return mock.patch.object(Schedule, "k", lambda schedule, _: schedule._pairs)
    return nullcontext()


def _no_error(student: Tensor, _: Tensor) -> Tensor:
    return student.sum() * 0


def read_studies(folder: Path) -> list[ExaminedStudy]:
    """Return the usable studies of a folder as the server takes it; raises InputError without any.

    The list of the files is kept there, as by the server.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of studies")
    store = LocalDatastore(str(folder), extensions=["*.nii.gz"], auto_reload=False)
    usable, _ = examine(find_studies(store)[0])
    if not usable:
        raise InputError(f"{folder} has no .nii.gz that can be trained on")
    return usable


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Further options, --data among them, are those of benchmarks/accuracy.py.",
    )
    parser.add_argument("--studies", type=Path, required=True, help="with labels/final")
    parser.add_argument("--teacher", type=Path, default=WEIGHTS / "sam_med3d_default.safetensors")
    parser.add_argument("--without", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--train-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=STAGE_1.max_epochs)
    parser.add_argument("--out", type=Path, required=True, help="folder of students and facts")
    options, others = parser.parse_known_args(arguments)
    accuracy.parse_arguments(others)  # a wrong option fails before the training
    parts = options.without.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        sys.exit(f"distillation_ablation: {unknown[0]!r} is not one of {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    seed, epochs = options.train_seed, options.epochs
    train_options = replace(STAGE_1, seed=seed, max_epochs=epochs, val_interval=epochs)
    # a second call takes the students of the first one, if they were trained alike
    alike = hashlib.sha256(
        f"{options.teacher.resolve()} {options.studies.resolve()} {train_options}".encode()
    ).hexdigest()[:8]
    files = {part: options.out / f"without-{part}-{alike}.safetensors" for part in parts}
    try:
        studies = split(read_studies(options.studies), train_options.val_split, seed)
        for part, file in files.items():
            facts_file = file.with_suffix(".json")  # written last
            if not facts_file.exists():
                facts = distil_without(part, options.teacher, studies, train_options, file)
                facts_file.write_text(json.dumps(facts, indent=1) + "\n")
    except AppError as error:
        sys.exit(f"distillation_ablation: {error}")
    models = [f"--weights=without-{part}={file}" for part, file in files.items()]
    accuracy.main(["--models", ",".join(f"without-{part}" for part in parts), *models, *others])


if __name__ == "__main__":
    main()
