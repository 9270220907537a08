"""The measurements of ``efficiency.py`` as Markdown and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import growth

# (row, what it is compared with, encoder or decoder)
RATIOS = (
    ("sam_med3d", "sam_med3d_published"),
    ("fastsam3d", "sam_med3d_published"),
    ("fastsam3d", "fastsam3d_published"),
    ("fastsam3d_float32", "fastsam3d_published"),
    ("fastsam3d_sparse", "sam_med3d_published"),
)

Row = dict[str, Any]


def add_ratios(rows: list[Row]) -> None:
    """``times_faster`` in each row: encoder, decoder and their sum, against the published ones."""
    by_name = {row["name"]: row for row in rows}
    for name, other in RATIOS:
        if name in by_name and other in by_name:
            ours, theirs = by_name[name], by_name[other]
            ratios = {
                part: theirs[f"{part}_ms"] / ours[f"{part}_ms"] for part in ("encoder", "decoder")
            }
            total = ours["encoder_ms"] + ours.get("prepare_ms", 0.0) + ours["decoder_ms"]
            ratios["total"] = (theirs["encoder_ms"] + theirs["decoder_ms"]) / total
            ours.setdefault("times_faster_than", {})[other] = ratios


def markdown(result: dict[str, Any]) -> str:
    lines = ["# Efficiency", "", machine(result), ""]
    if result["rows"]:
        lines += ["## Table 3", "", *table3(result["rows"]), "", NOTES_3, ""]
        lines += ["## How much faster, and is it the same?", "", *ratios(result["rows"]), ""]
    lines += [f"- left out: `{name}`: {why}" for name, why in result.get("left_out", {}).items()]
    if "table4" in result:
        lines += ["", "## Table 4, and larger inputs", "", *table4(result["table4"]), ""]
        lines += [*exponents(result["table4"]), "", NOTES_4, ""]
    return "\n".join(lines)


NOTES_3 = """\
Times in ms for one 128³ volume: median (quartiles). 2D networks see each of its 128 slices; one is
measured, and multiplied. *prepare* is once for an image, *decoder* the second click. GFLOP: the
whole volume, two for each multiply-add; GMAC: one image, as the paper counts, but with attention.
MB: the weights, and the most that torch holds besides during a call."""

NOTES_4 = """\
The student without position bias; groups of at most 64 tokens at each size. *attention* is the
operator of one block, from q, k, v to its output; *difference* is relative, from the same pattern
written out."""


def machine(result: dict[str, Any]) -> str:
    facts = [
        f"{result['device_name']} ({result['device']})",
        f"{result['threads']} threads, {result['cpu_capability']}",
        f"float32 matrix product {result['gemm_gflops']} GFLOP/s at that time",
        "wall-clock time" if result.get("clock") != "cpu" else "CPU time of one thread",
        f"torch {result['torch']}, Python {result['python']}",
        result["date"],
    ]
    return "; ".join(facts)


def _time(row: Row, key: str) -> str:
    if f"{key}_ms" not in row:
        return ""
    low, high = row[f"{key}_quartiles_ms"]
    return f"{_number(row[f'{key}_ms'])} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def table3(rows: list[Row]) -> list[str]:
    lines = [
        "| network | input | type | encoder ms | prepare ms | decoder ms | GFLOP (enc, dec) "
        "| GMAC an image (enc, dec) | MB (enc, dec) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        images = f"{row['images']} × " if row["images"] > 1 else ""
        flops, macs, memory = (
            ", ".join(_number(row[f"{part}_{unit}"]) for part in ("encoder", "decoder"))
            for unit in ("gflops", "gmacs_per_image", "memory_mb")
        )
        cells = [
            f"{row['what']} (`{row['name']}`)",
            images + row["input"],
            row["number_type"],
            *(_time(row, key) for key in ("encoder", "prepare", "decoder")),
            flops,
            macs,
            memory,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ratios(rows: list[Row]) -> list[str]:
    lines = [
        "| row | against | encoder | decoder | both | embedding | Dice of the masks "
        "| largest difference of a logit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in (row for row in rows if "equality" in row):
        equality = row["equality"]
        for other, faster in row.get("times_faster_than", {}).items():
            times = " | ".join(f"{faster[key]:.1f}×" for key in ("encoder", "decoder", "total"))
            lines.append(
                f"| `{row['name']}` | `{other}` | {times} | {equality['embedding']:.1e} "
                f"| {equality['dice']:.4f} | {equality['max_logit_difference']:.1e} |"
            )
    return [
        *lines,
        "",
        "Embedding (relative difference), Dice and logits: against the published computation of "
        "the row's own weights.",
    ]


def table4(rows: list[Row]) -> list[str]:
    lines = [
        "| ROI | tokens | variant | attention ms | encoder ms | attention GFLOP | encoder GFLOP "
        "| attention MB | encoder MB | difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{row['size']}³", str(row["tokens"]), row["variant"]]
        cells += [_time(row, "attention"), _time(row, "encoder")]
        keys = ("attention_gflops", "encoder_gflops", "attention_memory_mb", "encoder_memory_mb")
        cells += [_number(row[key]) for key in keys]
        lines.append(f"| {' | '.join(cells)} | {row['equality']:.0e} |")
    return lines


def exponents(rows: list[Row]) -> list[str]:
    if len({row["tokens"] for row in rows}) < 2:
        return []
    values = ("attention_gflops", "attention_ms", "attention_memory_mb", "encoder_ms")
    lines = [
        "Growth with the number of tokens N, as the exponent of N (1: linear, 2: quadratic):",
        "",
        "| variant | attention GFLOP | attention ms | attention MB | encoder ms |",
        "|---|---|---|---|---|",
    ]
    for variant in growth.VARIANTS:
        found = " | ".join(f"{growth.exponent(rows, variant, value):.2f}" for value in values)
        lines.append(f"| {variant} | {found} |")
    return lines


def plot(rows: list[Row], path: Path) -> None:
    """Time of the attention and of the encoder against tokens, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), constrained_layout=True)
    for axis, part in zip(axes, ("attention", "encoder"), strict=True):
        for variant in growth.VARIANTS:
            chosen = [row for row in rows if row["variant"] == variant]
            tokens = [row["tokens"] for row in chosen]
            times = [row[f"{part}_ms"] for row in chosen]
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
