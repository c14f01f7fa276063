"""The reranker's training: the matcher's candidates for behaviour that the towers were not fitted on."""

import time
from collections.abc import Sequence
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
from avrec_ray.pipelines.catalogue import (
    build_catalogue,
    item_durations,
    popularities,
    read_fitted,
    read_items,
)
from avrec_ray.pipelines.embed_items import CatalogueVectors, embed_catalogue
from avrec_ray.pipelines.item_to_item import fit_item_to_item
from avrec_ray.pipelines.profiles import read_profiles
from avrec_ray.pipelines.split import read_split
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.pipelines.towers_of_job import with_widths
from avrec_ray.ranking.fitting import FittedReranker, fit_reranker
from avrec_ray.ranking.interaction import AttentionReranker
from avrec_ray.ranking.lists import ItemArrays, ItemToItem, chosen_items
from avrec_ray.ranking.position_bias import examined_shares, impressions_of
from avrec_ray.ranking.training import RerankBatches, RerankQuery, RerankStep, held_out_queries
from avrec_ray.retrieval.config import IndexConfig
from avrec_ray.retrieval.index import build_index
from avrec_ray.retrieval.sources import Asked, Stock, gather
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.histories import (
    EVENT_CODES,
    EventColumns,
    columns_from_table,
    pad_histories,
    with_profiles,
)
from avrec_ray.training.weights import load_weights, save_weights


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `train_reranker`: towers of `finetune` and splits/valid.parquet to reranker/reranker.safetensors."""
    storage = loop.storage
    job = with_widths(storage, job)

    def work(stage: StageRun) -> dict[str, float]:
        vectors = embed_catalogue(storage.root, "finetune", ("train",), job.towers, job.cluster)
        with stage.publish("reranker") as (folder,):
            task = _fit_reranker.options(num_gpus=1 if job.cluster.use_gpu else 0)
            result = ray.get(task.remote(str(storage.root), job, vectors, str(folder / "reranker.safetensors")))
        fitted: FittedReranker = result["fitted"]
        for epoch, losses in enumerate(fitted.epochs):
            stage.run.metrics({f"train/{name}": value for name, value in losses.items()}, step=epoch)
        stage.log(
            f"{result['num_lists']} lists, {result['seconds']:.1f} s; listwise loss of {result['num_held_out']} lists "
            f"of other users: matcher {fitted.before:.4f}, with the other scores {fitted.blended:.4f}, kept "
            f"{fitted.kept:.4f} after {fitted.best_epoch} epochs of attention"
        )
        for target, (raw, calibrated) in fitted.calibration_errors.items():
            stage.run.metrics({f"calibration_error/{target}_before": raw, f"calibration_error/{target}": calibrated})
        if result["examined_last"] < 1:
            stage.log(
                f"the last of {result['num_places']} places is looked at {result['examined_last']:.2f} times as often "
                "as the first; choices count the more the lower they were shown"
            )
        return {
            "num_lists": result["num_lists"],
            "examined_last_place": result["examined_last"],
            "best_epoch": fitted.best_epoch,
            "held_out_loss_before": fitted.before,
            "held_out_loss": fitted.kept,
        }

    return loop.stage(
        "train_reranker",
        work,
        settings={
            "reranker": to_dict(job.reranker),
            "matcher": {k: v for k, v in to_dict(job.matcher).items() if k not in ("num_candidates", "num_fresh")},
            "seed": job.seed,
        },
        inputs={"finetune": require_record(storage, "finetune").fingerprint},
        outputs=[storage.folder("reranker") / "reranker.safetensors"],
    )


@ray.remote(num_cpus=1, max_retries=1)
def _fit_reranker(root: str, job: JobConfig, vectors: CatalogueVectors, output: str) -> dict[str, Any]:
    """As a Ray task, so that a GPU node can take it and the driver stays free."""
    torch.set_num_threads(2)
    torch.manual_seed(job.seed)
    folder = Path(root)
    items = item_arrays(folder, job, vectors)
    columns, queries = held_out_lists(folder, job, vectors.item_ids)
    if not queries:
        raise StageError("train_reranker: no user has held-out behaviour; raise evaluation.split.valid_fraction")
    item_to_item = fit_item_to_item(folder, job, ("train",), vectors.item_ids, vectors.embeddings)
    candidate_idx, scores, said = matcher_candidates(
        folder, job, vectors.item_ids, items, item_to_item, columns, queries
    )
    popularity = items.popularity.numpy()
    index = {item_id: row for row, item_id in enumerate(vectors.item_ids)}
    examined = examined_shares(*impressions_of(read_fitted(folder, ("train", "valid")), index))
    batches = RerankBatches(columns, queries, candidate_idx, scores, said, popularity, job.reranker, job.seed, examined)
    held_out = batches.hold_out(job.reranker.held_out_share)
    step = RerankStep(AttentionReranker(job.reranker, job.towers.embedding_dim), items)
    began = time.monotonic()
    fitted = fit_reranker(step, batches, job.reranker.optim, held_out, job.seed)
    save_weights(Path(output), step.model)
    return {
        "fitted": fitted,
        "examined_last": float(examined[-1]),
        "num_places": len(examined),
        "num_lists": len(batches.useful),
        "num_held_out": len(held_out),
        "seconds": time.monotonic() - began,
    }


def item_arrays(folder: Path, job: JobConfig, vectors: CatalogueVectors) -> ItemArrays:
    """Vectors and popularity as tensors; copies, because what comes through Ray's object store is read-only."""
    items = read_items(folder / "tables" / "items.parquet", vectors.item_ids)
    return ItemArrays(
        embeddings=torch.tensor(vectors.embeddings),
        moments=torch.tensor(vectors.moments),
        moment_mask=torch.tensor(vectors.moment_mask),
        popularity=torch.from_numpy(
            popularities(read_fitted(folder, ("train",)), items, job.reranker.popularity_half_life_days)
        ),
    )


