"""The student's weights before distillation: parts that it copies from its teacher."""

from __future__ import annotations

import torch

from lib.errors import InputError
from lib.networks import FastSAM3D, FastSAM3DConfig
from lib.networks.config import DECODER_OPTIONS

SHARED_OPTIONS = (
    *("width", "roi_size", "patch_size", "out_channels"),
    *(name for name in DECODER_OPTIONS if name != "decoder_segment"),
)
"""SHARED_OPTIONS: options of the configuration that must be equal to copy parts of the teacher.

The decoder's segments are not among them: both operators have the same weights.
"""


def check_compatible(student: FastSAM3DConfig, teacher: FastSAM3DConfig) -> None:
    """Raise InputError unless student and teacher have equal widths, grids and decoders.

    The student copies the teacher's decoder, and its blocks are compared with the teacher's.
    """
    for name in SHARED_OPTIONS:
        student_value, teacher_value = getattr(student, name), getattr(teacher, name)
        if student_value != teacher_value:
            raise InputError(
                f"the teacher's {name} is {teacher_value} and the student's {student_value}; they "
                "must be the same: give the teacher that the student was made for (--conf "
                "teacher_weights), or a student made for this teacher (--conf weights)"
            )


@torch.no_grad()
def start_student(student: FastSAM3D, teacher: FastSAM3D) -> None:
    """Copy everything but the encoder's blocks from the teacher to the student.

    The copied parts are the patch embedding, the positions, the neck, the detail stem (if there is
    one), the prompt encoder and the mask decoder. The student's blocks keep their weights. Raise
    InputError as `check_compatible` does, and for a teacher without a decoder.
    """
    check_compatible(student.config, teacher.config)
    if not teacher.has_decoder:
        raise InputError(
            "the teacher's file holds an image encoder only; give the whole network's "
            "(--conf teacher_weights)"
        )
    weights = student.state_dict()
    blocks = "image_encoder.blocks."
    shared = {name: x for name, x in teacher.state_dict().items() if not name.startswith(blocks)}
    weights.update(shared)
    student.load_state_dict(weights)
