"""Embedding: item tokens through the fine-tuned tower to embeddings and moments, by Ray Data."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.errors import StageError
from avrec_ray.pipelines.catalogue import item_tokens_of, positive_counts, read_item_tokens
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.towers.vector_tables import write_embeddings, write_moments
from avrec_ray.training.checkpoint import load_weights


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


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `embed_items`: embeddings/embeddings.parquet and moments/moments.parquet, both with a model_version."""
    storage = loop.storage
    tokens_path = storage.folder("item_tokens") / "tokens.parquet"
    weights = storage.folder("finetune") / "towers.safetensors"
    finetuned = require_record(storage, "finetune")

    def work(stage: StageRun) -> dict[str, float]:
        item_ids, _, _ = read_item_tokens(tokens_path, job.towers)
        train = pq.read_table(storage.folder("splits") / "train.parquet")
        warm = (positive_counts(train, item_ids) > 0).tolist()
        constructor = {
            "weights": str(weights),
            "towers": to_dict(job.towers),
            "row_of": {item_id: row for row, item_id in enumerate(item_ids)},
            "warm": warm,
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
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=job.cluster.num_workers),
            )
        )
        rows = sorted(embedded.iter_rows(), key=lambda row: str(row["item_id"]))
        if [row["item_id"] for row in rows] != item_ids:
            raise StageError(f"embed_items: {len(rows)} rows came back for {len(item_ids)} items; run the stage again")

        def column(name: str) -> npt.NDArray[Any]:
            return np.stack([row[name] for row in rows])

        version = model_version(finetuned)
        with stage.publish("embeddings", "moments") as (embeddings, moments):
            write_embeddings(embeddings / "embeddings.parquet", item_ids, column("embedding"), version)
            arrays = (column("moments"), column("moment_mask"), column("clip_spans"))
            num_moments = write_moments(moments / "moments.parquet", item_ids, *arrays, version)
        spread = float(column("embedding").std(0).mean()) * job.towers.embedding_dim**0.5
        return {"num_items": len(rows), "num_moments": num_moments, "embedding_spread": spread}

    return loop.stage(
        "embed_items",
        work,
        settings={"towers": to_dict(job.towers)},
        inputs={"finetune": finetuned.fingerprint},
        outputs=[storage.folder("embeddings"), storage.folder("moments")],
    )


def model_version(finetuned: StageRecord) -> str:
    """Name of a model version: a prefix of the fingerprint that decides the towers."""
    return f"v-{finetuned.fingerprint[:12]}"
