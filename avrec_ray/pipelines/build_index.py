"""The vector index over the catalogue's embeddings, and the recall it was measured to have."""

import numpy as np
import pyarrow.parquet as pq

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.pipelines.embed_items import model_version
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.retrieval.index import build_index, recall_against_exact
from avrec_ray.towers.vector_tables import vectors_of


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `build_index`: embeddings/ to index/."""
    storage = loop.storage
    embedded = require_record(storage, "embed_items")

    def work(stage: StageRun) -> dict[str, float]:
        table = pq.read_table(storage.folder("embeddings") / "embeddings.parquet")
        embeddings = vectors_of(table, "embedding", job.towers.embedding_dim)
        index = build_index(embeddings, job.index)
        sample = np.random.default_rng(job.seed).choice(len(embeddings), min(200, len(embeddings)), replace=False)
        recall = recall_against_exact(index, embeddings[sample], k=min(100, len(embeddings)))
        with stage.publish("index") as (folder,):
            index.save(folder, model_version(require_record(storage, "refresh")))
        return {"num_items": float(len(embeddings)), "recall_at_100_of_exact": float(recall)}

    return loop.stage(
        "build_index",
        work,
        settings=to_dict(job.index),
        inputs={"embed_items": embedded.fingerprint},
        outputs=[storage.folder("index")],
    )
