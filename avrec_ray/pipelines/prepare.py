"""A dataset into our tables: the user's own checked, a published one read, or a synthetic one rendered with Ray."""

import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import ray

from avrec_ray.dataclass_io import to_dict
from avrec_ray.datasets import lastfm, microvideo, movielens, synthetic
from avrec_ray.datasets.config import DataConfig
from avrec_ray.datasets.synthetic import RenderedItem, RenderTask
from avrec_ray.datasets.table_files import Tables, read_tables, read_written, write_parquet
from avrec_ray.feedback.erased import ErasedUsers
from avrec_ray.feedback.pseudonyms import USER_COLUMNS, Pseudonyms
from avrec_ray.pipelines.stage import Loop, StageRecord, digest_file, fingerprint_of
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.users_of_job import erased_users

if TYPE_CHECKING:
    from avrec_ray.config import JobConfig

TASKS_PER_CALL = 6
"""Items a Ray task renders: enough to outweigh its scheduling, few enough to keep every core busy at the end."""
PROGRESS_SECONDS = 3.0

Log = Callable[[str], None]


def run(loop: Loop, job: "JobConfig") -> StageRecord:
    """Stage `prepare`: dataset to tables/. Ray must be connected."""
    storage, data = loop.storage, job.data
    pseudonyms = Pseudonyms.from_environment()
    return loop.stage(
        "prepare",
        lambda stage: prepare_tables(data, job.storage_path, job.seed, stage.log, pseudonyms, erased_users(job)),
        settings={**_settings(data, job.seed), **({"user_keys": True} if pseudonyms.is_keyed else {})},
        inputs=_inputs(data, storage, pseudonyms),
        outputs=[storage.items, storage.interactions],
    )


def prepare_tables(
    data: DataConfig,
    storage_path: str,
    seed: int,
    log: Log,
    pseudonyms: Pseudonyms | None = None,
    erased: ErasedUsers | None = None,
) -> dict[str, float]:
    """Write <storage_path>/tables and return counts; Ray must be connected for a synthetic dataset.

    Tables are built in a folder beside and replace the old ones only when all of them, and all media, are written. With
    `pseudonyms` they name users as the event store does; rows of `erased` users are left out.

    Raises:
        ConfigError, TableError, StageError: earlier tables are then as they were.
    """
    storage = Storage.at(storage_path)
    in_place = data.dataset == "tables" and not data.items
    with _staged(storage.folder("tables"), keep_optional=in_place) as staging:
        tables, counts = SOURCES[data.dataset](data, storage, staging, seed, log)
        if (pseudonyms and pseudonyms.is_keyed) or erased:
            _rename_users(staging, pseudonyms or Pseudonyms(), erased)
            tables = read_written(staging)
    counts = {**_count(tables), **counts}
    log("  ".join(f"{name} {value:,.0f}" for name, value in counts.items()))
    return counts


def _rename_users(staging: Path, pseudonyms: Pseudonyms, erased: ErasedUsers | None) -> None:
    """In every table that names users, those of planted truth among them."""
    for path in sorted(staging.rglob("*.parquet")):
        if not set(USER_COLUMNS).isdisjoint(pq.read_schema(path).names):
            table = pseudonyms.table(pq.read_table(path))
            write_parquet(table if erased is None else erased.without(table), path)


@contextmanager
def _staged(tables: Path, keep_optional: bool) -> Iterator[Path]:
    """A folder to write into; at the end each file in it replaces its namesake in `tables`.

    Optional tables that it lacks belong to the dataset before and go, unless `keep_optional`.
    """
    tables.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=tables) as name:
        staging = Path(name)
        yield staging
        for optional in () if keep_optional else ("users.parquet", "edges.parquet", "truth"):
            if not (staging / optional).exists():
                _remove(tables / optional)
        for path in sorted(p for p in staging.rglob("*") if p.is_file()):
            target = tables / path.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


Written = tuple[Tables, dict[str, float]]


def _from_tables(data: DataConfig, storage: Storage, staging: Path, seed: int, log: Log) -> Written:
    tables = _read_own(data, storage)
    tables.write(staging)
    return tables, {}


def _from_movielens(data: DataConfig, storage: Storage, staging: Path, seed: int, log: Log) -> Written:
    return movielens.write_tables(staging, data.movielens), {}


def _from_lastfm(data: DataConfig, storage: Storage, staging: Path, seed: int, log: Log) -> Written:
    return lastfm.write_tables(staging, data.lastfm), {}


def _from_microvideo(data: DataConfig, storage: Storage, staging: Path, seed: int, log: Log) -> Written:
    return microvideo.write_tables(staging, data.microvideo), {}


