"""The options of the distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .request_options import RequestOptions, option


@dataclass(frozen=True)
class TrainOptions(RequestOptions):
    """The options of the distillation, beside those of all trainers.

    CPU_DEFAULTS are made to end within 30 minutes on two cores, by the estimate of `duration`.
    """

    CPU_DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "iterations_per_epoch": 4,
        "train_batch_size": 8,
        "rois": 128,
    }

    max_epochs: int = option(48, "epochs of both stages", in_table=True, least=1)
    iterations_per_epoch: int = option(8, "updates per epoch", least=1)
    stage1_fraction: float = option(
        0.75, "share of the epochs in stage 1; 0: stage 2 alone", least=0, most=1
    )
    train_batch_size: int = option(
        16, "ROIs per update, of all processes together", in_table=True, least=1
    )
    val_split: float = option(
        0.2, "share of the studies that is held out for validation", in_table=True, above=0, below=1
    )
    lr: float = option(5e-3, "Adam's learning rate in stage 1", above=0)
    lr_stage2: float = option(5e-5, "Adam's learning rate in stage 2", above=0)
    teacher: str = option(
        "sam_med3d",
        "sam_med3d: this server's; none: fine-tuning on labels alone",
        in_table=True,
        choices=("sam_med3d", "none"),
    )
    start: str = option(
        "auto",
        "served: the served student; teacher: new blocks, all other parts copied from the "
        "teacher; auto: served if it is clearly better than the copy, else teacher",
        in_table=True,
        choices=("auto", "served", "teacher"),
    )
    schedule_unit: str = option(
        "epoch", "unit that Eq. 2 counts in stage 1", choices=("epoch", "iteration")
    )
    warm_up: float = option(0.05, "share of each stage with a rising learning rate", least=0)
    clip_norm: float = option(1.0, "largest norm of the gradients", above=0)
    clip_update: float = option(
        0.02, "largest change of a weight tensor per update, relative to its norm", above=0
    )
    accumulate: int = option(
        1, "parts of a batch that are computed one after the other, to save memory", least=1
    )
    amp: bool = option(True, "mixed precision on CUDA")
    val_interval: int = option(4, "epochs between validations", least=1)
    val_rois: int = option(16, "ROIs of the held-out studies", least=1)
    rois: int = option(0, "number of ROIs for training; 0: as many as an epoch takes", least=0)
    cache_mb: int = option(
        4096, "disk space in MB for ROIs, and the same for teacher features", least=0
    )
    processes: int = option(0, "processes; 0: one per GPU, or one on the CPU", least=0)
    workers: int = option(0, "processes that prepare ROIs; 0: none", least=0)

    @property
    def stage1_epochs(self) -> int:
        """Epochs of stage 1; it needs a teacher."""
        return 0 if self.teacher == "none" else round(self.max_epochs * self.stage1_fraction)

    @property
    def pool_size(self) -> int:
        """Number of different ROIs for training."""
        return self.rois or self.iterations_per_epoch * self.train_batch_size
