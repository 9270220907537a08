"""The click benchmark runs, and its JSON has the documented keys."""

import json

import pytest

from benchmarks import click_latency


@pytest.mark.slow
def test_a_small_scan(tmp_path):
    files = {name: tmp_path / name for name in ("json", "markdown", "plot.png")}
    arguments = ["--shape", "60,48,40", "--clicks", "12"]
    arguments += ["--json", str(files["json"]), "--markdown", str(files["markdown"])]
    assert click_latency.main([*arguments, "--plot", str(files["plot.png"])]) == 0
    result = json.loads(files["json"].read_text())
    for viewer in ("ohif", "slicer"):
        assert {"first_cold_ms", "first_ms", "next_ms"} <= set(result[viewer])
        assert result[viewer]["next_ms"]["p50"] <= result[viewer]["next_ms"]["p95"]
    assert result["stages"]["encode_ms"] == result["encode_ms"] > 0
    assert result["stages"]["decode_ms"] == result["decode_ms"] > 0
    assert result["stages"]["correct_ms"] > 0
    live = result["live"]
    assert live["undo_box_ms"]["p50"] <= live["next_box_ms"]["p95"]
    kinds = {"next", "changing", "next_box", "changing_box", "first", "undo", "undo_box"}
    assert set(result["shares_of_load_image"]) == kinds
    assert "share of LoadImage: next, box" in files["markdown"].read_text()
    assert result["two_clients"]["masks_as_alone"] is True
    assert result["clicks"] == 12 and "rss_growth_mb" in result
    assert "2nd to 10th click" in files["markdown"].read_text()
    assert files["plot.png"].read_bytes()[:4] == b"\x89PNG"


def test_clicks_are_reproducible_and_inside_the_image():
    shape_ijk = (60, 48, 40)
    place = next(click_latency.random_places(shape_ijk, seed=1))
    clicks = click_latency.series(place, shape_ijk)
    assert len(clicks) == click_latency.CLICKS and (clicks[0] == place).all()
    for click, again in zip(clicks, click_latency.series(place, shape_ijk), strict=True):
        assert (click == again).all() and (click >= 0).all() and (click < shape_ijk).all()


def test_stages_are_medians_over_the_answers_in_which_they_ran():
    answers = [
        click_latency.Answer(100.0, 0, {"Encode": 0.04, "Decode": 0.01}),
        click_latency.Answer(30.0, 0, {"Encode": 0.0, "Decode": 0.02}),
        click_latency.Answer(40.0, 0, {"Encode": 0.0, "Decode": 0.03}),
    ]
    times = click_latency.stage_times(answers)
    assert (times["encode_ms"], times["decode_ms"]) == (40.0, 20.0)
    assert times["stages"]["http_ms"] == 10.0


def test_shares_of_load_image():
    result = {
        "load_image_ms": 200.0,
        "ohif": {"next_ms": {"p50": 20.0}, "changing_ms": 24.0, "first_ms": 40.0},
        "live": {
            "next_box_ms": {"p50": 10.0},
            "changing_box_ms": 12.0,
            "undo_ms": {"p50": 5.0},
            "undo_box_ms": {"p50": 2.0},
        },
    }
    shares = click_latency.shares(result)
    assert shares == {
        "next": 0.1,
        "changing": 0.12,
        "next_box": 0.05,
        "changing_box": 0.06,
        "first": 0.2,
        "undo": 0.025,
        "undo_box": 0.01,
    }


def test_clicks_that_change_the_mask():
    answers = [click_latency.Answer(ms, mask) for ms, mask in ((9, 1), (1, 1), (5, 2), (6, 3))]
    assert [answer.ms for answer in click_latency.changing(answers)] == [5, 6]
