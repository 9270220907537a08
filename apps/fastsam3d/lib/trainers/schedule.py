"""Which of the student's blocks learn from which of the teacher's, and when."""

from __future__ import annotations

from lib.errors import InputError

LayerPairs = tuple[tuple[int, int], ...]
"""(teacher block, student block), both counted from 0, from the first layer to the last."""


def layer_pairs(teacher_depth: int, student_depth: int) -> LayerPairs:
    """Each student block with the teacher block as deep, relatively, as itself.

    12 and 6 blocks: the outputs of the teacher's blocks 2, 4, … 12 (numbers 1, 3, … 11) with those
    of the student's 1, 2, … 6 (numbers 0, 1, … 5). Raises InputError where the depths do not
    divide.
    """
    if student_depth < 1 or teacher_depth % student_depth:
        raise InputError(
            f"the teacher has {teacher_depth} blocks and the student {student_depth}; to learn "
            "layer by layer the teacher's must be a multiple of the student's: choose another "
            "teacher, or train without stage 1 (stage1_fraction 0)"
        )
    step = teacher_depth // student_depth
    return tuple((step * (block + 1) - 1, block) for block in range(student_depth))


def active_pairs(current: int, total: int, pairs: int) -> int:
    """How many pairs are trained in unit `current` = 1, … `total` of stage 1.

    Eq. 2 of FastSAM3D (arXiv 2403.09827): ceil(current * pairs / total), at least 1 and at most
    `pairs`.
    """
    if total < 1:
        raise ValueError(f"stage 1 has {total} units; at least 1 is needed")
    return min(pairs, max(1, -(-current * pairs // total)))
