"""The student: FastSAM3D."""

from __future__ import annotations

from pathlib import Path

from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask

from lib.infers import FastSAM3DInfer
from lib.infers.served_masks import ServedMasks
from lib.options import Options
from lib.trainers import AdaptationTask, DistillationTask
from lib.weights import ServedWeights, StudentVersions, Weights, choose_weights
from lib.weights.files import check_default

from .sam_med3d import teacher_weights

DEFAULT_WEIGHTS = Path(__file__).parents[2] / "weights" / "fastsam3d_default.safetensors"


class FastSAM3DModel(TaskConfig):
    """Serves and trains the file that ``--conf weights`` names.

    A file with an image encoder alone is completed from ``teacher_weights``. A version that was
    trained from these weights and published is served instead of them.
    """

    def init(self, *arguments: object, **options: object) -> None:
        """Read the weights; raises WeightsError. Arguments as for TaskConfig."""
        super().init(*arguments, **options)
        chosen: Options = self.kwargs["options"]
        base = choose_weights(
            chosen.weights or check_default(DEFAULT_WEIGHTS, "weights"),
            Path(self.model_dir),
            teacher=self._teacher() if chosen.teacher_weights else None,
        )
        published = StudentVersions(self._folder / "published", base.network_id)
        self.served = ServedWeights(base, published)

    @property
    def _folder(self) -> Path:
        return Path(self.model_dir, self.name)

    def _teacher(self) -> Weights:
        options: Options = self.kwargs["options"]
        return teacher_weights(options.teacher_weights, self.model_dir)

    def infer(self) -> InferTask:
        options: Options = self.kwargs["options"]
        return FastSAM3DInfer(
            self.served(),
            options.labels,
            self.kwargs["caches"],
            spacing_mm=options.spacing_mm,
            auto_zoom=options.zoom == "auto",
            attention=options.attention,
            label_codes=dict(options.label_codes),
            device=options.device or None,
            description="FastSAM3D: a 3D mask from points, boxes and paths",
            current=self.served,
        )

    def trainer(self) -> dict[str, TrainTask]:
        """Return the trainers by name; the one of the model's own name is the default."""
        options: Options = self.kwargs["options"]
        masks = ServedMasks(options.spacing_mm, options.zoom == "auto", options.attention)
        distillation = DistillationTask(
            self._folder,
            self.served,
            self._teacher(),
            masks,
            spacing_mm=options.spacing_mm,
            device=options.device,
        )
        adaptation = AdaptationTask(self._folder, self.served, masks, device=options.device)
        return {each.name: each for each in (distillation, adaptation)}
