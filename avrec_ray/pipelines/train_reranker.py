"""The reranker's training: the matcher's candidates for behaviour that the towers were not fitted on."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import StageError
from avrec_ray.pipelines.catalogue import item_durations, positive_counts, read_items
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.ranking.interaction import AttentionReranker
from avrec_ray.ranking.lists import ItemArrays
from avrec_ray.ranking.training import RerankBatches, RerankQuery, RerankStep, held_out_queries
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.towers.vector_tables import moment_arrays, vectors_of
from avrec_ray.training.checkpoint import load_weights, save_weights
from avrec_ray.training.fit import build_optimizer, fit
from avrec_ray.training.histories import EventColumns, columns_from_table, pad_histories


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `train_reranker`: towers, embeddings and splits/valid.parquet to reranker/reranker.safetensors."""
    storage = loop.storage

    def work(stage: StageRun) -> dict[str, float]:
        with stage.publish("reranker") as (folder,):
            task = _fit_reranker.options(num_gpus=1 if job.cluster.use_gpu else 0)
            result = ray.get(task.remote(str(storage.root), job, str(folder / "reranker.safetensors")))
        for epoch, losses in enumerate(result["epochs"]):
            stage.run.metrics({f"train/{name}": value for name, value in losses.items()}, step=epoch)
        stage.log(f"{result['num_lists']} lists, {result['seconds']:.1f} s of training")
        return {"num_lists": result["num_lists"], "loss": result["epochs"][-1]["loss"] if result["epochs"] else 0.0}

    return loop.stage(
        "train_reranker",
        work,
        settings={"reranker": to_dict(job.reranker), "seed": job.seed},
        inputs={name: require_record(storage, name).fingerprint for name in ("embed_items", "build_index")},
        outputs=[storage.folder("reranker") / "reranker.safetensors"],
    )


@ray.remote(num_cpus=1, max_retries=1)
def _fit_reranker(root: str, job: JobConfig, output: str) -> dict[str, Any]:
    """As a Ray task, so that a GPU node can take it and the driver stays free."""
    torch.set_num_threads(2)
    torch.manual_seed(job.seed)
    folder = Path(root)
    item_ids, items = load_item_arrays(folder, job)
    columns, queries = held_out_lists(folder, job, item_ids)
    if not queries:
        raise StageError("train_reranker: no user has held-out behaviour; raise evaluation.split.valid_fraction")
    candidate_idx, scores = matcher_candidates(folder, job, items, columns, queries)
    batches = RerankBatches(columns, queries, candidate_idx, scores, items.popularity.numpy(), job.reranker, job.seed)
    step = RerankStep(AttentionReranker(job.reranker, job.towers.embedding_dim), items)
    epochs: list[dict[str, float]] = []
    began = time.monotonic()
    fit(
        step,
        batches,
        batches.steps_per_epoch,
        job.reranker.optim,
        lambda epoch, losses, due: epochs.append(losses),
        optimizer=build_optimizer(step, job.reranker.optim),
        seed=job.seed,
    )
    save_weights(Path(output), step.model)
    return {"epochs": epochs, "num_lists": len(batches.useful), "seconds": time.monotonic() - began}


def load_item_arrays(folder: Path, job: JobConfig) -> tuple[list[str], ItemArrays]:
    """Embeddings, moments and popularity as tensors, in the order of the embeddings table."""
    table = pq.read_table(folder / "embeddings" / "embeddings.parquet")
    item_ids = table["item_id"].to_pylist()
    moments, mask, _ = moment_arrays(pq.read_table(folder / "moments" / "moments.parquet"), item_ids, job.towers)
    counts = positive_counts(pq.read_table(folder / "splits" / "train.parquet"), item_ids)
    return item_ids, ItemArrays(
        embeddings=torch.from_numpy(vectors_of(table, "embedding", job.towers.embedding_dim)),
        moments=torch.from_numpy(moments),
        moment_mask=torch.from_numpy(mask),
        popularity=torch.from_numpy((counts / max(counts.sum(), 1)).astype(np.float32)),
    )


def held_out_lists(folder: Path, job: JobConfig, item_ids: list[str]) -> tuple[EventColumns, list[RerankQuery]]:
    """Events of train then valid, and the queries inside valid."""
    index = {item_id: row for row, item_id in enumerate(item_ids)}
    durations = item_durations(read_items(folder / "tables" / "items.parquet", item_ids))
    train = pq.read_table(folder / "splits" / "train.parquet")
    valid = pq.read_table(folder / "splits" / "valid.parquet")
    columns = columns_from_table(pa.concat_tables([train, valid]), index, durations)
    fitted = columns_from_table(train, index, durations)
    count_of = dict(zip(fitted.user_ids, np.diff(fitted.starts), strict=True))
    num_fitted = np.array([count_of.get(user_id, 0) for user_id in columns.user_ids], np.int64)
    return columns, held_out_queries(columns, num_fitted, job.reranker.queries_per_user)


@torch.inference_mode()
def matcher_candidates(
    folder: Path, job: JobConfig, items: ItemArrays, columns: EventColumns, queries: list[RerankQuery]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The towers' best unseen items of each query [Q, K] and their scaled scores; a chosen item takes the last place
    if the matcher missed it, so that every list teaches something."""
    towers = TwoTower(job.towers, len(items.embeddings))
    load_weights(folder / "finetune" / "towers.safetensors", towers)
    towers.eval()
    k = min(job.reranker.num_candidates, len(items.embeddings))
    found, scores = [], []
    for start in range(0, len(queries), 256):
        chunk = queries[start : start + 256]
        history = pad_histories(columns, [(q.start, q.stop) for q in chunk], job.towers.history_length)
        logits = towers.queries(history, items.embeddings)[:, -1] @ items.embeddings.T * towers.scale()
        for row, query in enumerate(chunk):
            masked = logits[row].clone()
            masked[columns.item_idx[query.start : query.stop]] = -torch.inf
            best = torch.topk(masked, k).indices.numpy()
            target = columns.item_idx[query.stop]
            if target not in best and torch.isfinite(masked[target]):
                best[-1] = target
            found.append(best)
            scores.append(logits[row].numpy()[best])
    return np.stack(found), np.stack(scores)
