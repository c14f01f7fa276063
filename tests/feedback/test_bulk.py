import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from avrec_ray.errors import TableError
from avrec_ray.feedback import bulk
from avrec_ray.feedback.store import EventStore
from avrec_ray.types import INTERACTIONS, Event, check_interactions


def interactions(num_rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    at = pa.array(rng.integers(10**15, 2 * 10**15, num_rows)).cast(pa.timestamp("us", tz="UTC"))
    return pa.table(
        {
            "user_id": [f"u{i}" for i in rng.integers(0, max(1, num_rows // 20), num_rows)],
            "item_id": [f"i{i}" for i in rng.integers(0, 500, num_rows)],
            "event": rng.choice(["view", "like", "skip"], num_rows),
            "at": at,
            "watch_seconds": pa.array(rng.random(num_rows), pa.float32()),
        }
    )


def test_import_new_rows_are_all_added_once(store: EventStore) -> None:
    table = interactions(300)
    assert store.import_interactions(table) == 300
    assert store.import_interactions(table) == 0
    assert store.count() == 300


def test_import_equal_rows_without_id_are_each_kept(store: EventStore) -> None:
    table = interactions(3)
    twice = pa.concat_tables([table, table])
    assert store.import_interactions(twice) == 6
    assert store.import_interactions(twice) == 0
    assert store.import_interactions(table) == 0


def test_import_grown_table_adds_only_what_is_new(store: EventStore) -> None:
    store.import_interactions(interactions(10))
    assert store.import_interactions(pa.concat_tables([interactions(10), interactions(5, seed=1)])) == 5


def test_import_empty_table_adds_nothing(store: EventStore) -> None:
    assert store.import_interactions(INTERACTIONS.empty_table()) == 0


def test_import_more_than_a_transaction_is_loaded_whole(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "ROWS_PER_TRANSACTION", 7)
    assert store.import_interactions(interactions(50)) == 50
    table, watermark = store.export_interactions()
    assert (table.num_rows, watermark) == (50, 50)


def test_import_keeps_given_ids_and_leaves_known_events_alone(store: EventStore) -> None:
    store.append([Event("u1", "i1", "like", 5.0, event_id="e1")], 5.0)
    table = interactions(2).append_column("event_id", pa.array(["e1", "e2"]))
    assert store.import_interactions(table) == 1
    assert store.history("u1", 5)[-1].item_id == "i1"


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("event", ["view", "applaud"], "'event' holds 'applaud' in row 1"),
        ("user_id", ["u1", None], "'user_id' is null in row 1"),
        ("at", ["x", "y"], "'at' has type string"),
    ],
)
def test_import_bad_table_is_refused_whole(store: EventStore, column: str, values: list[str], message: str) -> None:
    table = interactions(2)
    bad = table.set_column(table.column_names.index(column), column, pa.array(values))
    with pytest.raises(TableError, match=message):
        store.import_interactions(bad)
    assert store.count() == 0


@pytest.mark.slow
def test_import_100_000_rows_take_seconds(store: EventStore) -> None:
    started = time.perf_counter()
    assert store.import_interactions(interactions(100_000)) == 100_000
    assert time.perf_counter() - started < 120  # 4 s on two idle cores, 15 s on PostgreSQL


def test_export_is_a_checked_table_in_server_order(store: EventStore) -> None:
    store.append([Event("u1", "i1", "like", 9.5, 1.5, 0.5, "e1", "r1", 4), Event("u2", "i2", "view", 3.0)], 10.0)
    store.append([Event("u2", "i2", "view", 3.0, event_id="e2")], 10.0)
    table, watermark = store.export_interactions()
    assert check_interactions(table).equals(table)
    assert table["event_id"].to_pylist() == ["e1", "e2"]
    assert table["at"].cast(pa.int64()).to_pylist() == [9_500_000, 3_000_000]
    assert table.slice(0, 1).drop(["at"]).to_pylist() == [
        {"user_id": "u1", "item_id": "i1", "event": "like", "watch_seconds": 1.5, "value": 0.5}
        | {"event_id": "e1", "request_id": "r1", "position": 4}
    ]
    assert watermark == 2


def test_export_chained_watermarks_give_every_event_once(store: EventStore) -> None:
    seen: list[str] = []
    watermark = 0
    for batch in range(4):
        store.append([Event("u", "i", "like", 1.0, event_id=f"{batch}-{i}") for i in range(batch)], 1.0)
        table, watermark = store.export_interactions(watermark)
        seen += table["event_id"].to_pylist()
    assert seen == ["1-0", "2-0", "2-1", "3-0", "3-1", "3-2"]


def test_export_nothing_new_is_an_empty_table_and_the_same_watermark(store: EventStore) -> None:
    store.import_interactions(interactions(3))
    table, watermark = store.export_interactions(3)
    assert table.schema.equals(INTERACTIONS)
    assert (table.num_rows, watermark) == (0, 3)


def test_export_imported_elsewhere_gives_the_same_histories(store: EventStore, new_url: Callable[[], str]) -> None:
    store.import_interactions(interactions(400))
    table, _ = store.export_interactions()
    copy = EventStore(new_url())
    assert copy.import_interactions(table) == 400
    users = sorted(set(table["user_id"].to_pylist()))
    assert copy.histories(users, 50) == store.histories(users, 50)
    copy.close()
