"""A student before it learns: `python -m training.student --teacher FILE --out FILE`.

Half of the teacher's blocks, the first two without attention (arXiv 2403.09827); everything else is
the teacher's copy. The app's trainer then teaches the blocks (`--conf weights FILE`).
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from lib.networks import FastSAM3DConfig, build_untrained, load_checkpoint
from lib.trainers.student_start import start_student
from lib.weights import save_weights


def student_of(teacher: FastSAM3DConfig) -> FastSAM3DConfig:
    """The residual stays the teacher's, unlike in the published student: their streams are compared
    block by block, and a normalised one would have to imitate one that grows.
    """
    return dataclasses.replace(
        teacher,
        depth=teacher.depth // 2,
        attention_free_blocks=(0, 1),
        window_size=0,
        global_blocks=(),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    teacher = load_checkpoint(options.teacher)
    student = build_untrained(student_of(teacher.config), options.seed, teacher.policy)
    start_student(student, teacher)
    save_weights(student, options.out, {"trained": "false"}, dtype=torch.float16)


if __name__ == "__main__":
    main()