def held_out_lists(folder: Path, job: JobConfig, item_ids: list[str]) -> tuple[EventColumns, list[RerankQuery]]:
    """Events of train then valid, and the queries inside valid.

    All of a user's valid stands behind all of their train, as a request about it would see it: where items are held out
    whole, the two overlap in time.
    """
    index = {item_id: row for row, item_id in enumerate(item_ids)}
    durations = item_durations(read_items(folder / "tables" / "items.parquet", item_ids))
    parts = [read_fitted(folder, (part,)) for part in ("train", "valid")]
    both = pa.concat_tables(
        table.append_column("part_order", pa.array(np.full(table.num_rows, place))) for place, table in enumerate(parts)
    )
    columns = columns_from_table(both, index, durations, first_by="part_order")
    fitted = columns_from_table(parts[0], index, durations)
    count_of = dict(zip(fitted.user_ids, np.diff(fitted.starts), strict=True))
    num_fitted = np.array([count_of.get(user_id, 0) for user_id in columns.user_ids], np.int64)
    return columns, held_out_queries(columns, num_fitted, job.reranker.queries_per_user)


def _with_fitted_profiles(folder: Path, job: JobConfig, columns: EventColumns) -> EventColumns:
    """Friends' choices come from what the towers were fitted on, as those of a request do."""
    if not job.towers.reads_profiles:
        return columns
    item_ids = pq.read_table(folder / "item_tokens" / "tokens.parquet", columns=["item_id"])["item_id"].to_pylist()
    index = {item_id: row for row, item_id in enumerate(item_ids)}
    unknown = np.full(len(item_ids), np.nan, np.float32)
    fitted = columns_from_table(read_fitted(folder, ("train",)), index, unknown)
    return with_profiles(columns, read_profiles(folder / "tables", job.towers, fitted))


