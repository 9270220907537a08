"""From scores to numbers: means, intervals, tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLINGS = 1000
CURVE_AREAS = ("dice_auc", "dice_final", "nsd_auc", "nsd_final")


@dataclass(frozen=True)
class Score:
    """One structure of one case. dice: after each of the counts. extra: CURVE_AREAS, if measured.

    seconds: median of the model's time for a click. refused: clicks answered with an error.
    """

    source: str
    case: str
    structure: str
    modality: str
    voxels: int
    dice: tuple[float, ...]
    extra: Mapping[str, float]
    seconds: float
    refused: int

    def values(self) -> tuple[float, ...]:
        return (*self.dice, *self.extra.values())


def summarise(scores: Sequence[Score], counts: Sequence[int], seed: int) -> dict[str, Any]:
    """Mean of each source, and the mean over the sources with its 95 % bootstrap interval.

    A source's mean is over its structures of all cases. Resampled are cases within their sources.
    """
    names = _names(scores, counts)
    sources = {
        source: {
            "cases": len({score.case for score in found}),
            "structures": len(found),
            **_named(names, _mean(found)),
            "by_structure": {
                structure: {"cases": len(same), **_named(names, _mean(same))}
                for structure, same in _grouped(found, lambda score: score.structure).items()
            },
        }
        for source, found in _grouped(scores, lambda score: score.source).items()
    }
    modalities = {
        modality: {"structures": len(found), **_named(names, _mean(found))}
        for modality, found in _grouped(scores, lambda score: score.modality or "unknown").items()
    }
    low, high = np.percentile(_resampled_macros(scores, seed), [2.5, 97.5], axis=0)
    return {
        "macro": _named(names, _macro(scores)),
        "interval": {
            name: [round(float(a), 4), round(float(b), 4)]
            for name, a, b in zip(names, low, high, strict=True)
        },
        "sources": sources,
        "modalities": modalities,
        "seconds_per_click": round(float(np.median([score.seconds for score in scores])), 4),
        "refused": sum(score.refused for score in scores),
    }


def _names(scores: Sequence[Score], counts: Sequence[int]) -> list[str]:
    return [*(str(count) for count in counts), *scores[0].extra]


def _grouped(scores: Sequence[Score], key: Callable[[Score], str]) -> dict[str, list[Score]]:
    groups: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        groups[key(score)].append(score)
    return dict(groups)


def _mean(scores: Sequence[Score]) -> np.ndarray:
    return np.mean([score.values() for score in scores], axis=0)


def _macro(scores: Sequence[Score]) -> np.ndarray:
    groups = _grouped(scores, lambda score: score.source)
    return np.mean([_mean(found) for found in groups.values()], axis=0)


def _resampled_macros(scores: Sequence[Score], seed: int) -> np.ndarray:
    """(RESAMPLINGS, values): the macro-average of cases drawn anew within each source."""
    generator = np.random.default_rng(seed)
    macros = []
    for found in _grouped(scores, lambda score: score.source).values():
        cases = list(_grouped(found, lambda score: score.case).values())
        sums = np.array([np.sum([score.values() for score in case], axis=0) for case in cases])
        sizes = np.array([len(case) for case in cases])
        drawn = generator.integers(len(cases), size=(RESAMPLINGS, len(cases)))
        macros.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)[:, None])
    return np.mean(macros, axis=0)


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}


def worst(scores: Sequence[Score], count: int) -> list[Score]:
    """The structures that came out worst in the end, one of a kind in each source."""
    chosen: dict[tuple[str, str], Score] = {}
    for score in sorted(scores, key=lambda score: score.dice[-1]):
        chosen.setdefault((score.source, score.structure), score)
    return list(chosen.values())[:count]


def markdown(report: Mapping[str, Any]) -> str:
    """The report as tables: macro-average with intervals, sources, structures, failures."""
    models = report["models"]
    first = next(iter(models.values()))
    keys = list(first["macro"])
    heads = [f"{key} click{'s' * (key != '1')}" if key.isdigit() else key for key in keys]
    lines = [
        "# Dice after simulated clicks",
        "",
        f"`{report['command']}`",
        "",
        f"Protocol {report['protocol']}, seed {report['seed']}, {report['repeats']} series of "
        f"clicks on each of {report['structures']} structures of {report['cases']} scans; "
        f"{report['machine']}, {report['date']}, "
        f"{report['minutes']:g} minutes.",
        "",
        "Mean over the sources, in brackets the 95 % interval of resampled cases:",
        "",
        *table(
            ["model", *heads, "s per click"],
            [
                [name, *with_intervals(found, keys), f"{found['seconds_per_click']:.2f}"]
                for name, found in models.items()
            ],
        ),
        "",
        "## Sources",
        "",
        *table(
            ["source", "cases", "structures", "model", *heads],
            [
                [source, row["cases"], row["structures"], name, *_numbers(row, keys)]
                for source in first["sources"]
                for name, found in models.items()
                if (row := found["sources"].get(source))
            ],
        ),
        "",
        "## Modalities",
        "",
        *table(
            ["modality", "structures", "model", *heads],
            [
                [modality, row["structures"], name, *_numbers(row, keys)]
                for modality in first["modalities"]
                for name, found in models.items()
                if (row := found["modalities"].get(modality))
            ],
        ),
        "",
        "## Structures",
        "",
        *table(
            ["source", "structure", "cases", "model", *heads],
            [
                [source, structure, row["cases"], name, *_numbers(row, keys)]
                for source in first["sources"]
                for structure in first["sources"][source]["by_structure"]
                for name, found in models.items()
                if (row := found["sources"].get(source, {}).get("by_structure", {}).get(structure))
            ],
        ),
        "",
        *_failures(report),
        "## Weights",
        "",
        *table(
            ["model", "file", "trained", "licence", "SHA-256"],
            [
                [name, *(info.get(key) for key in ("file", "trained", "licence", "sha256"))]
                for name, info in report["weights"].items()
            ],
        ),
        "",
    ]
    return "\n".join(lines)


def _failures(report: Mapping[str, Any]) -> list[str]:
    lines = ["## Failures", ""]
    for name, found in report["failures"].items():
        lines += [f"{name}, worst after the last click:", ""]
        rows = [
            [row["source"], row["case"], row["structure"], f"{row['dice'][-1]:.2f}"]
            for row in found
        ]
        lines += [*table(["source", "case", "structure", "Dice"], rows), ""]
    if report["skipped"]:
        lines += ["Left out:", "", *(f"- {reason}" for reason in report["skipped"]), ""]
    return lines


def with_intervals(found: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """`0.431 (0.39–0.48)`, for each of the keys."""
    mean, interval = found["macro"], found["interval"]
    return [f"{mean[key]:.3f} ({interval[key][0]:.2f}–{interval[key][1]:.2f})" for key in keys]


def _numbers(row: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [f"{row[key]:.2f}" for key in keys]


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
