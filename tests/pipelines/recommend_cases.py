"""Users, events and a bundle for the tests of batch recommendation, and the lists that a request would get."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.config import JobConfig
from avrec_ray.datasets.config import DataConfig
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.ranking.recommend import recommend
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.types import Event, Query

NUM_ITEMS = 40
START = datetime(2026, 1, 1, tzinfo=UTC)
Rows = list[dict[str, Any]]


def random_events(users: Sequence[str], seed: int = 0) -> Rows:
    """Up to twelve events a user, in no order; several of one moment. The first user has none."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "user_id": user,
            "item_id": f"i{rng.integers(NUM_ITEMS + 2):02d}",  # some are not in the catalogue
            "event": str(rng.choice(["view", "like", "skip", "impression"])),
            "at": START + timedelta(hours=int(rng.integers(4))),
            "watch_seconds": float(rng.integers(20)) if rng.random() < 0.7 else None,
        }
        for user in users[1:]
        for _ in range(rng.integers(0, 13))
    ]
    return [rows[index] for index in rng.permutation(len(rows))]


def histories_of(rows: Rows) -> dict[str, tuple[Event, ...]]:
    """Events of each user, oldest first; those of one moment in the order of the rows."""
    histories: dict[str, list[Event]] = {}
    for row in sorted(rows, key=lambda row: row["at"]):
        event = Event(row["user_id"], row["item_id"], row["event"], row["at"].timestamp(), row["watch_seconds"])
        histories.setdefault(event.user_id, []).append(event)
    return {user: tuple(events) for user, events in histories.items()}


def write_users(path: Path, users: Sequence[str | None]) -> str:
    pq.write_table(pa.table({"user_id": pa.array(users, pa.string())}), path)
    return str(path)


def write_events(path: Path, rows: Rows) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def job_for(storage: Path, bundle: Path, **settings: Any) -> JobConfig:
    """A job with the matcher and the policy of conf/base.yaml."""
    interactions = settings.pop("interactions", "")
    return JobConfig(
        storage_path=str(storage),
        bundle=str(bundle),
        data=DataConfig(interactions=interactions),
        matcher=MatcherConfig(num_neighbours=50, num_fresh=10),
        policy=PolicyConfig(fresh_share=0.1),
        cluster=ClusterConfig(num_workers=2),
        **settings,
    )


def requested_lists(
    bundle: Path, job: JobConfig, rows: Rows, users: Sequence[str]
) -> dict[str, list[tuple[str, int, float]]]:
    """(item_id, rank, score) of each user's list, one request at a time."""
    matcher, reranker, histories = Matcher(bundle, job.matcher), Reranker(bundle, job.policy), histories_of(rows)
    lists = {}
    for user in users:
        (ranking,) = recommend(matcher, reranker, [Query(user, histories.get(user, ()), k=job.k)])
        lists[user] = [(item.item_id, item.rank, item.score) for item in ranking]
    return lists


def lists_in(table: pa.Table) -> dict[str, list[tuple[str, int, float]]]:
    """The same of a recommendations table."""
    lists: dict[str, list[tuple[str, int, float]]] = {}
    for row in table.to_pylist():
        lists.setdefault(row["user_id"], []).append((row["item_id"], row["rank"], row["score"]))
    return lists


def assert_same_lists(
    found: dict[str, list[tuple[str, int, float]]], expected: dict[str, list[tuple[str, int, float]]]
) -> None:
    """Scores may differ in the last digits: batches of another size are rounded otherwise."""
    assert {user: [row[:2] for row in rows] for user, rows in found.items()} == {
        user: [row[:2] for row in rows] for user, rows in expected.items()
    }
    for user, rows in found.items():
        np.testing.assert_allclose([row[2] for row in rows], [row[2] for row in expected[user]], atol=1e-5)
