"""How a replica keeps up with the log of changes: an indexed read every fraction of a second, or at once on request."""

import logging
import math
import threading
import time
from collections.abc import Callable, Container, Sequence

from avrec_ray.bundle import BundleMetadata
from avrec_ray.errors import BundleError
from avrec_ray.new_items.log import Change
from avrec_ray.new_items.store import NewItemStore

logger = logging.getLogger(__name__)

_AT_ONCE = 200
"""Changes applied in one go: requests wait meanwhile."""


class Follower:
    """Reads what is new and passes it on, in order and once. Safe for threads."""

    def __init__(
        self,
        store: NewItemStore,
        metadata: BundleMetadata,
        built: Container[str],
        apply: Callable[[Sequence[Change]], None],
        poll_seconds: float = 0.3,
    ) -> None:
        """`built`: ids of the items that the bundle's files hold; a copy, for catalogues change."""
        self._store, self._apply, self._poll_seconds = store, apply, poll_seconds
        self._towers_version = metadata.towers_version
        self._built, self._in_bundle_to = built, metadata.new_items_watermark
        self._watermark = 0
        self._current_at_seconds = math.nan
        self._turn = threading.Lock()
        self._stopped = threading.Event()

    @property
    def watermark(self) -> int:
        """Number of the last change that was applied."""
        return self._watermark

    @property
    def current_at_seconds(self) -> float:
        """POSIX time; what was committed before it has been applied. NaN before the first time."""
        return self._current_at_seconds

    def catch_up(self) -> int:
        """Apply everything that is committed by now; returns how many changes that were.

        Raises:
            SQLAlchemyError: the database cannot be read.
        """
        num_applied = 0
        with self._turn:
            began_at_seconds = time.time()
            while changes := self._store.changes(self._watermark, self._towers_version, _AT_ONCE):
                wanted = [change for change in changes if self._concerns(change)]
                if wanted:
                    self._pass_on(wanted)
                self._watermark = changes[-1].seq
                num_applied += len(wanted)
            self._current_at_seconds = began_at_seconds
        return num_applied

    def start(self) -> None:
        """Keep up in a thread of its own, until `stop`."""
        threading.Thread(target=self._run, name="follow-new-items", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def _run(self) -> None:
        failing_since = 0.0
        while not self._stopped.wait(self._poll_seconds):
            try:
                self.catch_up()
                failing_since = 0.0
            except Exception:  # what is there goes on being served
                if not failing_since:
                    logger.exception("changes of the catalogue cannot be read; trying again")
                failing_since = failing_since or time.monotonic()

    def _concerns(self, change: Change) -> bool:
        """False for what the bundle's files have already."""
        if change.seq > self._in_bundle_to:
            return True
        return not change.is_superseded if change.kind == "delete" else change.item_id not in self._built

    def _pass_on(self, changes: Sequence[Change]) -> None:
        try:
            self._apply(changes)
        except BundleError:
            for change in changes:  # one of them is damaged: the others are not held up by it
                try:
                    self._apply([change])
                except BundleError:
                    logger.exception("a change of the catalogue does not fit the bundle and is left out")
