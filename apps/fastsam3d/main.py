"""FastSAM3D as a MONAI Label app: ``monailabel start_server --app apps/fastsam3d``."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import sysconfig
import threading
from typing import Any

import monailabel.interfaces.app
import requests
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First

from lib.cache import ByteCache, array_nbytes
from lib.configs import MODELS
from lib.datastore.dicomweb import CheckedDICOMWebDatastore
from lib.datastore.journal import Journal
from lib.datastore.random_next import RandomNext
from lib.datastore.safe_store import FolderDatastore, SafeDatastore
from lib.datastore.uncertain_first import UncertainFirst
from lib.errors import AppError, InputError, NotFoundError, OptionError
from lib.infers import Caches
from lib.infers.transforms import LoadVolumed
from lib.options import Options
from lib.server.read_ahead import Prefetcher
from lib.server.temporary_folder import leave, remove_log_config, use_private_folder
from lib.server.upload_sessions import PrivateSessions
from lib.trainers.processes import end_with_parent

logger = logging.getLogger(__name__)

STATE_CACHE_BYTES = 64 * 2**20
"""STATE_CACHE_BYTES: limit of the cache of masks on ROIs, 1.2 MB after each prompt on the last
structures."""

INITIAL_CACHE_BYTES = 64 * 2**20
"""INITIAL_CACHE_BYTES: limit of the cache of masks that interactions start from."""

TRAINING_NICENESS = 15
"""TRAINING_NICENESS: niceness of a training's process, so that a server's clicks come first."""


class MyApp(MONAILabelApp):
    """Collects the task configurations and registers their models and trainers."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        """Read the weights of all models; raises AppError for an option or a file of weights.

        A server logs the error and exits with code 1 instead.
        """
        if not _is_starting_a_server():
            self._set_up(app_dir, studies, conf)
            return
        remove_log_config()
        temporary = use_private_folder()
        try:
            self._set_up(app_dir, studies, conf)
        except AppError as error:
            logger.error("the server cannot start: %s", error)
            logging.shutdown()
            leave(temporary)
            os._exit(1)  # uvicorn logs the traceback of any exception in its start, SystemExit too

    def _set_up(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        options = Options.from_conf(conf or {})
        self.options = options
        caches = Caches(
            volumes=ByteCache(options.volume_cache_mb * 2**20, array_nbytes),
            embeddings=ByteCache(options.embedding_cache_mb * 2**20, array_nbytes),
            states=ByteCache(STATE_CACHE_BYTES, array_nbytes),
            initial_masks=ByteCache(INITIAL_CACHE_BYTES, lambda mask: mask.values.nbytes),
        )
        self.is_server = False
        self.click_places = threading.BoundedSemaphore(options.max_waiting_clicks)
        self.prefetch = Prefetcher(LoadVolumed(caches.volumes))
        self.configs = {}
        for name, config_class in MODELS.items():
            config = config_class()
            model_dir = options.model_dir or os.path.join(app_dir, "model")
            config.init(name, model_dir, conf, planner=None, options=options, caches=caches)
            self.configs[name] = config
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="FastSAM3D",
            description="Interactive 3D segmentation: clicks in, a 3D mask out",
        )
        store = self.datastore()
        max_bytes = 0 if store.read_only else options.journal_mb * 2**20
        self.journal = Journal(store.labels_folder(), max_bytes)

    @property
    def models(self) -> list[str]:
        """The names of the models."""
        return list(self._infers)

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Return the mask for the clicks in a request; see `lib.infers.FastSAM3DInfer`.

        request: ``model``, ``image`` (an id of the datastore or a path), and what a client sends.
        Raises NotFoundError for an image that does not exist, InputError for an invalid request.
        """
        image, studies = request.get("image"), datastore or self.datastore()
        if not image:
            raise InputError("there is no image in the request; give the id of a study or a path")
        is_id = isinstance(image, str) and not os.path.exists(image)
        if is_id and not studies.get_image_uri(image):
            raise NotFoundError(f"there is no image {image!r} among the studies of this server")
        if self.options.device:  # the site's device is not the client's to change
            request = {key: value for key, value in request.items() if key != "device"}
        return super().infer(request, datastore)

    def init_infers(self) -> dict[str, InferTask]:
        """Return the infer task of each model."""
        return {name: config.infer() for name, config in self.configs.items()}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Return the train tasks of all models by their names."""
        by_model = [config.trainer() or {} for config in self.configs.values()]
        return {name: task for tasks in by_model for name, task in tasks.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        """Return the strategies of *Next Sample*; ``random`` is the default of the clients."""
        task: Any = self._infers["fastsam3d"]
        uncertain_first = UncertainFirst(task.score, lambda: task.network_id)
        return {"random": RandomNext(), "first": First(), "uncertainty": uncertain_first}

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the next image to label; raises InputError for an unknown strategy."""
        strategy = request.get("strategy") or "random"
        if strategy not in self._strategies:
            names = ", ".join(self._strategies)
            raise InputError(f"there is no strategy {strategy!r}; choose one of {names}")
        return dict(super().next_sample({**request, "strategy": strategy}))

    @property
    def trainers(self) -> dict[str, TrainTask]:
        """The train tasks by the names of their models."""
        return self._trainers

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Train in this process: the server's own if a client waits, else one that it started."""
        if self.is_server:
            return super().train(request)
        os.nice(TRAINING_NICENESS)
        end_with_parent()
        try:
            return super().train(request)
        except AppError as error:
            sys.exit(str(error))  # clients show the last line of the output

    def init_datastore(self) -> Datastore:
        """Open the studies, in a folder or on a DICOM server."""
        # MONAI Label makes the stores from settings of its own; only the classes are replaced
        monailabel.interfaces.app.LocalDatastore = FolderDatastore
        monailabel.interfaces.app.DICOMWebDatastore = CheckedDICOMWebDatastore
        try:
            store = super().init_datastore()
        except OSError as error:
            if isinstance(error, requests.RequestException):
                raise
            raise OptionError(
                f"the folder {error.filename!r} cannot be used for studies ({error.strerror}); "
                "give the account of the server the right to write there"
            ) from error
        if not isinstance(store, SafeDatastore):
            raise OptionError(
                f"MONAI_LABEL_DATASTORE={settings.MONAI_LABEL_DATASTORE!r} cannot be used; give a "
                "folder of studies or the address of a DICOMweb server, and remove the setting"
            )
        store.keep_versions = self.options.label_versions
        return store

    def _load_sessions(self, load: bool = False) -> PrivateSessions | None:
        if not load:
            return None
        path, expiry = settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY
        return PrivateSessions(path, expiry)

    def _download_dcmqi_tools(self) -> None:
        """Find dcmqi, which the requirements install, instead of downloading it.

        Its programs are beside the interpreter, whose folder is not always on PATH.
        """
        os.environ["PATH"] = os.pathsep.join(
            [os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")]
        )
        if not shutil.which("itkimage2segimage"):
            logger.warning(
                "itkimage2segimage is missing: labels are stored here but not sent to the DICOM "
                "server; pip install dcmqi"
            )

    def on_init_complete(self) -> None:
        """Install the routes and prepare the models; the server calls it, a command does not."""
        from monailabel.app import app

        from lib.server.doors import DoorPolicy, audit_log
        from lib.server.install import install

        self.is_server = True
        install(app, DoorPolicy(self.options, audit_log(self.options, self.app_dir)))
        self._log_who_may_come_in()
        for task in self._infers.values():
            task.prepare()
        super().on_init_complete()

    def _log_who_may_come_in(self) -> None:
        if self.options.api_key:
            logger.info("clients need the key of the option api_key")
        elif self.options.allow_open:
            logger.warning(
                "every machine that reaches this server may use it: --conf allow_open true, no key"
            )
        else:
            logger.info(
                "without --conf api_key this server answers its own machine only; all others get "
                "an HTTP 403"
            )


def _is_starting_a_server() -> bool:
    """Return whether an event loop runs in this thread: a server makes its app in one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
