"""The app and its datastore as the routes see them; MONAI Label's own classes have no types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Semaphore
from typing import Any, Protocol, cast

from monailabel.interfaces.utils.app import app_instance as monailabel_app_instance

from lib.datastore.journal import Journal
from lib.datastore.label_history import LabelVersion
from lib.datastore.safe_store import SavedLabel
from lib.imaging.volume import Volume
from lib.options import Options


class Studies(Protocol):
    """A MONAI Label datastore: images and labels by ID."""

    def list_images(self) -> list[str]: ...

    def has_image(self, image_id: str) -> bool:
        """Return whether there is such an image here or on the DICOM server; fetch nothing."""
        ...

    def get_image_uri(self, image_id: str) -> str:
        """Return the path of an image, or "" if there is no such image."""
        ...

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the path of a label, or "" if there is no such label."""
        ...

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Return the IDs of an image's labels by their tags."""
        ...

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return what a client said about a label: ``label_info`` has its structures."""
        ...

    def find_label(self, image_id: str, tag: str) -> str:
        """Return the path of a label here or on the DICOM server, or "" if there is none."""
        ...

    def store_label(
        self,
        image_id: str,
        path: Path,
        tag: str,
        info: Mapping[str, Any],
        *,
        user: str,
        base: int | None,
        allow_empty: bool,
    ) -> SavedLabel:
        """Check a label file and save it; see `SafeDatastore.store_label`."""
        ...

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return what is stored of an image, its ``path`` included; empty if nothing is."""
        ...

    def label_versions(
        self, image_id: str, tag: str
    ) -> tuple[LabelVersion | None, list[LabelVersion]]:
        """Return the version of a label and the earlier ones."""
        ...

    def restore_label(self, image_id: str, tag: str, number: int, user: str) -> SavedLabel:
        """Make an earlier version the label again."""
        ...

    def add_new_image(self, image_id: str, path: Path, info: dict[str, Any]) -> str:
        """Add an image under a name that is not used yet."""
        ...

    def json(self) -> Any: ...

    def datalist(self) -> list[dict[str, Any]]: ...

    def status(self) -> dict[str, Any]: ...


class UploadSession(Protocol):
    """An image that a client uploaded for a limited time."""

    image: str

    def to_json(self) -> Any: ...


class UploadSessions(Protocol):
    """MONAI Label's sessions by ID."""

    def get_session(self, session_id: str, update_ts: bool = ...) -> UploadSession | None: ...

    def add_session(
        self, data_file: str, expiry: int = ..., uncompress: bool = ...
    ) -> tuple[str, UploadSession]: ...

    def remove_session(self, session_id: str) -> None: ...


class ModelTrainer(Protocol):
    """A trainer as the training routes use it."""

    def stats(self) -> Mapping[str, Any]:
        """Return the statistics of the current or last training; `reason` tells how it ended."""
        ...

    @property
    def error(self) -> str:
        """Why the last training failed, or ""."""
        ...

    @property
    def curves(self) -> Path:
        """The PNG file of the training curves; it may not exist yet."""
        ...

    @property
    def shared_folder(self) -> Path:
        """The folder of the runs of all trainers of the model; it may not exist yet."""
        ...

    def check(self, options: Mapping[str, Any], datastore: Studies) -> object:
        """Return the parsed options; raise InputError if a training with them cannot succeed."""
        ...

    def estimate_seconds(self, options: Any, datastore: Studies) -> float | None:
        """Return how long a training with parsed options will take; None if that is unknown."""
        ...

    def running(self) -> Mapping[str, str] | None:
        """Return model, host and start of the training in its folder; None if none runs."""
        ...

    def request_stop(self) -> None:
        """Ask the training in its folder, of any process, to end."""
        ...


class Images(Protocol):
    """The images of the app: decoded once, and kept for the clicks on them."""

    def __call__(self, name: str, find: Callable[[], str]) -> None:
        """Read an image in the background; name: identifies it, find: returns its path."""
        ...

    def read(self, path: str) -> Volume:
        """Return an image; raises InputError."""
        ...


class ServedApp(Protocol):
    """The app of ``main.py`` as the routes use it."""

    @property
    def models(self) -> list[str]: ...

    @property
    def options(self) -> Options: ...

    @property
    def journal(self) -> Journal: ...

    @property
    def click_places(self) -> Semaphore:
        """A place for each request for a mask that may wait or compute."""
        ...

    @property
    def trainers(self) -> Mapping[str, ModelTrainer]: ...

    @property
    def configs(self) -> Mapping[str, Any]: ...

    @property
    def prefetch(self) -> Images: ...

    def datastore(self) -> Studies: ...

    def sessions(self) -> UploadSessions | None: ...

    def infer(self, request: dict[str, Any]) -> dict[str, Any]: ...


def app_instance() -> ServedApp:
    """Return the app that this server runs."""
    return cast(ServedApp, monailabel_app_instance())
