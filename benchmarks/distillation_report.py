"""The numbers of distillation_benchmark.py as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .report_table import table


def markdown(result: Mapping[str, Any]) -> str:
    """Return the numbers as Markdown."""
    layerwise, logits = result["layerwise"], result["logits_only"]
    studies = layerwise["studies"]
    lines = [
        "# Layer-wise distillation",
        "",
        f"{result['date']}, {result['device']}, {result['processor']}, {result['cores']} cores. "
        f"{studies['train']} studies for training, {studies['held_out']} held out, "
        f"{studies['labelled']} of all with a label. Options: `{result['options']}`.",
        "",
        *table(
            ("Dice after clicks", "1", "3", "5", "10", "minutes"),
            [
                ("teacher", *numbers(layerwise["dice_teacher"]), ""),
                ("student, both stages", *numbers(layerwise["dice_student"]), minutes(layerwise)),
                ("share of the teacher's Dice", *percents(layerwise["kept"]), ""),
                (
                    f"student, logits alone{rate(logits)}",
                    *numbers(logits["dice_student"]),
                    minutes(logits),
                ),
                ("share of the teacher's Dice", *percents(logits["kept"]), ""),
            ],
        ),
        "",
        *table(
            ("error on held-out ROIs", *(f"pair {n}" for n in range(1, 7))),
            pair_rows(layerwise["pair_errors"]),
        ),
        "",
        *table(
            ("epoch", "iteration", "k", "Eq. 2"),
            [tuple(row.values()) for row in result["schedule"]],
        ),
        "",
        *server_facts(result),
    ]
    return "\n".join(lines) + "\n"


def rate(run: Mapping[str, Any]) -> str:
    """Return the learning rate in words, or nothing for the default."""
    return f" (Adam at {run['rate']:g})" if run.get("rate") else ""


def pair_rows(errors: Mapping[str, Sequence[float]]) -> list[tuple[str, ...]]:
    """Return a row for each time of the errors, and stage 1's error relative to the initial."""
    rows = [(name, *(f"{value:.3f}" for value in values)) for name, values in errors.items()]
    pairs = zip(errors["initial"], errors["stage1"], strict=True)
    shares = [after / before for before, after in pairs]
    return [*rows, ("stage1 / initial", *(f"{100 * share:.0f} %" for share in shares))]


def server_facts(result: Mapping[str, Any]) -> list[str]:
    """Return lines on publishing, click times, and the killed training."""
    publishing, clicks = result["publishing"], result["click_ms"]
    lines = [
        f"Published: {publishing['published']} ({publishing['reason']}); the server serves the "
        f"new file: {publishing['served_is_new']}; rollback restores the old one: "
        f"{publishing['rollback_restores']}.",
        "",
        f"A click on a known ROI, median (95th percentile): {latency(clicks['idle'])} idle, "
        f"{latency(clicks['training'])} during the training.",
    ]
    if "kill" in result:
        kill = result["kill"]
        lines += [
            "",
            f"Killed (-9) and resumed ({kill['resumed']}): last loss {kill['resumed_loss']:.6f} "
            f"against {kill['loss']:.6f}, {100 * kill['difference']:.3f} % apart.",
        ]
    return lines


def latency(times: Mapping[str, float] | None) -> str:
    if not times:
        return "no click"
    return f"{times['median']:.0f} ms ({times['p95']:.0f} ms, {times['clicks']} clicks)"


def numbers(dice: Mapping[str, float]) -> list[str]:
    return [f"{value:.3f}" for value in dice.values()]


def percents(shares: Mapping[str, float]) -> list[str]:
    return [f"{100 * value:.0f} %" for value in shares.values()]


def minutes(run: Mapping[str, float]) -> str:
    return f"{run['seconds'] / 60:.1f}"
