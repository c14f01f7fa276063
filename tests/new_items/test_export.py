"""Accepted items reach the next bundle's tables, deleted ones do not, and the bundle knows up to where it goes."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.item_vectors import vectors_with_gaps
from avrec_ray.new_items.export import catalogue_changes, read_changes, watermark_of, with_changes
from avrec_ray.new_items.store import NewItemStore
from avrec_ray.new_items.submission import Submission
from avrec_ray.types import check_items


def accept(store: NewItemStore, item: Submission) -> None:
    store.submit(item)
    claim = store.claim("w", 60)
    assert claim is not None
    assert store.finish(claim, "t1", b"v")


def test_items_table_is_merged_with_what_the_service_has(store: NewItemStore, tmp_path: Path) -> None:
    items = check_items(
        pa.table(
            {
                "item_id": ["a", "b", "c"], "title": ["A", "B", "C"], "media_uri": pa.nulls(3, pa.string()),
                "video_vector": [[1.0, 2.0], None, [3.0, 4.0]],
            }
        )
    )  # fmt: skip
    assert watermark_of(items.schema) == 0
    accept(store, Submission("b", "B anew", "/media/b.mp4"))
    accept(store, Submission("d", "D", tags=("x",), published_at_seconds=1e9))
    accept(store, Submission("e", "E"))
    store.delete("c", is_served=True)
    store.delete("e", is_served=True)
    changes = catalogue_changes(store, "/uploads")
    changes.save(tmp_path / "changes.parquet")
    read_back = read_changes(tmp_path / "changes.parquet")
    assert (read_back.digest(), read_back.replaced) == (changes.digest(), {"b", "c", "d", "e"})
    merged = with_changes(items, read_back)
    pq.write_table(check_items(merged), tmp_path / "items.parquet")
    read = pq.read_table(tmp_path / "items.parquet")
    assert read.select(["item_id", "title", "media_uri"]).to_pylist() == [
        {"item_id": "a", "title": "A", "media_uri": None},
        {"item_id": "b", "title": "B anew", "media_uri": "/media/b.mp4"},
        {"item_id": "d", "title": "D", "media_uri": None},
    ]
    assert vectors_with_gaps(check_items(read), "video").tolist()[0] == [1.0, 2.0]
    assert watermark_of(read.schema) == store.accepted_items()[1] == 5
    assert with_changes(merged, changes).equals(merged)


def test_only_deletions_are_taken_over_where_a_bundle_takes_no_items(store: NewItemStore) -> None:
    items = check_items(pa.table({"item_id": ["a", "b"], "title": ["A", "B"], "media_uri": pa.nulls(2, pa.string())}))
    assert not catalogue_changes(store, "/uploads")
    accept(store, Submission("b", "B anew"))
    store.delete("a", is_served=True)
    found = with_changes(items, catalogue_changes(store, "/uploads").without_accepted())
    assert found["title"].to_pylist() == ["B"]  # as it was: replicas put the new body over it
    assert watermark_of(found.schema) == 0
