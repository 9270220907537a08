"""Means, intervals and tables; and the whole command on small scans."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from benchmarks.accuracy import main
from benchmarks.accuracy_report import Score, summarise, worst
from benchmarks.contestants import present_models

REPOSITORY = Path(__file__).resolve().parents[2]
CLICK_BALL = REPOSITORY / "tests/data/click_ball.safetensors"  # balls of 20 mm at clicks


def score(source: str, case: str, dice: tuple[float, ...], structure: str = "x") -> Score:
    return Score(source, case, structure, "MR", 1000, dice, {}, 0.1, 0)


def test_sources_count_alike_however_many_structures_they_have() -> None:
    scores = [score("a", f"{n}", (0.2, 0.4)) for n in range(9)] + [score("b", "x", (0.6, 0.8))]
    summary = summarise(scores, (1, 10), seed=0)
    assert summary["macro"] == {"1": 0.4, "10": 0.6}
    assert summary["sources"]["a"]["structures"] == 9
    assert summary["sources"]["b"]["by_structure"] == {"x": {"cases": 1, "1": 0.6, "10": 0.8}}
    assert summary["modalities"]["MR"]["1"] == 0.24
    assert summary["interval"] == {"1": [0.4, 0.4], "10": [0.6, 0.6]}  # cases do not differ


def test_intervals_come_from_cases_not_from_structures() -> None:
    generator = np.random.default_rng(0)
    cases = generator.normal(0.5, 0.1, 40)
    one = [score("a", f"{n}", (value,)) for n, value in enumerate(cases)]
    same = [score("a", f"{n}", (value,), f"{m}") for n, value in enumerate(cases) for m in range(9)]
    low, high = summarise(one, (1,), seed=0)["interval"]["1"]
    assert low < cases.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * cases.std() / 40**0.5, rel=0.15)
    assert summarise(same, (1,), seed=0)["interval"]["1"] == pytest.approx([low, high], abs=0.002)


def test_failures_are_the_worst_of_their_kind() -> None:
    scores = [
        score("a", "1", (0.9, 0.3)),
        score("a", "2", (0.1, 0.2)),
        score("a", "3", (0.1, 0.1), "y"),
        score("b", "4", (0.1, 0.9)),
    ]
    assert [one.case for one in worst(scores, 2)] == ["3", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bright balls of 20 mm in noise, on grids that are permuted, flipped and anisotropic."""
    folder = tmp_path_factory.mktemp("Dataset001_Balls")
    shapes = [(50, 64, 30), (30, 52, 60)]
    affines = [
        np.array([[0, 1.5, 0, -7], [-2.0, 0, 0, 4], [0, 0, 3.0, 11], [0, 0, 0, 1]]),
        np.array([[0, 0, -1.6, 5], [0, 1.9, 0, 4], [-3.2, 0, 0, 11], [0, 0, 0, 1]]),
    ]
    for number, (shape, affine_mm) in enumerate(zip(shapes, affines, strict=True)):
        spacing = np.linalg.norm(affine_mm[:3, :3], axis=0)
        offsets = (np.indices(shape).T - (np.array(shape) // 2 + [3, -2, 1])) * spacing
        labels = (np.linalg.norm(offsets, axis=-1) <= 20).T.astype(np.uint8)
        noise = np.random.default_rng(number).normal(0, 10, shape)
        for path, array in [
            (folder / f"imagesTr/case{number}_0000.nii.gz", 100 + 50 * labels + noise),
            (folder / f"labelsTr/case{number}.nii.gz", labels),
        ]:
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array.astype(np.float32), affine_mm), path)
    (folder / "dataset.json").write_text(json.dumps({"name": "Balls", "labels": {"ball": 1}}))
    return folder


