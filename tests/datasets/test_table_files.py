from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avrec_ray.datasets.table_files import check_tables, read_tables, read_written, write_parquet
from avrec_ray.errors import StageError, TableError
from avrec_ray.item_vectors import vector_width
from avrec_ray.types import INTERACTIONS, ITEMS

AT = datetime(2026, 1, 1, tzinfo=UTC)


def items(**changes: Any) -> pa.Table:
    return pa.table({"item_id": ["a", "b"], "media_uri": [None, "/m/b.mp4"], "title": ["first", ""], **changes})


def interactions(**changes: Any) -> pa.Table:
    columns: dict[str, Any] = {"user_id": ["u", "u"], "item_id": ["a", "b"], "event": ["view", "like"], "at": [AT, AT]}
    return pa.table({**columns, **changes})


def test_check_tables_fills_optional_columns() -> None:
    tables = check_tables(items(), interactions())
    assert tables.items.schema == ITEMS
    assert tables.interactions.schema == INTERACTIONS
    assert tables.users is None


def test_check_tables_unknown_item_names_row_and_id() -> None:
    with pytest.raises(TableError, match="column 'item_id' holds 'zzz' in row 1, which is not in the items table of 2"):
        check_tables(items(), interactions(item_id=["a", "zzz"]))


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_check_tables_bad_watch_seconds_names_row(seconds: float) -> None:
    with pytest.raises(TableError, match=r"'watch_seconds' holds .* in row 1; expected seconds >= 0"):
        check_tables(items(), interactions(watch_seconds=pa.array([None, seconds], pa.float32())))


def test_check_tables_without_usable_items_raises() -> None:
    empty = items(media_uri=pa.array([None, None], pa.string()), title=["", "  "])
    with pytest.raises(StageError, match="none of 2 rows is usable; an item needs a media_uri, a title"):
        check_tables(empty, interactions())


def test_check_tables_empty_items_raises() -> None:
    with pytest.raises(StageError, match="none of 0 rows is usable"):
        check_tables(items().slice(0, 0), interactions().slice(0, 0))


def test_check_tables_without_interactions_raises() -> None:
    with pytest.raises(StageError, match="interactions: the table has no rows"):
        check_tables(items(), interactions().slice(0, 0))


def test_check_tables_repeated_user_raises() -> None:
    with pytest.raises(TableError, match="users: column 'user_id' repeats 'u' in row 1"):
        check_tables(items(), interactions(), users=pa.table({"user_id": ["u", "u"]}))


def test_check_tables_edges_without_friend_raises() -> None:
    with pytest.raises(TableError, match="edges: column 'friend_id' is missing"):
        check_tables(items(), interactions(), edges=pa.table({"user_id": ["u"]}))


def test_read_tables_missing_file_names_setting(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no\.parquet does not exist; set data\.items to the absolute path"):
        read_tables(tmp_path / "no.parquet", tmp_path / "no2.parquet")


def test_read_tables_not_parquet_names_file(tmp_path: Path) -> None:
    (tmp_path / "items.parquet").write_text("item_id,title\n")
    with pytest.raises(TableError, match=r"items\.parquet is not a readable Parquet file"):
        read_tables(tmp_path / "items.parquet", tmp_path / "no.parquet")


def test_tables_write_then_read_gives_the_same(tmp_path: Path) -> None:
    users = pa.table({"user_id": ["u"]})
    edges = pa.table({"user_id": ["u"], "friend_id": ["v"]})
    tables = check_tables(items(), interactions(), users, edges)
    tables.write(tmp_path)
    read = read_written(tmp_path)
    assert read.items == tables.items
    assert read.interactions == tables.interactions
    assert read.users == tables.users
    assert read.edges == tables.edges


def test_tables_digest_ignores_encoding_but_not_content(tmp_path: Path) -> None:
    tables = check_tables(items(), interactions())
    pq.write_table(items(), tmp_path / "items.parquet", compression="gzip")
    pq.write_table(interactions(), tmp_path / "interactions.parquet", row_group_size=1)
    again = read_tables(tmp_path / "items.parquet", tmp_path / "interactions.parquet")
    other = check_tables(items(title=["first", "x"]), interactions())
    assert again.digest() == tables.digest()
    assert other.digest() != tables.digest()


def test_write_parquet_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(items(), path)
    with pytest.raises(AttributeError):
        write_parquet("not a table", path)
    assert pq.read_table(path) == items()
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_vectors_of_own_tables_survive_and_count_as_the_same_inputs_afterwards(tmp_path: Path) -> None:
    vectors = pa.array([None, [0.5, 2.0, -1.0]], pa.list_(pa.float64()))
    paths = {"items": tmp_path / "items.parquet", "interactions": tmp_path / "interactions.parquet"}
    pq.write_table(items(audio_vector=vectors), paths["items"])
    pq.write_table(interactions(), paths["interactions"])
    first = read_tables(**paths)
    assert vector_width(first.items.schema, "audio") == 3
    first.write(tmp_path)  # in place, as prepare does with tables under storage_path
    again = read_tables(**paths)
    assert again.items["audio_vector"].to_pylist() == [None, [0.5, 2.0, -1.0]]
    assert again.digest() == first.digest()
    assert read_written(tmp_path).items.equals(first.items)
    pq.write_table(items(audio_vector=pa.array([None, [0.5, 2.0, -1.5]])), paths["items"])
    assert read_tables(**paths).digest() != first.digest()


def test_items_known_by_vectors_alone_are_usable() -> None:
    nothing = pa.array([None, None], pa.string())
    known = items(media_uri=nothing, title=["", ""], image_vector=pa.array([[1.0], None]))
    assert check_tables(known, interactions()).items["title"].to_pylist() == ["", ""]
