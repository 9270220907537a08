"""Publishing adds a description to a file and changes no weight."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from training.publish import main, measured, publish

from lib.networks import FastSAM3D, describe_checkpoint, load_checkpoint, save_checkpoint

REPORT = {
    "command": "python benchmarks/accuracy.py",
    "clicks": [1, 3],
    "models": {
        "fastsam3d": {
            "macro": {"1": 0.4, "3": 0.56789},
            "sources": {"a": {"structures": 9}, "b": {"structures": 1}},
        }
    },
}


def test_the_line_names_numbers_clicks_and_sources() -> None:
    line = "0.400, 0.568 after 1/3 clicks, macro-average over a (9 structures), b (1 structures)"
    assert measured(REPORT, "fastsam3d") == line


def test_publishing_changes_no_weight(tiny_network: FastSAM3D, tmp_path: Path) -> None:
    run, half, final = (tmp_path / f"{name}.safetensors" for name in ("run", "half", "final"))
    save_checkpoint(tiny_network, run, {"steps": "7", "trained": "false"})
    main(["--weights", str(run), "--description", "all CC0", "--out", str(half)])
    publish(half, final, report=REPORT)
    metadata = describe_checkpoint(final)["metadata"]
    assert metadata["dice"] == measured(REPORT, "fastsam3d")
    assert (metadata["trained"], metadata["licence"]) == ("true", "Apache-2.0")
    assert (metadata["description"], metadata["steps"]) == ("all CC0", "7")
    before, after = (load_checkpoint(path).state_dict() for path in (half, final))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_report_names_the_published_file(tiny_network: FastSAM3D, tmp_path: Path) -> None:
    measured_file, final, other = (
        tmp_path / f"{n}.safetensors" for n in ("half", "final", "other")
    )
    save_checkpoint(tiny_network, measured_file, {})
    save_checkpoint(tiny_network, other, {"steps": "7"})
    report = tmp_path / "report.json"
    facts = {"fastsam3d": {"sha256": hashlib.sha256(measured_file.read_bytes()).hexdigest()}}
    report.write_text(json.dumps({**REPORT, "weights": facts}))
    options = ["--report", str(report), "--out", str(final), "--weights"]
    with pytest.raises(SystemExit, match="measured other weights"):
        main([*options, str(other)])
    main([*options, str(measured_file)])
    facts = json.loads(report.read_text())["weights"]["fastsam3d"]
    assert facts["sha256"] == hashlib.sha256(final.read_bytes()).hexdigest()
    assert facts["dice"] == measured(REPORT, "fastsam3d")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--weights", "missing.safetensors", "missing.safetensors: there is no such file"),
        ("--report", "missing.json", "report .*missing.json cannot be read"),
        ("--model", "sam9", "the report has no model 'sam9'; choose from fastsam3d"),
    ],
)
def test_invalid_options_end_with_one_sentence(
    option: str, value: str, message: str, tiny_network: FastSAM3D, tmp_path: Path
) -> None:
    save_checkpoint(tiny_network, tmp_path / "run.safetensors", {})
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    options = {
        "--weights": str(tmp_path / "run.safetensors"),
        "--report": str(tmp_path / "report.json"),
        "--out": str(tmp_path / "out.safetensors"),
        option: value,
    }
    with pytest.raises(SystemExit, match=f"^publish: .*{message}"):
        main([word for pair in options.items() for word in pair])
