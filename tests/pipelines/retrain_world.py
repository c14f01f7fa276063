"""A small world for retraining: items known by a vector and a title, people of two tastes, and what they do from day to
day; new items come with a sound.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.cluster_config import ClusterConfig, TrackingConfig
from avrec_ray.config import EvaluationConfig, JobConfig, TrainingConfig
from avrec_ray.datasets.config import DataConfig
from avrec_ray.evaluation.gate import GateConfig
from avrec_ray.evaluation.split import SplitConfig
from avrec_ray.evaluation.tuning import BaselinesConfig
from avrec_ray.feedback.impressions import Impression
from avrec_ray.feedback.retrain_config import RetrainConfig
from avrec_ray.feedback.store import EventStore
from avrec_ray.media.config import MediaConfig
from avrec_ray.new_items.store import NewItemStore
from avrec_ray.new_items.submission import Submission
from avrec_ray.pipelines import full_loop
from avrec_ray.ranking.config import RerankerConfig
from avrec_ray.training.config import FinetuneConfig, OptimConfig, PretrainConfig
from avrec_ray.types import INTERACTIONS, ITEMS, Event
from tests.tiny_models import tiny_towers

NUM_ITEMS, NUM_USERS = 40, 40
START_SECONDS = 1_767_571_200.0
DAY_SECONDS = 86_400.0


def retrain_job(root: Path, **retrain: Any) -> JobConfig:
    """Every stage as small as it can be. The gate is open: with so few people it would refuse at random."""
    gate = GateConfig(min_users=1000, min_effective_rank=1.0, max_mean_cosine=1.0, min_index_recall=0.0)
    given = root / "given"
    return JobConfig(
        storage_path=str(root),
        data=DataConfig(items=str(given / "items.parquet"), interactions=str(given / "log.parquet")),
        media=MediaConfig(num_frames=2, frame_size=16, num_mel_bins=8, clip_seconds=0.5, max_clips=1),
        towers=tiny_towers(video_encoder="precomputed", max_clips=1),
        training=TrainingConfig(
            pretrain=PretrainConfig(epochs=1, batch_size=8),
            finetune=FinetuneConfig(epochs=2, refresh_epochs=1, batch_size=8),
        ),
        reranker=RerankerConfig(hidden_dim=8, optim=OptimConfig(epochs=1, batch_size=8)),
        evaluation=EvaluationConfig(
            baselines=BaselinesConfig(names=["popularity"], tune=False),
            split=SplitConfig(test_fraction=0.15),
            gate=gate,
        ),
        retrain=RetrainConfig(**{"epochs": 2, **retrain}),
        cluster=ClusterConfig(num_workers=1),
        tracking=TrackingConfig(system_metrics_seconds=0.0),
    )


def items_table() -> pa.Table:
    """Even items lie one way, odd ones the other; i00 to i39."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "item_id": f"i{n:02d}", "title": f"t{n}", "tags": [("even", "odd")[n % 2]], "creator_id": f"c{n % 9}",
            "duration_seconds": 20.0,
        }
        for n in range(NUM_ITEMS)
    ]  # fmt: skip
    vectors = rng.normal(0, 0.3, (NUM_ITEMS, 4)) + np.where(np.arange(NUM_ITEMS) % 2, 1.0, -1.0)[:, None]
    return pa.Table.from_pylist(rows, ITEMS).append_column(
        "video_vector", pa.array(vectors.astype(np.float32).tolist(), pa.list_(pa.float32()))
    )


def days(first: float, count: float, prefix: str, per_user: int = 8, swapped: bool = False) -> list[Event]:
    """Views of people, each of whom likes even or odd items; with `swapped` the other ones. Some like and skip too."""
    rng = np.random.default_rng(round(first) + 1)
    rows = []
    for user in range(NUM_USERS):
        side = (user + swapped) % 2
        for item in rng.choice(NUM_ITEMS // 2, per_user, replace=False) * 2 + side:
            at = START_SECONDS + (first + rng.uniform(0, count)) * DAY_SECONDS
            event = rng.choice(["view", "like", "skip"], p=[0.7, 0.2, 0.1])
            rows.append((at, f"u{user:02d}", f"i{item:02d}", str(event), float(rng.uniform(1, 20))))
    rows.sort()
    return [Event(u, i, e, at, watch, None, f"{prefix}{n:05d}") for n, (at, u, i, e, watch) in enumerate(rows)]


def table_of(events: list[Event]) -> pa.Table:
    rows = [
        {**{n: getattr(e, n) for n in INTERACTIONS.names if n != "at"}, "at": round(e.at_seconds * 1e6)} for e in events
    ]
    return pa.Table.from_pylist(rows, INTERACTIONS)


def write_given(root: Path, events: list[Event]) -> None:
    (root / "given").mkdir(parents=True)
    pq.write_table(items_table(), root / "given" / "items.parquet")
    pq.write_table(table_of(events), root / "given" / "log.parquet")


def first_loop(job: JobConfig) -> None:
    """A champion, and an event store with the past."""
    with full_loop.open_loop(job, "full_loop", full_loop.NUM_STAGES) as loop:
        loop.echo = lambda line: None
        full_loop.run(loop, job)


def post(job: JobConfig, events: list[Event]) -> None:
    store = EventStore(job.feedback.store_url(job.storage_path))
    assert store.append(events, received_at_seconds=events[-1].at_seconds).accepted == len(events)
    store.close()


def accept(job: JobConfig, item: Submission, media: Path | None = None) -> None:
    """Have an item as the service does once a worker has embedded it; `media` is uploaded with it."""
    store = NewItemStore(job.feedback.store_url(job.storage_path))
    if media is not None:
        uploads = job.new_items.uploads(job.storage_path)
        uploads.mkdir(exist_ok=True)
        shutil.copyfile(media, uploads / f"{item.item_id}0")
    assert store.submit(item, media_file=f"{item.item_id}0" if media else None)
    claim = store.claim("worker", 60)
    assert claim is not None
    assert store.finish(claim, "towers of before", b"vectors of before")
    store.close()


def take_down(job: JobConfig, item_id: str) -> None:
    store = NewItemStore(job.feedback.store_url(job.storage_path))
    assert store.delete(item_id, is_served=True)
    store.close()


def show(job: JobConfig, user: str, items: list[str], at_seconds: float, request_id: str) -> None:
    """Record a served list."""
    store = EventStore(job.feedback.store_url(job.storage_path))
    shown = [
        Impression(request_id, user, item, place, 0.5, "v", "", "user_tower", at_seconds)
        for place, item in enumerate(items, 1)
    ]
    assert store.record_impressions(shown) == len(items)
    store.close()
