"""Train without a server, with the same options as a client.

    python apps/fastsam3d/train.py --studies DIR --max-epochs 48
    torchrun --nproc-per-node 4 apps/fastsam3d/train.py --studies DIR     # four GPUs
    python apps/fastsam3d/train.py --trainer fastsam3d_adapt --studies DIR
    python apps/fastsam3d/train.py --versions                             # list published versions
    python apps/fastsam3d/train.py --rollback                             # serve the previous one

A server with the same --conf serves the published student from its next click on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

# MONAI Label reads its settings at import
os.environ.setdefault("MONAI_LABEL_DATASTORE_AUTO_RELOAD", "false")

from lib.configs import FastSAM3DModel
from lib.errors import AppError, InputError
from lib.options import Options
from lib.trainers.adapt_options import AdaptOptions
from lib.trainers.request_options import RequestOptions
from lib.trainers.train_options import TrainOptions
from lib.weights import describe_versions

APP = Path(__file__).resolve().parent
MODEL = "fastsam3d"
TRAINERS: dict[str, type[RequestOptions]] = {MODEL: TrainOptions, "fastsam3d_adapt": AdaptOptions}
"""TRAINERS: the trainers by name, with their options."""

PREVIOUS = -1
"""PREVIOUS: number that --rollback without a number stands for."""

FLAGS = {"start": "--start-from"}
"""FLAGS: options with another flag; torchrun takes --start as an abbreviation of its own option."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line; it has a flag for each option of the trainer."""
    chooser = argparse.ArgumentParser(add_help=False)
    chooser.add_argument("--trainer", choices=TRAINERS, default=MODEL, help="what to train with")
    chosen, _ = chooser.parse_known_args(arguments)
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[chooser],
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--studies", help="folder of studies, or address of a DICOMweb server")
    action.add_argument("--versions", action="store_true", help="list the published versions")
    action.add_argument(
        "--rollback", nargs="?", const=PREVIOUS, type=int, metavar="N",
        help="serve version N again (default: the previous one; 0: the weights of --conf)",
    )  # fmt: skip
    parser.add_argument(
        "--conf", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"),
        help="as for the server: weights, teacher_weights, spacing_mm, model_dir, …",
    )  # fmt: skip
    training = parser.add_argument_group("training")
    for option in dataclasses.fields(TRAINERS[chosen.trainer]):
        default = option.metadata.get("choices", (option.default,))[0]
        on_cpu = TRAINERS[chosen.trainer].CPU_DEFAULTS.get(option.name)
        shown = default if on_cpu is None else f"{default}; on a CPU {on_cpu}"
        text = f"{option.metadata['help']} ({shown})".replace("%", "%%")
        name = FLAGS.get(option.name, f"--{option.name.replace('_', '-')}")
        training.add_argument(name, dest=option.name, metavar="X", help=text)
    return parser.parse_args(arguments)


def train(
    trainer: str, studies: str, conf: dict[str, str], options: dict[str, str]
) -> dict[str, Any]:
    """Train; return whether a student was published, and why. Raise InputError as the task does."""
    if not studies.startswith(("http://", "https://")) and not Path(studies).is_dir():
        raise InputError(f"studies {studies!r} are neither a folder nor an http(s) address")
    from main import MyApp

    app = MyApp(str(APP), studies, conf)
    return app.trainers[trainer](options, app.datastore())


def versions(conf: dict[str, str], rollback: int | None) -> dict[str, Any]:
    """Roll back unless `rollback` is None; return the served version and all others."""
    options = Options.from_conf(conf)
    config = FastSAM3DModel()
    config.init(MODEL, options.model_dir or str(APP / "model"), conf, None, options=options)
    if rollback is not None:
        config.served.published.rollback(None if rollback == PREVIOUS else rollback)
    return describe_versions(config.served(), config.served.published)


def main(arguments: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    parsed = parse(arguments)
    conf = dict(parsed.conf)
    names = [option.name for option in dataclasses.fields(TRAINERS[parsed.trainer])]
    options = {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}
    try:
        if parsed.studies:
            result = train(parsed.trainer, parsed.studies, conf, options)
        else:
            result = versions(conf, parsed.rollback)
    except AppError as error:
        sys.exit(str(error))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
