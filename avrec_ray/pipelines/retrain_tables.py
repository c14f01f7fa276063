"""Exported events to the tables of a retraining: suspicious ones set aside, the others with what they are worth."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.feedback.labels import label_examples, target_weights_of
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.shown import impression_rows
from avrec_ray.feedback.suspicion import SUSPICIONS, Sifted, sift, trust_of_users
from avrec_ray.new_items.export import CatalogueChanges, with_changes
from avrec_ray.pipelines.event_export import EVENTS, IMPRESSIONS_FOLDER, parts_in, read_events, read_impressions
from avrec_ray.pipelines.retrain_items import seconds_of_new
from avrec_ray.pipelines.retrain_plan import Plan
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, digest_file, require_record
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.users_of_job import erased_users
from avrec_ray.training.histories import LABEL_WEIGHT

IS_NEW = "is_new"
"""Extra column of the interactions table: whether the event came after the run before."""
HELD_BACK_FOLDER = "held_back"


def run(loop: Loop, job: JobConfig, storage: Storage, plan: Plan, changes: CatalogueChanges) -> StageRecord:
    """Stage `prepare` of a retraining: parts under `storage` to tables/, labels/ and held_back/ of the run.

    Every exported event is in tables/interactions.parquet, in held_back/events.parquet, or of an item that the
    catalogue does not have, which is counted. The catalogue is that of `storage` with the `changes`.
    """

    erased, pseudonyms = erased_users(job), Pseudonyms.from_environment()

    def named(table: pa.Table) -> pa.Table:
        """Users by their names of today, without those who were erased."""
        return erased.without(pseudonyms.table(table))

    def work(stage: StageRun) -> dict[str, float]:
        with stage.publish("tables", "labels", HELD_BACK_FOLDER) as (tables, labels, held_back):
            items = _catalogue(storage, changes, seconds_of_new(own))
            return _write(storage, plan, job, items, (tables, labels, held_back), named, stage.log)

    own = loop.storage
    return loop.stage(
        "prepare",
        work,
        settings={"labels": to_dict(job.retrain.labels), "suspicion": to_dict(job.retrain.suspicion)},
        inputs=_digests(storage, plan)
        | {"decode_media": require_record(own, "decode_media").fingerprint}
        | ({"erased": erased.digest()} if len(erased) else {}),
        outputs=[own.items, own.interactions, own.folder("labels"), own.folder(HELD_BACK_FOLDER)],
    )


def _catalogue(storage: Storage, changes: CatalogueChanges, seconds: Mapping[str, float]) -> pa.Table:
    """The items table of the run. How long new items are is what their clips say: nobody else told."""
    items = with_changes(pq.read_table(storage.items), changes)
    told = pa.array([seconds.get(item_id) for item_id in items["item_id"].to_pylist()], pa.float32())
    place = items.schema.get_field_index("duration_seconds")
    known = pc.coalesce(items["duration_seconds"], told)
    return items.set_column(place, items.schema.field(place), known)


def _write(
    storage: Storage,
    plan: Plan,
    job: JobConfig,
    items: pa.Table,
    folders: tuple[Path, Path, Path],
    named: Callable[[pa.Table], pa.Table],
    log: Callable[[str], None],
) -> dict[str, float]:
    tables, labels_folder, held_back_folder = folders
    before, new = named(read_events(storage, plan.since)), named(read_events(storage, plan.upto, plan.since))
    is_new = pa.array(np.arange(before.num_rows + new.num_rows) >= before.num_rows)
    events = pa.concat_tables([before, new]).append_column(IS_NEW, is_new)
    sifted = sift(events, job.retrain.suspicion)
    kept, num_unknown = _of_catalogue(sifted.kept, items)
    shown, _ = _of_catalogue(named(read_impressions(storage, plan.upto)), items)
    labels = label_examples(kept, shown, items, job.retrain.labels, trust_of_users(kept, job.retrain.suspicion))
    pq.write_table(_interactions(kept, shown, labels), tables / "interactions.parquet")
    pq.write_table(items, tables / storage.items.name)
    for path in (storage.root / "tables" / f"{name}.parquet" for name in ("users", "edges")):
        if path.is_file():
            pq.write_table(named(pq.read_table(path)), tables / path.name)
    pq.write_table(labels, labels_folder / "labels.parquet")
    pq.write_table(sifted.held_back, held_back_folder / "events.parquet")
    for line in _said(new.num_rows, events.num_rows, num_unknown, sifted, labels):
        log(line)
    return {
        "num_events": float(events.num_rows),
        "num_new_events": float(new.num_rows),
        "num_kept": float(kept.num_rows),
        "num_of_unknown_items": float(num_unknown),
        "num_impressions": float(shown.num_rows),
        "num_labels": float(labels.num_rows),
        **{f"held_back_{reason}": float(count) for reason, count in sifted.counts().items()},
    }


def _interactions(kept: pa.Table, shown: pa.Table, labels: pa.Table) -> pa.Table:
    """Events with their weights, and recorded impressions in place of those that clients posted of the same lists."""
    recorded = pc.is_in(kept["request_id"], pc.unique(shown["request_id"]))
    repeats = pc.and_(pc.equal(kept["event"], "impression"), pc.fill_null(recorded, False))
    events = kept.filter(pc.invert(repeats))
    rows = impression_rows(shown)
    nothing = pa.array(np.zeros(rows.num_rows, np.float32))
    rows = rows.append_column(IS_NEW, pa.array(np.zeros(rows.num_rows, bool))).append_column(LABEL_WEIGHT, nothing)
    weights = pa.array(target_weights_of(events, labels))
    return pa.concat_tables([events.append_column(LABEL_WEIGHT, weights), rows])


def _of_catalogue(table: pa.Table, items: pa.Table) -> tuple[pa.Table, int]:
    """Rows of items that the catalogue has, and how many it has not."""
    kept = table.filter(pc.is_in(table["item_id"], items["item_id"].combine_chunks()))
    return kept, table.num_rows - kept.num_rows


def _said(num_new: int, num_all: int, num_unknown: int, sifted: Sifted, labels: pa.Table) -> list[str]:
    positive = int(pc.sum(labels["label"]).as_py() or 0)
    lines = [
        f"{num_new} new events of {num_all}; {positive} positive and {labels.num_rows - positive} negative examples"
    ]
    for reason, count in sifted.counts().items():
        if count:
            lines.append(f"held back: {count} events, {reason}: {SUSPICIONS[reason]}")
    if num_unknown:
        lines.append(f"left out: {num_unknown} events of items that the catalogue does not have")
    return lines


def _digests(storage: Storage, plan: Plan) -> dict[str, str]:
    """What the tables are made of: the parts, and the catalogue."""
    found = {"items": digest_file(storage.items)}
    for name, upto in ((EVENTS, plan.upto.events), (IMPRESSIONS_FOLDER, plan.upto.impressions)):
        parts = [part for part in parts_in(storage.folder(name)) if part.upto <= upto]
        found |= {f"{name}/{part.path.name}": digest_file(part.path) for part in parts}
    for name in ("users", "edges"):
        path = storage.root / "tables" / f"{name}.parquet"
        found |= {name: digest_file(path)} if path.is_file() else {}
    return found | {"since": str(plan.since.events)}
