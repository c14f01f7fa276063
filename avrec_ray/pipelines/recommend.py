"""Batch recommendation by Ray Data: the serving path, matcher then reranker, for many users at once, resumable."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import ray

from avrec_ray.bundle import load_bundle_profiles, load_metadata
from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import StageError
from avrec_ray.feedback.bundle_names import BundleNames
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.pipelines.recommend_inputs import Echo, Wanted, distinct, output_path, read_ids, wanted_lists
from avrec_ray.pipelines.recommend_parts import Parts, open_parts, parts_folder
from avrec_ray.pipelines.recommend_users import RecommendUsers
from avrec_ray.pipelines.stage import Loop

PROGRESS_SECONDS = 3.0


def run(loop: Loop, job: JobConfig) -> Path:
    """jobs.recommend: bundle + users [+ candidates] to a recommendations table at `job.output`.

    Users are named in the output as they were in `job.users`; in between, and in the parts on disk, as in the store.

    Killed at any moment, the same call goes on with the shards that are missing. `job.output` appears when it is whole.

    Raises:
        ConfigError: a path is missing, relative or in no folder, or k is below 1.
        TableError: a table cannot be read, lacks its column, or holds a null.
        StageError: there are no interactions, or no user got a list.
    """
    output = output_path(job)
    bundle = loop.resolve_bundle(job.bundle).absolute()
    load_metadata(bundle)  # a folder that is no bundle is refused here, not by every actor
    interactions = Path(job.data.interactions) if job.data.interactions else loop.storage.interactions
    candidates = read_ids(job.candidates, "candidates", "item_id") if job.candidates else None
    users = distinct(read_ids(job.users, "users", "user_id"), loop.echo)
    profiles = load_bundle_profiles(bundle)
    names = BundleNames(Pseudonyms.from_environment(), profiles.row_of if profiles else ())
    named = dict(zip(names.of_many(users), users, strict=True))
    wanted = wanted_lists(bundle, [interactions], list(named), job, job.k, candidates, names)
    began = time.monotonic()
    parts = open_parts(parts_folder(output), wanted, loop.echo)
    num_computed = compute(parts, wanted, job.cluster.num_workers, loop.echo)
    parts.merge(output, named)
    parts.remove()
    seconds = time.monotonic() - began
    counts = {"num_users": len(users), "num_users_computed": num_computed, "seconds": seconds}
    loop.parent.metrics({**counts, "users_per_second": num_computed / seconds})
    return output


def recommend_users(
    bundle: Path,
    interactions: Sequence[Path],
    users: Sequence[str],
    job: JobConfig,
    k: int,
    candidates: Sequence[str] | None = None,
    echo: Echo = print,
) -> pa.Table:
    """A recommendations table: `k` items a user, seen ones left out. Sorted by user and rank.

    `candidates` restricts the lists to these items. Parts lie under `job.storage_path` meanwhile.

    Raises:
        TableError: a table of interactions breaks its schema.
        StageError: no user got a list.
    """
    wanted = wanted_lists(bundle.absolute(), interactions, distinct(users, echo), job, k, candidates)
    parts = open_parts(parts_folder(Path(job.storage_path) / "lists"), wanted, echo)
    compute(parts, wanted, job.cluster.num_workers, echo)
    table = pa.concat_tables(list(parts.tables())).combine_chunks()
    parts.remove()
    return table


def compute(parts: Parts, wanted: Wanted, num_workers: int, echo: Echo) -> int:
    """Compute the missing parts on at most `num_workers` actors; returns for how many users. Ray must be connected.

    Raises:
        StageError: no user got a list.
    """
    missing = parts.missing()
    total = sum(map(parts.users_of, missing))
    done, began, printed = 0, time.monotonic(), time.monotonic()
    for shard in _finished_shards(parts, wanted, missing, num_workers):
        done += parts.users_of(shard)
        now = time.monotonic()
        if now - printed >= PROGRESS_SECONDS or done == total:
            printed, rate = now, done / max(now - began, 1e-9)
            before = parts.num_users - total
            left = (total - done) / rate
            echo(f"recommended {before + done}/{parts.num_users} users  {rate:.0f} users/s  {left:.0f} s left")
    if missing := parts.missing():
        raise StageError(f"recommend: shard {missing[0]} has no part in {parts.folder}; run the same command again")
    if not parts.num_rows():
        parts.remove()
        raise StageError(
            "recommend: no user got a list; give users with jobs.recommend users=<parquet with user_id>, and "
            "candidates that are in the bundle's catalogue"
        )
    return done


def _finished_shards(parts: Parts, wanted: Wanted, shards: list[int], num_workers: int) -> Iterator[int]:
    """Numbers of shards as their parts get written."""
    if not shards:
        return
    constructor = {
        "bundle": str(wanted.bundle),
        "folder": str(parts.folder),
        "matcher": to_dict(wanted.matcher),
        "policy": to_dict(wanted.policy),
        "k": wanted.k,
        "candidates": wanted.candidates,
        "at_seconds": wanted.at_seconds,
    }
    most = min(num_workers, len(shards))
    fitting = max(1, min(most, int(ray.cluster_resources().get("CPU", 1)) - 1))
    written = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map_batches(
        RecommendUsers,
        fn_constructor_kwargs=constructor,
        batch_size=1,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(min_size=fitting, max_size=most),
    )
    for batch in written.iter_batches(batch_format="numpy", batch_size=None):
        yield from batch["shard"].tolist()
