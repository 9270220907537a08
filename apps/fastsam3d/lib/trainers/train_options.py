"""What a client, or an engineer on the command line, can choose of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from monailabel.utils.others.generic import device_list

from lib.errors import InputError
from lib.options import find_device

SENT_BESIDES = ("model", "client_id", "gpus", "local_rank")
"""What clients and MONAI Label send with every request to train."""


def _option(default: Any, help_text: str, **limits: Any) -> Any:
    return field(default=default, metadata={"help": help_text, **limits})


@dataclass(frozen=True)
class TrainOptions:
    """Each option with its default, its meaning and its limits.

    The first of several choices is the default.
    """

    max_epochs: int = _option(48, "epochs of both stages", least=1)
    iterations_per_epoch: int = _option(8, "updates per epoch", least=1)
    stage1_fraction: float = _option(
        0.75, "share of the epochs that is stage 1; 0: logits or labels alone", least=0, most=1
    )
    train_batch_size: int = _option(16, "ROIs per update, of all processes together", least=1)
    val_split: float = _option(0.2, "share of the studies that is held out", above=0, below=1)
    lr: float = _option(5e-3, "Adam's learning rate in stage 1", above=0)
    lr_stage2: float = _option(5e-5, "Adam's learning rate in stage 2", above=0)
    device: str = _option("", "cpu, cuda or cuda:N; empty: the best there is")
    seed: int = _option(0, "of everything that is drawn", least=0)
    teacher: str = _option(
        "sam_med3d",
        "sam_med3d: this server's; none: fine-tuning on labels alone",
        choices=("sam_med3d", "none"),
    )
    start: str = _option(
        "auto",
        "served: the served student as it is; teacher: its blocks anew, the rest copied from the "
        "teacher; auto: served, unless that is no better",
        choices=("auto", "served", "teacher"),
    )
    schedule_unit: str = _option(
        "epoch", "what Eq. 2 counts in stage 1", choices=("epoch", "iteration")
    )
    warm_up: float = _option(0.05, "share of each stage with a rising learning rate", least=0)
    clip_norm: float = _option(1.0, "largest norm of the gradients", above=0)
    clip_update: float = _option(
        0.02, "largest change of a weight tensor in an update, of its norm", above=0
    )
    accumulate: int = _option(1, "parts that a batch is computed in, to save memory", least=1)
    amp: bool = _option(True, "mixed precision on CUDA")
    val_interval: int = _option(4, "epochs between validations", least=1)
    val_rois: int = _option(16, "ROIs of the held-out studies", least=1)
    rois: int = _option(0, "different ROIs for training; 0: one epoch's", least=0)
    min_gain: float = _option(0.005, "Dice by which a student must be better", least=0)
    keep_versions: int = _option(3, "published versions that stay for a rollback", least=0)
    cache_mb: int = _option(4096, "teacher features on disk", least=0)
    resume: bool = _option(True, "go on with a stopped run of the same options and studies")
    processes: int = _option(0, "0: one per GPU, one on the CPU", least=0)
    threads: int = _option(0, "per process on the CPU; 0: all cores", least=0)
    workers: int = _option(0, "processes that prepare ROIs; 0: none besides", least=0)
    tracking: str = _option("None", "experiment tracking", choices=("None", "mlflow"))
    tracking_uri: str = _option("", "MLflow's; empty: a SQLite file beside the run")

    @classmethod
    def config(cls) -> dict[str, Any]:
        """For clients: name -> default, and a list of choices where there are such."""
        values: dict[str, Any] = {}
        for each in fields(cls):
            values[each.name] = list(each.metadata.get("choices", ())) or each.default
        return {**values, "device": device_list()}

    @classmethod
    def from_request(cls, request: Mapping[str, Any]) -> TrainOptions:
        """Strings are taken for what they stand for, of lists the first; raises InputError."""
        known = {each.name: each for each in fields(cls)}
        unknown = sorted(set(request) - set(known) - set(SENT_BESIDES))
        if unknown:
            raise InputError(
                f"unknown option {', '.join(map(repr, unknown))}; the options are "
                f"{', '.join(known)}"
            )
        request = {"device": "", **request}
        values = {name: _value(known[name], request[name]) for name in known if name in request}
        return cls(**values)

    @property
    def stage1_epochs(self) -> int:
        return 0 if self.teacher == "none" else round(self.max_epochs * self.stage1_fraction)

    @property
    def pool_size(self) -> int:
        return self.rois or self.iterations_per_epoch * self.train_batch_size

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def deciding(self) -> dict[str, Any]:
        """The options that change what is computed, up to rounding: a resumed run has the same."""
        free = ("resume", "threads", "workers", "processes", "device", "cache_mb", "keep_versions")
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in free and not name.startswith("tracking")
        }


def _value(option: Any, value: Any) -> Any:
    if isinstance(value, list) and value:
        value = value[0]
    kind = type(option.default)
    try:
        parsed = _parse(kind, value)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{option.name} is {value!r}; give {_NAMES[kind]}") from error
    if option.name == "device":
        return _device(parsed)
    wrong = _outside(option.metadata, parsed)
    if wrong:
        raise InputError(f"{option.name} is {value!r}; {wrong}")
    return parsed


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _parse(kind: type, value: Any) -> Any:
    if kind is bool:
        if not isinstance(value, bool):
            return {"true": True, "false": False}[str(value).lower()]
        return value
    if kind is str:
        return "" if value is None else str(value)
    if isinstance(value, bool):
        raise ValueError("is true or false")
    number = float(value)
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ValueError("is no such number")
    return kind(number)


def _outside(limits: Mapping[str, Any], value: Any) -> str:
    """What is wrong with a value, as the end of a sentence; nothing where it is fine."""
    if "choices" in limits and value not in limits["choices"]:
        return f"choose one of {', '.join(limits['choices'])}"
    for name, is_fine, words in (
        ("least", lambda limit: value >= limit, "at least"),
        ("most", lambda limit: value <= limit, "at most"),
        ("above", lambda limit: value > limit, "more than"),
        ("below", lambda limit: value < limit, "less than"),
    ):
        if name in limits and not is_fine(limits[name]):
            return f"it must be {words} {limits[name]}"
    return ""


def _device(name: str) -> str:
    """Return "cuda", all GPUs, or the name of one device; raise InputError if it does not exist."""
    if name in ("", "cuda"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return find_device(name)
