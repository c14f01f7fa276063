"""The export: every event once, in the store's order, whatever happens in between."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avrec_ray.durable import CRASH_AT
from avrec_ray.errors import StageError
from avrec_ray.feedback.impressions import Impression, Watermark
from avrec_ray.feedback.store import EventStore
from avrec_ray.pipelines.event_export import export_new, exported, parts_in, read_events, read_impressions
from avrec_ray.pipelines.storage import Storage
from avrec_ray.types import INTERACTIONS, Event

NOW = 1_700_000_000.0


def keep(store: EventStore, *numbers: int) -> None:
    events = [Event("u", f"i{n}", "view", NOW + n, event_id=f"e{n}") for n in numbers]
    assert store.append(events, NOW).accepted == len(numbers)


def show(store: EventStore, request_id: str) -> None:
    store.record_impressions([Impression(request_id, "u", "i1", 1, None, "m", "", "", NOW)])


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(str(tmp_path))


def open_store(storage: Storage) -> EventStore:
    return EventStore(storage.events_url)


def ids(storage: Storage, upto: Watermark, after: Watermark | None = None) -> list[str]:
    return read_events(storage, upto, after or Watermark())["event_id"].to_pylist()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=6))
def test_any_mix_of_posts_and_exports_gives_every_event_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bool]]
) -> None:
    storage = Storage.at(str(tmp_path_factory.mktemp("export")))
    store, number, requests = open_store(storage), 0, 0
    for count, also_shown in [*steps, (1, True)]:
        if count:
            keep(store, *range(number, number + count))
            number += count
        if also_shown:
            show(store, f"r{requests}")
            requests += 1
        upto = export_new(store, storage)
    assert ids(storage, upto) == [f"e{n}" for n in range(number)]
    assert read_impressions(storage, upto)["request_id"].to_pylist() == [f"r{n}" for n in range(requests)]
    assert export_new(store, storage) == upto == exported(storage)
    store.close()


def test_new_events_are_told_from_those_before(storage: Storage) -> None:
    store = open_store(storage)
    keep(store, 0, 1, 2)
    first = export_new(store, storage)
    keep(store, 3)
    upto = export_new(store, storage)
    assert ids(storage, first) == ["e0", "e1", "e2"]
    assert ids(storage, upto, first) == ["e3"]
    store.close()


def test_first_part_ends_where_it_is_told_to(storage: Storage) -> None:
    store = open_store(storage)
    keep(store, 0, 1, 2, 3, 4)
    upto = export_new(store, storage, first=3)
    assert [(part.after, part.upto) for part in parts_in(storage.folder("events"))] == [(0, 3), (3, 5)]
    assert ids(storage, upto, Watermark(3)) == ["e3", "e4"]
    store.close()


def test_empty_store_writes_nothing(storage: Storage) -> None:
    store = open_store(storage)
    assert export_new(store, storage) == Watermark()
    assert read_events(storage, Watermark()).equals(INTERACTIONS.empty_table())
    assert not storage.folder("events").exists()
    store.close()


def test_missing_part_is_an_error_and_no_gap(storage: Storage) -> None:
    store = open_store(storage)
    for number in range(3):
        keep(store, number)
        export_new(store, storage)
    parts_in(storage.folder("events"))[1].path.unlink()
    with pytest.raises(StageError, match=r"begins behind 2, but the part before it ends at 1; restore the parts"):
        export_new(store, storage)
    store.close()


def test_parts_of_others_and_what_a_kill_left_are_not_read(storage: Storage) -> None:
    store = open_store(storage)
    keep(store, 0)
    upto = export_new(store, storage)
    (storage.folder("events") / "part-000000000001-000000000002.parquet.ab12cd34.part").write_bytes(b"half")
    assert exported(storage) == upto
    keep(store, 1)
    assert ids(storage, export_new(store, storage)) == ["e0", "e1"]
    store.close()


CHILD = (
    "import sys; from avrec_ray.feedback.store import EventStore; from avrec_ray.pipelines.event_export import *; "
    "s = Storage.at(sys.argv[1]); export_new(EventStore(s.events_url), s)"
)


@pytest.mark.parametrize("label", ["export:events:begun", "export:events:written", "export:impressions:written"])
def test_killed_export_goes_on(storage: Storage, label: str) -> None:
    store = open_store(storage)
    keep(store, 0, 1)
    show(store, "r0")
    environment = {**os.environ, CRASH_AT: label}
    died = subprocess.run([sys.executable, "-c", CHILD, str(storage.root)], env=environment, check=False, timeout=200)
    assert died.returncode == 137
    keep(store, 2)
    upto = export_new(store, storage)
    assert ids(storage, upto) == ["e0", "e1", "e2"]
    assert read_impressions(storage, upto).num_rows == 1
    for part in [*parts_in(storage.folder("events")), *parts_in(storage.folder("impressions"))]:
        assert pq.read_metadata(part.path).num_rows
    store.close()
