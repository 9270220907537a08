"""Configuration and mask policy in a file's metadata, in the current format and the earlier one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .config import FastSAM3DConfig
from .policy import MaskPolicy

FORMAT = "fastsam3d-monailabel-2"
EARLIER_FORMAT = "fastsam3d-monailabel-1"
"""EARLIER_FORMAT: format of the files whose configuration holds the policy's fields too."""

RESERVED = ("format", "config", "policy")
"""RESERVED: the metadata keys that this module reads and writes."""

POLICY_FIELDS = ("click_history", "mask_threshold", "mask_edges")
"""POLICY_FIELDS: the policy's fields in a configuration of the earlier format."""


def to_metadata(config: FastSAM3DConfig, policy: MaskPolicy) -> dict[str, str]:
    """Return the metadata that :func:`from_metadata` reads."""
    return {
        "format": FORMAT,
        "config": json.dumps(config.to_dict()),
        "policy": json.dumps(policy.to_dict()),
    }


def from_metadata(metadata: Mapping[str, str]) -> tuple[FastSAM3DConfig, MaskPolicy]:
    """Rebuild configuration and policy; raises ValueError with what is wrong."""
    version = metadata.get("format")
    if version not in (FORMAT, EARLIER_FORMAT):
        raise ValueError(f"its metadata says format {version!r}, expected {FORMAT!r}")
    try:
        architecture = json.loads(metadata["config"])
        if version == EARLIER_FORMAT:
            architecture, policy = split_earlier_config(architecture)
        else:
            policy = json.loads(metadata["policy"])
        return FastSAM3DConfig.from_dict(architecture), MaskPolicy.from_dict(policy)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its configuration cannot be used: {error}") from error


def split_earlier_config(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a configuration of the earlier format into the fields of architecture and of policy.

    Drops ``window_path``, which chose between two computations with the same result.
    """
    policy = {name: values[name] for name in POLICY_FIELDS if name in values}
    left_out = {*POLICY_FIELDS, "window_path"}
    architecture = {name: value for name, value in values.items() if name not in left_out}
    return architecture, policy
