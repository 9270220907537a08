"""The student: FastSAM3D."""

from __future__ import annotations

from pathlib import Path

from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.tasks.infer_v2 import InferTask

from lib.infers import FastSAM3DInfer
from lib.options import Options
from lib.weights import choose_weights

DEFAULT_WEIGHTS = Path(__file__).parents[2] / "weights" / "fastsam3d_default.safetensors"


class FastSAM3D(TaskConfig):
    """``--conf weights`` is its file; an encoder alone is completed from ``teacher_weights``."""

    def infer(self) -> InferTask:
        options: Options = self.kwargs["options"]
        weights = choose_weights(
            options.weights or str(DEFAULT_WEIGHTS),
            Path(self.model_dir),
            teacher=options.teacher_weights,
        )
        return FastSAM3DInfer(
            weights,
            options.labels,
            self.kwargs["caches"],
            spacing_mm=options.spacing_mm,
            device=options.device or None,
            description="FastSAM3D: a 3D mask from clicks",
        )

    def trainer(self) -> None:
        return None
