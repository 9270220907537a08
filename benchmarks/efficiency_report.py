"""The numbers of ``efficiency.py`` as Markdown and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import growth
from benchmarks.report_table import table

# RATIOS: a row and the row it is compared with
RATIOS = (
    ("sam_med3d", "sam_med3d_published"),
    ("fastsam3d", "sam_med3d_published"),
    ("fastsam3d", "fastsam3d_published"),
    ("fastsam3d_float32", "fastsam3d_published"),
    ("fastsam3d_sparse", "sam_med3d_published"),
)

Row = dict[str, Any]


def add_ratios(rows: list[Row]) -> None:
    """Add ``times_faster_than`` to the rows of RATIOS: encoder, decoder and their sum."""
    by_name = {row["name"]: row for row in rows}
    for name, other in RATIOS:
        if name in by_name and other in by_name:
            row, reference = by_name[name], by_name[other]
            ratios = {
                part: reference[f"{part}_ms"] / row[f"{part}_ms"] for part in ("encoder", "decoder")
            }
            total = row["encoder_ms"] + row.get("prepare_ms", 0.0) + row["decoder_ms"]
            ratios["total"] = (reference["encoder_ms"] + reference["decoder_ms"]) / total
            row.setdefault("times_faster_than", {})[other] = ratios


def markdown(result: dict[str, Any]) -> str:
    """Return the numbers as Markdown."""
    lines = ["# Efficiency", "", conditions(result), ""]
    if result["rows"]:
        lines += ["## Table 3", "", *table3(result["rows"]), "", NOTES_3, ""]
        lines += ["## Speed-up, and difference from the reference", "", *ratios(result["rows"]), ""]
    lines += [
        f"- skipped: `{name}`: {reason}" for name, reason in result.get("left_out", {}).items()
    ]
    if "table4" in result:
        lines += ["", "## Table 4, and larger inputs", "", *table4(result["table4"]), ""]
        lines += [*exponents(result["table4"]), "", NOTES_4, ""]
    return "\n".join(lines)


NOTES_3 = """\
Times in ms for one 128³ volume: median (quartiles). A 2D network segments each of the 128 slices;
one slice is measured and multiplied. *prepare* runs once for an image; *decoder* is the second
click. GFLOP: the whole volume, two for each multiply-add. GMAC: one image, counted as in the paper
but with attention. MB: the weights plus torch's peak memory during a call."""

NOTES_4 = """\
The student without position bias; groups of at most 64 tokens at each size. *attention* is the
operator of one block, from q, k, v to its output. *difference* is relative to the same pattern in
plain attention."""


def conditions(result: dict[str, Any]) -> str:
    """Return what the numbers depend on besides the code in one line."""
    facts = [
        f"{result['device_name']} ({result['device']})",
        f"{result['threads']} threads, {result['cpu_capability']}",
        f"float32 matrix product {result['gemm_gflops']} GFLOP/s during the run",
        "wall-clock time" if result.get("clock") != "cpu" else "CPU time of one thread",
        f"torch {result['torch']}, Python {result['python']}",
        result["date"],
    ]
    return "; ".join(facts)


def duration(row: Row, key: str) -> str:
    """Return median and quartiles, or nothing if the part was not timed."""
    if f"{key}_ms" not in row:
        return ""
    low, high = row[f"{key}_quartiles_ms"]
    return f"{number(row[f'{key}_ms'])} ({number(low)} to {number(high)})"


def number(value: float) -> str:
    """Return a number with about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def table3(rows: list[Row]) -> list[str]:
    """Return Table 3: time, FLOPs and memory of each network."""
    heads = ["network", "input", "type", "encoder ms", "prepare ms", "decoder ms"]
    heads += ["GFLOP (enc, dec)", "GMAC an image (enc, dec)", "MB (enc, dec)"]
    cells = []
    for row in rows:
        images = f"{row['images']} × " if row["images"] > 1 else ""
        network = [f"{row['what']} (`{row['name']}`)", images + row["input"], row["number_type"]]
        times = [duration(row, key) for key in ("encoder", "prepare", "decoder")]
        counts = [
            ", ".join(number(row[f"{part}_{unit}"]) for part in ("encoder", "decoder"))
            for unit in ("gflops", "gmacs_per_image", "memory_mb")
        ]
        cells.append([*network, *times, *counts])
    return table(heads, cells)


def ratios(rows: list[Row]) -> list[str]:
    """Return the speed-up of each row and the difference from its reference."""
    heads = ["row", "against", "encoder", "decoder", "both", "embedding", "Dice of the masks"]
    heads.append("largest difference of a logit")
    cells = []
    for row in (row for row in rows if "equality" in row):
        equality = row["equality"]
        differences = [f"{equality['embedding']:.1e}", f"{equality['dice']:.4f}"]
        differences.append(f"{equality['max_logit_difference']:.1e}")
        for other, faster in row.get("times_faster_than", {}).items():
            times = [f"{faster[key]:.1f}×" for key in ("encoder", "decoder", "total")]
            cells.append([f"`{row['name']}`", f"`{other}`", *times, *differences])
    return [
        *table(heads, cells),
        "",
        "Embedding (relative difference), Dice and logits: compared with the published computation "
        "of the same weights.",
    ]


def table4(rows: list[Row]) -> list[str]:
    """Return Table 4: the attention variants at each ROI size."""
    heads = ["ROI", "tokens", "variant", "attention ms", "encoder ms", "attention GFLOP"]
    heads += ["encoder GFLOP", "attention MB", "encoder MB", "difference"]
    keys = ("attention_gflops", "encoder_gflops", "attention_memory_mb", "encoder_memory_mb")
    cells = [
        [
            *(f"{row['size']}³", row["tokens"], row["variant"]),
            *(duration(row, part) for part in ("attention", "encoder")),
            *(number(row[key]) for key in keys),
            f"{row['equality']:.0e}",
        ]
        for row in rows
    ]
    return table(heads, cells)


def exponents(rows: list[Row]) -> list[str]:
    """Return how the numbers grow with the tokens; nothing if there is only one size."""
    if len({row["tokens"] for row in rows}) < 2:
        return []
    keys = ("attention_gflops", "attention_ms", "attention_memory_mb", "encoder_ms")
    heads = ["variant", "attention GFLOP", "attention ms", "attention MB", "encoder ms"]
    cells = [
        [variant, *(f"{growth.exponent(rows, variant, key):.2f}" for key in keys)]
        for variant in growth.VARIANTS
    ]
    return [
        "Growth with the number of tokens N, as the exponent of N (1: linear, 2: quadratic):",
        "",
        *table(heads, cells),
    ]


def plot(rows: list[Row], path: Path) -> None:
    """Plot the time of attention and encoder against the tokens, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), constrained_layout=True)
    for axis, part in zip(axes, ("attention", "encoder"), strict=True):
        for variant in growth.VARIANTS:
            variant_rows = [row for row in rows if row["variant"] == variant]
            tokens = [row["tokens"] for row in variant_rows]
            times = [row[f"{part}_ms"] for row in variant_rows]
            style = "--" if variant.endswith("plain") else "-"
            colour = "tab:blue" if variant.startswith("sparse") else "tab:red"
            axis.plot(tokens, times, style, color=colour, marker="o", label=variant)
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms", title=part)
        ticks = sorted({row["tokens"] for row in rows})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
