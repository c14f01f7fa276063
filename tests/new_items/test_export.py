"""Accepted items reach the next bundle's tables, deleted ones do not, and the bundle knows up to where it goes."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.item_vectors import vectors_with_gaps
from avrec_ray.new_items.export import watermark_of, with_accepted
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
    merged = with_accepted(items, store, "/uploads")
    pq.write_table(check_items(merged), tmp_path / "items.parquet")
    read = pq.read_table(tmp_path / "items.parquet")
    assert read.select(["item_id", "title", "media_uri"]).to_pylist() == [
        {"item_id": "a", "title": "A", "media_uri": None},
        {"item_id": "b", "title": "B anew", "media_uri": "/media/b.mp4"},
        {"item_id": "d", "title": "D", "media_uri": None},
    ]
    assert vectors_with_gaps(check_items(read), "video").tolist()[0] == [1.0, 2.0]
    assert watermark_of(read.schema) == store.accepted_items()[1] == 5
    assert with_accepted(merged, store, "/uploads").equals(merged)
