"""From exported parts to the tables of a run, without Ray: every event is accounted for, and a second call skips."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from avrec_ray.cluster_config import TrackingConfig
from avrec_ray.config import JobConfig
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.feedback.impressions import Watermark
from avrec_ray.feedback.store import EventStore
from avrec_ray.new_items.export import CatalogueChanges
from avrec_ray.pipelines import retrain_tables
from avrec_ray.pipelines.retrain_plan import Plan
from avrec_ray.pipelines.stage import Loop, StageRecord, write_record
from avrec_ray.pipelines.storage import Storage
from avrec_ray.types import ITEMS, Event
from tests.feedback.event_rows import acted, catalogue, listed

TRACKING = TrackingConfig(system_metrics_seconds=0.0)


def part(folder: Path, table: pa.Table, after: int, upto: int) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / f"part-{after:012d}-{upto:012d}.parquet")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Three old events and three new ones, one of an item that nobody knows, a list, and a bot."""
    found = Storage.at(str(tmp_path / "root"))
    (found.root / "tables").mkdir()
    pq.write_table(catalogue("a", "b", "c"), found.items)
    rows = [
        ("u", "a", "view", 0), ("u", "b", "skip", 1), ("v", "a", "view", 2),
        ("u", "c", "like", 10, {"request_id": "r", "position": 2}), ("v", "gone", "view", 11),
        ("u", "b", "impression", 9, {"request_id": "r", "position": 1}),
        *[("bot", "a", "view", 12 + n / 1000) for n in range(200)],
    ]  # fmt: skip
    table = acted(*rows)
    part(found.root / "events", table.slice(0, 3), 0, 3)
    part(found.root / "events", table.slice(3), 3, 206)
    part(found.root / "events", acted(("w", "a", "view", 99)), 206, 207)  # kept after the plan was made
    part(found.root / "impressions", listed("r", "u", ["b", "c"], 0.5), 0, 2)
    return found


def prepare(storage: Storage, lines: list[str] | None = None, url: str = "") -> tuple[Storage, StageRecord]:
    plan = Plan("run-000000000206", Watermark(3, 0), Watermark(206, 2), "models:/m/1", "v-1")
    own = Storage.at(str(plan.folder(storage)))
    loop = Loop(own, TRACKING, "retrain", echo=(lines if lines is not None else []).append)
    job = JobConfig(storage_path=str(own.root), feedback=FeedbackConfig(url=url))
    write_record(own, StageRecord("decode_media", "as it was", [], {}, "", 0.0))
    nothing = CatalogueChanges(ITEMS.empty_table(), frozenset(), 0)
    record = retrain_tables.run(loop, job, storage, plan, nothing)
    loop.close()
    return own, record


def test_every_event_is_accounted_for(storage: Storage) -> None:
    lines: list[str] = []
    own, record = prepare(storage, lines)
    kept = pq.read_table(own.interactions)
    events = kept.filter(pc.not_equal(kept["event"], "impression"))
    assert events["event_id"].to_pylist() == ["e0", "e1", "e2", "e3"]
    assert events["is_new"].to_pylist() == [False, False, False, True]
    held = pq.read_table(own.folder("held_back") / "events.parquet")
    assert held.num_rows == 200
    assert set(held["reason"].to_pylist()) == {"rate"}
    assert (record.metrics["num_events"], record.metrics["num_of_unknown_items"]) == (206, 1)
    assert any("held back: 200 events, rate: the account acts faster than people do" in line for line in lines)
    assert any("left out: 1 events of items that the catalogue does not have" in line for line in lines)


def test_recorded_impressions_stand_in_for_posted_ones(storage: Storage) -> None:
    own, _ = prepare(storage)
    table = pq.read_table(own.interactions)
    shown = table.filter(pc.equal(table["event"], "impression")).to_pylist()
    assert [(row["item_id"], row["position"], row["label_weight"]) for row in shown] == [("b", 1, 0), ("c", 2, 0)]


def test_weights_are_those_of_the_labels(storage: Storage) -> None:
    own, _ = prepare(storage)
    weights = {row["event_id"]: row["label_weight"] for row in pq.read_table(own.interactions).to_pylist()}
    labels = {(r["user_id"], r["item_id"]): r for r in pq.read_table(own.folder("labels")).to_pylist()}
    assert labels["u", "b"]["label"] == 0
    assert weights["e1"] == 0
    assert weights["e3"] == pytest.approx(labels["u", "c"]["weight"])
    assert labels["u", "c"]["propensity"] == 0.5


def test_second_call_skips_and_another_catalogue_does_not(storage: Storage) -> None:
    prepare(storage)
    lines: list[str] = []
    prepare(storage, lines)
    assert lines == ["prepare: already done with these inputs, skipped"]
    pq.write_table(catalogue("a", "b", "c", "gone"), storage.items)
    assert prepare(storage)[1].metrics["num_of_unknown_items"] == 0


def test_erased_users_are_learned_from_no_more(storage: Storage, tmp_path: Path) -> None:
    """Also where exported parts hold them still: the service erased them, and jobs.erase_user was not run yet."""
    own, _ = prepare(storage)
    assert {"u", "v"} <= set(pq.read_table(own.interactions)["user_id"].to_pylist())
    store = EventStore(f"sqlite:///{tmp_path / 'events.db'}")
    store.append([Event("u", "a", "view", 0.0, event_id="e0")], 1.0)
    store.erase("u")
    store.close()
    pq.write_table(pa.table({"user_id": ["u", "v"], "friend_id": ["v", "u"]}), storage.root / "tables/edges.parquet")
    own, record = prepare(storage, url=f"sqlite:///{tmp_path / 'events.db'}")
    for path in own.root.rglob("*.parquet"):
        for name in {"user_id", "friend_id"} & set(pq.read_schema(path).names):
            assert "u" not in pq.read_table(path)[name].to_pylist(), path
    assert set(pq.read_table(own.interactions)["user_id"].to_pylist()) == {"v"}
    assert record.metrics["num_events"] == 202
