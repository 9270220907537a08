"""What a student takes over from its teacher before it learns."""

from __future__ import annotations

import torch

from lib.errors import InputError
from lib.networks import FastSAM3D, FastSAM3DConfig
from lib.networks.config import DECODER_OPTIONS

SHARED_OPTIONS = ("width", "roi_size", "patch_size", "out_channels", *DECODER_OPTIONS)
"""What must be the same for the student to start with parts of the teacher."""


def check_compatible(student: FastSAM3DConfig, teacher: FastSAM3DConfig) -> None:
    """Raises InputError where the student's blocks cannot be compared with the teacher's, or its
    decoder cannot be the teacher's.
    """
    for name in SHARED_OPTIONS:
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise InputError(
                f"the teacher's {name} is {theirs} and the student's {ours}; they must be the "
                "same: give the teacher that the student was made for (--conf teacher_weights), or "
                "a student made for this teacher (--conf weights)"
            )


@torch.no_grad()
def start_student(student: FastSAM3D, teacher: FastSAM3D) -> None:
    """Copy all that student and teacher share: everything but the encoder's blocks.

    Those are the patch embedding, the positions, the neck, any detail stem, the prompt encoder and
    the mask decoder. The student's blocks keep their weights. Raises InputError as
    `check_compatible`, and for a teacher of which only the image encoder was loaded.
    """
    check_compatible(student.config, teacher.config)
    if not teacher.has_decoder:
        raise InputError(
            "the teacher's file holds an image encoder only; give the whole network's "
            "(--conf teacher_weights)"
        )
    own = student.state_dict()
    blocks = "image_encoder.blocks."
    shared = {name: x for name, x in teacher.state_dict().items() if not name.startswith(blocks)}
    own.update(shared)
    student.load_state_dict(own)