def test_the_command_writes_json_tables_and_pictures(data: Path, tmp_path: Path, capsys) -> None:
    options = ["--models", "click_ball,ball,random_walker", "--clicks", "1,2", "--radius-mm", "20"]
    files = {name: tmp_path / f"{name}" for name in ("json", "markdown", "pictures")}
    outputs = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    weights = ["--weights", f"click_ball={CLICK_BALL}"]
    main(["--data", str(data), *options, *weights, *outputs])

    report = json.loads(files["json"].read_text())
    assert list(report["models"]) == ["click_ball", "ball", "random_walker"]
    assert report["models"]["ball"]["sources"]["Balls"]["cases"] == 2
    assert report["weights"]["click_ball"]["sha256"] and report["clicks"] == [1, 2]
    assert len(report["pairs"]["ball"]) == 2 and "Balls" in capsys.readouterr().out
    assert "| click_ball |" in files["markdown"].read_text()
    names = sorted(path.name for path in files["pictures"].iterdir())
    assert names == ["curve.png", "failures-click_ball.png"]
    # the network draws the ball that the baseline draws: same clicks, same place, same grid
    drawn, true = (report["models"][name]["macro"]["1"] for name in ("click_ball", "ball"))
    assert drawn == pytest.approx(true, abs=0.05)


def test_the_middle_of_a_ball_gives_the_ball_through_the_servers_path(data: Path, tmp_path) -> None:
    def measure(name: str, models: str, *options: str) -> dict:
        path = tmp_path / name
        weights = ["--weights", f"click_ball={CLICK_BALL}", "--json", str(path)]
        main(["--data", str(data), "--models", models, *weights, *options])
        return json.loads(path.read_text())

    report = measure("a.json", "click_ball", "--protocol", "cvpr2025")
    row = report["models"]["click_ball"]["macro"]
    assert report["clicks"] == [1, 2, 3, 4, 5]
    assert row["1"] > 0.85 and row["dice_final"] == row["5"] and row["nsd_final"] > 0.4
    assert row["dice_auc"] == pytest.approx(
        sum(row[f"{n}"] for n in (2, 3, 4)) + (row["1"] + row["5"]) / 2, abs=0.001
    )
    # neither other models nor processes change a number; repeats do
    options = ("--clicks", "2", "--jobs", "2")
    alone = measure("b.json", "click_ball", "--clicks", "2")["pairs"]["click_ball"]
    beside = measure("c.json", "ball,click_ball", *options)["pairs"]["click_ball"]
    repeated = measure("d.json", "click_ball", "--clicks", "2", "--repeats", "2")
    assert [row["dice"] for row in alone] == [row["dice"] for row in beside]
    assert repeated["pairs"]["click_ball"] != alone and repeated["structures"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "unet"], "there is no model 'unet'; there are fastsam3d, "),
        (["--models", "sam"], "sam needs its weights: --weights sam=FILE"),
        (["--models", "fastsam3d_published"], "needs fastsam3d.pth in .* or --weights"),
        (["--models", "ball", "--weights", "x=y"], "x is not in --models"),
        (["--models", "ball", "--weights", "x"], "expected NAME=FILE"),
        (["--models", "ball", "--clicks", "1;3"], "expected numbers, as in 1,3,5,10"),
        (["--models", "ball", "--protocol", "box"], "choose random or cvpr2025"),
        (["--models", "x", "--weights", "x=/no/file"], "weights '/no/file' are neither a file"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(data: Path, options: list, message: str) -> None:
    with pytest.raises(SystemExit, match=f"accuracy: .*{message}"):
        main(["--data", str(data), *options])


def test_scans_that_cannot_be_used_are_named(data: Path, tmp_path: Path, capsys) -> None:
    broken = tmp_path / "Dataset002_Broken"
    for folder, name in (("imagesTr", "a_0000.nii.gz"), ("labelsTr", "a.nii.gz")):
        (broken / folder).mkdir(parents=True)
        (broken / folder / name).write_bytes(b"no scan")
    (tmp_path / "Dataset001_Balls").symlink_to(data)
    main(["--data", str(tmp_path), "--models", "ball", "--clicks", "1"])
    assert 'Dataset002_Broken: image "a_0000.nii.gz" cannot be read' in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nothing to measure in 1 cases: Dataset002_Broken"):
        main(["--data", str(broken), "--models", "ball", "--clicks", "1"])


def test_all_that_is_there_is_measured_by_default() -> None:
    names = present_models({"mine": "FILE"})
    assert {"fastsam3d", "mine", "ball", "region_growing", "random_walker"} <= set(names)
    assert "sam" not in names
