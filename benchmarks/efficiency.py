#!/usr/bin/env python
"""Tables 3 and 4 of the FastSAM3D paper on this machine: time, FLOPs and memory of the networks.

    python benchmarks/efficiency.py --device cpu --json efficiency.json --markdown efficiency.md
    python benchmarks/efficiency.py --rows sam_med3d_published,sam_med3d,fastsam3d
    python benchmarks/efficiency.py --rows none --table4 --plot growth.png

The rows of this project need requirements.txt. The rows of 2D networks also need
requirements-benchmarks.txt; without it they are skipped and the report names the reason. Each fast
row is compared with its slow reference before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":  # this folder's modules must not hide packages of the same name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import efficiency_report, growth  # noqa: E402
from benchmarks.efficiency_rows import (  # noqa: E402
    ROWS,
    ROWS_2D,
    WHAT,
    Candidate,
    Candidates3D,
    make_2d,
)
from benchmarks.measure import (  # noqa: E402
    CLOCKS,
    Timing,
    compare_masks,
    count_flops,
    describe_machine,
    peak_memory_mb,
    relative_difference,
    time_calls,
)
from lib.errors import AppError  # noqa: E402
from lib.options import find_device  # noqa: E402

SAME_MASKS = 0.99
"""SAME_MASKS: lowest Dice between a fast row and its reference; below, the command fails."""


def main(arguments: list[str] | None = None) -> int:
    """Measure and report; return 1 if a row's masks differ from its reference."""
    options = parse(arguments)
    try:
        return run(options)
    except AppError as error:
        sys.exit(f"efficiency: {error}")


