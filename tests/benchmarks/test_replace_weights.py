"""New default weights: written, measured, described and summed by one command."""

import hashlib
import json
from pathlib import Path

import pytest
from benchmarks.accuracy import parse_arguments, report_command
from benchmarks.model_card import RESULTS
from benchmarks.replace_weights import REPORTS, Folders, main

from benchmarks import accuracy, accuracy_pictures, model_card
from lib.weights.files import file_weights

CLICK_BALL = Path(__file__).resolve().parents[1] / "data" / "click_ball.safetensors"
NEW = ["--teacher", str(CLICK_BALL), "--student", str(CLICK_BALL)]
DESCRIBED = ["--teacher-description", "all CC0, 1 h", "--student-description", "all CC0, 2 h"]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    folders = Folders(*(tmp_path / name for name in ("weights", "results", "pictures")))
    for folder in folders:
        folder.mkdir()
    return folders


@pytest.fixture
def measured(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reports that were measured, in turn; they hold the numbers of the committed ones."""
    names = []

    def measure(words: list[str]) -> None:
        options = parse_arguments(words)
        report = json.loads((RESULTS / options.json.name).read_text())
        report["command"] = report_command(options)
        for model, facts in report["weights"].items():
            facts["sha256"] = file_weights(folders.file(model)).network_id
        options.json.write_text(json.dumps(report))
        names.append(options.json.stem)

    monkeypatch.setattr(accuracy, "main", measure)
    monkeypatch.setattr(accuracy_pictures, "main", lambda words: names.append(Path(words[-1]).name))
    monkeypatch.setattr(model_card, "main", lambda words: names.append("pages"))
    return names


def test_files_reports_and_checksums_agree(folders: Folders, measured: list[str]) -> None:
    main(["--data", "/scans/data", *NEW, *DESCRIBED], folders)
    assert measured == [*REPORTS, "prompts.png", "pages"]  # the picture of the last report
    sums = (folders.weights / "SHA256SUMS").read_text()
    for model, description in (("fastsam3d", "all CC0, 2 h"), ("sam_med3d", "all CC0, 1 h")):
        file = folders.file(model)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        assert f"{sha256}  {file.name}\n" in sums
        metadata = file_weights(file).metadata
        assert metadata["description"] == description and metadata["dice"]
        assert metadata["measured_with"].startswith("python benchmarks/accuracy.py --data data ")
        assert "/scans" not in metadata["measured_with"] and "=" not in metadata["measured_with"]
        for name in REPORTS:
            weights = json.loads((folders.results / f"{name}.json").read_text())["weights"]
            rows = [facts for key, facts in weights.items() if key.split(",")[0] == model]
            assert all(row["sha256"] == sha256 and row["file"] == file.name for row in rows)
            assert not rows or sha256 in (folders.results / f"{name}.md").read_text()
    teacher, student = (file_weights(folders.file(name)) for name in ("sam_med3d", "fastsam3d"))
    assert student.metadata["teacher_sha256"] == teacher.network_id
    assert sorted(path.name for path in folders.weights.iterdir()) == [
        "SHA256SUMS",
        "fastsam3d_default.safetensors",
        "sam_med3d_default.safetensors",
    ]


def test_an_interrupted_run_goes_on(folders: Folders, measured: list[str]) -> None:
    """A report of the same weights and the same command is not measured again."""
    main(["--data", "data", *NEW], folders)
    path = folders.results / "accuracy-replay.json"
    path.write_text(path.read_text().replace("--per-source 5", "--per-source 4"))
    (folders.results / "accuracy-cvpr2025.json").unlink()
    measured.clear()
    main(["--data", "data"], folders)
    assert measured == ["accuracy-cvpr2025", "accuracy-replay", "pages"]
    measured.clear()
    main(["--data", "data", "--student", str(folders.file("sam_med3d"))], folders)
    assert measured[0] == "accuracy-eval"


def test_missing_weights_end_with_one_sentence(folders: Folders) -> None:
    with pytest.raises(SystemExit, match="replace_weights: .*missing.safetensors"):
        main(["--data", "data", "--student", "missing.safetensors"], folders)
