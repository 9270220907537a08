"""Means, intervals and tables, and the whole command on small scans."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from benchmarks.accuracy import main, make_plan, parse_arguments, report_command
from benchmarks.accuracy_report import Score, summarise, worst
from benchmarks.contestants import Prompted, available_models
from benchmarks.protocols import make_protocol

from benchmarks import accuracy_pictures, bench

REPOSITORY = Path(__file__).resolve().parents[2]
CLICK_BALL = REPOSITORY / "tests/data/click_ball.safetensors"  # draws balls of 20 mm at clicks


def score(source: str, case: str, dice: tuple[float, ...], structure: str = "x") -> Score:
    return Score(source, case, structure, "MR", 1000, dice, {}, 0.1, 0)


def test_sources_have_equal_weights() -> None:
    scores = [score("a", f"{n}", (0.2, 0.4)) for n in range(9)] + [score("b", "x", (0.6, 0.8))]
    summary = summarise(scores, (1, 10), seed=0)
    assert summary["macro"] == {"1": 0.4, "10": 0.6, "harm": 0}
    assert summary["sources"]["a"]["structures"] == 9
    assert summary["sources"]["b"]["by_structure"] == {
        "x": {"cases": 1, "1": 0.6, "10": 0.8, "harm": 0}
    }
    assert summary["modalities"]["MR"]["1"] == 0.24
    equal_cases = {"1": [0.4, 0.4], "10": [0.6, 0.6], "harm": [0, 0]}
    assert summary["interval"] == equal_cases


def test_intervals_come_from_cases_not_from_structures() -> None:
    generator = np.random.default_rng(0)
    cases = generator.normal(0.5, 0.1, 40)
    one = [score("a", f"{n}", (value,)) for n, value in enumerate(cases)]
    same = [score("a", f"{n}", (value,), f"{m}") for n, value in enumerate(cases) for m in range(9)]
    low, high = summarise(one, (1,), seed=0)["interval"]["1"]
    assert low < cases.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * cases.std() / 40**0.5, rel=0.15)
    assert summarise(same, (1,), seed=0)["interval"]["1"] == pytest.approx([low, high], abs=0.002)


def test_failures_are_the_lowest_of_each_structure() -> None:
    scores = [
        score("a", "1", (0.9, 0.3)),
        score("a", "2", (0.1, 0.2)),
        score("a", "3", (0.1, 0.1), "y"),
        score("b", "4", (0.1, 0.9)),
    ]
    assert [one.case for one in worst(scores, 2)] == ["3", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two bright balls of 20 mm, on permuted, flipped and anisotropic grids."""
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
    options += ["--zoom", "fixed"]
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
    # network and baseline draw the same ball: same clicks, same place, same grid
    drawn, expected = (report["models"][name]["macro"]["1"] for name in ("click_ball", "ball"))
    assert drawn == pytest.approx(expected, abs=0.05)


def run(data: Path, path: Path, models: str, *options: str) -> dict:
    """Run the command and return its JSON."""
    weights = ["--weights", f"click_ball={CLICK_BALL}"] if "click_ball" in models else []
    main(["--data", str(data), "--models", models, *weights, "--json", str(path), *options])
    return json.loads(path.read_text())


def test_the_centre_of_a_ball_gives_the_ball_through_the_servers_path(data: Path, tmp_path) -> None:
    options = ("--protocol", "cvpr2025", "--radius-mm", "20", "--zoom", "fixed")
    report = run(data, tmp_path / "a.json", "click_ball,ball", *options)
    network, baseline = (report["models"][name]["macro"] for name in ("click_ball", "ball"))
    assert report["clicks"] == [1, 2, 3, 4, 5]
    assert network["1"] == pytest.approx(baseline["1"], abs=0.05)
    assert network["dice_final"] == network["5"]
    assert network["dice_auc"] == pytest.approx(
        sum(network[f"{n}"] for n in (2, 3, 4)) + (network["1"] + network["5"]) / 2, abs=0.001
    )


def test_each_kind_of_first_prompt_is_a_row(data: Path, tmp_path: Path) -> None:
    options = ("--clicks", "1,2", "--prompts", "point,box,lasso,stock", "--zoom", "fixed")
    report = run(data, tmp_path / "a.json", "click_ball,ball", *options)
    rows = {name: summary["macro"] for name, summary in report["models"].items()}
    kinds = ["click_ball", "click_ball, box", "click_ball, lasso", "click_ball, stock", "ball"]
    assert list(rows) == kinds
    assert rows["click_ball, box"]["1"] > 0.8 and rows["click_ball, lasso"]["1"] > 0.7
    assert rows["click_ball"]["1"] == rows["click_ball, stock"]["1"]
    assert "--prompts point,box,lasso,stock --zoom" not in report["command"]
    assert "--prompts point,box,lasso,stock" in report["command"]


@pytest.mark.parametrize("attention", ["stored", "sparse"])
def test_the_option_attention_reaches_the_models(data: Path, attention: str) -> None:
    """The app's `/info` shows the operator, and the command of the report names it."""
    words = ["--data", str(data), "--models", "click_ball", "--attention", attention]
    options = parse_arguments([*words, "--weights", f"click_ball={CLICK_BALL}"])
    (contestant,) = bench.Bench(make_plan(options)).contestants.values()
    assert isinstance(contestant, Prompted)
    operator = "dense" if attention == "stored" else attention  # these weights store the dense one
    assert contestant.served.info()["attention"] == operator
    assert ("--attention sparse" in report_command(options)) == (attention == "sparse")