def run(options: argparse.Namespace) -> int:
    """Measure and report as `main` does; raises AppError if an option cannot be used."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    device = torch.device(find_device(options.device))
    if options.threads or options.clock == "cpu":
        torch.set_num_threads(1 if options.clock == "cpu" else options.threads)
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 rows compute in float32
    torch.backends.cudnn.allow_tf32 = False
    result: dict[str, Any] = describe_machine(device)
    result |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "rows": [], "left_out": {}}
    result["clock"] = options.clock
    with torch.inference_mode():
        measure_rows(options, device, result)
        if options.table4:
            result["table4"] = growth.measure(
                device, options.sizes, options.runs, options.seconds, options.clock
            )
    efficiency_report.add_ratios(result["rows"])
    write(options, result)
    changed = [
        row["name"] for row in result["rows"] if row.get("equality", {}).get("dice", 1) < SAME_MASKS
    ]
    if changed:
        print(f"masks differ from the reference: {', '.join(changed)}", file=sys.stderr)
    return 1 if changed else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--device", default="", help="cpu or cuda:N; default: a GPU if there is one"
    )
    parser.add_argument(
        "--rows", default=",".join(ROWS), help=f"rows of {', '.join(ROWS)}; or none"
    )
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="weights of a row's network; default: random",
    )
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each call")
    parser.add_argument("--seconds", type=float, default=20.0, help="most time for each call")
    parser.add_argument(
        "--threads", type=int, default=0, help="torch's threads (default: its own choice)"
    )
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: CPU time of this process with one thread, for a machine under other load",
    )
    parser.add_argument(
        "--table4", action="store_true", help="measure sparse and flash attention, on and off"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=growth.SIZES, help="ROI sizes of --table4"
    )
    parser.add_argument("--json", type=Path, help="file of the numbers")
    parser.add_argument("--markdown", type=Path, help="file of the tables")
    parser.add_argument("--plot", type=Path, help="picture of --table4 (needs matplotlib)")
    options = parser.parse_args(arguments)
    options.rows = [] if options.rows == "none" else options.rows.split(",")
    if unknown := [name for name in options.rows if name not in ROWS]:
        parser.error(f"unknown rows {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    if malformed := [pair for pair in options.weights if "=" not in pair]:
        parser.error(f"--weights {malformed[0]}: expected NAME=FILE")
    options.weights = dict(pair.split("=", 1) for pair in options.weights)
    return options


def measure_rows(options: argparse.Namespace, device: torch.device, result: dict[str, Any]) -> None:
    """Append the rows to result["rows"], and the skipped ones to result["left_out"]."""
    networks = Candidates3D(device, options.weights)
    candidates = [networks.make(name) for name in options.rows if name not in ROWS_2D]
    described = [describe(candidate, device) for candidate in candidates]
    add_times(candidates, described, device, options)
    result["rows"] += described
    for name in options.rows:
        if name in ROWS_2D:  # one at a time: each one alone fills the memory
            try:
                candidate = make_2d(name, device, options.weights.get(name))
            except ImportError as error:
                result["left_out"][name] = str(error)
                continue
            described = [describe(candidate, device)]
            add_times([candidate], described, device, options)
            result["rows"] += described


def describe(candidate: Candidate, device: torch.device) -> dict[str, Any]:
    """Return a row without its times; first compare it with its reference."""
    logging.info("checking %s", candidate.name)
    row: dict[str, Any] = {
        "name": candidate.name,
        "what": WHAT[candidate.name],
        "input": candidate.input,
        "images": candidate.images,
        "number_type": "float32",
    } | candidate.notes
    if candidate.reference is not None:
        embedding, logits = candidate.reference()
        row["equality"] = {
            "of": "the published computation of the same weights",
            "embedding": relative_difference(candidate.encode(), embedding),
        } | compare_masks(candidate.decode(), logits)
    encode, decode = candidate.float32 or (candidate.encode, candidate.decode)
    for part, counted, call, weights in (
        ("encoder", encode, candidate.encode, candidate.encoder_weights),
        ("decoder", decode, candidate.decode, candidate.decoder_weights),
    ):
        if part == "decoder":
            counted()  # fills the caches, which are not part of a click
        flops = count_flops(counted)
        row[f"{part}_gflops"] = flops * candidate.images / 1e9
        row[f"{part}_gmacs_per_image"] = flops / 2e9
        row[f"{part}_memory_mb"] = peak_memory_mb(call, weights, device)
        row[f"{part}_weights_mb"] = sum(x.numel() * x.element_size() for x in weights) / 1e6
    row["peak_memory_mb"] = max(row["encoder_memory_mb"], row["decoder_memory_mb"])
    return row


def add_times(
    candidates: list[Candidate],
    rows: list[dict[str, Any]],
    device: torch.device,
    options: argparse.Namespace,
) -> None:
    """Time all candidates in turns and add the times to their rows."""
    for part in ("encode", "prepare", "decode"):
        logging.info("timing %s of %s", part, ", ".join(c.name for c in candidates))
        calls = {c.name: getattr(c, part) for c in candidates if getattr(c, part)}
        timings = time_calls(calls, device, options.runs, options.seconds, clock=options.clock)
        for candidate, row in zip(candidates, rows, strict=True):
            if candidate.name in timings:
                key = {"encode": "encoder", "decode": "decoder"}.get(part, part)
                add_timing(row, key, timings[candidate.name].times(candidate.images))


def add_timing(row: dict[str, Any], key: str, timing: Timing) -> None:
    row[f"{key}_ms"] = timing.median
    row[f"{key}_quartiles_ms"] = [timing.low, timing.high]
    row[f"{key}_best_ms"] = timing.best
    row[f"{key}_runs"] = timing.runs


def write(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write the requested files; print the tables, or the JSON if no file gets it."""
    text = json.dumps(result, indent=1, ensure_ascii=False)
    for path, content in (
        (options.json, text + "\n"),
        (options.markdown, efficiency_report.markdown(result)),
    ):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    if options.plot is not None and "table4" in result:
        efficiency_report.plot(result["table4"], options.plot)
    print(text if options.json is None else efficiency_report.markdown(result))


if __name__ == "__main__":
    sys.exit(main())
