"""The models to measure: the app's models as the server runs them, baselines, 2D SAMs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Protocol_

import numpy as np

from lib.cache import ByteCache, array_nbytes
from lib.configs import MODELS
from lib.errors import InputError, WeightsError
from lib.imaging.volume import Volume
from lib.infers import Caches
from lib.infers.served_masks import served_mask, spatial_prompt
from lib.options import Options

from .baselines import Ball, RandomWalker, RegionGrowing
from .protocols import Model, Protocol, Scan, Series, click_series
from .simulated_prompts import DRAWINGS

MODEL_FOLDER = Path(__file__).resolve().parents[1] / "apps" / "fastsam3d" / "model"

# SERVED: by name, the app's model and the published file of its weights; "" for its default weights
SERVED = {
    "fastsam3d": ("fastsam3d", ""),
    "sam_med3d": ("sam_med3d", ""),
    "fastsam3d_published": ("fastsam3d", "fastsam3d.pth"),
    "sam_med3d_published": ("sam_med3d", "sam_med3d.pth"),
    "sam_med3d_turbo": ("sam_med3d", "sam_med3d_turbo.pth"),
}
BASELINES: dict[str, Callable[[Volume], Model]] = {
    "ball": Ball,
    "region_growing": RegionGrowing,
    "random_walker": RandomWalker,
}
SLICEWISE = ("sam", "mobile_sam", "tiny_sam", "medsam", "sam_med2d")

VOLUME_CACHE_BYTES = 2**30
RESULT_CACHE_BYTES = 2**29


PROMPTS = ("point", *DRAWINGS, "stock")
"""PROMPTS: the first prompt of a series. All others are points in one ordered list; ``stock`` sends
all points in the two lists of stock clients, which lose the order between them."""


class Contestant(Protocol_):
    """Returns the Series of its clicks on a structure.

    target: (I, J, K) bool. key: names case and structure; it seeds the clicks. replayed: a series
    whose clicks are made again, if any.
    """

    def __call__(
        self, scan: Scan, target: np.ndarray, protocol: Protocol, key: str, replayed: Series | None
    ) -> Series: ...


class Served:
    """A model of the app, built as the app builds it and called with a client's request.

    The whole path from the request to the mask is the server's, with its caches. The mask is not
    written to a file.
    """

    def __init__(self, kind: str, weights: str, options: Mapping[str, str] = {}) -> None:
        """Load the app's model `kind`.

        weights: a file, or "" for the default weights. options: further options of the app.
        """
        option = {"fastsam3d": "weights", "sam_med3d": "teacher_weights"}[kind]
        conf = {**options, **({option: weights} if weights else {})}
        caches = Caches(
            volumes=ByteCache(VOLUME_CACHE_BYTES, array_nbytes),
            embeddings=ByteCache(RESULT_CACHE_BYTES, array_nbytes),
            states=ByteCache(RESULT_CACHE_BYTES, array_nbytes),
            initial_masks=ByteCache(RESULT_CACHE_BYTES, lambda mask: mask.values.nbytes),
        )
        config: Any = MODELS[kind]()
        parsed = Options.from_conf(conf)
        config.init(kind, str(MODEL_FOLDER), conf, planner=None, options=parsed, caches=caches)
        self._task: Any = config.infer()

    def mask(self, scan: Scan, request: Mapping[str, Any]) -> np.ndarray:
        """Return the mask (I, J, K), bool, of a request; raises InputError."""
        return served_mask(self._task, {"image": str(scan.path), **request}).whole(bool)

    def weights(self) -> dict[str, Any]:
        """Return the description of the weights that `/info` shows."""
        return self.info()["weights"]

    def info(self) -> dict[str, Any]:
        """Return the model's entry in `/info`."""
        return self._task.info()


