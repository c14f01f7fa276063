"""The event store into Parquet parts under storage_path, each event once, whenever the process is killed.

events/part-<after>-<upto>.parquet holds the events behind one watermark up to the next, and likewise impressions/. The
names are the only record: where the last part ends the next one begins, and a part is there whole or not at all.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.durable import crash_point, sync
from avrec_ray.errors import StageError
from avrec_ray.feedback.impressions import IMPRESSIONS, START, Watermark
from avrec_ray.feedback.store import EventStore
from avrec_ray.pipelines.atomic import write_atomically
from avrec_ray.pipelines.storage import Storage
from avrec_ray.types import INTERACTIONS

EVENTS, IMPRESSIONS_FOLDER = "events", "impressions"
_NAME = re.compile(r"part-(\d{12})-(\d{12})\.parquet")

Export = Callable[[int, int], tuple[pa.Table, int]]


@dataclass(frozen=True)
class Part:
    """A file with the rows behind `after`, up to `upto`."""

    path: Path
    after: int
    upto: int


def parts_in(folder: Path) -> list[Part]:
    """The parts of a folder in their order.

    Raises:
        StageError: one is missing, or two overlap: somebody moved files.
    """
    found = [(path, _NAME.fullmatch(path.name)) for path in sorted(folder.glob("part-*.parquet"))]
    parts = [Part(path, int(match[1]), int(match[2])) for path, match in found if match]
    end = 0
    for part in parts:
        if part.after != end:
            raise StageError(
                f"{part.path} begins behind {part.after}, but the part before it ends at {end}; restore the parts of "
                f"{folder}, or remove them all to export anew"
            )
        end = part.upto
    return parts


def exported(storage: Storage) -> Watermark:
    """How far the parts under `storage` go."""
    ends = (parts_in(storage.folder(name))[-1:] for name in (EVENTS, IMPRESSIONS_FOLDER))
    return Watermark(*(part[0].upto if part else 0 for part in ends))


def export_new(store: EventStore, storage: Storage, first: int = 0) -> Watermark:
    """Write what the store holds behind the last parts, and return how far they go now.

    Args:
        first: a watermark of events at which the first part ends, so that what lies before it can be told apart.
    """
    upto = store.watermark()
    if 0 < first < upto.events and not parts_in(storage.folder(EVENTS)):
        _export(storage.folder(EVENTS), store.export_interactions, first)
    _export(storage.folder(EVENTS), store.export_interactions, upto.events)
    _export(storage.folder(IMPRESSIONS_FOLDER), store.export_impressions, upto.impressions)
    return exported(storage)


def _export(folder: Path, export: Export, upto: int) -> None:
    parts = parts_in(folder)
    after = parts[-1].upto if parts else 0
    if upto <= after:
        return
    table, end = export(after, upto)
    if not table.num_rows:  # what lay there was erased
        return
    folder.mkdir(parents=True, exist_ok=True)
    crash_point(f"export:{folder.name}:begun")
    path = folder / f"part-{after:012d}-{end:012d}.parquet"
    write_atomically(path, lambda staged: pq.write_table(table, staged))
    sync(folder)
    crash_point(f"export:{folder.name}:written")


def read_events(storage: Storage, upto: Watermark, after: Watermark = START) -> pa.Table:
    """Exported events of the parts that lie within two watermarks, an interactions table in the store's order."""
    return _read(storage.folder(EVENTS), after.events, upto.events, INTERACTIONS)


def read_impressions(storage: Storage, upto: Watermark, after: Watermark = START) -> pa.Table:
    """Exported impressions likewise, columns `impressions.IMPRESSIONS`."""
    return _read(storage.folder(IMPRESSIONS_FOLDER), after.impressions, upto.impressions, IMPRESSIONS)


def _read(folder: Path, after: int, upto: int, schema: pa.Schema) -> pa.Table:
    within = [part for part in parts_in(folder) if after <= part.after and part.upto <= upto]
    tables = [pq.read_table(part.path).cast(schema) for part in within]
    return pa.concat_tables([schema.empty_table(), *tables])
