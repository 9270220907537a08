"""The weights that a model is currently served with."""

from __future__ import annotations

import logging
import threading

from lib.errors import AppError, InputError
from lib.weights.files import Weights, file_weights
from lib.weights.versions import StudentVersions

logger = logging.getLogger(__name__)


class ServedWeights:
    """A callable that returns the weights to use: the published version, or else the base.

    Each call checks whether another version was published or rolled back to, so a server uses it
    from its next request on. If that version cannot be read, the previous weights stay.
    """

    def __init__(self, base: Weights, published: StudentVersions) -> None:
        self.base = base
        self.published = published
        self._weights = base
        self._stamp: object = None
        self._lock = threading.Lock()

    def __call__(self) -> Weights:
        stamp = self.published.stamp()
        if stamp != self._stamp:
            with self._lock:
                if stamp != self._stamp:
                    self._weights = self._load()
                    self._stamp = stamp
        return self._weights

    def __reduce__(self) -> tuple[type[ServedWeights], tuple[Weights, StudentVersions]]:
        """Pickle the base and the folder; the other process reads the served version itself."""
        return ServedWeights, (self.base, self.published)

    def _load(self) -> Weights:
        try:
            manifest = self.published.read()
            version = manifest.find(manifest.served)
            if version is None:
                return self.base
            weights = file_weights(self.published.path_of(version))
            if weights.network_id != version.sha256:
                raise InputError(f"{version.file} differs from the published file; roll back")
            return weights
        except (AppError, OSError) as error:
            logger.error("%s is still served: %s", self._weights.file, error)
            return self._weights
