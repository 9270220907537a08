"""The options of a training, from a client's table or from the command line."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any

import torch
from monailabel.utils.others.generic import device_list

from lib.errors import InputError
from lib.options import find_device

CLIENT_KEYS = ("model", "client_id", "gpus", "local_rank")
"""CLIENT_KEYS: keys that clients and MONAI Label add to every training request."""

NOT_IN_RESULT = ("resume", "threads", "workers", "processes", "device", "cache_mb", "keep_versions")
"""NOT_IN_RESULT: options that do not change what is computed, up to rounding."""


def _option(default: Any, help_text: str, *, in_table: bool = False, **limits: Any) -> Any:
    """Declare an option; `in_table` shows it in the clients' tables."""
    return field(default=default, metadata={"help": help_text, "in_table": in_table, **limits})


@dataclass(frozen=True)
class TrainOptions:
    """Each option with its default, its meaning and its limits.

    The first of several choices is the default. Requests and the command line take all options;
    clients' tables show those that users set (`in_table`).
    """

    max_epochs: int = _option(48, "epochs of both stages", in_table=True, least=1)
    iterations_per_epoch: int = _option(8, "updates per epoch", least=1)
    stage1_fraction: float = _option(
        0.75, "share of the epochs in stage 1; 0: stage 2 alone", least=0, most=1
    )
    train_batch_size: int = _option(
        16, "ROIs per update, of all processes together", in_table=True, least=1
    )
    val_split: float = _option(
        0.2, "share of the studies that is held out for validation", in_table=True, above=0, below=1
    )
    lr: float = _option(5e-3, "Adam's learning rate in stage 1", above=0)
    lr_stage2: float = _option(5e-5, "Adam's learning rate in stage 2", above=0)
    device: str = _option("", "cpu, cuda or cuda:N; empty: the best available", in_table=True)
    seed: int = _option(0, "seed of all random numbers", least=0)
    teacher: str = _option(
        "sam_med3d",
        "sam_med3d: this server's; none: fine-tuning on labels alone",
        in_table=True,
        choices=("sam_med3d", "none"),
    )
    start: str = _option(
        "auto",
        "served: the served student; teacher: new blocks, all other parts copied from the "
        "teacher; auto: served if it is clearly better than the copy, else teacher",
        in_table=True,
        choices=("auto", "served", "teacher"),
    )
    schedule_unit: str = _option(
        "epoch", "unit that Eq. 2 counts in stage 1", choices=("epoch", "iteration")
    )
    warm_up: float = _option(0.05, "share of each stage with a rising learning rate", least=0)
    clip_norm: float = _option(1.0, "largest norm of the gradients", above=0)
    clip_update: float = _option(
        0.02, "largest change of a weight tensor per update, relative to its norm", above=0
    )
    accumulate: int = _option(
        1, "parts of a batch that are computed one after the other, to save memory", least=1
    )
    amp: bool = _option(True, "mixed precision on CUDA")
    val_interval: int = _option(4, "epochs between validations", least=1)
    val_rois: int = _option(16, "ROIs of the held-out studies", least=1)
    rois: int = _option(0, "number of ROIs for training; 0: as many as an epoch takes", least=0)
    min_gain: float = _option(
        0.005, "Dice that a student must gain to be published", in_table=True, least=0
    )
    keep_versions: int = _option(3, "published versions that are kept for a rollback", least=0)
    cache_mb: int = _option(
        4096, "disk space in MB for ROIs, and the same for teacher features", least=0
    )
    resume: bool = _option(
        True, "resume a stopped run with the same options and studies", in_table=True
    )
    processes: int = _option(0, "processes; 0: one per GPU, or one on the CPU", least=0)
    threads: int = _option(0, "CPU threads per process; 0: all cores", least=0)
    workers: int = _option(0, "processes that prepare ROIs; 0: none", least=0)

    @classmethod
    def config(cls) -> dict[str, Any]:
        """Return the clients' table: name -> default, or list of choices."""
        table = {
            each.name: list(each.metadata.get("choices", ())) or each.default
            for each in fields(cls)
            if each.metadata["in_table"]
        }
        return {**table, "device": device_list()}

    @classmethod
    def from_request(cls, request: Mapping[str, Any]) -> TrainOptions:
        """Parse a request: strings are converted, and the first element of a list counts.

        Raise InputError for an unknown option or an invalid value.
        """
        known = {each.name: each for each in fields(cls)}
        unknown = sorted(set(request) - set(known) - set(CLIENT_KEYS))
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
        """Epochs of stage 1; it needs a teacher."""
        return 0 if self.teacher == "none" else round(self.max_epochs * self.stage1_fraction)

    @property
    def pool_size(self) -> int:
        """Number of different ROIs for training."""
        return self.rois or self.iterations_per_epoch * self.train_batch_size

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def result_options(self) -> dict[str, Any]:
        """Return the options that change the result; a resumed run must have equal ones."""
        values = self.to_dict()
        return {name: value for name, value in values.items() if name not in NOT_IN_RESULT}


def _value(option: Field[Any], value: Any) -> Any:
    """Return the option's value from a request; raise InputError if it is invalid."""
    if isinstance(value, list) and value:
        value = value[0]
    kind = type(option.default)
    try:
        parsed = _parse(kind, value)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{option.name} is {value!r}; give {_NAMES[kind]}") from error
    if option.name == "device":
        return _device(parsed)
    fault = _limit_fault(option.metadata, parsed)
    if fault:
        raise InputError(f"{option.name} is {value!r}; {fault}")
    return parsed


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _parse(kind: type, value: Any) -> Any:
    """Convert a value to a type; raise KeyError, TypeError or ValueError if that is impossible."""
    if kind is bool:
        if not isinstance(value, bool):
            return {"true": True, "false": False}[str(value).lower()]
        return value
    if kind is str:
        return "" if value is None else str(value)
    if isinstance(value, bool):
        raise ValueError("a boolean is not a number")
    number = float(value)
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ValueError("not a finite number of this type")
    return kind(number)


def _limit_fault(limits: Mapping[str, Any], value: Any) -> str:
    """Return the limit that a value breaks, as the end of a sentence; empty if there is none."""
    if "choices" in limits and value not in limits["choices"]:
        return f"choose one of {', '.join(limits['choices'])}"
    for name, is_valid, words in (
        ("least", operator.ge, "at least"),
        ("most", operator.le, "at most"),
        ("above", operator.gt, "more than"),
        ("below", operator.lt, "less than"),
    ):
        if name in limits and not is_valid(value, limits[name]):
            return f"it must be {words} {limits[name]}"
    return ""


def _device(name: str) -> str:
    """Return "cuda", all GPUs, or the name of one device; raise InputError if it does not exist."""
    if name in ("", "cuda"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return find_device(name)
