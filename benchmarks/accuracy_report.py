"""Summaries of scores: means, confidence intervals and Markdown tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .report_table import table

RESAMPLINGS = 1000
"""RESAMPLINGS: bootstrap samples of an interval."""

CURVE_AREAS = ("dice_auc", "dice_final", "nsd_auc", "nsd_final")
"""CURVE_AREAS: names of the scores that the protocol cvpr2025 adds."""


@dataclass(frozen=True)
class Score:
    """The scores of one structure of one case.

    dice: after each of the click counts. extra: values of `CURVE_AREAS`, empty unless measured.
    harm: share of the corrections that made the mask worse. seconds: the model's median time for a
    click. refused: clicks that the model refused.
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
    harm: float = 0.0

    def values(self) -> tuple[float, ...]:
        """Return all values that are averaged, in the order of `_names`."""
        return (*self.dice, *self.extra.values(), self.harm)


def summarise(scores: Sequence[Score], counts: Sequence[int], seed: int) -> dict[str, Any]:
    """Return the mean of each source, and the macro-average with its 95 % bootstrap interval.

    The mean of a source is over the structures of all its cases. The macro-average is the mean over
    the sources. The bootstrap resamples cases within their sources.
    """
    names = _names(scores, counts)
    sources = {
        source: {
            "cases": len({score.case for score in group}),
            "structures": len(group),
            **_named(names, _mean(group)),
            "by_structure": {
                structure: {"cases": len(same), **_named(names, _mean(same))}
                for structure, same in _grouped(group, lambda score: score.structure).items()
            },
        }
        for source, group in _grouped(scores, lambda score: score.source).items()
    }
    modalities = {
        modality: {"structures": len(group), **_named(names, _mean(group))}
        for modality, group in _grouped(scores, lambda score: score.modality or "unknown").items()
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
    return [*(str(count) for count in counts), *scores[0].extra, "harm"]


def _grouped(scores: Sequence[Score], key: Callable[[Score], str]) -> dict[str, list[Score]]:
    groups: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        groups[key(score)].append(score)
    return dict(groups)


def _mean(scores: Sequence[Score]) -> np.ndarray:
    return np.mean([score.values() for score in scores], axis=0)


def _macro(scores: Sequence[Score]) -> np.ndarray:
    groups = _grouped(scores, lambda score: score.source)
    return np.mean([_mean(group) for group in groups.values()], axis=0)


def _resampled_macros(scores: Sequence[Score], seed: int) -> np.ndarray:
    """Return macro-averages of resampled cases, (RESAMPLINGS, number of values)."""
    generator = np.random.default_rng(seed)
    macros = []
    for group in _grouped(scores, lambda score: score.source).values():
        cases = list(_grouped(group, lambda score: score.case).values())
        sums = np.array([np.sum([score.values() for score in case], axis=0) for case in cases])
        sizes = np.array([len(case) for case in cases])
        drawn = generator.integers(len(cases), size=(RESAMPLINGS, len(cases)))
        macros.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)[:, None])
    return np.mean(macros, axis=0)


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}


def worst(scores: Sequence[Score], count: int) -> list[Score]:
    """Return the `count` structures with the lowest final Dice, each once per source."""
    lowest: dict[tuple[str, str], Score] = {}
    for score in sorted(scores, key=lambda score: score.dice[-1]):
        lowest.setdefault((score.source, score.structure), score)
    return list(lowest.values())[:count]


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown: macro-average, sources, modalities, structures, failures."""
    models = report["models"]
    keys = list(next(iter(models.values()))["macro"])
    heads = click_heads(keys)
    lines = [
        "# Dice after simulated clicks",
        "",
        f"`{report['command']}`",
        "",
        f"Protocol {report['protocol']}, seed {report['seed']}, "
        f"{report['repeats']} click series on each of {report['structures']} structures of "
        f"{report['cases']} scans; "
        f"{report['machine']}, {report['date']}, "
        f"{report['minutes']:g} minutes.",
        "",
        "Mean over the sources, with the 95 % bootstrap interval over cases:",
        "",
        *table(
            ["model", *heads, "s per click"],
            [
                [name, *with_intervals(summary, keys), f"{summary['seconds_per_click']:.2f}"]
                for name, summary in models.items()
            ],
        ),
        "",
        *_groups(models, keys),
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


def click_heads(keys: Sequence[str]) -> list[str]:
    """Return column heads: "1 click", "3 clicks" for click counts, other keys unchanged."""
    return [f"{key} click{'s' * (key != '1')}" if key.isdigit() else key for key in keys]


def _groups(models: Mapping[str, Any], keys: Sequence[str]) -> Iterator[str]:
    """Yield the tables of sources, modalities and structures: a row per group and model."""
    first = next(iter(models.values()))
    sources, modalities = first["sources"], first["modalities"]
    heads = ["model", *click_heads(keys)]
    yield from ("## Sources", "")
    yield from table(
        ["source", "cases", "structures", *heads],
        [
            [source, row["cases"], row["structures"], name, *_numbers(row, keys)]
            for source in sources
            for name, summary in models.items()
            for row in [summary["sources"][source]]
        ],
    )
    yield from ("", "## Modalities", "")
    yield from table(
        ["modality", "structures", *heads],
        [
            [modality, row["structures"], name, *_numbers(row, keys)]
            for modality in modalities
            for name, summary in models.items()
            for row in [summary["modalities"][modality]]
        ],
    )
    yield from ("", "## Structures", "")
    yield from table(
        ["source", "structure", "cases", *heads],
        [
            [source, structure, row["cases"], name, *_numbers(row, keys)]
            for source in sources
            for structure in sources[source]["by_structure"]
            for name, summary in models.items()
            for row in [summary["sources"][source]["by_structure"][structure]]
        ],
    )
    yield ""


def _failures(report: Mapping[str, Any]) -> list[str]:
    lines = ["## Failures", ""]
    for name, failures in report["failures"].items():
        lines += [f"{name}, lowest Dice after the last click:", ""]
        rows = [
            [row["source"], row["case"], row["structure"], f"{row['dice'][-1]:.2f}"]
            for row in failures
        ]
        lines += [*table(["source", "case", "structure", "Dice"], rows), ""]
    if report["skipped"]:
        lines += ["Skipped:", "", *(f"- {reason}" for reason in report["skipped"]), ""]
    return lines


def with_intervals(summary: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Return mean and interval, as in `0.431 (0.39–0.48)`, for each of the keys."""
    mean, interval = summary["macro"], summary["interval"]
    return [f"{mean[key]:.3f} ({interval[key][0]:.2f}–{interval[key][1]:.2f})" for key in keys]


def _numbers(row: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [f"{row[key]:.2f}" for key in keys]
