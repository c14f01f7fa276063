"""What the routes of new items do: queue, say where an item is, take it down. Knows no HTTP but its problems."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from avrec_ray.new_items.config import NewItemsConfig
from avrec_ray.new_items.store import NewItemStore, Queue
from avrec_ray.new_items.submission import Submission, check_submission
from avrec_ray.new_items.uploads import Upload
from serve_apps.flow import RequestFlow
from serve_apps.item_bodies import ItemAccepted, ItemStatus
from serve_apps.metrics import GatewayMetrics
from serve_apps.problems import ProblemError
from serve_apps.variants import Variants

logger = logging.getLogger(__name__)

T = TypeVar("T")
_THREADS = 4
_MEASURE_SECONDS = 2.0


class ItemInbox:
    """Takes new items in beside a running service."""

    def __init__(self, store: NewItemStore, cfg: NewItemsConfig, uploads: Path, variants: Variants) -> None:
        """Where the champion's bundle takes no items in, they can be taken down, and no more."""
        self._store, self.cfg, self._variants = store, cfg, variants
        self._uploads = uploads
        self._threads = ThreadPoolExecutor(_THREADS, "new-items")

    def open_upload(self) -> Upload:
        """Where an upload goes.

        Raises:
            ProblemError: 409 where no item is taken in.
            OSError: the folder cannot be written.
        """
        self.check_open()
        return Upload(self._uploads, self.cfg.max_upload_bytes)

    def check_open(self) -> None:
        """Raises ProblemError 409 where no item is taken in."""
        if why_not := self._flow.why_no_new_items:
            raise ProblemError(409, f"bundle {self._flow.model_version} takes no new items: {why_not}")

    async def submit(self, item: Submission, upload: Upload | None = None) -> ItemAccepted:
        """Queue an item, durably when this returns.

        Raises:
            ProblemError: 409, 422, or 503 where too many wait or the store failed: nothing is kept then.
        """
        self.check_open()
        if reason := check_submission(item, upload is not None):
            raise ProblemError(422, reason)
        if upload is not None and not upload.num_bytes:
            raise ProblemError(422, "media: got an empty file, expected media")
        found = await self._asked(lambda: self._queue(item, upload))
        if found is None:
            raise ProblemError(503, f"{self.cfg.max_waiting} items wait already (new_items.max_waiting); try later")
        return ItemAccepted(item_id=item.item_id, status=found)

    async def status(self, item_id: str) -> ItemStatus:
        """Where an item is.

        Raises:
            ProblemError: 404, 503.
        """
        await self._flow.know([item_id])
        found = await self._asked(lambda: self._store.status(item_id))
        served = self._flow.catalogue.idx(item_id) is not None
        if found is None and not served:
            raise ProblemError(404, f"item {item_id[:80]!a} was not submitted and is not in {self._flow.model_version}")
        if found is None:
            return ItemStatus(item_id=item_id, status="servable", served=True)
        state = "embedded" if found.state == "servable" and not served else found.state
        reason, detail = found.reason or None, found.detail or None
        return ItemStatus(item_id=item_id, status=state, reason=reason, detail=detail, served=served)

    async def delete(self, item_id: str) -> ItemAccepted:
        """Take an item down: durable when this returns, and gone from the lists of this replica.

        Raises:
            ProblemError: 404, 503.
        """
        await self._flow.know([item_id])
        served = self._flow.catalogue.idx(item_id) is not None
        if not await self._asked(lambda: self._store.delete(item_id, served)):
            known = await self._asked(lambda: self._store.status(item_id))
            if known is None:
                raise ProblemError(404, f"item {item_id[:80]!a} was not submitted and is not in the catalogue")
        await self._variants.follow()
        return ItemAccepted(item_id=item_id, status="deleted")

    async def measure(self, metrics: GatewayMetrics) -> None:
        """Put the length of the queue into the metrics; while the store does not answer it is unknown there."""
        loop = asyncio.get_running_loop()

        def read() -> Queue:
            with metrics.store_call("queue"):
                return self._store.queue()

        try:
            queue = await asyncio.wait_for(loop.run_in_executor(self._threads, read), _MEASURE_SECONDS)
        except (SQLAlchemyError, OSError):  # a TimeoutError is an OSError
            logger.warning("new items: the queue cannot be read", exc_info=True)
            metrics.new_items.clear()
            metrics.new_items_oldest.set(math.nan)
            return
        for state, count in queue.counts.items():
            metrics.new_items.labels(state).set(count)
        waits_since = queue.oldest_at_seconds
        metrics.new_items_oldest.set(0.0 if waits_since is None else time.time() - waits_since)

    def close(self) -> None:
        """Wait for what is under way."""
        self._threads.shutdown()
        self._store.close()

    @property
    def _flow(self) -> RequestFlow:
        return self._variants.champion

    def _queue(self, item: Submission, upload: Upload | None) -> str | None:
        if upload is None:
            found = self._store.submit(item, max_waiting=self.cfg.max_waiting)
            return None if found is None else found.state
        upload.keep()
        is_kept = False
        try:
            found = self._store.submit(item, upload.name, upload.sha256, self.cfg.max_waiting)
            is_kept = found is not None and found.is_new
        finally:
            if not is_kept:
                upload.discard()
        return None if found is None else found.state

    async def _asked(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except (SQLAlchemyError, OSError) as error:
            logger.exception("new items: the store failed")
            raise ProblemError(503, "the store failed and nothing was kept; send the same request again") from error


def is_upload(scope: Any) -> bool:
    """Whether a request brings media: its body goes to disk as it comes, with a limit of its own."""
    if scope["method"] != "POST" or scope["path"] != "/v1/items":
        return False
    kind = dict(scope["headers"]).get(b"content-type", b"application/json")
    return not kind.strip().lower().startswith(b"application/json")
