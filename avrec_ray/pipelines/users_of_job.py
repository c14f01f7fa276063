"""The users of a job: its event store, their names, and those who were erased."""

from pathlib import Path

import pyarrow.parquet as pq

from avrec_ray.config import JobConfig
from avrec_ray.errors import ConfigError
from avrec_ray.feedback.erased import ErasedUsers
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.store import EventStore
from avrec_ray.pipelines.atomic import write_atomically
from avrec_ray.pipelines.recommend_inputs import read_ids
from avrec_ray.pipelines.storage import Storage

TABLES = ("interactions", "users", "edges")


def open_store(job: JobConfig, rotating: bool = False) -> EventStore:
    """The event store of a job, with the keys of the environment."""
    url = job.feedback.store_url(job.storage_path)
    return EventStore(url, job.feedback.busy_timeout_seconds, rotating=rotating)


def erased_users(job: JobConfig) -> ErasedUsers:
    """Who must not be learned from. Nobody where there is no event store yet."""
    if not job.feedback.url and not (Path(job.storage_path) / "events.db").is_file():
        return ErasedUsers(Pseudonyms.from_environment(), {})
    store = open_store(job)
    try:
        return store.erased_users()
    finally:
        store.close()


def drop_erased(storage: Storage, erased: ErasedUsers) -> int:
    """Take erased users out of the prepared tables, where jobs.erase_user was not there yet; returns rows."""
    dropped = 0
    for name in TABLES if len(erased) else ():
        path = storage.folder("tables") / f"{name}.parquet"
        if path.is_file():
            table = pq.read_table(path)
            kept = erased.without(table)
            if kept.num_rows < table.num_rows:
                write_atomically(path, lambda staged, kept=kept: pq.write_table(kept, staged))  # type: ignore[misc]
            dropped += table.num_rows - kept.num_rows
    return dropped


def asked_users(job: JobConfig) -> list[str]:
    """Ids of the users that a job is about: `user`, or the column user_id of `users`."""
    if bool(job.user) == bool(job.users):
        raise ConfigError("give either user=<id> or users=<parquet: user_id>")
    return [job.user] if job.user else list(dict.fromkeys(read_ids(job.users, "users", "user_id")))


def absolute(path: str) -> Path:
    """A path to write, refused if it is relative."""
    if not Path(path).is_absolute():
        raise ConfigError(f"output={path!r} is not absolute; give a full path")
    return Path(path)
