"""The teacher: SAM-Med3D."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.tasks.infer_v2 import InferTask

from lib.infers import FastSAM3DInfer
from lib.options import Options
from lib.weights import Weights, choose_weights
from lib.weights.files import check_default

DEFAULT_TEACHER = Path(__file__).parents[2] / "weights" / "sam_med3d_default.safetensors"


@cache
def teacher_weights(name: str, model_dir: str) -> Weights:
    """Read the teacher's weights, once for the model and the trainer of its student.

    name: as for ``--conf teacher_weights``. Raises WeightsError.
    """
    name = name or check_default(DEFAULT_TEACHER, "teacher_weights")
    return choose_weights(name, Path(model_dir))


class SAMMed3DModel(TaskConfig):
    """Serves the file that ``--conf teacher_weights`` names; it is not trained here."""

    def infer(self) -> InferTask:
        options: Options = self.kwargs["options"]
        return FastSAM3DInfer(
            teacher_weights(options.teacher_weights, self.model_dir),
            options.labels,
            self.kwargs["caches"],
            spacing_mm=options.spacing_mm,
            auto_zoom=options.zoom == "auto",
            attention=options.attention,
            label_codes=dict(options.label_codes),
            device=options.device or None,
            description="SAM-Med3D, the teacher: a 3D mask from points, boxes and paths",
        )

    def trainer(self) -> None:
        return None
