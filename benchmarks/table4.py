"""Table 4 of the FastSAM3D paper with given weights: sparse and flash attention, each on and off.

python -m benchmarks.table4 --sparse FILE --dense FILE --data DIR --json FILE --markdown FILE

The files are two students that were distilled alike, one with each operator. At each ROI size the
encoder's time, FLOPs and memory stand beside the Dice after simulated clicks. The weights of a
larger ROI are those of benchmarks/larger_roi.py. Flash attention returns the numbers of plain
attention, which is checked first, so both have the same Dice. It is measured as by
benchmarks/accuracy.py, in the number type that the server chooses; the encoder runs in float32, on
CUDA in bfloat16.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from lib.errors import AppError, InputError
from lib.networks import FastSAM3D
from lib.options import find_device
from lib.weights.files import Weights, file_weights, save_weights

from .accuracy_report import summarise
from .bench import Bench, Plan, collect
from .datasets import BenchmarkCase, choose_cases, find_cases
from .efficiency_report import conditions, duration, number
from .growth import VARIANTS, encode_call, encoder_facts
from .larger_roi import with_roi_size
from .measure import CLOCKS, describe_machine, relative_difference, time_calls
from .protocols import MIN_MM3, make_protocol
from .report_table import table, write_report

CLICKS = (1, 3, 5, 10)
OPERATORS = ("dense", "sparse")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparse", type=Path, required=True, help="student with sparse attention")
    parser.add_argument("--dense", type=Path, required=True, help="student with dense attention")
    parser.add_argument("--data", type=Path, required=True, help="labelled scans")
    parser.add_argument("--part", help="part of the data, as in eval, Ts, validation")
    parser.add_argument("--per-source", type=int, help="most cases of each source; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1, help="click series per structure (1)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 192], help="ROI sizes")
    parser.add_argument("--device", default="", help="of the encoder: cpu or cuda:N")
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each call")
    parser.add_argument("--seconds", type=float, default=20.0, help="most time for each call")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: CPU time of one thread"
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    logging.disable(logging.WARNING)
    try:
        result = run(options)
    except AppError as error:
        sys.exit(f"table4: {error}")
    finally:
        logging.disable(logging.NOTSET)  # a test's process goes on
    write_report(result, markdown(result), options)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and return all numbers; raises AppError if an option cannot be used."""
    students = read_students({"dense": options.dense, "sparse": options.sparse})
    cases = choose_cases(find_cases(options.data, options.part), options.per_source, MIN_MM3)
    device, threads = torch.device(find_device(options.device)), torch.get_num_threads()
    result: dict[str, Any] = {
        **describe_machine(device),
        "date": date.today().isoformat(),
        "clock": options.clock,
        "data": options.data.name,
        "repeats": options.repeats,
        "seed": options.seed,
        "weights": {operator: weights.info() for operator, weights in students.items()},
        "rows": [],
    }
    for size in options.sizes:
        networks = {name: with_roi_size(x.network, size) for name, x in students.items()}
        summaries = dice_of(networks, cases, options)
        rows = encoder_rows(networks, device, options)
        torch.set_num_threads(threads)
        result["rows"] += [row | summaries[row["operator"]] for row in rows]
    return result


def read_students(files: Mapping[str, Path]) -> dict[str, Weights]:
    """Read both students; raises InputError unless each has the operator that it is given for."""
    students = {operator: file_weights(path) for operator, path in files.items()}
    for operator, weights in students.items():
        if weights.network.config.operator != operator:
            raise InputError(
                f"--{operator} {weights.file}: its attention is {weights.network.config.operator}"
            )
    return students


@torch.inference_mode()
def encoder_rows(
    networks: Mapping[str, FastSAM3D], device: torch.device, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return time, FLOPs and memory of the encoder of each variant.

    networks: by operator, for one ROI size; they move to the device. Raises InputError if flash
    attention returns other numbers than plain attention.
    """
    if options.clock == "cpu":
        torch.set_num_threads(1)
    encoders = {operator: network.to(device) for operator, network in networks.items()}
    if device.type == "cuda":
        for network in encoders.values():
            network.image_encoder.bfloat16()
    operators = {name: OPERATORS[is_sparse] for name, (is_sparse, _) in VARIANTS.items()}
    calls = {
        name: encode_call(encoders[operator], encoders[operator].config, name, device)
        for name, operator in operators.items()
    }
    timings = time_calls(calls, device, options.runs, options.seconds, clock=options.clock)
    rows = []
    for name, operator in operators.items():
        network, timing = encoders[operator], timings[name]
        difference = relative_difference(calls[name](), calls[f"{operator}, plain"]())
        if difference > (1e-4 if device.type == "cpu" else 0.05):
            raise InputError(f"{name}: differs from plain attention by {difference:.1e}")
        rows.append(
            {
                "size": network.config.roi_size,
                "tokens": network.config.grid_size**3,
                "variant": name,
                "operator": operator,
                "equality": difference,
                **encoder_facts(calls[name], network, device),
                "encoder_ms": timing.median,
                "encoder_quartiles_ms": [timing.low, timing.high],
            }
        )
    return rows


def dice_of(
    networks: Mapping[str, FastSAM3D], cases: Sequence[BenchmarkCase], options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Return the macro-average of the Dice, its interval and the number of structures.

    networks: by operator, which is the key of the result too.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder, f"{name}.safetensors")) for name in networks}
        for name, network in networks.items():
            save_weights(network, Path(files[name]))
        protocol = make_protocol("random", CLICKS, options.seed)
        bench = Bench(Plan(tuple(files), files, protocol, repeats=options.repeats))
        scores, _ = collect(bench, cases)
    summaries = {name: summarise(each, CLICKS, options.seed) for name, each in scores.items()}
    return {
        name: {
            "dice": {str(count): summary["macro"][str(count)] for count in CLICKS},
            "interval": summary["interval"],
            "harm": summary["macro"]["harm"],
            "structures": len(scores[name]),
        }
        for name, summary in summaries.items()
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Return the numbers as Markdown."""
    heads = ["ROI", "tokens", "variant", "encoder ms", "GFLOP", "GMAC", "MB"]
    heads += [f"{count} click{'s' * (count != 1)}" for count in CLICKS]
    cells = [
        [
            *(f"{row['size']}³", row["tokens"], row["variant"], duration(row, "encoder")),
            *(number(row["encoder_gflops"]), number(row["encoder_gflops"] / 2)),
            number(row["encoder_memory_mb"]),
            *(f"{value:.3f}" for value in row["dice"].values()),
        ]
        for row in result["rows"]
    ]
    files = [
        f"{name} {info['file']} ({info['network']})" for name, info in result["weights"].items()
    ]
    lines = [
        "# Table 4 with given weights",
        "",
        f"{conditions(dict(result))}. Weights: {', '.join(files)}.",
        "",
        *table(heads, cells),
        "",
        f"Dice: {result['repeats']} click series on each of {result['rows'][0]['structures']} "
        f"structures of {result['data']}, seed {result['seed']}, mean over the sources. Time: "
        "median (quartiles) of the encoder alone. MB: its weights and the peak of a call.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
