"""The interactions table into the event store, so that the service knows each user's history from the first request."""

import pyarrow.parquet as pq
from sqlalchemy import make_url

from avrec_ray.config import JobConfig
from avrec_ray.feedback.store import EventStore
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `load_events`: tables/interactions.parquet to the event store. Rows that are there already count once."""
    storage = loop.storage
    url = events_url(loop, job)

    def work(stage: StageRun) -> dict[str, float]:
        store = EventStore(url)
        try:
            added = store.import_interactions(pq.read_table(storage.interactions))
            num_events = store.count()
            # Retraining tells by it what came later. Where others had been there before, that cannot be told.
            watermark = store.watermark().events if added == num_events else 0
            return {"num_added": float(added), "num_events": float(num_events), "watermark": float(watermark)}
        finally:
            store.close()

    return loop.stage(
        "load_events",
        work,
        settings={"url": make_url(url).render_as_string(hide_password=True)},
        inputs={"prepare": require_record(storage, "prepare").fingerprint},
        outputs=[] if job.feedback.url else [storage.root / "events.db"],
    )


def events_url(loop: Loop, job: JobConfig) -> str:
    """SQLAlchemy URL of the event store: the configured one, or the file under storage_path."""
    return job.feedback.url or loop.storage.events_url
