"""Embedding: item tokens through fine-tuned towers to embeddings and moments, by Ray Data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import torch

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.errors import StageError
from avrec_ray.pipelines.catalogue import item_tokens_of, positive_counts, read_fitted, read_item_tokens
from avrec_ray.pipelines.split import read_split
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.pipelines.towers_of_job import with_widths
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.embedding_health import alignment, embedding_health
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.towers.vector_tables import write_embeddings, write_moments
from avrec_ray.training.weights import load_weights


class EmbedItems:
    """Ray Data callable: rows of the item tokens table to embeddings and moments. Loads the towers once an actor."""

    def __init__(self, weights: str, towers: dict[str, Any], row_of: dict[str, int], warm: list[bool]) -> None:
        torch.set_num_threads(1)
        self.cfg, self.row_of, self.warm = from_dict(TowersConfig, towers), row_of, torch.tensor(warm)
        self.towers = TwoTower(self.cfg, len(row_of))
        load_weights(Path(weights), self.towers)
        self.towers.eval()

    @torch.inference_mode()
    def __call__(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        item_ids, tokens, spans = item_tokens_of(table, self.cfg)
        rows = torch.tensor([self.row_of[item_id] for item_id in item_ids])
        embeddings = self.towers.embed_items(tokens, rows, self.warm[rows])
        moments, present = self.towers.item.moments(tokens)
        return {
            "item_id": np.array(item_ids, dtype=object),
            "embedding": embeddings.numpy(),
            "moments": moments.numpy(),
            "moment_mask": present.numpy(),
            "clip_spans": spans,
        }


@dataclass(eq=False)
class CatalogueVectors:
    """Vectors of every item, in the order of `item_ids`."""

    item_ids: list[str]
    embeddings: npt.NDArray[np.float32]
    """[N, D]."""
    moments: npt.NDArray[np.float32]
    """[N, M, D]."""
    moment_mask: npt.NDArray[np.bool_]
    """[N, M]."""
    clip_spans: npt.NDArray[np.float32]
    """[N, C, 2], seconds."""


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `embed_items`: embeddings/embeddings.parquet and moments/moments.parquet, both with a model_version."""
    storage = loop.storage
    job = with_widths(storage, job)
    refreshed = require_record(storage, "refresh")

    def work(stage: StageRun) -> dict[str, float]:
        vectors = embed_catalogue(storage.root, "refresh", read_split(storage.root).fitted, job.towers, job.cluster)
        version = model_version(refreshed)
        with stage.publish("embeddings", "moments") as (embeddings, moments):
            write_embeddings(embeddings / "embeddings.parquet", vectors.item_ids, vectors.embeddings, version)
            arrays = (vectors.moments, vectors.moment_mask, vectors.clip_spans)
            num_moments = write_moments(moments / "moments.parquet", vectors.item_ids, *arrays, version)
        spread = float(vectors.embeddings.std(0).mean()) * job.towers.embedding_dim**0.5
        stage.run.metrics(health_of(vectors))
        return {"num_items": len(vectors.item_ids), "num_moments": num_moments, "embedding_spread": spread}

    return loop.stage(
        "embed_items",
        work,
        settings={"towers": to_dict(job.towers)},
        inputs={"refresh": refreshed.fingerprint},
        outputs=[storage.folder("embeddings"), storage.folder("moments")],
    )


def health_of(vectors: CatalogueVectors) -> dict[str, float]:
    """`embedding/...`: how well the catalogue is spread, and `alignment` of each item with its own moments, both as
    towers.embedding_health defines them. Empty for a catalogue of one item."""
    if len(vectors.item_ids) < 2:
        return {}
    items, moments = torch.tensor(vectors.embeddings), torch.tensor(vectors.moments)
    row, moment = torch.nonzero(torch.tensor(vectors.moment_mask), as_tuple=True)
    health = embedding_health(items)
    if len(row):
        health["alignment"] = alignment(items[row], moments[row, moment])
    return {f"embedding/{name}": value for name, value in health.items()}


def embed_catalogue(
    storage_root: Path, stage: str, fitted_on: tuple[str, ...], towers: TowersConfig, cluster: ClusterConfig
) -> CatalogueVectors:
    """Every item through the towers of `stage`; items chosen in the parts `fitted_on` of the split use their ids."""
    tokens_path = storage_root / "item_tokens" / "tokens.parquet"
    item_ids, _, _ = read_item_tokens(tokens_path, towers)
    constructor = {
        "weights": str(storage_root / stage / "towers.safetensors"),
        "towers": to_dict(towers),
        "row_of": {item_id: row for row, item_id in enumerate(item_ids)},
        "warm": (positive_counts(read_fitted(storage_root, fitted_on), item_ids) > 0).tolist(),
    }
    embedded = (
        ray.data.read_parquet(str(tokens_path))
        .repartition(target_num_rows_per_block=512)
        .map_batches(
            EmbedItems,
            fn_constructor_kwargs=constructor,
            batch_format="pyarrow",
            batch_size=256,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=cluster.num_workers),
        )
    )
    rows = sorted(embedded.iter_rows(), key=lambda row: str(row["item_id"]))
    if [row["item_id"] for row in rows] != item_ids:
        raise StageError(f"{len(rows)} embedded rows came back for {len(item_ids)} items; run the stage again")
    columns = ("embedding", "moments", "moment_mask", "clip_spans")
    return CatalogueVectors(item_ids, *(np.stack([row[name] for row in rows]) for name in columns))


def model_version(towers: StageRecord) -> str:
    """Name of a model version: a prefix of the fingerprint that decides the towers."""
    return f"v-{towers.fingerprint[:12]}"
