"""Shards of users and their histories: each comes back as it went in, also where users have no events."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avrec_ray.pipelines.recommend_shards import read_shard, shard_size, write_shards
from avrec_ray.types import INTERACTIONS


def interactions(users: list[str]) -> pa.Table:
    rows = [
        {"user_id": user, "item_id": f"i{n}", "event": ("view", "like")[n % 2], "at": 1_000_000 * n}
        for user in users
        for n in range(3)
    ]
    return pa.Table.from_pylist(rows, INTERACTIONS)


@pytest.mark.parametrize("known", [range(200), range(100, 200), range(0), range(64, 70)])
def test_shards_of_users_without_events_are_empty(tmp_path: Path, known: range) -> None:
    users = [f"u{n:03d}" for n in range(200)]  # four shards
    path = tmp_path / "interactions.parquet"
    pq.write_table(interactions([users[n] for n in known]), path)
    write_shards(tmp_path, users, [path])
    size = shard_size(len(users))
    for shard, start in enumerate(range(0, len(users), size)):
        found, histories = read_shard(tmp_path, shard)
        assert found == users[start : start + size]
        for number, history in enumerate(histories, start):
            assert [event.item_id for event in history] == (["i0", "i1", "i2"] if number in known else [])
            assert [event.event for event in history] == (["view", "like", "view"] if number in known else [])
