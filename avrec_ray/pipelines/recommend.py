"""Batch recommendation by Ray Data: the serving path, matcher then reranker, for many users at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch

from avrec_ray.bundle import load_bundle, load_metadata
from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.errors import ConfigError, StageError, TableError
from avrec_ray.pipelines.stage import Loop
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.ranking.recommend import recommend
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.types import RECOMMENDATIONS, Event, Filters, Query


class RecommendUsers:
    """Ray Data callable: user ids to rows of the recommendations table. Loads the bundle once an actor."""

    def __init__(
        self,
        bundle: str,
        interactions: Sequence[str],
        matcher: dict[str, Any],
        policy: dict[str, Any],
        k: int,
        candidates: Sequence[str] | None = None,
    ) -> None:
        torch.set_num_threads(1)
        opened = load_bundle(bundle)
        self.matcher = Matcher(opened, from_dict(MatcherConfig, matcher))
        self.reranker = Reranker(opened, from_dict(PolicyConfig, policy))
        self.table = pa.concat_tables([pq.read_table(path) for path in interactions])
        self.k = k
        wanted = set(candidates or opened.items.item_ids)
        self.filters = Filters(exclude_items=tuple(i for i in opened.items.item_ids if i not in wanted))

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        users = [str(user) for user in batch["user_id"]]
        histories = histories_of(self.table, users)
        queries = [
            Query(user_id=user, history=histories.get(user, ()), k=self.k, filters=self.filters) for user in users
        ]
        lists = recommend(self.matcher, self.reranker, queries)
        rows = [(u, r.item_id, r.rank, r.score) for u, ranking in zip(users, lists, strict=True) for r in ranking]
        return {
            "user_id": np.array([row[0] for row in rows], dtype=object),
            "item_id": np.array([row[1] for row in rows], dtype=object),
            "rank": np.array([row[2] for row in rows], dtype=np.int32),
            "score": np.array([row[3] for row in rows], dtype=np.float32),
        }


def histories_of(table: pa.Table, users: Sequence[str]) -> Mapping[str, tuple[Event, ...]]:
    """Events of the given users, oldest first; events of one moment keep the order of the table."""
    mine = table.filter(pc.is_in(table["user_id"], value_set=pa.array(list(users), pa.string())))
    at_seconds = mine["at"].cast(pa.int64()).to_numpy() / 1e6
    rows = mine.select(["user_id", "item_id", "event", "watch_seconds", "value"]).to_pylist()
    histories: dict[str, list[Event]] = {}
    for index in np.argsort(at_seconds, kind="stable"):
        row = rows[index]
        event = Event(
            user_id=row["user_id"],
            item_id=row["item_id"],
            event=row["event"],
            at_seconds=float(at_seconds[index]),
            watch_seconds=row["watch_seconds"],
            value=row["value"],
        )
        histories.setdefault(event.user_id, []).append(event)
    return {user: tuple(events) for user, events in histories.items()}


def run(loop: Loop, job: JobConfig) -> Path:
    """jobs.recommend: bundle + users [+ candidates] to a recommendations table at `job.output`."""
    if not job.users or not job.output:
        raise ConfigError(f"users={job.users!r} and output={job.output!r}; give two absolute Parquet paths")
    users = [str(user) for user in _read_column(job.users, "user_id")]
    bundle = loop.resolve_bundle(job.bundle)
    load_metadata(bundle)  # a folder that is no bundle is refused here, not by every actor
    interactions = Path(job.data.interactions) if job.data.interactions else loop.storage.interactions
    candidates = [str(item) for item in _read_column(job.candidates, "item_id")] if job.candidates else None
    table = recommend_users(bundle, [interactions], users, job, job.k, candidates)
    output = Path(job.output)
    staged = output.with_name(output.name + ".part")
    pq.write_table(table, staged)
    staged.rename(output)
    return output


def _read_column(path: str, column: str) -> list[Any]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise TableError(f"{path} cannot be read as Parquet ({error}); expected a table with {column!r}") from error
    if column not in table.column_names:
        raise TableError(f"{path}: column {column!r} is missing; got {table.column_names}")
    return list(table[column].to_pylist())


def recommend_users(
    bundle: Path,
    interactions: Sequence[Path],
    users: Sequence[str],
    job: JobConfig,
    k: int,
    candidates: Sequence[str] | None = None,
) -> pa.Table:
    """A recommendations table: `k` items a user, seen ones left out. Sorted by user and rank.

    `candidates` restricts the lists to these items.
    """
    constructor = {
        "bundle": str(bundle),
        "interactions": [str(path) for path in interactions],
        "matcher": to_dict(job.matcher),
        "policy": to_dict(job.policy),
        "k": k,
        "candidates": candidates,
    }
    found = ray.data.from_items([{"user_id": user} for user in users], override_num_blocks=job.cluster.num_workers * 4)
    found = found.map_batches(
        RecommendUsers,
        fn_constructor_kwargs=constructor,
        batch_size=64,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=job.cluster.num_workers),
    )
    tables = [pa.Table.from_batches([batch]) for batch in _arrow_batches(found)]
    if not tables:
        raise StageError("recommend: no user got a list; give users with jobs.recommend users=<parquet with user_id>")
    table = pa.concat_tables(tables).select(RECOMMENDATIONS.names).cast(RECOMMENDATIONS)
    return table.sort_by([("user_id", "ascending"), ("rank", "ascending")])


def _arrow_batches(dataset: Any) -> list[pa.RecordBatch]:
    tables = dataset.iter_batches(batch_format="pyarrow", batch_size=None)
    return [batch for table in tables for batch in table.to_batches()]
