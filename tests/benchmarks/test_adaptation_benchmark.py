"""The adaptation benchmark: its site of saved labels, its measurement and its report."""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.adaptation_distances import described  # noqa: E402
from benchmarks.adaptation_site import select, write_site  # noqa: E402
from benchmarks.datasets import BenchmarkCase, find_cases  # noqa: E402

from benchmarks import adaptation_benchmark  # noqa: E402
from lib.datastore.safe_store import FolderDatastore  # noqa: E402
from lib.errors import InputError  # noqa: E402
from lib.networks import FastSAM3DConfig, build_untrained, save_checkpoint  # noqa: E402

SMALL = FastSAM3DConfig(
    roi_size=32, patch_size=8, width=24, depth=2, num_heads=3, out_channels=16,
    decoder_heads=2, mask_channels=4, position_bias="none", swap_dense_axes=False,
)  # fmt: skip
QUICK = {
    "max_epochs": 2, "iterations_per_epoch": 1, "train_batch_size": 1, "rois": 4, "threads": 1,
    "device": "cpu", "accept": True,
}  # fmt: skip
NAMES = {"1": "left", "2": "right"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of scans with two boxes each: six of blocks, two of bricks."""
    folder = tmp_path_factory.mktemp("data")
    lines = ["source,case,image,label"]
    generator = np.random.default_rng(0)
    for source, count in (("blocks", 6), ("bricks", 2)):
        (folder / source).mkdir()
        (folder / source / "labels.json").write_text(json.dumps(NAMES))
        for number in range(count):
            labels = np.zeros((26, 24, 22), np.uint8)
            labels[3:11, 5:14, 6:14] = 1
            labels[14:22, 8:17, 7:15] = 2
            image = 100 + 60 * labels + generator.normal(0, 10, labels.shape)
            for kind, array in (("image", image.astype(np.float32)), ("label", labels)):
                path = folder / source / f"{number}_{kind}.nii.gz"
                nib.save(nib.Nifti1Image(array, np.diag([2, 2.2, 2.5, 1])), path)
            lines.append(
                f"{source},{number},{source}/{number}_image.nii.gz,{source}/{number}_label.nii.gz"
            )
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def cases(data: Path) -> list[BenchmarkCase]:
    return find_cases(data)


@pytest.fixture
def command(data: Path, tmp_path: Path) -> list[str]:
    weights = tmp_path / "tiny.safetensors"
    save_checkpoint(build_untrained(SMALL, 7), weights)
    options = {"data": data, "source": "blocks", "labelled": 1, "weights": weights, "repeats": 1}
    options |= {"others": 2, "json": tmp_path / "result.json", "markdown": tmp_path / "result.md"}
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def test_labelled_scans_are_not_measured_and_others_are_limited(
    cases: list[BenchmarkCase],
) -> None:
    chosen = select(cases, "blocks", 4, 3, [])
    assert [case.name for case in chosen.labelled] == ["0", "1", "2", "3"]
    assert [case.name for case in chosen.same] == ["4", "5"]
    assert [(case.source, case.name) for case in chosen.others] == [("bricks", "0")]
    assert len(select(cases, "blocks", 4, 4, []).others) == 2


@pytest.mark.parametrize(
    ("source", "labelled", "names", "message"),
    [
        ("stones", 4, [], "--source stones: there are blocks, bricks"),
        ("blocks", 6, [], "at least one must be left"),
        ("blocks", 4, ["middle"], "0 of them with one to save"),
    ],
)
def test_a_site_that_cannot_be_made_is_refused(
    cases: list[BenchmarkCase], source: str, labelled: int, names: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        select(cases, source, labelled, 0, names)


def test_labels_are_saved_by_the_datastore_with_their_names(
    cases: list[BenchmarkCase], tmp_path: Path
) -> None:
    write_site(cases[:2], ["right"], tmp_path / "studies")
    store = FolderDatastore(str(tmp_path / "studies"), extensions=["*.nii.gz"], auto_reload=False)
    assert sorted(store.list_images()) == ["blocks-0", "blocks-1"]
    info = store.get_label_info("blocks-0", "final")
    assert info["label_info"] == [{"name": "right", "idx": 2}]
    label = np.asanyarray(nib.load(store.get_label_uri("blocks-0", "final")).dataobj)
    assert np.array_equal(label == 2, np.asanyarray(nib.load(cases[0].label).dataobj) == 2)
    assert set(np.unique(label)) == {0, 2}, "the other structure is not saved"


def test_distances_are_described_with_the_share_that_is_alike() -> None:
    row = described([1.0, 2.0, 3.0, 8.0], limit=3.0)
    assert (row["smallest"], row["median"], row["largest"], row["alike"]) == (1.0, 2.5, 8.0, 0.75)


def test_one_command_adapts_and_measures_before_and_after(
    command: list[str], tmp_path: Path
) -> None:
    """A single labelled scan is published without a verdict, as `accept` says."""
    adaptation_benchmark.main([*command, "--options", json.dumps(QUICK)])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["labelled"] == ["blocks-0"]
    assert result["training"]["published"] and result["minutes"] > 0
    assert result["adapted"]["adapted"] and not result["weights"]["adapted"]
    same, others = result["same"], result["others"]
    assert (same["cases"], same["structures"]) == (5, 10)
    assert (others["cases"], others["structures"]) == (1, 2)
    for group in (same, others):
        for row in group["models"].values():
            assert set(row["macro"]) == {"1", "3", "5", "10", "harm"}
    assert set(result["distances"]["sources"]) == {"blocks", "bricks"}
    text = (tmp_path / "result.md").read_text()
    assert "minutes, 2 updates; published: there is no study" in text
    assert "| blocks | left | 5 | after | " in text and "| bricks | all | 1 | before | " in text


def test_a_student_that_is_not_published_ends_with_the_verdict(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def adapt(folder: Path, weights: Path, options: dict) -> dict:
        stats = folder / "model" / "fastsam3d" / "adapt" / "train_stats.json"
        stats.parent.mkdir(parents=True)
        state = {"published": False, "reason": "a gain of -0.010", "iteration": 9}
        stats.write_text(json.dumps({**state, "history": [{"seconds": 3.0}]}))
        idle = {"median": 30, "p95": 36, "clicks": 15}
        return {"minutes": 8.5, "click_ms": {"idle": idle, "training": None}}

    monkeypatch.setattr(adaptation_benchmark, "adapt_on_server", adapt)
    adaptation_benchmark.main([*command, "--clicks-meanwhile"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert "same" not in result and result["training"]["reason"] == "a gain of -0.010"
    text = (tmp_path / "result.md").read_text()
    assert "9 updates; not published: a gain of -0.010." in text
    assert "30 ms (36 ms, 15 clicks) idle, no click during the training" in text


def test_a_training_that_fails_is_reported(command: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"the adaptation failed: lr is '0'; it must be"):
        adaptation_benchmark.main([*command, "--options", '{"lr": 0}'])
