"""The gate in front of index/: what finds too little is not published, and what is there stays."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avrec_ray.config import JobConfig
from avrec_ray.errors import StageError
from avrec_ray.pipelines import build_index
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, write_record
from avrec_ray.pipelines.storage import Storage
from avrec_ray.retrieval.config import IndexConfig
from avrec_ray.retrieval.index import load_index

NUM_ITEMS = 3000


class UntrackedLoop:
    """Runs the work of a stage without MLflow."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def stage(
        self, name: str, work: Callable[[StageRun], Mapping[str, float]], *, outputs: list[Path], **inputs: object
    ) -> StageRecord:
        metrics = work(StageRun(name, "f", cast(Any, None), self.storage, print))
        return StageRecord(name, "f", [str(path) for path in outputs], dict(metrics), "r", 0.0)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """As after embed_items."""
    storage = Storage.at(str(tmp_path))
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, JobConfig().towers.embedding_dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    storage.folder("embeddings").mkdir()
    pq.write_table(pa.table({"embedding": list(vectors)}), storage.folder("embeddings") / "embeddings.parquet")
    for stage in ("embed_items", "refresh"):
        write_record(storage, StageRecord(stage, "0123456789abcdef", [], {}, "r", 0.0))
    return storage


def build(storage: Storage, **index: Any) -> StageRecord:
    loop = cast(Loop, UntrackedLoop(storage))
    return build_index.run(loop, JobConfig(storage_path=str(storage.root), index=IndexConfig(**index)))


def test_exact_index_is_published_with_the_recalls_that_were_measured(storage: Storage) -> None:
    metrics = build(storage).metrics
    assert metrics.pop("num_items") == NUM_ITEMS
    assert metrics == {
        "recall_at_100_of_exact": 1.0,
        "recall_at_100_of_exact_random_10_percent": 1.0,
        "recall_at_100_of_exact_region_10_percent": 1.0,
        "recall_at_100_of_exact_random_1_percent": 1.0,
        "recall_at_100_of_exact_region_1_percent": 1.0,
    }
    assert load_index(storage.folder("index"), "v-0123456789ab").num_items == NUM_ITEMS


def test_index_that_finds_too_little_is_refused_and_the_one_before_stays(storage: Storage) -> None:
    build(storage)
    with pytest.raises(StageError, match=r"is below index.min_recall=0.95; the index is not published. Raise\s"):
        build(storage, backend="ivf_flat", num_lists=10, num_probes=1)
    assert load_index(storage.folder("index"), "v-0123456789ab").backend == "flat"
    assert sorted(path.name for path in storage.root.iterdir()) == ["embeddings", "index", "stages"]


def test_the_minimum_is_a_setting(storage: Storage) -> None:
    metrics = build(storage, backend="ivf_flat", num_lists=10, num_probes=1, min_recall=0.0).metrics
    assert metrics["recall_at_100_of_exact"] < 0.95
    assert load_index(storage.folder("index"), "v-0123456789ab").backend == "ivf_flat"
