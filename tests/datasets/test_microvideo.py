"""Micro-videos known by features: every row of them is an item, and the published split stays what it is."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from avrec_ray.datasets.config import MicroVideoConfig
from avrec_ray.datasets.microvideo import TIMELESS_AT, write_tables
from avrec_ray.errors import ConfigError, TableError
from avrec_ray.evaluation.split import SplitConfig, split_interactions
from avrec_ray.item_vectors import vector_width, vectors_with_gaps

PAIRS = {"train": [[0, 1], [0, 2], [7, 0]], "val": [[0, 0]], "test": [[7, 2], [0, 3]]}


def published(folder: Path, **changed: object) -> MicroVideoConfig:
    rng = np.random.default_rng(0)
    pairs = {name: np.array(rows, np.int32) for name, rows in PAIRS.items()}
    np.savez(folder / "interactions.npz", **{**pairs, "shape": np.array([8, 4]), **changed})
    np.save(folder / "audio_feat.npy", rng.normal(size=(4, 5)).astype(np.float16))
    np.save(folder / "image_feat.npy", rng.normal(size=(4, 3)).astype(np.float16))
    return MicroVideoConfig(source=str(folder))


def test_items_are_the_rows_of_the_features(tmp_path: Path) -> None:
    cfg = published(tmp_path)
    write_tables(tmp_path / "tables", cfg)
    items = pq.read_table(tmp_path / "tables" / "items.parquet")
    assert items["item_id"].to_pylist() == ["0", "1", "2", "3"]
    assert set(items["title"].to_pylist()) == {""}
    assert (vector_width(items.schema, "video"), vector_width(items.schema, "audio")) == (3, 5)
    np.testing.assert_array_equal(vectors_with_gaps(items, "audio"), np.load(tmp_path / "audio_feat.npy"))


def test_given_split_is_the_published_one(tmp_path: Path) -> None:
    table = write_tables(tmp_path / "tables", published(tmp_path)).interactions
    split = split_interactions(table, SplitConfig(kind="given"))
    for name, part in (("train", split.train), ("val", split.valid), ("test", split.test)):
        found = zip(part["user_id"].to_pylist(), part["item_id"].to_pylist(), strict=True)
        assert sorted(found) == sorted((str(user), str(item)) for user, item in PAIRS[name])
    assert set(table["event"].to_pylist()) == {"view"}
    assert set(table["at"].to_pylist()) == {TIMELESS_AT}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val": np.zeros((2, 3), np.int32)}, r"expected 'val' as whole numbers \[n, 2\]"),
        ({"test": np.zeros((2, 2))}, r"expected 'test' as whole numbers"),
        ({"train": np.array([[0, 4]])}, "'train' names a video outside the 4 rows"),
    ],
)
def test_pairs_that_are_not_as_published_are_refused(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    with pytest.raises(TableError, match=message):
        write_tables(tmp_path / "tables", published(tmp_path, **changed))


def test_features_of_other_videos_or_with_holes_are_refused(tmp_path: Path) -> None:
    cfg = published(tmp_path)
    np.save(tmp_path / "image_feat.npy", np.ones((3, 2), np.float32))
    with pytest.raises(TableError, match="expected the same videos in each"):
        write_tables(tmp_path / "tables", cfg)
    np.save(tmp_path / "image_feat.npy", np.array([[1.0], [2.0], [np.inf], [0.0]]))
    with pytest.raises(TableError, match="row 2 holds a value that is not finite"):
        write_tables(tmp_path / "tables", cfg)


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    cfg = published(tmp_path)
    np.save(tmp_path / "audio_feat.npy", np.array([{"a": 1}], object))
    with pytest.raises(TableError, match="no readable NumPy file"):
        write_tables(tmp_path / "tables", cfg)


def test_missing_source_and_missing_files_say_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.microvideo\.source is empty"):
        write_tables(tmp_path, MicroVideoConfig())
    with pytest.raises(TableError, match=r"set data\.microvideo\.source"):
        write_tables(tmp_path, MicroVideoConfig(source=str(tmp_path)))