def test_replayed_clicks_are_those_of_another_model(data: Path, tmp_path: Path) -> None:
    own = run(data, tmp_path / "own.json", "ball,region_growing", "--clicks", "1,3")
    options = ("--clicks", "1,3", "--replay", "ball")
    replayed = run(data, tmp_path / "replayed.json", "ball,region_growing", *options)
    assert replayed["models"]["ball"]["macro"] == own["models"]["ball"]["macro"]
    growing = [report["models"]["region_growing"]["macro"] for report in (own, replayed)]
    assert growing[0]["1"] == growing[1]["1"] and growing[0]["3"] != growing[1]["3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompts", "point,star"), "accuracy: --prompts star: choose from point, box"),
        (("--replay", "sam"), "accuracy: --replay sam: it is not measured; choose one of ball"),
    ],
)
def test_unknown_prompts_and_models_are_named(data: Path, tmp_path: Path, options, message) -> None:
    with pytest.raises(SystemExit, match=message):
        run(data, tmp_path / "a.json", "ball", *options)


@pytest.mark.slow
def test_other_models_and_processes_change_no_number(data: Path, tmp_path: Path) -> None:
    alone = run(data, tmp_path / "alone.json", "click_ball", "--clicks", "2")
    beside = run(data, tmp_path / "beside.json", "ball,click_ball", "--clicks", "2", "--jobs", "2")
    dice = [[row["dice"] for row in report["pairs"]["click_ball"]] for report in (alone, beside)]
    assert dice[0] == dice[1]


def threads_of_worker(case: object) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


@pytest.mark.slow
def test_several_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads of the click path count their cores by this variable."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(bench, "_measure_in_worker", threads_of_worker)
    plan = bench.Plan(("ball",), {}, make_protocol("random", (1,), 0), 10.0, threads=3)
    assert list(bench.measure_in_processes(plan, [None], 1)) == ["3"]
    assert "OMP_NUM_THREADS" not in os.environ


def test_repeats_are_averaged(data: Path, tmp_path: Path) -> None:
    def dice(name: str, *options: str) -> np.ndarray:
        report = run(data, tmp_path / name, "click_ball,ball", "--clicks", "1", *options)
        return np.array([row["dice"][0] for row in report["pairs"]["ball"]])

    first, second = dice("0.json"), dice("1.json", "--seed", "1")
    assert (first != second).any()
    np.testing.assert_allclose(dice("2.json", "--repeats", "2"), (first + second) / 2, atol=2e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "unet"], "unknown model 'unet'; choose from fastsam3d, "),
        (["--models", "sam"], "sam needs its weights: --weights sam=FILE"),
        (["--models", "fastsam3d_published"], "needs fastsam3d.pth in .* or --weights"),
        (["--models", "ball", "--weights", "x=y"], "x is not in --models"),
        (["--models", "ball", "--weights", "x"], "expected NAME=FILE"),
        (["--models", "ball", "--clicks", "1;3"], "expected numbers, as in 1,3,5,10"),
        (["--models", "ball", "--protocol", "box"], "choose random or cvpr2025"),
        (["--models", "x", "--weights", "x=/no/file"], "weights '/no/file' are neither a file"),
    ],
)
def test_invalid_options_exit_with_a_message(data: Path, options: list, message: str) -> None:
    with pytest.raises(SystemExit, match=f"accuracy: .*{message}"):
        main(["--data", str(data), *options])


def test_the_report_names_skipped_scans(data: Path, tmp_path: Path, capsys) -> None:
    broken = tmp_path / "Dataset002_Broken"
    for folder, name in (("imagesTr", "a_0000.nii.gz"), ("labelsTr", "a.nii.gz")):
        (broken / folder).mkdir(parents=True)
        (broken / folder / name).write_bytes(b"no scan")
    (tmp_path / "Dataset001_Balls").symlink_to(data)
    main(["--data", str(tmp_path), "--models", "ball", "--clicks", "1"])
    assert 'Dataset002_Broken: image "a_0000.nii.gz" cannot be read' in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nothing to measure in 1 cases: Dataset002_Broken"):
        main(["--data", str(broken), "--models", "ball", "--clicks", "1"])


def test_all_available_models_are_measured_by_default() -> None:
    names = available_models({"mine": "FILE"})
    assert {"fastsam3d", "mine", "ball", "region_growing", "random_walker"} <= set(names)
    assert "sam" not in names


def test_the_curves_of_first_prompts_are_drawn_from_reports(tmp_path: Path) -> None:
    summary = {
        "macro": {"1": 0.4, "3": 0.6, "harm": 0.1},
        "interval": {"1": [0.3, 0.5], "3": [0.5, 0.7], "harm": [0.0, 0.2]},
    }
    reports = []
    for model in ("a", "b"):
        path = tmp_path / f"{model}.json"
        path.write_text(json.dumps({"models": {model: summary, f"{model}, box": summary}}))
        reports.append(str(path))
    picture = tmp_path / "prompts.png"
    accuracy_pictures.main(["--reports", *reports, "--prompts", str(picture)])
    assert picture.read_bytes()[:4] == b"\x89PNG"
