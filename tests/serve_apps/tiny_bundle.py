"""A small but real bundle: random weights, random vectors, every file that serving reads."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from avrec_ray.bundle import BundleMetadata, Catalogue, catalogue_table, save_bundle
from avrec_ray.ranking.config import RerankerConfig
from avrec_ray.ranking.interaction import AttentionReranker
from avrec_ray.retrieval.config import IndexConfig
from avrec_ray.retrieval.index import build_index
from avrec_ray.towers.config import TowersConfig, moment_layout
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.checkpoint import save_weights

DIM = 16
TOWERS_VERSION = "towers-test"


def write_tiny_bundle(folder: Path, catalogue: Catalogue, seed: int = 0) -> Path:
    """Write a bundle for `catalogue` at `folder`, whose name is its model_version."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    towers = TowersConfig(embedding_dim=DIM, model_dim=DIM, num_heads=2, user_layers=1, history_length=20, max_clips=1)
    reranker = RerankerConfig(hidden_dim=8)
    metadata = BundleMetadata(
        model_version=folder.name,
        towers_version=TOWERS_VERSION,
        towers=towers,
        reranker=reranker,
        index=IndexConfig(),
        seed=seed,
        data_version="data-test",
    )
    embeddings = unit_vectors(rng, len(catalogue))

    def write_files(staging: Path) -> None:
        save_weights(staging / "towers.safetensors", TwoTower(towers, len(catalogue)))
        scorer = AttentionReranker(reranker, DIM)
        torch.nn.init.normal_(scorer.heads.weight)  # as built it would leave the matcher's order alone
        save_weights(staging / "reranker.safetensors", scorer)
        pq.write_table(catalogue_table(catalogue), staging / "items.parquet")
        pq.write_table(versioned(embedding_columns(catalogue, embeddings)), staging / "embeddings.parquet")
        pq.write_table(versioned(moment_columns(catalogue, rng)), staging / "moments.parquet")
        (staging / "index").mkdir()
        build_index(embeddings, IndexConfig()).save(staging / "index", TOWERS_VERSION)

    return save_bundle(folder, metadata, write_files)


def unit_vectors(rng: np.random.Generator, count: int) -> npt.NDArray[np.float32]:
    vectors = rng.normal(size=(count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def versioned(columns: dict[str, pa.Array]) -> pa.Table:
    return pa.table(columns).replace_schema_metadata({"model_version": TOWERS_VERSION})


def embedding_columns(catalogue: Catalogue, embeddings: npt.NDArray[np.float32]) -> dict[str, pa.Array]:
    return {"item_id": pa.array(catalogue.item_ids), "embedding": pa.array(list(embeddings), pa.list_(pa.float32()))}


def moment_columns(catalogue: Catalogue, rng: np.random.Generator) -> dict[str, pa.Array]:
    """Every item has the video, the audio and the text moment of one clip of four seconds."""
    layout = moment_layout(max_clips=1)
    rows = [(item_id, n, modality) for item_id in catalogue.item_ids for n, (modality, _) in enumerate(layout)]
    return {
        "item_id": pa.array([row[0] for row in rows]),
        "moment_idx": pa.array([row[1] for row in rows], pa.int32()),
        "start_seconds": pa.array([0.0] * len(rows), pa.float32()),
        "end_seconds": pa.array([4.0] * len(rows), pa.float32()),
        "modality": pa.array([row[2] for row in rows]),
        "embedding": pa.array(list(unit_vectors(rng, len(rows))), pa.list_(pa.float32())),
    }
