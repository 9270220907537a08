"""Our Dice in the form of Table 2 of the paper on FastSAM3D (arXiv 2403.09827), for the pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .report_table import table

TEACHER, STUDENT = "sam_med3d", "fastsam3d"
PAPER = {
    TEACHER: {
        "AMOS": (0.289, 0.386, 0.418, 0.448),
        "TotalSegmentator": (0.252, 0.400, 0.463, 0.522),
        "BraTS": (0.328, 0.395, 0.418, 0.446),
    },
    STUDENT: {
        "AMOS": (0.273, 0.368, 0.402, 0.437),
        "TotalSegmentator": (0.250, 0.378, 0.445, 0.519),
        "BraTS": (0.333, 0.401, 0.421, 0.445),
    },
}
"""PAPER: Dice after 1, 3, 5 and 10 clicks in Table 2 of arXiv 2403.09827, by network and data."""


def table_2(report: Mapping[str, Any]) -> list[str]:
    """Return the lines of the paper's Table 2 with our models: Dice after 1, 3, 5 and 10 clicks.

    The columns are the paper's data sets, then our sources.
    """
    models, keys = report["models"], [str(count) for count in report["clicks"]]
    papers = list(PAPER[TEACHER])
    sources = list(next(iter(models.values()))["sources"])
    rows = [
        [f"paper: {name}", *(_in_cell(PAPER[model][data]) for data in papers), *[""] * len(sources)]
        for model, name in ((TEACHER, "SAM-Med3D"), (STUDENT, "FastSAM3D"))
    ]
    for name, summary in models.items():
        values = [[summary["sources"][source][key] for key in keys] for source in sources]
        rows.append([f"ours: `{name}`", *[""] * len(papers), *map(_in_cell, values)])
    return table(["network", *papers, *sources], rows)


def kept_dice(report: Mapping[str, Any]) -> dict[str, str]:
    """Return blocks with the mean Dice of teacher and student, and the share that is kept."""
    keys = [str(count) for count in report["clicks"]]
    teacher, student = (
        [report["models"][name]["macro"][key] for key in keys] for name in (TEACHER, STUDENT)
    )
    shares = [100 * ours / theirs for ours, theirs in zip(student, teacher, strict=True)]
    return {
        "kept-teacher": _in_cell(teacher),
        "kept-student": _in_cell(student),
        "kept-share": f"{min(shares):.0f} to {max(shares):.0f} %",
    }


def _in_cell(values: Sequence[float]) -> str:
    return " ".join(short(value, 3) for value in values)


def short(value: float, digits: int) -> str:
    """Return a number below 1 without the zero: .49."""
    return f"{value:.{digits}f}".lstrip("0")
