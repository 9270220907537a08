"""*Next Sample* by uncertainty: the unlabelled image of whose masks the model is least sure."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.atomic_file import is_full
from lib.errors import AppError

logger = logging.getLogger(__name__)

BUDGET_SECONDS = 8.0
"""BUDGET_SECONDS: time for new scores in one request; the others wait for the next one."""

OFFERED_SECONDS = 3600
"""OFFERED_SECONDS: an image that another client was offered so recently comes last."""

SCORE = "fastsam3d_score"
"""SCORE: key of an image's score in its info: value and the weights it belongs to."""


class UncertainFirst(Strategy):
    """Scores unlabelled images, keeps the scores in their info, and offers the largest one."""

    def __init__(self, score: Callable[[str], float], weights: Callable[[], str]) -> None:
        """score: returns the uncertainty on the image at a path; raises AppError if it cannot be
        used. weights: identifies the weights that the scores belong to.
        """
        super().__init__("the image of whose masks the model is least sure")
        self._score = score
        self._weights = weights

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Return the ``id`` and ``score`` of an image; None if all are labelled."""
        images = sorted(
            datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        )
        if not images:
            return None
        scores = self._scores(images, datastore)
        client = request.get("client_id")
        best = max(
            images,
            key=lambda image: (
                not _is_with_another(datastore.get_image_info(image), client),
                scores.get(image, -1.0),
            ),
        )
        return {"id": best, "score": scores.get(best), "scored": len(scores), "of": len(images)}

    def _scores(self, images: list[str], datastore: Datastore) -> dict[str, float]:
        """Return the known scores by image, and new ones as far as the time allows."""
        weights, scores = self._weights(), {}
        deadline = time.monotonic() + BUDGET_SECONDS
        for image in images:
            stored = datastore.get_image_info(image).get(SCORE, {})
            if stored.get("weights") == weights:
                scores[image] = float(stored["value"])
            elif time.monotonic() < deadline:
                scores[image] = self._new_score(image, datastore, weights)
        return scores

    def _new_score(self, image: str, datastore: Datastore, weights: str) -> float:
        """Score an image and keep the result; one that cannot be used gets the lowest score."""
        try:
            value = round(self._score(str(datastore.get_image_uri(image))), 4)
        except AppError as error:
            logger.warning("%s has no score: %s", image, error)
            value = 0.0
        try:
            datastore.update_image_info(image, {SCORE: {"value": value, "weights": weights}})
        except OSError as error:
            if not is_full(error):
                raise
            logger.warning("the disk is full: the score of %s is not kept", image)
        return value


def _is_with_another(info: Mapping[str, Any], client: Any) -> bool:
    """Return whether another client was offered an image a short time ago."""
    offers = info.get("strategy", {}).values()
    return any(
        offer.get("client_id") != client and time.time() - offer.get("ts", 0) < OFFERED_SECONDS
        for offer in offers
    )
