"""README, model card, accuracy report, weights files and results contain the same numbers."""

import hashlib
import json
import re

import pytest
from benchmarks.model_card import BLOCK, FILES, RESULTS, WEIGHTS, dice_in_words, fill, make_blocks
from training.publish import measured

from lib.weights.files import file_weights

REPORT = json.loads((RESULTS / "accuracy-eval.json").read_text(encoding="utf-8"))
DEFAULTS = sorted(WEIGHTS.glob("*_default.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_tables_match_the_report(path) -> None:
    text = path.read_text(encoding="utf-8")
    assert BLOCK.search(text), "no block to fill"
    assert fill(text, make_blocks()) == text, "run: python -m benchmarks.model_card"


@pytest.mark.parametrize("path", DEFAULTS, ids=lambda path: path.name)
def test_the_report_measured_these_weights(path) -> None:
    name = path.name.removesuffix("_default.safetensors")
    info = file_weights(path).info()
    assert info["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert REPORT["weights"][name]["sha256"] == info["sha256"], "measure these weights"
    if file_weights(path).metadata["measured_with"] == REPORT["command"]:  # not the teacher's file
        assert info["dice"] == measured(REPORT, name)
    assert info["trained"] and info["file"] == path.name and info["licence"] == "Apache-2.0"
    assert len(info["description"]) > 80  # data with licences, time and machine


def test_blocks_are_filled_in_place() -> None:
    text = "a <!-- x -->old\nlines<!-- / --> b <!-- y --><!-- / --> c"
    filled = fill(text, {"x": "1", "y": "2"})
    assert filled == "a <!-- x -->1<!-- / --> b <!-- y -->2<!-- / --> c"
    with pytest.raises(KeyError):
        fill(text, {"x": "1"})


def test_the_readme_names_every_number_of_clicks() -> None:
    words = dice_in_words(REPORT, "fastsam3d")
    assert re.fullmatch(r"Dice \.\d\d(, \.\d\d)* after 1, 3, 5, 10 clicks", words)


def test_no_measured_source_was_trained_on() -> None:
    """The weights' description of their training data names none of the measured sources."""
    for path in DEFAULTS:
        description = file_weights(path).info()["description"].lower()
        for word in ("hippocampus", "acdc", "brats", "gtv"):
            assert word not in description
