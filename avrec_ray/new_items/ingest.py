"""The worker: takes a waiting item, decodes its media in the sandbox, embeds it with the served towers, logs it.

Whatever dies in between, nothing is lost: the row says that the item waits, and its lease ends by itself.
"""

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from avrec_ray.errors import MediaError, StageError
from avrec_ray.feedback.database import StoreUnavailableError
from avrec_ray.media.child import DEFAULT_DECODER
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode import ItemDecoder
from avrec_ray.media.fetch import scheme_of
from avrec_ray.new_items.config import NewItemsConfig
from avrec_ray.new_items.encode import ItemEncoder
from avrec_ray.new_items.store import Claim, NewItemStore
from avrec_ray.new_items.uploads import sweep
from avrec_ray.types import Clip

logger = logging.getLogger(__name__)

_SWEEP_SECONDS = 60.0
_MISSING_SECONDS = 20.0
_FAILED_SECONDS = 3.0


class IngestWorker:
    """Works on one item after another. Its child process decodes; this process never parses media."""

    def __init__(
        self,
        bundle: str | Path,
        store: NewItemStore,
        cfg: NewItemsConfig,
        uploads: Path,
        decoder: str = DEFAULT_DECODER,
    ) -> None:
        """Raises BundleError where the bundle takes no new items."""
        self.encoder = ItemEncoder(bundle)
        self._store, self._cfg, self._uploads = store, cfg, uploads
        self._owner = secrets.token_hex(8)
        media = self.encoder.metadata.media
        assert media is not None  # ItemEncoder has checked it
        self._decoders = {name: ItemDecoder(limits, decoder) for name, limits in _limits(media, cfg, uploads).items()}
        self._stopped = threading.Event()
        self._swept_at = self._looked_at = -1e9

    def run(self) -> None:
        """Work until `stop`. A store that fails is asked again."""
        while not self._stopped.is_set():
            try:
                worked = self.work_once()
            except Exception:
                logger.exception("new items: the store or the sandbox failed; going on")
                self._stopped.wait(_FAILED_SECONDS)
                continue
            if not worked:
                self._stopped.wait(self._cfg.poll_seconds)

    def stop(self) -> None:
        """End `run` after the item at hand, and the child processes."""
        self._stopped.set()

    def close(self) -> None:
        """End the decoding processes."""
        for decoder in self._decoders.values():
            decoder.close()

    def work_once(self) -> bool:
        """Finish or refuse one item; False: none waits.

        Raises:
            StoreUnavailableError, StageError: the database failed, or no decoding process starts; the item goes on
                waiting.
        """
        claim = self._next()
        if claim is None:
            return False
        if claim.attempts > self._cfg.max_attempts:
            self._store.refuse(claim, "crashed", f"{claim.attempts - 1} workers died or failed over it")
            return True
        with self._held(claim):
            try:
                self._finish(claim)
            except MediaError as error:
                self._store.refuse(claim, error.reason, error.detail)
            except StoreUnavailableError:
                raise
            except StageError:
                self._store.give_back(claim, counts=False)  # not this item's fault
                raise
            except Exception:
                # Not refused at once: another worker may have the memory that this one lacked.
                logger.exception("new item %r failed in attempt %d", claim.item_id[:80], claim.attempts)
                self._store.give_back(claim)
        return True

    def _next(self) -> Claim | None:
        claim = self._store.claim(self._owner, self._cfg.lease_seconds)
        now = time.monotonic()
        if claim is None and now - self._looked_at > _MISSING_SECONDS:
            self._looked_at = now
            encoder = self.encoder
            claim = self._store.claim_missing(
                encoder.metadata.towers_version,
                self._owner,
                self._cfg.lease_seconds,
                encoder.items.item_ids,
                encoder.metadata.new_items_watermark,
            )
            if claim is not None:
                self._looked_at = -1e9  # there may be more
        if claim is None and now - self._swept_at > _SWEEP_SECONDS:
            self._swept_at = now
            sweep(self._uploads, self._store.media_files())
        return claim

    def _finish(self, claim: Claim) -> None:
        clips = self._clips(claim)
        keeps_behaviour = not self._store.was_deleted(claim.item_id)
        item = self.encoder(claim.facts, clips, keeps_behaviour)
        self._store.finish(claim, self.encoder.metadata.towers_version, item.to_bytes())

    def _clips(self, claim: Claim) -> list[Clip]:
        if claim.media_file is not None:
            return self._decoders["upload"].decode(claim.item_id, str(self._uploads / claim.media_file))
        uri = claim.facts.media_uri
        if uri is None:
            return []
        if scheme_of(uri):
            return self._decoders["remote"].decode(claim.item_id, uri)
        if not self._cfg.media_roots:  # an empty list would allow every path
            raise MediaError("forbidden", "new_items.media_roots is empty: no file path is taken, upload the file")
        return self._decoders["path"].decode(claim.item_id, uri)

    @contextmanager
    def _held(self, claim: Claim) -> Iterator[None]:
        """Renew the lease meanwhile, in a thread: decoding can take longer."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(self._cfg.lease_seconds / 4):
                try:
                    if not self._store.renew(claim, self._cfg.lease_seconds):
                        return
                except StoreUnavailableError:
                    logger.warning("the lease of a new item could not be renewed", exc_info=True)

        thread = threading.Thread(target=renew, name="new-item-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _limits(media: MediaConfig, cfg: NewItemsConfig, uploads: Path) -> dict[str, MediaConfig]:
    """What may be opened, by where an item's media come from. No path leads from one to another's files."""
    return {
        "upload": replace(media, media_roots=[str(uploads)], remote_schemes=[], follow_symlinks=False),
        "path": replace(media, media_roots=list(cfg.media_roots), remote_schemes=[]),
        "remote": replace(media, media_roots=["/nonexistent"], remote_schemes=list(cfg.remote_schemes)),
    }
