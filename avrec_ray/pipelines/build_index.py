"""The vector index over the catalogue's embeddings, published if it finds what exact search finds."""

import pyarrow.parquet as pq

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.pipelines.embed_items import model_version
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.retrieval.index import build_index
from avrec_ray.retrieval.recall import check_recall, measure_recall
from avrec_ray.towers.vector_tables import vectors_of


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `build_index`: embeddings/ to index/.

    Raises:
        StageError: recall below index.min_recall; the index of before stays.
    """
    storage = loop.storage
    embedded = require_record(storage, "embed_items")

    def work(stage: StageRun) -> dict[str, float]:
        table = pq.read_table(storage.folder("embeddings") / "embeddings.parquet")
        embeddings = vectors_of(table, "embedding", job.towers.embedding_dim)
        index = build_index(embeddings, job.index)
        recalls = measure_recall(index, embeddings, job.seed)
        check_recall(recalls, job.index)
        with stage.publish("index") as (folder,):
            index.save(folder, model_version(require_record(storage, "refresh")))
        return {"num_items": float(len(embeddings)), **recalls}

    return loop.stage(
        "build_index",
        work,
        settings=to_dict(job.index),
        inputs={"embed_items": embedded.fingerprint},
        outputs=[storage.folder("index")],
    )
