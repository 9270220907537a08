"""A file stores architecture and mask policy; files of earlier releases are split on reading."""

import json
from pathlib import Path

import pytest

import lib
from lib.networks import CONFIGS, POLICIES, FastSAM3DConfig, MaskPolicy, build_network
from lib.networks.checkpoint import read_checkpoint
from lib.networks.stored_config import (
    EARLIER_FORMAT,
    FORMAT,
    from_metadata,
    split_earlier_config,
    to_metadata,
)

SHIPPED = Path(lib.__file__).parents[1] / "weights"
POLICY = MaskPolicy(click_history="newest", mask_threshold="expected_dice", mask_edges="image")


def test_configuration_and_policy_survive_the_metadata() -> None:
    metadata = to_metadata(CONFIGS["fastsam3d"], POLICY)
    assert from_metadata(metadata) == (CONFIGS["fastsam3d"], POLICY)
    assert not {"mask_edges", "window_path"} & json.loads(metadata["config"]).keys()


def test_an_earlier_configuration_is_split() -> None:
    earlier = {
        "width": 24,
        "window_path": "padded",
        "click_history": "newest",
        "mask_edges": "image",
    }
    architecture, policy = split_earlier_config(earlier)
    assert architecture == {"width": 24}
    assert policy == {"click_history": "newest", "mask_edges": "image"}


def test_earlier_metadata_gives_both() -> None:
    config = CONFIGS["sam_med3d"]
    earlier = {**config.to_dict(), **POLICY.to_dict(), "window_path": "closed_form"}
    metadata = {"format": EARLIER_FORMAT, "config": json.dumps(earlier)}
    assert from_metadata(metadata) == (config, POLICY)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, f"says format None, expected '{FORMAT}'"),
        ({"format": FORMAT, "config": "{}"}, "cannot be used: 'policy'"),
        ({"format": FORMAT, "config": '{"mask_edges": "image"}', "policy": "{}"}, "mask_edges"),
        ({"format": FORMAT, "config": "{}", "policy": '{"colour": "red"}'}, "colour"),
        ({"format": EARLIER_FORMAT, "config": '{"mask_edges": "sharp"}'}, "edges is 'sharp'"),
    ],
)
def test_refusals(metadata: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_metadata(metadata)


def test_a_policy_refuses_unknown_values() -> None:
    with pytest.raises(ValueError, match="mask_edges is 'sharp'; choose one of logits, image"):
        MaskPolicy(mask_edges="sharp")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sam_med3d_default", "fastsam3d_default"])
def test_named_configurations_are_those_of_the_shipped_files(name: str) -> None:
    checkpoint = read_checkpoint(SHIPPED / f"{name}.safetensors")
    assert (checkpoint.config, checkpoint.policy) == (CONFIGS[name], POLICIES[name])


def test_every_named_configuration_has_a_policy() -> None:
    assert POLICIES.keys() == CONFIGS.keys()
    network = build_network("fastsam3d_default")
    assert network.policy == POLICIES["fastsam3d_default"]
    small = FastSAM3DConfig(roi_size=32, width=12, out_channels=16, depth=1)
    assert build_network(small).policy == MaskPolicy()
