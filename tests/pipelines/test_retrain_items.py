"""What a retraining takes over of the running catalogue, without Ray: read once, linked, what was there untouched."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from avrec_ray.bundle import BundleMetadata, load_metadata
from avrec_ray.cluster_config import TrackingConfig
from avrec_ray.config import JobConfig
from avrec_ray.errors import StageError
from avrec_ray.feedback.impressions import Watermark
from avrec_ray.feedback.store import EventStore
from avrec_ray.media.clips import clips_table, read_clips, write_clips
from avrec_ray.new_items.submission import Submission
from avrec_ray.pipelines import retrain, retrain_items
from avrec_ray.pipelines.retrain_plan import Plan, save_plan
from avrec_ray.pipelines.stage import Loop, StageRecord, write_record
from avrec_ray.pipelines.storage import Storage
from avrec_ray.types import Event
from tests.feedback.event_rows import acted, catalogue
from tests.pipelines.retrain_world import accept, take_down
from tests.tiny_bundle import build_tiny_bundle, tiny_media

PLAN = Plan("run-000000000009", Watermark(3, 0), Watermark(9, 0), "models:/m/1", "v-1")


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(Storage.at(str(tmp_path / "root")), TrackingConfig(system_metrics_seconds=0.0), "retrain", echo=print)


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> BundleMetadata:
    return load_metadata(build_tiny_bundle(tmp_path_factory.mktemp("bundle") / "v-tiny", media=tiny_media()))


def job_of(loop: Loop) -> JobConfig:
    return JobConfig(storage_path=str(loop.storage.root))


def part(folder: Path, name: str, *items: tuple[str, int]) -> None:
    """A file of a clips table; each clip's pictures hold its number."""
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {
        "item_id": [item_id for item_id, _ in items],
        "clip_idx": [0] * len(items),
        "start_seconds": [0.0] * len(items),
        "end_seconds": [1.0] * len(items),
        "frames": np.stack([np.full((1, 3, 4, 4), number, np.uint8) for _, number in items]),
        "log_mel": np.zeros((len(items), 2, 3), np.float32),
        "has_video": [True] * len(items),
        "has_audio": [False] * len(items),
        "decoder": ["d"] * len(items),
        "media_sha256": [""] * len(items),
    }
    write_clips(clips_table(columns), folder / name)


def test_changes_are_read_once_a_run(loop: Loop, champion: BundleMetadata) -> None:
    job = job_of(loop)
    save_plan(loop.storage, PLAN)
    accept(job, Submission("n1", "N"))
    found = retrain_items.note_changes(loop, job, PLAN, champion)
    accept(job, Submission("n2", "later"))
    take_down(job, "n1")
    again = retrain_items.note_changes(loop, job, PLAN, champion)
    assert again.accepted.to_pylist() == found.accepted.to_pylist()
    assert (again.accepted["item_id"].to_pylist(), again.deleted, again.watermark) == (["n1"], frozenset(), 1)
    next_plan = replace(PLAN, name="run-000000000010")
    save_plan(loop.storage, next_plan)
    later = retrain_items.note_changes(loop, job, next_plan, champion)
    assert (later.accepted["item_id"].to_pylist(), later.deleted) == (["n2"], {"n1"})


def test_towers_that_read_no_media_take_deletions_alone(loop: Loop, champion: BundleMetadata) -> None:
    lines: list[str] = []
    loop.echo = lines.append
    job = job_of(loop)
    save_plan(loop.storage, PLAN)
    accept(job, Submission("n1", "N"))
    take_down(job, "i01")
    ids_alone = replace(champion, towers=replace(champion.towers, content_weight=0.0))
    found = retrain_items.note_changes(loop, job, PLAN, ids_alone)
    assert (found.accepted.num_rows, found.deleted, found.watermark) == (0, {"i01"}, 0)
    assert lines == ["1 new items stay out of the bundle: " + "its towers know items by their ids alone "
                     "(towers.content_weight=0)"]  # fmt: skip


@pytest.mark.slow  # MLflow makes a database
def test_clips_of_before_are_linked_without_what_went(loop: Loop, champion: BundleMetadata) -> None:
    """No item is accepted, so that nothing is decoded."""
    root, job = loop.storage, job_of(loop)
    part(root.folder("clips"), "part-0.parquet", ("a", 1), ("b", 2))
    part(root.folder("clips"), "part-1.parquet", ("c", 3))
    part(root.folder("clips"), "part-2.parquet", ("d", 4))
    before = {path: path.read_bytes() for path in root.folder("clips").iterdir()}
    write_record(root, StageRecord("decode_media", "f", [], {}, "", 0.0))
    save_plan(root, PLAN)
    take_down(job, "b")
    take_down(job, "d")
    changes = retrain_items.note_changes(loop, job, PLAN, champion)
    own = Loop(Storage.at(str(PLAN.folder(root))), loop.tracking_config, "retrain", echo=print)
    (own.storage.root / "clips").symlink_to(root.folder("clips"))  # as versions before this one left it
    record = retrain_items.decode(own, job, root, changes, retrain_items.limits_of_new_items(job))
    own.close()
    clips = read_clips(own.storage.folder("clips"))
    assert (list(clips["item_id"]), clips["frames"][:, 0, 0, 0, 0].tolist()) == (["a", "c"], [1, 3])
    assert record.metrics == {"num_dropped": 2.0}
    assert (own.storage.folder("clips") / "part-1.parquet").is_symlink()
    assert {path: path.read_bytes() for path in root.folder("clips").iterdir()} == before


def test_new_items_are_read_from_where_the_service_may_read(loop: Loop) -> None:
    job = job_of(loop)
    job.new_items = replace(job.new_items, media_roots=["/data"], remote_schemes=["https"])
    limits = retrain_items.limits_of_new_items(job)
    assert limits.media_roots == [f"{loop.storage.root}/new_items", "/data"]
    assert (limits.remote_schemes, limits.num_frames) == (["https"], job.media.num_frames)


@pytest.mark.slow  # MLflow makes a database
def test_without_a_champion_the_error_says_what_to_do(loop: Loop) -> None:
    storage, job = loop.storage, job_of(loop)
    (storage.root / "tables").mkdir()
    pq.write_table(catalogue("a", "b"), storage.items)
    pq.write_table(acted(("u", "a", "view", 0)), storage.interactions)
    write_record(storage, StageRecord("prepare", "f", [], {}, "", 0.0))
    assert retrain.run(loop, job) is None
    store = EventStore(job.feedback.store_url(job.storage_path))
    store.append([Event("u", "b", "like", 1.0, event_id="new")], 1.0)
    store.close()
    with pytest.raises(StageError, match=f"run jobs.full_loop storage_path={storage.root} first"):
        retrain.run(loop, job)
    write_record(storage, StageRecord("register", "f", [], {"registry_version": 3.0, "passed": 0.0}, "", 0.0))
    with pytest.raises(StageError, match="the gate refused what full_loop built.*version=3 force=true storage_path="):
        retrain.run(loop, job)
    loop.close()