@dataclass(frozen=True)
class Prompted:
    """A served model whose series start with a kind of prompt, one of PROMPTS."""

    served: Served
    kind: str

    def __call__(
        self,
        scan: Scan,
        target: np.ndarray,
        protocol: Protocol,
        key: str,
        replayed: Series | None = None,
    ) -> Series:
        drawn = []
        if self.kind in DRAWINGS:
            generator = np.random.default_rng([protocol.seed, zlib.crc32(key.encode()), 0])
            path_ijk = DRAWINGS[self.kind](target, scan.spacing_mm, generator)
            subtype: Any = "bounding_box" if self.kind.startswith("box") else self.kind
            drawn = [spatial_prompt(subtype, path_ijk.tolist(), 1)]

        def model(clicks_ijk: np.ndarray, labels: np.ndarray) -> np.ndarray:
            if self.kind == "stock":
                lists = zip(("foreground", "background"), (1, 0), strict=True)
                request = {name: clicks_ijk[labels == label].tolist() for name, label in lists}
                return self.served.mask(scan, request)
            points = zip(clicks_ijk.tolist(), labels.tolist(), strict=True)
            prompts = [*drawn, *(spatial_prompt("point", place, label) for place, label in points)]
            return self.served.mask(scan, {"prompts": prompts})

        return click_series(
            model,
            target,
            protocol,
            key,
            scan.spacing_mm,
            scan.ignored,
            has_drawing=bool(drawn),
            replayed=replayed,
        )

    def weights(self) -> dict[str, Any]:
        """Return the description of the weights that `/info` shows."""
        return self.served.weights()


@dataclass(frozen=True)
class Classical:
    """A baseline without a network; each structure gets a new instance."""

    make: Callable[[Volume], Model]

    def __call__(
        self,
        scan: Scan,
        target: np.ndarray,
        protocol: Protocol,
        key: str,
        replayed: Series | None = None,
    ) -> Series:
        model = self.make(scan.volume)
        return click_series(
            model, target, protocol, key, scan.spacing_mm, scan.ignored, replayed=replayed
        )


def available_models(weights: Mapping[str, str]) -> list[str]:
    """Return the names of all models whose weights are available, and of the baselines."""
    served = [
        name
        for name, (_, file) in SERVED.items()
        if name in weights or (not file or (MODEL_FOLDER / file).is_file())
    ]
    others = [name for name in weights if name not in served]
    return [*served, *others, *BASELINES]


def make_contestants(
    names: Sequence[str],
    weights: Mapping[str, str],
    radius_mm: float = 10.0,
    options: Mapping[str, str] = {},
    prompts: Sequence[str] = ("point",),
) -> dict[str, Contestant]:
    """Load the models.

    weights: file of a model, by its name; a name that is not in `SERVED` becomes a FastSAM3D with
    these weights. options: further options of the app, for the models that it serves. prompts:
    kinds of the first prompt, for the same models; each kind but ``point`` becomes a contestant of
    its own, named "model, kind". Raises InputError for an unknown name or kind and for missing
    weights.
    """
    unused = sorted(set(weights) - set(names))
    if unused:
        raise InputError(f"--weights {unused[0]}=…: {unused[0]} is not in --models")
    unknown = [kind for kind in prompts if kind not in PROMPTS]
    if unknown:
        raise InputError(f"--prompts {unknown[0]}: choose from {', '.join(PROMPTS)}")
    contestants: dict[str, Contestant] = {}
    for name in names:
        model = _make(name, weights.get(name, ""), radius_mm, options)
        if isinstance(model, Served):
            for kind in prompts:
                contestants[name if kind == "point" else f"{name}, {kind}"] = Prompted(model, kind)
        else:
            contestants[name] = model
    return contestants


def _make(
    name: str, weights: str, radius_mm: float, options: Mapping[str, str]
) -> Contestant | Served:
    if name == "ball":
        return Classical(lambda volume: Ball(volume, radius_mm))
    if name in BASELINES:
        return Classical(BASELINES[name])
    if name in SLICEWISE:
        return _make_slicewise(name, weights)
    kind, published = SERVED.get(name, ("fastsam3d", ""))
    if name not in SERVED and not weights:
        known = ", ".join([*SERVED, *BASELINES, *SLICEWISE])
        raise InputError(
            f"unknown model {name!r}; choose from {known}, "
            f"or give it weights: --weights {name}=FILE"
        )
    if published and not weights and not (MODEL_FOLDER / published).is_file():
        raise InputError(f"{name} needs {published} in {MODEL_FOLDER}, or --weights {name}=FILE")
    try:
        return Served(kind, weights or published, options)
    except WeightsError as error:
        raise InputError(f"{name}: {error}") from error


def _make_slicewise(name: str, weights: str) -> Contestant:
    if not weights:
        raise InputError(f"{name} needs its weights: --weights {name}=FILE")
    from .slicewise import Slicewise

    return Slicewise.load(name, weights)
