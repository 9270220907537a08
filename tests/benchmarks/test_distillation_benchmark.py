"""The distillation benchmark's summaries; the run itself takes minutes."""

import nibabel as nib
import numpy as np
import pytest
from benchmarks.distillation_report import markdown

from benchmarks import distillation_benchmark

DICE = {"1": 0.5, "3": 0.6, "5": 0.7, "10": 0.8}


def row(epoch, stage, k, seconds, **others):
    losses = [0.5] * k + [None] * (6 - k)
    values = {"epoch": epoch, "stage": stage, "iteration": 3 * epoch, "k": k, "seconds": seconds}
    return {**values, "pair_losses": losses, "loss": 1.0, **others}


@pytest.fixture
def stats():
    validated = {"dice_student": DICE, "dice_teacher": {name: 2 * x for name, x in DICE.items()}}
    history = [row(n, 1, n, 10.0 * n) for n in range(1, 7)]
    history += [row(7, 2, 6, 80.0), row(8, 2, 6, 100.0, **validated)]
    return {
        "history": history,
        "total_epochs": 8,
        "iteration": 24,
        "best_metric_epoch": 8,
        "published": True,
        "reason": "better",
        "pair_errors": {"initial": [2.0] * 6, "stage1": [0.5] * 6, "final": [0.6] * 6},
        "studies": {"train": 4, "held_out": 2, "labelled": 3},
        "skipped": {},
    }


def test_the_summary_compares_with_the_teacher(stats):
    summary = distillation_benchmark.summary(stats)
    assert summary["kept"] == dict.fromkeys(DICE, pytest.approx(0.5))
    assert (summary["seconds"], summary["updates"]) == (100.0, 24)


def test_the_schedule_matches_eq_2(stats):
    rows = distillation_benchmark.schedule(stats)
    assert [(r["iteration"], r["k"]) for r in rows] == [(3 * n, n) for n in range(1, 7)]
    assert all(r["k"] == r["eq2"] for r in rows)


def test_logits_alone_get_the_same_time(stats):
    """Two epochs of stage 2 take 40 s, so 100 s are five epochs."""
    assert distillation_benchmark.epochs_of_logits(stats) == 5


def test_the_report(stats):
    clicks = {"median": 120.0, "p95": 180.0, "clicks": 9}
    result = {
        "date": "2026-01-01",
        "device": "cpu",
        "processor": "a processor",
        "cores": 2,
        "options": {},
        "layerwise": distillation_benchmark.summary(stats),
        "logits_only": distillation_benchmark.summary(stats),
        "schedule": distillation_benchmark.schedule(stats),
        "publishing": {
            "published": True,
            "reason": "better",
            "served_is_new": True,
            "rollback_restores": True,
        },
        "click_ms": {"idle": clicks, "training": None},
        "kill": {"loss": 1.0, "resumed_loss": 1.0, "difference": 0.0, "resumed": "resumed"},
    }
    text = markdown(result)
    assert "| student, both stages | 0.500 | 0.600 | 0.700 | 0.800 | 1.7 |" in text
    assert "| share of the teacher's Dice | 50 % | 50 % | 50 % | 50 % |  |" in text
    assert "| stage1 / initial | 25 % |" in text
    assert "| 6 | 18 | 6 | 6 |" in text
    assert "120 ms (180 ms, 9 clicks) idle, no click during the training" in text


def test_a_data_set_becomes_a_folder_of_studies(tmp_path):
    for folder, dtype in (("imagesTr", np.int16), ("labelsTr", np.uint8)):
        (tmp_path / "set" / folder).mkdir(parents=True)
        suffix = "_0000.nii.gz" if folder == "imagesTr" else ".nii.gz"
        for name in ("a", "b", "c"):
            image = nib.Nifti1Image(np.ones((4, 5, 6), dtype), np.eye(4))
            nib.save(image, tmp_path / "set" / folder / f"{name}{suffix}")
    (tmp_path / "set" / "dataset.json").write_text(
        '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, '
        '"numTraining": 3, "file_ending": ".nii.gz"}'
    )
    folder = distillation_benchmark.prepare(tmp_path / "set", None, 2, tmp_path / "studies")
    images = {path.name for path in folder.glob("*.nii.gz")}
    assert len(images) == 2
    assert {path.name for path in (folder / "labels" / "final").iterdir()} == images
