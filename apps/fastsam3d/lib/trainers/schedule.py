"""The schedule of a run: pairs of blocks, Eq. 2, learning rates and validations."""

from __future__ import annotations

from lib.errors import InputError

from .train_options import TrainOptions

FALL = 0.25
"""FALL: share of each stage, at its end, over which the learning rate falls to 0."""

LayerPairs = tuple[tuple[int, int], ...]
"""LayerPairs: (teacher block, student block), counted from 0, in the order of the layers."""


def layer_pairs(teacher_depth: int, student_depth: int) -> LayerPairs:
    """Pair each student block with the teacher block at the same relative depth.

    With 12 and 6 blocks, the student's blocks 0, 1, … 5 learn from the teacher's 1, 3, … 11. Raise
    InputError if the teacher's depth is no multiple of the student's.
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
    """Return the number of pairs k that are trained in unit `current` = 1, … `total` of stage 1.

    Eq. 2 of FastSAM3D (arXiv 2403.09827): ceil(current * pairs / total), at least 1 and at most
    `pairs`. Raise ValueError if `total` is less than 1.
    """
    if total < 1:
        raise ValueError(f"stage 1 has {total} units; at least 1 is needed")
    return min(pairs, max(1, -(-current * pairs // total)))


class Schedule:
    """Stage, number of pairs and learning rate of each update, and the epochs with a validation.

    Everything is a function of the update's number (from 0), so a resumed run follows the same
    schedule. pairs: number of pairs of blocks. per_epoch: updates in an epoch. stage1_updates,
    updates: updates in stage 1 and in the whole run.
    """

    def __init__(self, options: TrainOptions, pairs: int) -> None:
        self._options = options
        self._pairs = pairs
        self.per_epoch = options.iterations_per_epoch
        self.stage1_updates = options.stage1_epochs * self.per_epoch
        self.updates = options.max_epochs * self.per_epoch

    def stage(self, update: int) -> int:
        """Return 1 for layer-wise distillation, 2 for training on masks."""
        return 1 if update < self.stage1_updates else 2

    def k(self, update: int) -> int:
        """Return the number of pairs by Eq. 2; stage 2 has all of them.

        The option schedule_unit decides whether Eq. 2 counts epochs or updates.
        """
        if self.stage(update) == 2:
            return self._pairs
        if self._options.schedule_unit == "iteration":
            return active_pairs(update + 1, self.stage1_updates, self._pairs)
        return active_pairs(update // self.per_epoch + 1, self._options.stage1_epochs, self._pairs)

    def rate(self, update: int) -> float:
        """Return the learning rate."""
        peak = self._options.lr if self.stage(update) == 1 else self._options.lr_stage2
        return peak * self.share(update)

    def share(self, update: int) -> float:
        """Return the learning rate as a share of its peak.

        Within each stage it rises over the first `warm_up`, is 1, and falls over the last `FALL`.
        """
        if self.stage(update) == 1:
            place, length = update, self.stage1_updates
        else:
            place, length = update - self.stage1_updates, self.updates - self.stage1_updates
        rise = (place + 1) / max(1.0, self._options.warm_up * length)
        fall = (length - place) / max(1.0, FALL * length)
        return min(1.0, rise, fall)

    def is_validated(self, epoch: int) -> bool:
        """Return whether epoch 1, 2, … ends with a validation; the last one of a stage does."""
        ends = (self._options.stage1_epochs, self._options.max_epochs)
        return epoch % self._options.val_interval == 0 or epoch in ends
