"""Manifest to clips and quarantine with Ray Data, resumable: every item ends up in exactly one of the two."""

import dataclasses
import fcntl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data.exceptions import ExecutionTimeoutError

from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import StageError
from avrec_ray.media.child import DEFAULT_DECODER
from avrec_ray.media.config import MediaConfig
from avrec_ray.pipelines.decode_blocks import DecodeBlocks
from avrec_ray.pipelines.decode_parts import MAX_BLOCK_ITEMS, DecodeParts, open_parts, parts_folder, read_manifest
from avrec_ray.pipelines.decode_progress import DecodeProgress, Report, reasons_in, reasons_table
from avrec_ray.pipelines.decode_publish import check, example_details, is_checked, is_lost, publish, remove_published
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, digest_file, forget_record, read_record
from avrec_ray.pipelines.storage import Storage

if TYPE_CHECKING:
    from avrec_ray.config import JobConfig

_MOST_TASKS = 8192
"""Blocks in flight through Ray at most; of more, several go into one task."""
_PLACED = 0.001
"""Of `cluster.decode_resource` an actor takes: it says where, the CPU says how many."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What to decode into what, and with how much."""

    items: Path
    clips: Path
    quarantine: Path
    cfg: MediaConfig
    num_actors: int
    log: Callable[[str], None]
    decoder: str = DEFAULT_DECODER
    resource: str = ""
    report: Report | None = None
    may_be_empty: bool = False


def run(loop: Loop, job: "JobConfig") -> StageRecord:
    """Stage `decode_media`: the items table and its media to clips/ and quarantine/. Ray must be connected.

    Killed at any moment, the same call goes on with the blocks that are missing.
    """
    cfg, items = media_config(job), items_path(loop.storage, job)
    prepared = read_record(loop.storage, "prepare")
    clips, quarantine = loop.storage.folder("clips"), loop.storage.folder("quarantine")

    def work(stage: StageRun) -> dict[str, float]:
        decoding = Decoding(
            items=items,
            clips=clips,
            quarantine=quarantine,
            cfg=cfg,
            num_actors=job.cluster.num_decode_actors,
            log=stage.log,
            resource=job.cluster.decode_resource,
            report=stage.run.metrics,
        )
        # Before a table is replaced, the record that vouches for the old ones goes.
        _, counts = _decode(decoding, before_publishing=lambda: forget_record(loop.storage, stage.name))
        return counts

    record = loop.stage(
        "decode_media",
        work,
        settings=to_dict(cfg),
        inputs={"prepare": prepared.fingerprint} if prepared else {"items": digest_file(items)},
        outputs=[clips, quarantine],
    )
    remove_published(parts_folder(clips))  # until the record was there, a killed run needed them to see that it is done
    return record


def media_config(job: "JobConfig") -> MediaConfig:
    """The media settings of a job; media lie under the roots of the data where none are given for media."""
    return dataclasses.replace(job.media, media_roots=job.media.media_roots or job.data.media_roots)


def items_path(storage: Storage, job: "JobConfig") -> Path:
    """The items table: as prepared, else the user's own."""
    given = job.data.items and read_record(storage, "prepare") is None
    return Path(job.data.items) if given else storage.items


def decode_manifest(
    items_path: str,
    out_clips: str,
    out_quarantine: str,
    cfg: MediaConfig,
    num_actors: int,
    log: Callable[[str], None],
    decoder: str = DEFAULT_DECODER,
    resource: str = "",
    report: Report | None = None,
    may_be_empty: bool = False,
) -> dict[str, float | str]:
    """Decode the media of an items table. Ray is initialised by the caller.

    The two folders are replaced together at the end; on any error what they held stays. Decoded blocks are kept beside
    `out_clips` meanwhile: the same call goes on with them, whatever ended the one before.

    Args:
        items_path: Parquet file of the items table.
        out_clips: folder of the clips table.
        out_quarantine: folder of the quarantine table.
        cfg: shapes and limits.
        num_actors: decoding actors, each with one child process; as many as the cluster has CPUs for.
        log: takes a line of progress.
        decoder: function run in the child, as "module:function".
        resource: custom resource of the nodes that decode; empty: any node.
        report: takes metrics over time, and the number of items done.
        may_be_empty: whether it is no error if every item is set aside.

    Returns:
        Counts (items, clips, quarantined, quarantined_<reason>), rate and paths.

    Raises:
        TableError: the items table breaks its schema.
        StageError: no item is usable, Ray made no progress, an item went missing, or another run writes these tables.
    """
    work = Decoding(
        items=Path(items_path),
        clips=Path(out_clips),
        quarantine=Path(out_quarantine),
        cfg=cfg,
        num_actors=num_actors,
        log=log,
        decoder=decoder,
        resource=resource,
        report=report,
        may_be_empty=may_be_empty,
    )
    parts, counts = _decode(work)
    parts.remove()
    return {**counts, "clips_path": out_clips, "quarantine_path": out_quarantine}


