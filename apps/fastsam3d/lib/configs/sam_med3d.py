"""The teacher: SAM-Med3D."""

from __future__ import annotations

from pathlib import Path

from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.tasks.infer_v2 import InferTask

from lib.infers import FastSAM3DInfer
from lib.options import Options
from lib.weights import choose_weights


class SAMMed3D(TaskConfig):
    """``--conf teacher_weights`` is its file."""

    def infer(self) -> InferTask:
        options: Options = self.kwargs["options"]
        weights = choose_weights(
            options.teacher_weights, Path(self.model_dir), untrained="sam_med3d_small"
        )
        return FastSAM3DInfer(
            weights,
            options.labels,
            self.kwargs["caches"],
            spacing_mm=options.spacing_mm,
            device=options.device or None,
            description="SAM-Med3D, the teacher: a 3D mask from clicks",
        )

    def trainer(self) -> None:
        return None
