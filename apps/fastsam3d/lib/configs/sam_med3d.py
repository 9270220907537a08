"""The teacher: SAM-Med3D."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.tasks.infer_v2 import InferTask

from lib.infers import FastSAM3DInfer
from lib.options import Options
from lib.weights.files import Weights, choose_weights

DEFAULT_TEACHER = Path(__file__).parents[2] / "weights" / "sam_med3d_default.safetensors"


@cache
def teacher_weights(name: str, model_dir: str) -> Weights:
    """Read once, for the model and for the trainer of its student."""
    if not name and DEFAULT_TEACHER.is_file():
        name = str(DEFAULT_TEACHER)
    return choose_weights(name, Path(model_dir), untrained="sam_med3d_small")


class SAMMed3D(TaskConfig):
    """``--conf teacher_weights`` is its file."""

    def infer(self) -> InferTask:
        options: Options = self.kwargs["options"]
        return FastSAM3DInfer(
            teacher_weights(options.teacher_weights, self.model_dir),
            options.labels,
            self.kwargs["caches"],
            spacing_mm=options.spacing_mm,
            device=options.device or None,
            description="SAM-Med3D, the teacher: a 3D mask from clicks",
        )

    def trainer(self) -> None:
        return None
