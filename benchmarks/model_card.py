"""Write the measured numbers into the pages: `python -m benchmarks.model_card`.

README.md, docs/model-card.md and two reports contain blocks between `<!-- NAME -->` and
`<!-- / -->`. This command fills them from the reports of `benchmarks/accuracy.py` in
benchmarks/results and from the metadata of the default weights, so that nobody types a number.
`--check` changes nothing and fails if a page is out of date.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.publish import measured  # noqa: E402

from benchmarks.accuracy_report import with_intervals  # noqa: E402
from benchmarks.paper_table import kept_dice, short, table_2  # noqa: E402
from benchmarks.report_table import table  # noqa: E402
from lib.networks import describe_checkpoint  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
WEIGHTS = REPOSITORY / "apps" / "fastsam3d" / "weights"
FILES = tuple(
    REPOSITORY / name
    for name in (
        "README.md",
        "docs/model-card.md",
        "docs/reports/accuracy.md",
        "docs/reports/paper.md",
    )
)
GROUPS = {"sources": "source", "modalities": "modality"}
BLOCK = re.compile(r"(<!-- ([\w-]+) -->)(.*?)(<!-- / -->)", flags=re.DOTALL)
LINE_WIDTH = 100
"""LINE_WIDTH: characters in a line of Markdown, except in tables."""


def fill(text: str, blocks: Mapping[str, str]) -> str:
    """Return the text with the content of each block replaced.

    blocks: name of a block -> its content. Raises KeyError for a block without content.
    """
    return BLOCK.sub(lambda match: f"{match[1]}{blocks[match[2]]}{match[4]}", text)


def make_blocks(results: Path = RESULTS, weights: Path = WEIGHTS) -> dict[str, str]:
    """Return the content of every block by name.

    results: folder with the reports. weights: folder with the default weights.
    """
    random_clicks = _read_report(results / "accuracy-eval.json")
    challenge = _read_report(results / "accuracy-cvpr2025.json")
    replayed = _read_report(results / "accuracy-replay.json")
    prompted = _read_report(results / "accuracy-prompts.json")
    return {
        "command": _command(random_clicks),
        "measured-on": _measured_on(random_clicks),
        "macro": _lines(macro_table(random_clicks)),
        "sources": _lines(group_table(random_clicks, "sources")),
        "modalities": _lines(group_table(random_clicks, "modalities")),
        "failures": _lines(failures_table(random_clicks)),
        "weights": _lines(weights_table(weights, random_clicks)),
        "card": _lines(card_table(random_clicks, replayed)),
        "nsd": nsd_in_words(challenge),
        "prompts": _lines(prompts_table(prompted)),
        "replay-command": _command(replayed),
        "replayed": _lines(macro_table(replayed)),
        "challenge-command": _command(challenge),
        "challenge": _lines(macro_table(challenge)),
        **{f"dice-{name}": dice_in_words(random_clicks, name) for name in random_clicks["weights"]},
        "table-2": _lines(table_2(random_clicks)),
        **kept_dice(random_clicks),
    }


def dice_in_words(report: Mapping[str, Any], model: str) -> str:
    """Return the mean Dice of a model as `Dice .20, .38, .41, .45 after 1, 3, 5, 10 clicks`."""
    counts = [str(count) for count in report["clicks"]]
    values = [short(report["models"][model]["macro"][count], 2) for count in counts]
    return f"Dice {', '.join(values)} after {', '.join(counts)} clicks"


def nsd_in_words(report: Mapping[str, Any]) -> str:
    """Return the NSD after the last click, as "`fastsam3d` .68, `sam_med3d` .66"."""
    macros = {name: report["models"][name]["macro"] for name in report["weights"]}
    return ", ".join(f"`{name}` {short(row['nsd_final'], 2)}" for name, row in macros.items())


PROMPTS = {
    "point": "points, one ordered list",
    "stock": "points, the two lists of stock clients",
    "box": "box in space, then points",
    "box_in_plane": "box in a plane, then points",
    "lasso": "lasso, then points",
    "scribble": "scribble, then points",
}
"""PROMPTS: what the report calls each kind of first prompt."""


def prompts_table(report: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table per first prompt: Dice and harm of each of the app's models.

    A model is named "fastsam3d, box" there, and "fastsam3d" alone with points.
    """
    keys = [str(count) for count in report["clicks"]]
    names = [name for name in report["weights"] if "," not in name]
    heads = [
        f"`{name}`: 1 prompt" if key == "1" else key for name in names for key in (*keys, "harm")
    ]
    rows = []
    for kind, words in PROMPTS.items():
        suffix = "" if kind == "point" else f", {kind}"
        macros = [report["models"][f"{name}{suffix}"]["macro"] for name in names]
        rows.append([words, *(cell for macro in macros for cell in _card_values(macro, keys))])
    return table(["first prompt", *heads], rows)


