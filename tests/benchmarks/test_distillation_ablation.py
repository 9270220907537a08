"""Stage 1 without a part: the part is really left out, and each student is measured."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.distillation_ablation import NO_LIMIT, STAGE_1, main  # noqa: E402

from benchmarks import distillation_ablation  # noqa: E402
from lib.networks import FastSAM3DConfig, build_untrained, save_checkpoint  # noqa: E402
from lib.trainers import stages, updates  # noqa: E402
from lib.weights.files import file_weights  # noqa: E402

SMALL = FastSAM3DConfig(
    roi_size=32, patch_size=8, width=24, depth=12, num_heads=3, out_channels=16,
    decoder_heads=2, mask_channels=4, position_bias="none", swap_dense_axes=False,
)  # fmt: skip


def write_cubes(folder: Path, images: str, labels: str, count: int) -> None:
    generator = np.random.default_rng(0)
    for number in range(count):
        cube = np.zeros((40, 40, 40), np.uint8)
        cube[10:26, 12:28, 14 - number : 30] = 1
        image = 100 + 50 * cube + generator.normal(0, 10, cube.shape)
        for name, array in (
            (images.format(number), image.astype(np.float32)),
            (labels.format(number), cube),
        ):
            path = folder / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), path)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    write_cubes(tmp_path / "studies", "s{}", "labels/final/s{}", 6)
    write_cubes(tmp_path / "Dataset001_Cubes", "imagesTr/a{}_0000", "labelsTr/a{}", 1)
    (tmp_path / "Dataset001_Cubes" / "dataset.json").write_text(
        '{"channel_names": {"0": "MR"}, "labels": {"background": 0, "cube": 1}}'
    )
    teacher = tmp_path / "teacher.safetensors"
    save_checkpoint(build_untrained(SMALL, 7), teacher)
    few = replace(STAGE_1, iterations_per_epoch=1, train_batch_size=2, rois=2, val_rois=1)
    monkeypatch.setattr(distillation_ablation, "STAGE_1", few)
    return [
        *("--studies", str(tmp_path / "studies"), "--teacher", str(teacher), "--epochs", "6"),
        *("--out", str(tmp_path / "out")),
        *("--data", str(tmp_path / "Dataset001_Cubes"), "--clicks", "1"),
    ]


def test_each_part_is_left_out_and_each_student_measured(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pairs, limits = [], []
    forward, clip = stages.Stage1.forward, updates.clip_updates

    def count_pairs(self: stages.Stage1, batch: stages.Batch, k: int) -> dict:
        parts = forward(self, batch, k)
        pairs.append((k, float(parts.get("embedding_loss", -1))))
        return parts

    def note_limit(weights: list, before: list, largest: float) -> None:
        limits.append(largest)
        clip(weights, before, largest)

    monkeypatch.setattr(stages.Stage1, "forward", count_pairs)
    monkeypatch.setattr(updates, "clip_updates", note_limit)
    main(arguments)
    nothing, neck, clipping, order = (pairs[first : first + 6] for first in range(0, 24, 6))
    assert [k for k, _ in nothing] == [k for k, _ in neck] == [1, 2, 3, 4, 5, 6]
    assert [k for k, _ in order] == [6] * 6
    assert nothing[-1][1] > 0 and clipping[-1][1] > 0 and neck[-1][1] == 0
    assert max(limits[12:18]) == NO_LIMIT and max(limits[:12] + limits[18:]) < 1
    printed = capsys.readouterr().out
    for part in distillation_ablation.PARTS:
        assert f"| without-{part} | " in printed
        (facts_file,) = (tmp_path / "out").glob(f"without-{part}-*.json")
        facts = json.loads(facts_file.read_text())
        assert len(facts["initial"]) == len(facts["stage1"]) == 6
        assert file_weights(facts_file.with_suffix(".safetensors")).trained
    main(arguments)
    assert len(pairs) == 24, "a student that is there was trained again"
    main([*arguments, "--train-seed", "1", "--without", "nothing"])
    assert len(pairs) == 30, "a student that was trained otherwise was taken"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--without", "walk"), "'walk' is not one of"),
        (("--studies", "."), "has no .nii.gz that can be trained on"),
        (("--studies", "missing"), "is not a folder of studies"),
    ],
)
def test_what_cannot_be_used_is_refused(
    arguments: list[str], change: tuple[str, str], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(SystemExit, match=message):
        main([*arguments, *change])