def _decode(
    work: Decoding, before_publishing: Callable[[], None] = lambda: None
) -> tuple[DecodeParts, dict[str, float]]:
    """All blocks, checked and published; their parts stay for the caller to remove."""
    began = time.monotonic()
    manifest = read_manifest(work.items)
    with _alone(work.clips, work.log):
        parts = _open(work, manifest)
        num_decoded = _compute(work, parts)
        counts = check(parts)
        if not counts["usable"] and not work.may_be_empty:
            parts.remove()  # most likely a path or a mount is wrong: what came of it is not worth keeping
            raise StageError(
                f"none of the {manifest.num_rows} items is usable: {_reasons(counts)}; check media_uri, it must be an "
                "absolute path"
            )
        before_publishing()
        publish(parts, work.clips, work.quarantine)
    for line in reasons_table(counts, example_details(work.quarantine)):
        work.log(line)
    work.log(
        f"{counts['usable']:.0f} of {manifest.num_rows} items usable, {counts['clips']:.0f} clips; "
        f"set aside: {_reasons(counts)}"
    )
    seconds = time.monotonic() - began
    rate = num_decoded / seconds
    return parts, {**counts, "items_decoded": num_decoded, "seconds": seconds, "items_per_second": rate}


@contextmanager
def _alone(clips: Path, log: Callable[[str], None]) -> Iterator[None]:
    """One driver at a time for a clips table; the lock ends with the process.

    Raises:
        StageError: another one is at work.
    """
    clips.parent.mkdir(parents=True, exist_ok=True)
    with clips.with_name(clips.name + ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StageError(f"another run decodes into {clips}; wait until it has ended") from error
        except OSError as error:
            log(f"{clips.parent} has no file locks ({error}): make sure that no other run decodes into it")
        yield


def _open(work: Decoding, manifest: pa.Table) -> DecodeParts:
    def opened() -> DecodeParts:
        return open_parts(parts_folder(work.clips), manifest, digest_file(work.items), work.cfg, work.decoder, work.log)

    parts = opened()
    if is_lost(parts, {"clips": work.clips, "quarantine": work.quarantine}):
        work.log("a table of the run before is gone: decoding starts anew")
        parts.remove()
        parts = opened()
    return parts


def _compute(work: Decoding, parts: DecodeParts) -> int:
    """Decode the blocks that are missing; returns how many items they held.

    Raises:
        StageError: a block is still missing afterwards.
    """
    if is_checked(parts):
        return 0
    missing = parts.missing()
    kept = [tally for block in range(parts.num_blocks) if (tally := parts.tally(block))]
    num_items, num_kept = len(parts.item_ids()), sum(tally.items for tally in kept)
    set_aside = sum(sum(tally.reasons.values()) for tally in kept)
    progress = DecodeProgress(num_items, num_kept, set_aside, work.log, work.report)
    columns, sandbox = ("items", "reasons", "error", "sandbox"), ""
    for batch in _finished_blocks(work, parts, missing):
        for items, reasons, error, layers in zip(*(batch[name].tolist() for name in columns), strict=True):
            if error:
                raise StageError(error)
            if layers not in ("", sandbox):  # once, unless nodes differ
                sandbox = layers
                work.log(f"sandbox: {layers}")
            progress.add(items, reasons)
    if lost := parts.missing():
        raise StageError(f"decode_media: block {lost[0]} is not in {parts.folder}; run the same command again")
    return num_items - num_kept


def _finished_blocks(work: Decoding, parts: DecodeParts, blocks: list[int]) -> Iterator[dict[str, Any]]:
    """Rows of `DecodeBlocks` as blocks reach the disk. Only numbers flow through Ray, so memory is the actors' own."""
    if not blocks:
        return
    tasks = min(len(blocks), _MOST_TASKS)
    most = min(work.num_actors, len(blocks))
    fitting = min(most, _num_cpus(work.resource))
    if fitting < most:
        where = f" on nodes with cluster.decode_resource={work.resource!r}" if work.resource else ""
        work.log(f"{work.num_actors} decode actors asked for, {fitting} fit in the cluster{where} now")
    with _limits(work.cfg, -(-len(blocks) // tasks)):
        finished = ray.data.from_items([{"block": block} for block in blocks], override_num_blocks=tasks).map_batches(
            DecodeBlocks,
            fn_constructor_kwargs={
                "folder": str(parts.folder),
                "run": parts.run,
                "config": to_dict(work.cfg),
                "decoder": work.decoder,
            },
            batch_size=1,
            num_cpus=1,
            resources={work.resource: _PLACED} if work.resource else None,
            compute=ray.data.ActorPoolStrategy(min_size=max(1, fitting), max_size=most),
        )
        try:
            yield from finished.iter_batches(batch_format="numpy", batch_size=None)
        except ExecutionTimeoutError as error:
            raise StageError(
                "decode_media: no block was finished for a long time; see whether nodes have died or have no CPU left, "
                "then run the same command again: what is done is kept"
            ) from error


def _num_cpus(resource: str) -> int:
    """CPUs of the nodes that offer a resource, or of all."""
    offers = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return int(sum(offer.get("CPU", 0) for offer in offers if not resource or resource in offer))


@contextmanager
def _limits(cfg: MediaConfig, blocks_of_task: int) -> Iterator[None]:
    """Ray retries a dying actor for ever: a stage without progress for long fails. No block is dropped."""
    context = ray.data.DataContext.get_current()
    before = (context.execution_no_progress_timeout_s, context.max_errored_blocks)
    # Every file of a task may time out, and be tried a second time.
    context.execution_no_progress_timeout_s = 240 + 2 * cfg.timeout_seconds * MAX_BLOCK_ITEMS * blocks_of_task
    context.max_errored_blocks = 0
    try:
        yield
    finally:
        context.execution_no_progress_timeout_s, context.max_errored_blocks = before


def _reasons(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in reasons_in(counts).items()) or "nothing"
