"""Table 4 of given weights: each variant's encoder and Dice in one row."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.table4 import main  # noqa: E402

from lib.networks import FastSAM3DConfig, build_untrained, save_checkpoint  # noqa: E402

SMALL = FastSAM3DConfig(
    roi_size=32, patch_size=4, width=24, depth=2, num_heads=3, out_channels=16,
    decoder_heads=2, mask_channels=4, position_bias="none", swap_dense_axes=False,
)  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Options of the command: a scan of a cube, and a tiny student for each operator."""
    labels = np.zeros((30, 34, 38), np.uint8)
    labels[10:22, 12:25, 14:28] = 1
    image = 100 + 50 * labels + np.random.default_rng(0).normal(0, 10, labels.shape)
    for name, array in (("imagesTr/a_0000", image.astype(np.float32)), ("labelsTr/a", labels)):
        path = tmp_path / "Cubes" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    (tmp_path / "Cubes" / "dataset.json").write_text(
        '{"channel_names": {"0": "MR"}, "labels": {"background": 0, "cube": 1}}'
    )
    options = {"data": str(tmp_path / "Cubes"), "json": str(tmp_path / "table.json")}
    for operator, sparsity in (("dense", "dense"), ("sparse", "lattice")):
        options[operator] = str(tmp_path / f"{operator}.safetensors")
        network = build_untrained(replace(SMALL, sparsity=sparsity), 7)
        save_checkpoint(network, options[operator])
    return options


def command(options: dict[str, str], *others: str) -> list[str]:
    return [text for name, value in options.items() for text in (f"--{name}", value)] + [*others]


def test_every_row_has_time_flops_memory_and_dice(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "table.md"
    main(command(files, "--sizes", "32", "48", "--runs", "1", "--markdown", str(page)))
    rows = json.loads(Path(files["json"]).read_text())["rows"]
    assert [(row["size"], row["tokens"]) for row in rows] == [(32, 512)] * 4 + [(48, 1728)] * 4
    variants = {(row["size"], row["variant"]): row for row in rows}
    for size in (32, 48):
        dense, sparse = variants[size, "dense, plain"], variants[size, "sparse, flash"]
        assert sparse["encoder_gflops"] < dense["encoder_gflops"]
        assert variants[size, "dense, flash"]["dice"] == dense["dice"]
        assert set(dense["dice"]) == {"1", "3", "5", "10"} and dense["structures"] == 1
    assert all(row["encoder_ms"] > 0 and row["encoder_memory_mb"] > 0 for row in rows)
    assert all(row["equality"] < 1e-5 for row in rows)
    text = page.read_text()
    assert text == capsys.readouterr().out.removesuffix("\n")
    assert "| ROI | tokens | variant | encoder ms | GFLOP | GMAC | MB | 1 click |" in text
    assert text.count("\n| 48³ | 1728 | ") == 4


def test_a_student_of_the_other_operator_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(SystemExit, match=r"--sparse dense\.safetensors: its attention is dense"):
        main(command({**files, "sparse": files["dense"]}))