@torch.inference_mode()
def matcher_candidates(
    folder: Path,
    job: JobConfig,
    item_ids: list[str],
    items: ItemArrays,
    item_to_item: ItemToItem,
    columns: EventColumns,
    queries: list[RerankQuery],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Unseen candidates of each query [Q, K], as a request would get them: the best of the towers and what the other
    sources name, their scaled scores by the towers [Q, K], and what chosen items say of each [Q, K, 4].

    All lists are as long: what several sources name is made up for by the next best of the towers.
    """
    towers = TwoTower(job.towers, len(items.embeddings))
    load_weights(folder / "finetune" / "towers.safetensors", towers)
    towers.eval()
    columns = _with_fitted_profiles(folder, job, columns)
    candidates = read_split(folder).candidates_at("valid")
    allowed = np.isin(item_ids, candidates) if candidates is not None else np.ones(len(item_ids), bool)
    quotas = named_quotas(job)
    k = min(job.reranker.num_candidates + sum(quotas.values()), int(allowed.sum()))
    stock = fitted_stock(folder, job, item_ids, items, item_to_item, columns)
    found, scores, said = [], [], []
    # A choice that the matcher missed is not put in: it would teach that the matcher's lowest scores are the best.
    for start in range(0, len(queries), 256):
        chunk = queries[start : start + 256]
        history = pad_histories(columns, [(q.start, q.stop) for q in chunk], job.towers.history_length)
        vectors = towers.queries(history, items.embeddings)[:, -1]
        logits = vectors @ items.embeddings.T * towers.scale()
        for query, logits_N, vector in zip(chunk, logits.numpy(), (vectors * towers.scale()).numpy(), strict=True):
            asked = asked_in_training(columns, query, vector, allowed)
            barred = ~allowed
            barred[asked.seen] = True
            best = union_of_best(logits_N, list(gather(stock, asked, quotas)), barred, k)
            found.append(best)
            scores.append(logits_N[best])
            said.append(item_to_item.scores(columns, (query.start, query.stop), best))
    return np.stack(found), np.stack(scores), np.stack(said)


def named_quotas(job: JobConfig) -> dict[str, int]:
    """Quotas of the sources that name items beside the towers. Fresh ones are not named in training: whether that would
    help was not measured.
    """
    return {name: count for name, count in job.matcher.quotas.items() if name not in ("user_tower", "fresh")}


def fitted_stock(
    folder: Path,
    job: JobConfig,
    item_ids: list[str],
    items: ItemArrays,
    item_to_item: ItemToItem,
    columns: EventColumns,
) -> Stock:
    """What sources choose from, as of train: popularity, who is new, what friends chose."""
    table = read_items(folder / "tables" / "items.parquet", item_ids)
    fitted = read_fitted(folder, ("train",))
    embeddings = items.embeddings.numpy()
    return Stock(
        items=build_catalogue(table, fitted, item_durations(table), job.reranker.popularity_half_life_days),
        embeddings=embeddings,
        index=build_index(embeddings, IndexConfig(backend="flat")),
        cfg=job.matcher,
        session=item_to_item.session,
        friends=None if columns.profiles is None else columns.profiles.friends,
    )


def asked_in_training(
    columns: EventColumns, query: RerankQuery, vector: npt.NDArray[np.float32], allowed: npt.NDArray[np.bool_]
) -> Asked:
    """What `Matcher.asked` makes of a request."""
    rows = slice(query.start, query.stop)
    owner = int(np.searchsorted(columns.starts, query.start, "right")) - 1
    return Asked(
        vector=vector,
        chosen=chosen_items(columns, (query.start, query.stop)),
        followed=columns.item_idx[rows][columns.event[rows] == EVENT_CODES["follow"]],
        seen=np.unique(columns.item_idx[rows]),
        allowed=None if allowed.all() else allowed,
        profile_row=-1 if columns.profile_row is None else int(columns.profile_row[owner]),
        newest_at=float(columns.at_seconds[query.stop - 1]),
    )


def union_of_best(
    scores_N: npt.NDArray[np.float32], named: Sequence[int], barred_N: npt.NDArray[np.bool_], k: int
) -> npt.NDArray[np.int64]:
    """`k` rows, barred ones last: the rows named, and the best by score, both in the order of scores."""
    masked = scores_N.copy()
    masked[barred_N] = -np.inf
    is_named = np.zeros(len(masked), bool)
    is_named[np.asarray(named, np.int64)] = True
    return np.lexsort((-masked, ~is_named))[:k]
