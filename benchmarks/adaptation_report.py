"""The numbers of adaptation_benchmark.py as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .accuracy_report import click_heads
from .distillation_report import latency
from .report_table import table


def markdown(result: Mapping[str, Any]) -> str:
    """Return the numbers as Markdown; a student that is not published has no Dice."""
    training, labelled = result["training"], result["labelled"]
    structures = ", ".join(result["structures"]) or "all structures"
    outcome = "published" if training["published"] else "not published"
    lines = [
        "# Adaptation to labels",
        "",
        f"{result['date']}, {result['device']}, {result['processor']}, {result['cores']} cores. "
        f"{result['weights']['file']} adapted to {structures} of {len(labelled)} scans of "
        f"{result['source']}. Options: `{result['options']}`.",
        "",
        f"{result['minutes']:.1f} minutes, {training['updates']} updates; {outcome}: "
        f"{training['reason']}.",
        "",
    ]
    if "click_ms" in result:
        clicks = result["click_ms"]
        lines += [
            f"A click on a known ROI, median (95th percentile): {latency(clicks['idle'])} idle, "
            f"{latency(clicks['training'])} during the training.",
            "",
        ]
    if not training["published"]:
        lines.append("Nothing else was measured: an unpublished student is not stored.")
        return "\n".join(lines) + "\n"
    lines += [f"Dice of {result['repeats']} click series on each structure:", ""]
    groups = [result[name] for name in ("same", "others") if name in result]
    keys = list(groups[0]["models"]["before"]["macro"])
    heads = ["source", "structure", "cases", "weights", *click_heads(keys)]
    lines += table(heads, [row for group in groups for row in dice_rows(group, keys)])
    lines += ["", *distance_lines(result["distances"])]
    return "\n".join(lines) + "\n"


def dice_rows(group: Mapping[str, Any], keys: list[str]) -> Iterator[list[Any]]:
    """Yield two rows, before and after, for each source and each of its structures.

    Several sources also have their mean.
    """
    models = group["models"]
    sources = models["before"]["sources"]
    if len(sources) > 1:
        for name, summary in models.items():
            yield [
                "mean of the sources",
                "all",
                group["cases"],
                name,
                *_cells(summary["macro"], keys),
            ]
    for source in sources:
        for name, summary in models.items():
            row = summary["sources"][source]
            yield [source, "all", row["cases"], name, *_cells(row, keys)]
        for structure in sources[source]["by_structure"]:
            for name, summary in models.items():
                row = summary["sources"][source]["by_structure"][structure]
                yield [source, structure, row["cases"], name, *_cells(row, keys)]


def _cells(row: Mapping[str, float], keys: list[str]) -> list[str]:
    return [f"{row[key]:.3f}" for key in keys]


def distance_lines(distances: Mapping[str, Any]) -> list[str]:
    """Return the table of the distances to the ROIs on the labels."""
    heads = ["source", "smallest", "median", "95th percentile", "largest", "adapted decoder"]
    rows = [
        [
            source,
            *(f"{row[key]:.1f}" for key in ("smallest", "median", "p95", "largest")),
            f"{100 * row['alike']:.0f} %",
        ]
        for source, row in distances["sources"].items()
    ]
    return [
        f"Distances of {distances['rois']} ROIs of each source to the nearest one on the labels; "
        f"up to {distances['limit']:.1f} they have the adapted decoder:",
        "",
        *table(heads, rows),
    ]
