"""Write measured numbers into the model card and the README: `python -m benchmarks.model_card`.

Whatever stands between `<!-- NAME -->` and `<!-- / -->` in these files is made from the committed
reports of `benchmarks/accuracy.py` and from what the weights files say of themselves, so that no
number is typed by hand. `--check` changes nothing and fails where one is out of date.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.accuracy_report import with_intervals  # noqa: E402
from benchmarks.report_table import table  # noqa: E402
from lib.networks import describe_checkpoint  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
WEIGHTS = REPOSITORY / "apps" / "fastsam3d" / "weights"
FILES = (REPOSITORY / "README.md", REPOSITORY / "docs" / "model-card.md")
GROUPS = {"sources": "source", "modalities": "modality"}
BLOCK = re.compile(r"(<!-- ([\w-]+) -->)(.*?)(<!-- / -->)", flags=re.DOTALL)


def fill(text: str, blocks: Mapping[str, str]) -> str:
    """The text with each marked block written anew; raises KeyError for one that does not exist."""
    return BLOCK.sub(lambda found: f"{found[1]}{blocks[found[2]]}{found[4]}", text)


def make_blocks(results: Path = RESULTS, weights: Path = WEIGHTS) -> dict[str, str]:
    """The content of every block, by name."""
    random = json.loads((results / "accuracy-eval.json").read_text(encoding="utf-8"))
    blocks = {
        "command": f"\n```bash\n{random['command']}\n```\n",
        "measured-on": _measured_on(random),
        "macro": _lines(macro_table(random)),
        "sources": _lines(group_table(random, "sources")),
        "modalities": _lines(group_table(random, "modalities")),
        "failures": _lines(failures_table(random)),
        "weights": _lines(weights_table(weights)),
    }
    challenge = results / "accuracy-cvpr2025.json"
    if challenge.is_file():
        report = json.loads(challenge.read_text(encoding="utf-8"))
        blocks["challenge-command"] = f"\n```bash\n{report['command']}\n```\n"
        blocks["challenge"] = _lines(macro_table(report))
    patches = results / "patch-size-cpu.md"
    if patches.is_file():
        blocks["patches"] = f"\n{patches.read_text(encoding='utf-8')}"
    for name in random["weights"]:
        blocks[f"dice-{name}"] = dice_in_words(random, name)
    return blocks


def dice_in_words(report: Mapping[str, Any], model: str) -> str:
    """`Dice .20, .38, .41, .45 after 1, 3, 5, 10 clicks`."""
    counts = [str(count) for count in report["clicks"]]
    values = [f"{report['models'][model]['macro'][count]:.2f}".lstrip("0") for count in counts]
    return f"Dice {', '.join(values)} after {', '.join(counts)} clicks"


def macro_table(report: Mapping[str, Any]) -> list[str]:
    models = report["models"]
    keys = list(next(iter(models.values()))["macro"])
    rows = [[f"`{name}`", *with_intervals(found, keys)] for name, found in models.items()]
    return table(["model", *_heads(keys)], rows)


def group_table(report: Mapping[str, Any], groups: str) -> list[str]:
    """Rows for each source or modality: the app's models, then the baselines."""
    models, ours = report["models"], list(report["weights"])
    keys = [str(count) for count in report["clicks"]]
    baselines = [name for name in models if name not in ours]
    rows = []
    for group, first in next(iter(models.values()))[groups].items():
        for name in [*ours, *baselines]:
            row = models[name][groups][group]
            values = [f"{row[key]:.2f}" for key in keys]
            rows.append([group, first["structures"], f"`{name}`", *values])
    return table([GROUPS[groups], "structures", "model", *_heads(keys)], rows)


def failures_table(report: Mapping[str, Any]) -> list[str]:
    rows = [
        [f"`{name}`", row["source"], row["case"], row["structure"], f"{row['dice'][-1]:.2f}"]
        for name in report["weights"]
        for row in report["failures"][name]
    ]
    return table(["model", "source", "case", "structure", "Dice at last"], rows)


def weights_table(folder: Path) -> list[str]:
    """What each default file is, and what it says of itself."""
    rows = []
    for path in sorted(folder.glob("*_default.safetensors")):
        found, data = describe_checkpoint(path), path.read_bytes()
        config, metadata = found["config"], found["metadata"]
        network = (
            f"{config['depth']} blocks, width {config['width']}, {config['patch_size']}³ patches"
        )
        facts = {
            "file": f"`{path.name}`, {len(data) / 1e6:.1f} MB, float16",
            "SHA-256": f"`{hashlib.sha256(data).hexdigest()}`",
            "network": f"{network}, {found['parameters'] / 1e6:.1f} M parameters",
            "licence": metadata.get("licence", "not stated"),
            "trained": metadata.get("description", "not stated"),
            "measured Dice": metadata.get("dice", "not measured"),
        }
        rows += [
            [f"`{path.name.removesuffix('_default.safetensors')}`", *fact] for fact in facts.items()
        ]
    return table(["model", "", ""], rows)


def _measured_on(report: Mapping[str, Any]) -> str:
    return (
        f"{report['structures']} structures of {report['cases']} scans, seed {report['seed']}, "
        f"{report['repeats']} series of clicks on each; {report['minutes']:g} minutes on "
        f"{report['machine']}, {report['date']}"
    )


def _heads(keys: Sequence[str]) -> list[str]:
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
