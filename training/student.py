"""Write an untrained student: `python -m training.student --teacher FILE --out FILE`.

The student has half of the teacher's blocks, the first two without attention, and the sparse
operator in the others (arXiv 2403.09827); `--attention dense` leaves it out, to compare. All other
parts are copies of the teacher's. The app's trainer then trains the blocks (`--conf weights FILE`).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

from lib.errors import AppError
from lib.networks import AttentionChoice, FastSAM3DConfig, build_untrained
from lib.trainers.student_start import start_student
from lib.weights import file_weights, save_weights


def student_of(teacher: FastSAM3DConfig, attention: AttentionChoice = "sparse") -> FastSAM3DConfig:
    """Return the student's configuration.

    attention: the operator of its blocks.

    The residual is the teacher's, unlike in the published student. The distillation compares the
    outputs block by block; a normalised residual cannot imitate one whose values grow.
    """
    return dataclasses.replace(
        teacher,
        depth=teacher.depth // 2,
        attention_free_blocks=(0, 1),
        window_size=0,
        global_blocks=(),
    ).with_attention(attention)


def write_student(
    teacher_path: Path, out: Path, seed: int, attention: AttentionChoice = "sparse"
) -> None:
    """Write the student of a teacher; raises WeightsError if the teacher cannot be read."""
    teacher = file_weights(teacher_path).network
    student = build_untrained(student_of(teacher.config, attention), seed, teacher.policy)
    start_student(student, teacher)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(student, out, {"trained": "false"}, dtype=torch.float16)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attention", choices=("dense", "sparse"), default="sparse")
    options = parser.parse_args(arguments)

    try:
        write_student(options.teacher, options.out, options.seed, options.attention)
    except AppError as error:
        sys.exit(f"student: {error}")


if __name__ == "__main__":
    main()
