"""Train without a server, with the options that a client has.

    python apps/fastsam3d/train.py --studies DIR --max-epochs 48
    torchrun --nproc-per-node 4 apps/fastsam3d/train.py --studies DIR     # four GPUs
    python apps/fastsam3d/train.py --versions                             # what was published
    python apps/fastsam3d/train.py --rollback                             # serve the one before

A server with the same --conf serves what is published here with its next click.
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
os.environ.setdefault("MONAI_LABEL_TRACKING_ENABLED", "false")

from lib.configs import FastSAM3D
from lib.errors import AppError
from lib.options import Options
from lib.trainers.train_options import TrainOptions
from lib.weights import published_facts

APP = Path(__file__).resolve().parent
MODEL = "fastsam3d"

FLAGS = {"start": "--start-from"}
"""torchrun takes --start for an abbreviation of an option of its own."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--studies", help="folder of studies, or address of a DICOMweb server")
    what.add_argument("--versions", action="store_true", help="show what was published")
    what.add_argument(
        "--rollback", nargs="?", const=-1, type=int, metavar="N",
        help="serve version N again, or the one that the served one replaced; 0: none of them",
    )  # fmt: skip
    parser.add_argument(
        "--conf", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"),
        help="as for the server: weights, teacher_weights, spacing_mm, model_dir, …",
    )  # fmt: skip
    training = parser.add_argument_group("training")
    for option in dataclasses.fields(TrainOptions):
        default = option.metadata.get("choices", (option.default,))[0]
        text = f"{option.metadata['help']} ({default})".replace("%", "%%")
        name = FLAGS.get(option.name, f"--{option.name.replace('_', '-')}")
        training.add_argument(name, dest=option.name, metavar="X", help=text)
    return parser.parse_args(arguments)


def train(studies: str, conf: dict[str, str], options: dict[str, str]) -> dict[str, Any]:
    """-> whether a student was published, and why; raises InputError."""
    from main import MyApp

    app = MyApp(str(APP), studies, conf)
    return app.trainers[MODEL](options, app.datastore())


def versions(conf: dict[str, str], rollback: int | None) -> dict[str, Any]:
    """What is served, after a rollback if one is asked for; -1 is one step."""
    options = Options.from_conf(conf)
    config = FastSAM3D()
    config.init(MODEL, options.model_dir or str(APP / "model"), conf, None, options=options)
    if rollback is not None:
        config.served.published.rollback(None if rollback < 0 else rollback)
    return published_facts(config.served(), config.served.published)


def main(arguments: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    given = parse(arguments)
    conf = dict(given.conf)
    names = [option.name for option in dataclasses.fields(TrainOptions)]
    options = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    try:
        if given.studies:
            result = train(given.studies, conf, options)
        else:
            result = versions(conf, given.rollback)
    except AppError as error:
        sys.exit(str(error))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
