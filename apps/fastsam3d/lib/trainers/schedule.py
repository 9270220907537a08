"""Which of the student's blocks learn from which of the teacher's, and when."""

from __future__ import annotations

from lib.errors import InputError

from .train_options import TrainOptions

FALL = 0.25
"""Share of each stage at whose end the learning rate falls to 0."""

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


class Schedule:
    """What happens in update 0, 1, … of a run; nothing else decides it, so a resumed run agrees."""

    def __init__(self, options: TrainOptions, pairs: int) -> None:
        self._options = options
        self._pairs = pairs
        self.per_epoch = options.iterations_per_epoch
        self.stage1_updates = options.stage1_epochs * self.per_epoch
        self.updates = options.max_epochs * self.per_epoch

    def stage(self, update: int) -> int:
        return 1 if update < self.stage1_updates else 2

    def k(self, update: int) -> int:
        """Pairs that take part: Eq. 2, counted in epochs or in updates of stage 1; all after it."""
        if self.stage(update) == 2:
            return self._pairs
        if self._options.schedule_unit == "iteration":
            return active_pairs(update + 1, self.stage1_updates, self._pairs)
        return active_pairs(update // self.per_epoch + 1, self._options.stage1_epochs, self._pairs)

    def rate(self, update: int) -> float:
        """The learning rate."""
        is_first = self.stage(update) == 1
        return (self._options.lr if is_first else self._options.lr_stage2) * self.share(update)

    def share(self, update: int) -> float:
        """Of the peak: rises over `warm_up` of its stage, stays, and falls over the last `FALL`."""
        if self.stage(update) == 1:
            place, length = update, self.stage1_updates
        else:
            place, length = update - self.stage1_updates, self.updates - self.stage1_updates
        rise = (place + 1) / max(1.0, self._options.warm_up * length)
        fall = (length - place) / max(1.0, FALL * length)
        return min(1.0, rise, fall)

    def is_validated(self, epoch: int) -> bool:
        """Epochs count from 1: every few, and the last one of each stage."""
        ends = (self._options.stage1_epochs, self._options.max_epochs)
        return epoch % self._options.val_interval == 0 or epoch in ends
