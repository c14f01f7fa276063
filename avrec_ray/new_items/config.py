"""Settings of new items: what may be submitted, who works on it, how soon replicas see it."""

from dataclasses import dataclass, field
from pathlib import Path

from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.errors import ConfigError
from avrec_ray.media.config import REMOTE_SCHEMES


@dataclass(kw_only=True)
class NewItemsConfig:
    """What `POST /v1/items` takes in, and how it becomes servable."""

    num_workers: int = 1
    """Replicas that decode and embed; 0: this service takes items in and follows, others must do the work."""
    media_roots: list[str] = field(default_factory=list)
    """Folders below which a submitted file path must lie. Empty: no path is taken, only uploads and URIs."""
    remote_schemes: list[str] = field(default_factory=list)
    """Schemes of submitted URIs that are fetched: https, s3, gs. Empty: none."""
    max_upload_bytes: int = 512 * 2**20
    """Largest upload; it is streamed to disk."""
    max_waiting: int = 10_000
    """Items that may wait; more are answered 503."""
    poll_seconds: float = 0.3
    """How often replicas look for changes, and workers for work."""
    lease_seconds: float = 15.0
    """A worker that says nothing for so long is taken for dead, and its item given to another."""
    max_attempts: int = 3
    """An item over which so many workers died is refused."""
    uploads_folder: str = ""
    """Absolute folder for uploads, shared by all nodes; empty: new_items/ under storage_path."""

    def __post_init__(self) -> None:
        check_range("new_items.num_workers", self.num_workers, 0)
        check_range("new_items.max_upload_bytes", self.max_upload_bytes, 1)
        check_range("new_items.max_waiting", self.max_waiting, 1)
        check_range("new_items.poll_seconds", self.poll_seconds, 0.01, 60)
        check_range("new_items.lease_seconds", self.lease_seconds, 0.5, 3600)
        check_range("new_items.max_attempts", self.max_attempts, 1, 100)
        for scheme in self.remote_schemes:
            check_choice("new_items.remote_schemes", scheme, REMOTE_SCHEMES)
        for folder in (*self.media_roots, *filter(None, [self.uploads_folder])):
            if not folder.startswith("/"):
                raise ConfigError(f"new_items: {folder!r} is no absolute folder; replicas run in another directory")

    def uploads(self, storage_path: str) -> Path:
        """Folder of the uploads."""
        return Path(self.uploads_folder or f"{storage_path}/new_items")
