"""The options of a trainer, from a client's table or from the command line."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

import torch
from monailabel.utils.others.generic import device_list

from lib.errors import InputError
from lib.options import find_device

CLIENT_KEYS = ("model", "client_id", "gpus", "local_rank")
"""CLIENT_KEYS: keys that clients and MONAI Label add to every training request."""

NOT_IN_RESULT = (
    *("resume", "accept", "threads", "workers", "processes", "device", "cache_mb"),
    "keep_versions",
)
"""NOT_IN_RESULT: options that do not change what is computed, up to rounding."""


def option(default: Any, help_text: str, *, in_table: bool = False, **limits: Any) -> Any:
    """Declare an option; `in_table` shows it in the clients' tables."""
    return field(default=default, metadata={"help": help_text, "in_table": in_table, **limits})


@dataclass(frozen=True)
class RequestOptions:
    """The options that all trainers have; each with its default, its meaning and its limits.

    The first of several choices is the default. Requests and the command line take all options;
    clients' tables show those that users set (`in_table`). CPU_DEFAULTS: defaults that differ on a
    CPU.
    """

    CPU_DEFAULTS: ClassVar[Mapping[str, Any]] = {}

    device: str = option("", "cpu, cuda or cuda:N; empty: the best available", in_table=True)
    seed: int = option(0, "seed of all random numbers", least=0, most=2**32 - 1)
    min_gain: float = option(
        0.005,
        "Dice by which the lower bound of the gain must exceed 0 to publish",
        in_table=True,
        least=0,
    )
    accept: bool = option(
        False,
        "publish after too few studies to judge on, if the gain is above min_gain",
        in_table=True,
    )
    keep_versions: int = option(3, "published versions that are kept for a rollback", least=0)
    resume: bool = option(
        True, "resume a stopped run with the same options and studies", in_table=True
    )
    threads: int = option(0, "CPU threads per process; 0: all cores", least=0, most=1024)

    @classmethod
    def config(cls) -> dict[str, Any]:
        """Return the clients' table: name -> default, or list of choices."""
        defaults = cls.from_request({})
        table = {
            each.name: list(each.metadata.get("choices", ())) or getattr(defaults, each.name)
            for each in fields(cls)
            if each.metadata["in_table"]
        }
        return {**table, "device": device_list()}

    @classmethod
    def from_request(cls, request: Mapping[str, Any]) -> Self:
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
        defaults = cls.CPU_DEFAULTS if values["device"] == "cpu" else {}
        return cls(**{**defaults, **values})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def result_options(self) -> dict[str, Any]:
        """Return the options that change the result; a resumed run must have equal ones."""
        values = self.to_dict()
        return {name: value for name, value in values.items() if name not in NOT_IN_RESULT}


def _value(field_: Field[Any], value: Any) -> Any:
    """Return the option's value from a request; raise InputError if it is invalid."""
    if isinstance(value, list) and value:
        value = value[0]
    kind = type(field_.default)
    try:
        parsed = _parse(kind, value)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"{field_.name} is {value!r}; give {_NAMES[kind]}") from error
    if field_.name == "device":
        return _device(parsed)
    fault = _limit_fault(field_.metadata, parsed)
    if fault:
        raise InputError(f"{field_.name} is {value!r}; {fault}")
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
