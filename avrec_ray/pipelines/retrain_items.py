"""New items into a retraining: what the service accepted and took down since, decoded beside the clips that are there.

The changes are read once a run, into retrain/run-<watermark>/new_items.parquet; whatever comes later is for replicas to
apply, and for the next run. Clips of the loop are linked, never copied or written.
"""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avrec_ray.bundle import BundleMetadata
from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.durable import crash_point
from avrec_ray.media.clips import write_clips
from avrec_ray.media.config import MediaConfig
from avrec_ray.new_items.eligible import why_not_encodable
from avrec_ray.new_items.export import CatalogueChanges, catalogue_changes, read_changes
from avrec_ray.new_items.store import NewItemStore
from avrec_ray.pipelines.atomic import write_atomically
from avrec_ray.pipelines.decode_media import decode_manifest
from avrec_ray.pipelines.retrain_plan import Plan
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.pipelines.storage import Storage

NEW_CLIPS = "new_clips"
"""Folder of the clips of new items alone; clips/ links to them."""
_CHANGES = "new_items.parquet"


def note_changes(loop: Loop, job: JobConfig, plan: Plan, champion: BundleMetadata) -> CatalogueChanges:
    """Changes of the catalogue that a run takes in; read once, so that a run that goes on takes the same.

    Args:
        job: of the whole storage: the store, and where uploads lie.
        champion: says whether its towers can read new items; where they cannot, only deletions are taken over.
    """
    path = plan.folder(loop.storage) / _CHANGES
    if not path.is_file():
        store = NewItemStore(job.feedback.store_url(job.storage_path), job.feedback.busy_timeout_seconds)
        try:
            changes = catalogue_changes(store, str(job.new_items.uploads(job.storage_path)))
        finally:
            store.close()
        write_atomically(path, changes.save)
        crash_point("new_items:noted")
    changes, reason = read_changes(path), why_not_encodable(champion)
    if changes.accepted.num_rows and reason:
        loop.echo(f"{changes.accepted.num_rows} new items stay out of the bundle: {reason}")
        return changes.without_accepted()
    return changes


def limits_of_new_items(job: JobConfig) -> MediaConfig:
    """What may be opened: uploads, and what the service may take in. Other settings are those of all media."""
    allowed = [str(job.new_items.uploads(job.storage_path)), *job.new_items.media_roots]
    return replace(job.media, media_roots=allowed, remote_schemes=list(job.new_items.remote_schemes))


def decode(loop: Loop, job: JobConfig, storage: Storage, changes: CatalogueChanges, limits: MediaConfig) -> StageRecord:
    """Stage `decode_media` of a retraining: clips/ of the run, those of `storage` but with the changes.

    An item whose media cannot be decoded now is in quarantine/ and in no table of clips, so that the bundle lacks it:
    the service then tries it once more by itself, as it does with whatever was accepted and is in no bundle.
    """
    own, source = loop.storage, storage.folder("clips")
    clips = own.folder("clips")

    def work(stage: StageRun) -> dict[str, float]:
        counts = _decode_new(own, job, changes, limits, stage) if changes.accepted.num_rows else {}
        if clips.is_symlink():  # what a run before this version left
            clips.unlink()
        with stage.publish("clips") as (staged,):
            num_dropped = _link_kept(source, staged, changes.replaced)
            for path in _parts(own.folder(NEW_CLIPS)) if counts else ():
                (staged / f"new-{path.name}").symlink_to(path)
        if num_dropped:
            stage.log(f"{num_dropped} items of before were replaced or taken down")
        return {**counts, "num_dropped": float(num_dropped)}

    return loop.stage(
        "decode_media",
        work,
        settings=to_dict(limits),
        inputs={"decoded": require_record(storage, "decode_media").fingerprint, "changes": changes.digest()},
        outputs=[clips],
    )


def seconds_of_new(own: Storage) -> dict[str, float]:
    """How long each new item is, as its last clip ends; items without picture and sound are left out."""
    paths = _parts(own.folder(NEW_CLIPS))
    if not paths:
        return {}
    table = pa.concat_tables([pq.read_table(path, columns=["item_id", "end_seconds"]) for path in paths])
    found = table.group_by("item_id").aggregate([("end_seconds", "max")])
    ends = zip(found["item_id"].to_pylist(), found["end_seconds_max"].to_pylist(), strict=True)
    return {item_id: end for item_id, end in ends if end > 0}


def _decode_new(
    own: Storage, job: JobConfig, changes: CatalogueChanges, limits: MediaConfig, stage: StageRun
) -> dict[str, float]:
    """Accepted items to new_clips/ and quarantine/ of the run; counts."""
    path = own.root / _CHANGES
    found = decode_manifest(
        str(path),
        str(own.folder(NEW_CLIPS)),
        str(own.folder("quarantine")),
        limits,
        job.cluster.num_decode_actors,
        stage.log,
        resource=job.cluster.decode_resource,
        may_be_empty=True,
    )
    if found.get("quarantined_forbidden"):
        stage.log("some are forbidden: give this job the new_items.media_roots and remote_schemes that jobs.serve has")
    wanted = ("items", "usable", "clips", "quarantined")
    return {f"num_new_{name}": float(found[name]) for name in wanted}


def _link_kept(source: Path, target: Path, dropped: frozenset[str]) -> int:
    """Link the parts of a clips table; those that hold a dropped item are written anew. Returns how many it held."""
    gone = pa.array(sorted(dropped), pa.string())
    found: set[str] = set()
    for path in _parts(source):
        ids = pq.read_table(path, columns=["item_id"])["item_id"] if dropped else None
        mine = pc.unique(ids.filter(pc.is_in(ids, value_set=gone))).to_pylist() if ids is not None else []
        found.update(mine)
        if not mine:
            (target / path.name).symlink_to(path.resolve())
            continue
        table = pq.read_table(path)
        kept = table.filter(pc.invert(pc.is_in(table["item_id"], value_set=gone)))
        if kept.num_rows:
            write_clips(kept.combine_chunks(), target / path.name)
    return len(found)


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))
