"""Settings of the event store and of what it takes in."""

from dataclasses import dataclass

from avrec_ray.dataclass_io import check_range


@dataclass(kw_only=True)
class FeedbackConfig:
    """Where events are kept, and the bounds of one request."""

    url: str = ""
    """SQLAlchemy URL of the event store; empty: events.db under storage_path."""
    max_events_per_request: int = 500
    max_clock_skew_seconds: float = 300.0
    """How far ahead of the server's clock an event's own time may be."""
    history_length: int = 1000
    """Newest events of a user that a request reads. Items acted on before those can be recommended again."""
    busy_timeout_seconds: float = 10.0
    """How long a writer waits for another process's transaction before it fails."""
    record_impressions: bool = True
    """Keep what each list showed to whom, for labels and inverse propensity weights."""
    impressions_flush_seconds: float = 0.2
    """Lists served within so much time are kept by one transaction, after they were answered."""
    max_waiting_impressions: int = 100_000
    """Items of lists that wait for the store at most; more are dropped and counted as such."""
    retention_days: float = 0.0
    """Maintenance removes events and impressions that the server took in longer ago and an export has read; 0 keeps
    all."""

    def __post_init__(self) -> None:
        check_range("feedback.max_events_per_request", self.max_events_per_request, 1, 500)
        check_range("feedback.max_clock_skew_seconds", self.max_clock_skew_seconds, 0.0)
        check_range("feedback.history_length", self.history_length, 1)
        check_range("feedback.busy_timeout_seconds", self.busy_timeout_seconds, 0.0)
        check_range("feedback.impressions_flush_seconds", self.impressions_flush_seconds, 0.001)
        check_range("feedback.max_waiting_impressions", self.max_waiting_impressions, 1)
        check_range("feedback.retention_days", self.retention_days, 0.0)

    def store_url(self, storage_path: str) -> str:
        """The configured URL, or the SQLite file under `storage_path`."""
        return self.url or f"sqlite:///{storage_path}/events.db"