def macro_table(report: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table with the mean over the sources, one row per model."""
    models = report["models"]
    keys = list(next(iter(models.values()))["macro"])
    rows = [[f"`{name}`", *with_intervals(summary, keys)] for name, summary in models.items()]
    return table(["model", *_headings(keys)], rows)


def group_table(report: Mapping[str, Any], groups: str) -> list[str]:
    """Return the lines of a table per source or modality: the app's models, then the baselines.

    groups: a key of GROUPS.
    """
    models, app_models = report["models"], list(report["weights"])
    keys = [str(count) for count in report["clicks"]]
    baselines = [name for name in models if name not in app_models]
    rows = []
    for group, first in next(iter(models.values()))[groups].items():
        for name in [*app_models, *baselines]:
            summary = models[name][groups][group]
            values = [f"{summary[key]:.2f}" for key in keys]
            rows.append([group, first["structures"], f"`{name}`", *values])
    return table([GROUPS[groups], "structures", "model", *_headings(keys)], rows)


def card_table(report: Mapping[str, Any], replayed: Mapping[str, Any]) -> list[str]:
    """Return the lines of the model card's table: Dice after each click count, and harm.

    Each of the app's models has its mean over the sources, and each source; then come the baselines
    and the app's models on replayed clicks.
    """
    keys = [str(count) for count in report["clicks"]]
    rows = []
    for name, summary in report["models"].items():
        sources = summary["sources"] if name in report["weights"] else {}
        for source, values in {"mean": summary["macro"], **sources}.items():
            rows.append([f"`{name}`", source, *_card_values(values, keys)])
    for name in replayed["weights"]:
        macro = replayed["models"][name]["macro"]
        rows.append([f"`{name}`", "mean, replayed clicks", *_card_values(macro, keys)])
    return table(["model", "source", *_headings(keys), "harm"], rows)


def _card_values(values: Mapping[str, float], keys: Sequence[str]) -> list[str]:
    return [*(f"{values[key]:.3f}" for key in keys), f"{100 * values['harm']:.0f} %"]


def failures_table(report: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table with the worst structures of each of the app's models."""
    rows = [
        [f"`{name}`", row["source"], row["case"], row["structure"], f"{row['dice'][-1]:.2f}"]
        for name in report["weights"]
        for row in report["failures"][name]
    ]
    return table(["model", "source", "case", "structure", "Dice at last"], rows)


def weights_table(folder: Path, report: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table with file, network, metadata and Dice of the default weights.

    report: measured these weights. A file may still have the Dice of an earlier measurement.
    """
    rows = []
    for path in sorted(folder.glob("*_default.safetensors")):
        model = path.name.removesuffix("_default.safetensors")
        description, data = describe_checkpoint(path), path.read_bytes()
        config, metadata = description["config"], description["metadata"]
        network = (
            f"{config['depth']} blocks, width {config['width']}, {config['patch_size']}³ patches"
        )
        facts = {
            "file": f"`{path.name}`, {len(data) / 1e6:.1f} MB, float16",
            "SHA-256": f"`{hashlib.sha256(data).hexdigest()}`",
            "network": f"{network}, {description['parameters'] / 1e6:.1f} M parameters",
            "licence": metadata.get("licence", "not stated"),
            "trained": metadata.get("description", "not stated"),
            "measured Dice": measured(report, model),
        }
        rows += [[f"`{model}`", *fact] for fact in facts.items()]
    return table(["model", "", ""], rows)


def _read_report(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def _command(report: Mapping[str, Any]) -> str:
    """Return a code block with the command of a report, run in the environment of `make`."""
    command = re.sub(r"^python ", ".venv/bin/python ", report["command"])
    first, *options = re.split(r" (?=--)", command)
    lines = [first]
    for option in options:
        if len(f"{lines[-1]} {option} \\") <= LINE_WIDTH:
            lines[-1] += f" {option}"
        else:
            lines.append(f"    {option}")
    return "\n```bash\n" + " \\\n".join(lines) + "\n```\n"


def _measured_on(report: Mapping[str, Any]) -> str:
    text = (
        f"Measured on {report['structures']} structures of {report['cases']} scans, seed "
        f"{report['seed']}, {report['repeats']} series of clicks on each. It took "
        f"{report['minutes']:g} minutes on {report['machine']}, {report['date']}."
    )
    return "\n" + textwrap.fill(text, LINE_WIDTH) + "\n"


def _headings(keys: Sequence[str]) -> list[str]:
    return [f"{key} click{'s' * (key != '1')}" if key.isdigit() else key for key in keys]


def _lines(lines: Sequence[str]) -> str:
    return "\n" + "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if out of date")
    options = parser.parse_args(arguments)
    blocks = make_blocks()
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        filled = fill(text, blocks)
        if options.check and filled != text:
            sys.exit(f"{path.name} is out of date: run python -m benchmarks.model_card")
        path.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
