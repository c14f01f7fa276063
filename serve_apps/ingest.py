"""What an ingest replica does: a worker on new items in a thread. Nobody calls it; it finds its work in the store."""

import threading
from typing import Any

import torch

from avrec_ray.dataclass_io import from_dict
from avrec_ray.new_items.ingest import IngestWorker
from avrec_ray.new_items.store import NewItemStore
from serve_apps.config import ServeConfig
from serve_apps.loopback import keep_replica_on_loopback


class IngestDeployment:
    """One worker, with a decoding process of its own."""

    def __init__(self, args: dict[str, Any]) -> None:
        keep_replica_on_loopback()
        torch.set_num_threads(1)
        cfg = from_dict(ServeConfig, args)
        store = NewItemStore(cfg.feedback.store_url(cfg.storage_path), cfg.feedback.busy_timeout_seconds)
        self._worker = IngestWorker(cfg.bundle, store, cfg.new_items, cfg.new_items.uploads(cfg.storage_path))
        self._thread = threading.Thread(target=self._worker.run, name="new-items", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Serve calls this; a replica whose worker has ended is replaced."""
        if not self._thread.is_alive():
            raise RuntimeError("the worker on new items has ended")

    def __del__(self) -> None:
        """End the decoding processes with the replica."""
        worker = getattr(self, "_worker", None)
        if worker is not None:
            worker.stop()
            worker.close()