def _from_synthetic(data: DataConfig, storage: Storage, staging: Path, seed: int, log: Log) -> Written:
    """A catalogue of another seed or config has its own media folder, so that earlier tables keep their files."""
    digest = fingerprint_of("media", to_dict(data.synthetic), {"seed": str(seed)})[:12]
    media = storage.folder("tables") / "media" / digest
    tasks = synthetic.write_tables(staging, data.synthetic, seed, media)
    rendered = render_all(tasks, log)
    return read_written(staging), {
        "num_media_files": float(sum(item.num_bytes is not None for item in rendered)),
        "num_rendered": float(sum(not item.skipped and item.num_bytes is not None for item in rendered)),
        "media_bytes": float(sum(item.num_bytes or 0 for item in rendered)),
    }


SOURCES: Mapping[str, Callable[[DataConfig, Storage, Path, int, Log], Written]] = {
    "tables": _from_tables,
    "movielens": _from_movielens,
    "lastfm": _from_lastfm,
    "microvideo": _from_microvideo,
    "synthetic": _from_synthetic,
}
"""data.dataset -> how its tables come to be in a staging folder."""


def render_all(tasks: Sequence[RenderTask], log: Log) -> list[RenderedItem]:
    """Render with every core of the cluster; results in the order of `tasks`. Files that exist are kept."""
    render = ray.remote(num_cpus=1)(render_items)
    starts = range(0, len(tasks), TASKS_PER_CALL)
    calls = deque(render.remote(tasks[start : start + TASKS_PER_CALL]) for start in starts)
    rendered: list[RenderedItem] = []
    began = printed = time.monotonic()
    while calls:
        rendered += ray.get(calls.popleft())
        now = time.monotonic()
        if now - printed >= PROGRESS_SECONDS or not calls:
            printed, rate = now, len(rendered) / max(now - began, 1e-9)
            left = (len(tasks) - len(rendered)) / rate
            log(f"rendered {len(rendered)}/{len(tasks)}  {rate:.1f} items/s  {left:.0f} s left")
    return rendered


def render_items(tasks: Sequence[RenderTask]) -> list[RenderedItem]:
    """What one Ray task does."""
    return [synthetic.render_item(task) for task in tasks]


def _read_own(data: DataConfig, storage: Storage) -> Tables:
    paths = _own_paths(data, storage)
    return read_tables(paths["items"], paths["interactions"], paths.get("users"), paths.get("edges"))


def _own_paths(data: DataConfig, storage: Storage) -> dict[str, Path]:
    """Where the user's tables are. Optional tables under storage_path count only with the items that lie there."""
    names = ("items", "interactions", "users", "edges")
    paths = {name: Path(given) for name in names if (given := getattr(data, name))}
    for name in names:
        ready = storage.folder("tables") / f"{name}.parquet"
        if name in ("items", "interactions") or (not data.items and ready.is_file()):
            paths.setdefault(name, ready)
    return paths


def _settings(data: DataConfig, seed: int) -> dict[str, Any]:
    """What decides the tables. The seed and the config of a dataset that is not used do not."""
    own = {
        "tables": {},
        "movielens": to_dict(data.movielens),
        "lastfm": to_dict(data.lastfm),
        "microvideo": to_dict(data.microvideo),
        "synthetic": {**to_dict(data.synthetic), "seed": seed},
    }
    return {"dataset": data.dataset, **own[data.dataset]}


def _inputs(data: DataConfig, storage: Storage, pseudonyms: Pseudonyms) -> dict[str, str]:
    """Digests of what a dataset is read from.

    The user's tables go by content: tables that lie under storage_path are written back there checked, with the
    columns that they lacked and users' stored names, and must count as the same inputs afterwards.
    """
    if data.dataset == "tables":
        own = _read_own(data, storage)
        if pseudonyms.is_keyed and not data.items:
            users, edges = (None if t is None else pseudonyms.table(t) for t in (own.users, own.edges))
            own = Tables(own.items, pseudonyms.table(own.interactions), users, edges)
        return {"tables": own.digest()}
    sources = {
        "movielens": data.movielens.source,
        "lastfm": data.lastfm.source,
        "microvideo": data.microvideo.source,
    }
    source = sources.get(data.dataset)
    if source:
        files = sorted(p for p in Path(source).glob("*") if p.is_file())
        return {path.name: digest_file(path) for path in files}
    return {}


def _count(tables: Tables) -> dict[str, float]:
    return {
        "num_items": float(tables.items.num_rows),
        "num_media": float(tables.items.num_rows - tables.items["media_uri"].null_count),
        "num_interactions": float(tables.interactions.num_rows),
        "num_users": float(len(tables.interactions["user_id"].unique())),
    }
