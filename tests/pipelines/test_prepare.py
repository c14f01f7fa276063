"""Ray's part is small: that every item is rendered, that a failure changes nothing, that a second run does nothing."""

import dataclasses
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from avrec_ray.cluster_config import TrackingConfig
from avrec_ray.config import JobConfig
from avrec_ray.datasets.config import DataConfig, MovieLensConfig, SyntheticConfig
from avrec_ray.datasets.synthetic import oracle_scores, write_tables
from avrec_ray.errors import ConfigError, StageError, TableError
from avrec_ray.pipelines import prepare
from avrec_ray.pipelines.prepare import prepare_tables
from avrec_ray.pipelines.stage import Loop
from avrec_ray.pipelines.storage import Storage

AT = datetime(2026, 1, 1, tzinfo=UTC)
SMALL = SyntheticConfig(num_items=25, num_users=10, num_interactions=50, broken_items=4, max_seconds=4.2)


def write_own(folder: Path, **changes: Any) -> DataConfig:
    """Two small tables as a user might have them, and the config that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    events = {"user_id": ["u", "v"], "item_id": ["a", "b"], "event": ["view", "like"], "at": [AT, AT]}
    pq.write_table(
        pa.table({"item_id": ["a", "b"], "media_uri": [None, "/m/b.mp4"], "title": ["x", "y"]}), folder / "i.parquet"
    )
    pq.write_table(pa.table({**events, **changes}), folder / "e.parquet")
    return DataConfig(items=str(folder / "i.parquet"), interactions=str(folder / "e.parquet"))


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_prepare_tables_own_tables_are_checked_and_copied(tmp_path: Path) -> None:
    counts = prepare_tables(write_own(tmp_path / "mine"), str(tmp_path / "run"), 0, print)
    assert counts == {"num_items": 2, "num_media": 1, "num_interactions": 2, "num_users": 2}
    items = pq.read_table(tmp_path / "run" / "tables" / "items.parquet")
    assert items["duration_seconds"].null_count == 2
    assert sorted(digests(tmp_path / "run")) == ["tables/interactions.parquet", "tables/items.parquet"]


def test_prepare_tables_in_place_keeps_what_lies_beside(tmp_path: Path) -> None:
    prepare_tables(write_own(tmp_path / "mine"), str(tmp_path / "run"), 0, print)
    tables = tmp_path / "run" / "tables"
    pq.write_table(pa.table({"user_id": ["u"]}), tables / "users.parquet")
    (tables / "truth").mkdir()
    (tables / "truth" / "item_factors.parquet").touch()
    prepare_tables(DataConfig(), str(tmp_path / "run"), 0, print)
    assert pq.read_table(tables / "users.parquet").column_names == ["user_id", "attributes"]
    assert (tables / "truth" / "item_factors.parquet").exists()


def test_prepare_tables_of_another_dataset_leave_no_old_users_or_truth(tmp_path: Path) -> None:
    tables = tmp_path / "run" / "tables"
    (tables / "truth").mkdir(parents=True)
    (tables / "truth" / "item_factors.parquet").touch()
    pq.write_table(pa.table({"user_id": ["old"]}), tables / "users.parquet")
    prepare_tables(write_own(tmp_path / "mine"), str(tmp_path / "run"), 0, print)
    assert sorted(path.name for path in tables.iterdir()) == ["interactions.parquet", "items.parquet"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"item_id": ["a", "zzz"]}, TableError, r"'item_id' holds 'zzz' in row 1"),
        ({"event": ["view", "love"]}, TableError, r"'event' holds 'love' in row 1; expected one of"),
        ({"user_id": ["u", None]}, TableError, r"'user_id' is null in row 1"),
        ({"watch_seconds": [1.0, -2.0]}, TableError, r"'watch_seconds' holds -2\.0 in row 1"),
    ],
)
def test_prepare_tables_bad_table_names_it_and_keeps_earlier_outputs(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    prepare_tables(write_own(tmp_path / "good"), str(tmp_path / "run"), 0, print)
    before = digests(tmp_path / "run")
    with pytest.raises(error, match=message):
        prepare_tables(write_own(tmp_path / "bad", **changes), str(tmp_path / "run"), 0, print)
    assert digests(tmp_path / "run") == before


def test_prepare_tables_no_usable_item_raises(tmp_path: Path) -> None:
    cfg = write_own(tmp_path / "mine")
    empty = pa.table({"item_id": ["a"], "media_uri": pa.array([None], pa.string()), "title": [""]})
    pq.write_table(empty, tmp_path / "mine" / "i.parquet")
    with pytest.raises(StageError, match="none of 1 rows is usable"):
        prepare_tables(cfg, str(tmp_path / "run"), 0, print)


def test_prepare_tables_without_tables_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"items\.parquet does not exist; set data\.items"):
        prepare_tables(DataConfig(), str(tmp_path / "run"), 0, print)


def test_prepare_tables_relative_storage_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="storage_path='run' is not absolute"):
        prepare_tables(write_own(tmp_path / "mine"), "run", 0, print)


def test_prepare_tables_movielens_writes_tables(tmp_path: Path) -> None:
    source = tmp_path / "ml-latest-small"
    source.mkdir()
    (source / "movies.csv").write_text("movieId,title,genres\n1,Toy Story (1995),Comedy\n")
    (source / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,4.5,964982703\n")
    cfg = DataConfig(dataset="movielens", movielens=MovieLensConfig(variant="ml-latest-small", source=str(source)))
    counts = prepare_tables(cfg, str(tmp_path / "run"), 0, print)
    assert counts == {"num_items": 1, "num_media": 0, "num_interactions": 1, "num_users": 1}
    assert (tmp_path / "run" / "tables" / "users.parquet").is_file()


def open_loop(root: Path) -> tuple[Loop, list[str]]:
    lines: list[str] = []
    return Loop(Storage.at(str(root)), TrackingConfig(), "test", {}, echo=lines.append), lines


def test_run_second_time_does_nothing_even_for_tables_in_place(tmp_path: Path) -> None:
    prepare_tables(write_own(tmp_path / "mine"), str(tmp_path / "run"), 0, print)
    tables = tmp_path / "run" / "tables"
    bare = pq.read_table(tables / "items.parquet").select(["item_id", "media_uri", "title"])
    pq.write_table(bare, tables / "items.parquet")  # as a user would put it there: without the optional columns
    job = JobConfig(storage_path=str(tmp_path / "run"))
    loop, _ = open_loop(tmp_path / "run")
    first = prepare.run(loop, job)
    loop.close()
    again, lines = open_loop(tmp_path / "run")
    assert prepare.run(again, job) == first
    assert lines == ["prepare: already done with these inputs, skipped"]


def test_run_seed_counts_only_for_synthetic_data() -> None:
    own, synthetic = DataConfig(), DataConfig(dataset="synthetic", synthetic=SMALL)
    assert prepare._settings(own, 1) == prepare._settings(own, 2)
    assert prepare._settings(synthetic, 1) != prepare._settings(synthetic, 2)


@pytest.mark.ray
def test_prepare_tables_synthetic_renders_every_item_and_skips_them_next_time(
    tmp_path: Path, ray_cluster: None
) -> None:
    cfg = DataConfig(dataset="synthetic", synthetic=SMALL)
    lines: list[str] = []
    counts = prepare_tables(cfg, str(tmp_path), 3, lines.append)
    tables = tmp_path / "tables"
    uris = [uri for uri in pq.read_table(tables / "items.parquet")["media_uri"].to_pylist() if uri]
    assert counts["num_items"] == 25
    assert (
        counts["num_rendered"] == counts["num_media_files"] == sum(Path(uri).is_file() for uri in uris) == len(uris) - 1
    )
    assert any(f"rendered {len(uris)}/{len(uris)}" in line and "items/s" in line for line in lines)
    assert oracle_scores(tables / "truth", ["user00000"], ["item00000"], np.zeros(1)).shape == (1, 1)
    before = digests(tables)
    assert prepare_tables(cfg, str(tmp_path), 3, print)["num_rendered"] == 0
    assert digests(tables) == before


@pytest.mark.ray
def test_prepare_tables_other_seed_leaves_media_of_earlier_tables_alone(tmp_path: Path, ray_cluster: None) -> None:
    cfg = DataConfig(dataset="synthetic", synthetic=SMALL)
    prepare_tables(cfg, str(tmp_path), 1, print)
    before = digests(tmp_path / "tables" / "media")
    prepare_tables(cfg, str(tmp_path), 2, print)
    after = digests(tmp_path / "tables" / "media")
    assert before.items() < after.items()


@pytest.mark.ray
def test_prepare_tables_failing_render_keeps_earlier_tables(tmp_path: Path, ray_cluster: None) -> None:
    prepare_tables(write_own(tmp_path / "good"), str(tmp_path / "run"), 0, print)
    before = digests(tmp_path / "run")
    (tmp_path / "run" / "tables" / "media").write_text("a file where the media folder should be")
    with pytest.raises(ray.exceptions.RayTaskError):
        prepare_tables(DataConfig(dataset="synthetic", synthetic=SMALL), str(tmp_path / "run"), 0, print)
    (tmp_path / "run" / "tables" / "media").unlink()
    assert digests(tmp_path / "run") == before


def test_render_items_is_plain_python(tmp_path: Path) -> None:
    image = next(task for task in write_tables(tmp_path, SMALL, 0) if task.kind == "image")
    done = prepare.render_items([image, dataclasses.replace(image, path=str(tmp_path / "copy.png"))])
    assert [item.skipped for item in done] == [False, False]
