"""What batch recommendation is asked for: users, candidates and settings, checked at the door and digested."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import check_range, to_dict
from avrec_ray.errors import ConfigError, TableError
from avrec_ray.feedback.bundle_names import BundleNames
from avrec_ray.pipelines.recommend_shards import shard_size
from avrec_ray.pipelines.stage import digest_file, fingerprint_of
from avrec_ray.ranking.exploration import SECONDS_A_DAY, day_of
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.ranking.rules import load_rules
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.types import check_table

Echo = Callable[[str], None]


@dataclass(kw_only=True, frozen=True)
class Wanted:
    """Which lists: everything that decides them."""

    bundle: Path
    interactions: Sequence[Path]
    users: Sequence[str]
    """Distinct and sorted."""
    matcher: MatcherConfig
    policy: PolicyConfig
    k: int
    candidates: Sequence[str] | None = None
    """Items that may be listed; None allows the whole catalogue."""
    at_seconds: float | None = None
    """When they are made, POSIX; None where the policy does not ask."""
    names: BundleNames | None = None
    """How users of `interactions` are called in `users`; None: as they are there."""

    @property
    def settings(self) -> dict[str, Any]:
        """What is not a table or a model."""
        return {
            "matcher": to_dict(self.matcher),
            "policy": policy_settings(self.policy),
            "at_seconds": self.at_seconds,
            "k": self.k,
            "shard_users": shard_size(len(self.users)),
        }

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of settings, inputs and code version."""
        inputs = {f"interactions.{number}": digest_file(path) for number, path in enumerate(self.interactions)}
        inputs["bundle"] = digest_file(self.bundle / "metadata.json")  # it holds the digest of every other file
        inputs["users"] = _digest(self.users)
        inputs["candidates"] = "all" if self.candidates is None else _digest(sorted(set(self.candidates)))
        return fingerprint_of("recommend", self.settings, inputs)


def wanted_lists(
    bundle: Path,
    interactions: Sequence[Path],
    users: Sequence[str],
    job: JobConfig,
    k: int,
    candidates: Sequence[str] | None,
    names: BundleNames | None = None,
) -> Wanted:
    """The lists of distinct `users` by the matcher and the policy of a job."""
    return Wanted(
        bundle=bundle,
        interactions=interactions,
        users=sorted(users),
        matcher=job.matcher,
        policy=job.policy,
        k=k,
        candidates=candidates,
        names=names,
        at_seconds=today(time.time()) if job.policy.exploration or job.policy.rules else None,
    )


def policy_settings(policy: PolicyConfig) -> dict[str, Any]:
    """Everything that decides what a policy does: the content of its rules counts, not their path alone."""
    if policy.rules:
        load_rules(policy.rules)  # wrong ones are refused here, not by every worker
    return {**to_dict(policy), "rules_sha256": digest_file(Path(policy.rules)) if policy.rules else ""}


def today(now_seconds: float) -> float:
    """The start of the day, UTC: a job that is resumed on the same day goes on with the same lists."""
    return day_of(now_seconds) * float(SECONDS_A_DAY)


def distinct(users: Sequence[str], echo: Echo) -> list[str]:
    """Each user once: one that is named twice still gets one list."""
    once = list(dict.fromkeys(users))
    if len(once) < len(users):
        echo(f"{len(users) - len(once)} rows of users repeat a user_id; each user gets one list")
    return once


def output_path(job: JobConfig) -> Path:
    """Where the lists go; refused before anything is computed if they could not be written there."""
    if not job.users or not job.output:
        raise ConfigError(f"users={job.users!r} and output={job.output!r}; give two absolute Parquet paths")
    check_range("k", job.k, 1)
    output = Path(job.output)
    if not output.is_absolute():
        raise ConfigError(f"output={job.output!r} is not absolute; workers run in another directory, give a full path")
    if not output.parent.is_dir() or output.is_dir():
        problem = "is a folder" if output.is_dir() else f"lies in {output.parent}, which is no folder"
        raise ConfigError(f"output={job.output!r} {problem}; give a Parquet file in a folder that exists")
    return output


def read_ids(path: str, name: str, column: str) -> list[str]:
    """The ids in a column of a Parquet file.

    Raises:
        TableError: the file cannot be read, has no such column, no row, or a null in it.
    """
    schema = pa.schema([pa.field(column, pa.string(), nullable=False)])
    try:
        checked = check_table(pq.read_table(path), schema, f"{name} {path}")
    except (OSError, pa.ArrowInvalid) as error:
        raise TableError(f"{path} cannot be read as Parquet ({error}); expected a table with {column!r}") from error
    if not checked.num_rows:
        raise TableError(f"{name} {path} has no row; give at least one {column}")
    return list(checked[column].to_pylist())


def _digest(values: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()
