"""jobs.erase_user: users out of the event store, of every file and of artifacts; then the proof."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from avrec_ray.config import JobConfig
from avrec_ray.durable import crash_point
from avrec_ray.errors import StageError
from avrec_ray.feedback.erasure_scan import scan_folder
from avrec_ray.feedback.receipts import Receipt
from avrec_ray.feedback.store import EventStore
from avrec_ray.feedback.user_files import erase_from_files
from avrec_ray.pipelines.artifacts import fetch_artifacts, kept_elsewhere, replace_artifact
from avrec_ray.pipelines.atomic import write_text_atomically
from avrec_ray.pipelines.stage import Loop
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.users_of_job import asked_users, open_store

ARTIFACTS = ("evaluation", "bundle/users.parquet", "bundle/metadata.json")
"""What runs keep of users, in the words of MLflow."""


def run(loop: Loop, job: JobConfig) -> list[Receipt]:
    """Erase users; returns a signed receipt each. Nothing of it is logged to MLflow, for that would name them.

    Killed anywhere, the same call completes it; erasures that a service or another call left half done, too. Users are
    gone for readers of the store at the first step. Jobs that are writing meanwhile may write what they have read
    before: run it again when they have ended.

    Raises:
        ConfigError: no user is given, or the store has other keys.
        StageError: with `scan`, a user was found where none should be; the receipts are in the store all the same.
    """
    store = open_store(job)
    try:
        store.resume_erasures(read_tombstones(loop.storage))
        users = asked_users(job)
        stored = {user: store.pseudonyms.of(user) for user in users}
        names = sorted({name for user in users for name in (user, *store.pseudonyms.aliases(stored[user]))})
        for name in stored.values():
            store.erase(name)
        write_tombstones(loop.storage, store)
        crash_point("job.store")
        removed = {**erase_from_files(loop.storage.root, names), **_erase_from_artifacts(loop, names)}
        crash_point("job.files")
        store.compact()
        crash_point("job.compacted")
        receipts = [store.note_erased_files(name, _counts(removed, len(users))) for name in stored.values()]
        loop.echo(f"erased {len(users)} users: {sum(removed.values())} rows and places in {len(removed)} files")
        if job.scan:
            _scan(loop, store, names)
        return receipts
    finally:
        store.close()


def tombstones_path(storage: Storage) -> Path:
    """Tombstones beside the store: a store that is restored from a backup takes them from here."""
    return storage.root / "erasures.json"


def read_tombstones(storage: Storage) -> dict[str, int]:
    """What was written last; empty if nobody was erased."""
    path = tombstones_path(storage)
    return {str(k): int(v) for k, v in json.loads(path.read_text()).items()} if path.is_file() else {}


def write_tombstones(storage: Storage, store: EventStore) -> None:
    """All that the store knows, which is no less than what was there: it took that over before."""
    write_text_atomically(tombstones_path(storage), json.dumps(store.tombstones(), indent=1))


def _counts(removed: Mapping[str, int], num_users: int) -> dict[str, int]:
    """As a receipt says them: where files were gone through once for several users, their rows are counted together."""
    note = "" if num_users == 1 else f" ({num_users} users together)"
    return {f"{place}{note}": count for place, count in removed.items()}


def _erase_from_artifacts(loop: Loop, names: Sequence[str]) -> dict[str, int]:
    """Artifacts that an MLflow server keeps elsewhere; those under storage_path are files like others."""
    removed: dict[str, int] = {}
    for run_id, place in _kept_elsewhere(loop):
        with tempfile.TemporaryDirectory() as folder:
            fetched = fetch_artifacts(loop.tracking, run_id, ARTIFACTS, Path(folder))
            changed = erase_from_files(Path(folder), names) if fetched else {}
            for name in changed:
                replace_artifact(loop.tracking, run_id, Path(folder), name)
                if name.endswith("users.parquet"):
                    replace_artifact(loop.tracking, run_id, Path(folder), str(Path(name).with_name("metadata.json")))
            removed |= {f"{place}/{name}": count for name, count in changed.items()}
    return removed


def _kept_elsewhere(loop: Loop) -> list[tuple[str, str]]:
    """Runs with artifacts outside of the storage path; where MLflow is embedded there are none."""
    return list(kept_elsewhere(loop.tracking, loop.storage.root)) if loop.tracking_config.uri else []


def _scan(loop: Loop, store: EventStore, names: Sequence[str]) -> None:
    scan = scan_folder(loop.storage.root, names)
    store.scan(names, scan)
    for run_id, place in _kept_elsewhere(loop):
        with tempfile.TemporaryDirectory() as folder:
            fetch_artifacts(loop.tracking, run_id, ARTIFACTS, Path(folder))
            scan.found += [f"{place}/{found}" for found in scan_folder(Path(folder), names).found]
    for line in scan.lines():
        loop.echo(line)
    if scan.found:
        raise StageError(
            f"erase_user: users are still in {len(scan.found)} places, {scan.found[0]!r} first; end the jobs that "
            "write there and run the same again, or see docs/privacy.md for what it leaves to you"
        )
