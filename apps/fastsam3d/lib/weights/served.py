"""The weights that a model is served with at this moment."""

from __future__ import annotations

import logging
import threading

from lib.errors import InputError
from lib.networks.checkpoint import CheckpointError
from lib.weights.files import Weights, file_weights
from lib.weights.versions import PublishedVersions

logger = logging.getLogger(__name__)


class ServedWeights:
    """Calling it gives the weights to use: the published version, or the base where none is.

    It looks at every call whether another version was published or rolled back to, so that a
    server goes over to it with its next request. A version that cannot be read changes nothing.
    """

    def __init__(self, base: Weights, published: PublishedVersions) -> None:
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

    def __reduce__(self) -> tuple:
        """For another process, which looks for itself."""
        return ServedWeights, (self.base, self.published)

    def _load(self) -> Weights:
        try:
            manifest = self.published.read()
            version = manifest.find(manifest.served)
            if version is None:
                return self.base
            weights = file_weights(self.published.path_of(version))
            if weights.network_id != version.sha256:
                raise InputError(f"{version.file} is not what was published; roll back")
            return weights
        except (InputError, CheckpointError, OSError) as error:
            logger.error("%s is served still: %s", self._weights.file, error)
            return self._weights
