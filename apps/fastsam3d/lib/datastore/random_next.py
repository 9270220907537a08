"""*Next Sample* at random: images that were offered lately come less often."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy


class RandomNext(Strategy):
    """MONAI Label's random strategy, which fails if all images were offered in this second.

    That is so when two people ask for the last image. It also fails if a client describes an image
    with something else under its key ``strategy``.
    """

    def __init__(self) -> None:
        super().__init__("A random image; those offered lately come less often")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Return the ID and the weight of an image without a label; None if there is none."""
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        now = time.time()
        weights = [1 + max(0, int(now - _offered(datastore, image))) for image in images]
        ((image, weight),) = random.choices(list(zip(images, weights, strict=True)), weights)
        return {"id": image, "weight": weight}


def _offered(datastore: Datastore, image: str) -> float:
    """Return when an image was offered last, in seconds since 1970; 0 for never."""
    value: Any = datastore.get_image_info(image)
    for key in ("strategy", "random", "ts"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) and abs(value) < 2**40 else 0
