"""Which studies the served version has seen: their keys, in the metadata of each version."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from lib.weights.files import Weights
from lib.weights.served import ServedWeights

from .data.studies import ExaminedStudy

FIELD = "studies"
"""FIELD: name in the metadata: a JSON list of keys of studies."""

KEY_DIGITS = 16
"""KEY_DIGITS: digits of a study's key that are stored."""


def seen_studies(
    studies: Sequence[ExaminedStudy], served: ServedWeights
) -> Sequence[ExaminedStudy]:
    """Return those of the studies that the served version, or one before it, has seen.

    A published version without a list is from an earlier release: it may have seen all of them.
    The weights that the server was started with come from elsewhere: without a list they have seen
    none. A study whose image or label was changed counts as another one.
    """
    weights = served()
    if FIELD not in weights.metadata:
        return [] if weights.network_id == served.base.network_id else studies
    keys = _stored_keys(weights)
    return [study for study in studies if study.key[:KEY_DIGITS] in keys]


def studies_metadata(served: Weights, learned: Iterable[ExaminedStudy]) -> dict[str, str]:
    """Return the metadata of a student that continues the served one.

    learned: the studies that trained or selected the student, or may have trained the served one.
    """
    keys = _stored_keys(served) | {study.key[:KEY_DIGITS] for study in learned}
    return {FIELD: json.dumps(sorted(keys), separators=(",", ":"))}


def _stored_keys(weights: Weights) -> set[str]:
    return set(json.loads(weights.metadata.get(FIELD, "[]")))
