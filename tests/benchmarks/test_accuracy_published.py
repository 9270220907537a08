"""README, model card, accuracy report, weights files and results contain the same numbers."""

import hashlib
import json
import re

import pytest
from benchmarks.model_card import (
    BLOCK,
    FILES,
    RESULTS,
    WEIGHTS,
    card_table,
    dice_in_words,
    fill,
    make_blocks,
    nsd_in_words,
    prompts_table,
)
from benchmarks.paper_table import kept_dice, table_2
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
    if name == "fastsam3d":  # the teacher's file may have the Dice of an earlier measurement
        assert file_weights(path).metadata["measured_with"] == REPORT["command"]
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


def report_of(dice: dict[str, tuple[float, float]]) -> dict:
    """Return the part of a report that the tables read: one source, and the Dice of each model."""
    rows = {
        name: {"1": values[0], "10": values[1], "harm": 0.5, "nsd_final": values[1] / 2}
        for name, values in dice.items()
    }
    models = {name: {"macro": row, "sources": {"liver": row}} for name, row in rows.items()}
    weights = [name for name in dice if name != "ball"]
    return {"clicks": [1, 10], "models": models, "weights": weights}


MEASURED = report_of({"fastsam3d": (0.42, 0.6), "sam_med3d": (0.4, 0.8), "ball": (0.1, 0.2)})


def test_the_card_has_what_the_reports_have_of_each_model() -> None:
    """Replayed clicks and NSD of the teacher are on the card if they were measured."""
    both = [line for line in card_table(MEASURED, MEASURED) if "replayed" in line]
    assert both == [
        "| `fastsam3d` | mean, replayed clicks | 0.420 | 0.600 | 50 % |",
        "| `sam_med3d` | mean, replayed clicks | 0.400 | 0.800 | 50 % |",
    ]
    alone = report_of({"fastsam3d": (0.42, 0.6)})
    assert sum("replayed" in line for line in card_table(MEASURED, alone)) == 1
    assert nsd_in_words(MEASURED) == "`fastsam3d` .30, `sam_med3d` .40"
    assert nsd_in_words(alone) == "`fastsam3d` .30"


def test_each_first_prompt_has_a_row_with_all_models() -> None:
    kinds = ("", ", stock", ", box", ", box_in_plane", ", lasso", ", scribble")
    rows = {f"fastsam3d{kind}": (0.1 * n, 0.5) for n, kind in enumerate(kinds)}
    rows |= {f"sam_med3d{kind}": (0.9, 0.1 * n) for n, kind in enumerate(kinds)}
    lines = prompts_table(report_of(rows))
    heads = (
        "| first prompt | `fastsam3d`: 1 prompt | 10 | harm | `sam_med3d`: 1 prompt | 10 | harm |"
    )
    assert lines[0] == heads
    lasso = "| lasso, then points | 0.400 | 0.500 | 50 % | 0.900 | 0.400 | 50 % |"
    assert lasso in lines
    assert len(lines) == 2 + len(kinds)


def test_our_models_stand_beside_those_of_the_paper() -> None:
    lines = table_2(MEASURED)
    assert lines[0] == "| network | AMOS | TotalSegmentator | BraTS | liver |"
    paper = ".273 .368 .402 .437 | .250 .378 .445 .519 | .333 .401 .421 .445"
    assert f"| paper: FastSAM3D | {paper} |  |" in lines
    assert "| ours: `sam_med3d` |  |  |  | .400 .800 |" in lines
    assert "| ours: `ball` |  |  |  | .100 .200 |" in lines
    assert kept_dice(MEASURED) == {
        "kept-teacher": ".400 .800",
        "kept-student": ".420 .600",
        "kept-share": "75 to 105 %",
    }


def test_no_measured_source_was_trained_on() -> None:
    """The weights' description of their training data names none of the measured sources."""
    for path in DEFAULTS:
        description = file_weights(path).info()["description"].lower()
        for word in ("hippocampus", "acdc", "brats", "gtv"):
            assert word not in description
