"""Manifest to clips and quarantine with Ray Data: every item ends up in exactly one of the two."""

import dataclasses
import math
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import StageError, TableError
from avrec_ray.media.child import DEFAULT_DECODER
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode_clips import DecodeClips
from avrec_ray.pipelines.clips_sink import ClipsSink, read_tallies
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, digest_file, read_record
from avrec_ray.types import QUARANTINE, check_items

if TYPE_CHECKING:
    from avrec_ray.config import JobConfig

_BATCH_ITEMS = 4
_BLOCK_BYTES = 32 * 2**20
"""Decoded bytes a block: small blocks bound memory and spread the work."""
_PROGRESS_SECONDS = 5.0


def run(loop: Loop, job: "JobConfig") -> StageRecord:
    """Stage `decode_media`: the items table and its media to clips/ and quarantine/. Ray must be connected."""
    storage = loop.storage
    cfg = dataclasses.replace(job.media, media_roots=job.media.media_roots or job.data.media_roots)
    prepared = read_record(storage, "prepare")
    items = Path(job.data.items) if job.data.items and prepared is None else storage.items

    def work(stage: StageRun) -> dict[str, float]:
        with stage.publish("clips", "quarantine") as (clips, quarantine):
            counts = decode_manifest(
                str(items), str(clips), str(quarantine), cfg, job.cluster.num_decode_actors, stage.log
            )
        return {name: value for name, value in counts.items() if isinstance(value, (int, float))}

    return loop.stage(
        "decode_media",
        work,
        settings=to_dict(cfg),
        inputs={"prepare": prepared.fingerprint} if prepared else {"items": digest_file(items)},
        outputs=[storage.folder("clips"), storage.folder("quarantine")],
    )


def decode_manifest(
    items_path: str,
    out_clips: str,
    out_quarantine: str,
    cfg: MediaConfig,
    num_actors: int,
    log: Callable[[str], None],
    decoder: str = DEFAULT_DECODER,
) -> dict[str, float | str]:
    """Decode the media of an items table. Ray is initialised by the caller.

    The two folders are replaced together at the end; on any error what they held stays.

    Args:
        items_path: Parquet file of the items table.
        out_clips: folder of the clips table.
        out_quarantine: folder of the quarantine table.
        cfg: shapes and limits.
        num_actors: decoding actors, each with one child process; as many as the cluster has CPUs for.
        log: takes a line of progress.
        decoder: function run in the child, as "module:function".

    Returns:
        Counts (items, clips, quarantined, quarantined_<reason>), rate and paths.

    Raises:
        TableError: the items table breaks its schema.
        StageError: no item is usable, or Ray made no progress, or an item went missing.
    """
    began = time.monotonic()
    manifest = _read_manifest(items_path)
    staging = Path(out_clips).with_name(Path(out_clips).name + ".staging")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        pq.write_table(manifest, staging / "manifest.parquet")
        with _progress(staging, manifest.num_rows, log):
            _decode(staging, manifest.num_rows, cfg, num_actors, decoder, log)
        counts = _check_complete(staging, manifest)
        _summarise(counts, manifest.num_rows, log)
        _publish(staging, Path(out_clips), Path(out_quarantine))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    seconds = time.monotonic() - began
    rate = manifest.num_rows / seconds
    return {**counts, "seconds": seconds, "items_per_second": rate, "clips_path": out_clips,
            "quarantine_path": out_quarantine}  # fmt: skip


def _read_manifest(items_path: str) -> pa.Table:
    try:
        items = check_items(pq.read_table(items_path))
    except (OSError, pa.ArrowInvalid) as error:
        raise TableError(f"items: {items_path} cannot be read as Parquet: {error}") from error
    if not items.num_rows:
        raise StageError(f"{items_path} has no row; give a table with at least one item")
    return items.select(["item_id", "media_uri"])


def _decode(
    staging: Path, num_items: int, cfg: MediaConfig, num_actors: int, decoder: str, log: Callable[[str], None]
) -> None:
    """Manifest -> blocks -> actors -> sink. Each item is decoded once."""
    # A CPU stays free for the tasks that read and write, or actors that hold every CPU would wait for them forever.
    fitting = max(1, min(num_actors, int(ray.cluster_resources().get("CPU", 1)) - 1))
    if fitting < num_actors:
        log(f"{num_actors} decode actors asked for, {fitting} fit in the cluster now")
    # A small manifest is one block to Ray, and one block keeps one actor busy: cut it.
    rows = max(1, min(math.ceil(num_items / (4 * num_actors)), _BLOCK_BYTES // (cfg.clip_bytes * cfg.max_clips), 16))
    with _limits(cfg):
        dataset = (
            ray.data.read_parquet(str(staging / "manifest.parquet"))
            .repartition(target_num_rows_per_block=rows)
            .map_batches(
                DecodeClips,
                fn_constructor_kwargs={"config": to_dict(cfg), "decoder": decoder},
                batch_size=min(rows, _BATCH_ITEMS),
                compute=ray.data.ActorPoolStrategy(min_size=fitting, max_size=num_actors),
                num_cpus=1,
            )
        )
        dataset.write_datasink(ClipsSink(str(staging)))


@contextmanager
def _limits(cfg: MediaConfig) -> Iterator[None]:
    """Ray retries a dying actor for ever: without progress for minutes the stage fails. No block is dropped."""
    context = ray.data.DataContext.get_current()
    before = (context.execution_no_progress_timeout_s, context.max_errored_blocks)
    context.execution_no_progress_timeout_s = 240 + 2 * _BATCH_ITEMS * cfg.timeout_seconds
    context.max_errored_blocks = 0
    try:
        yield
    finally:
        context.execution_no_progress_timeout_s, context.max_errored_blocks = before


@contextmanager
def _progress(staging: Path, num_items: int, log: Callable[[str], None]) -> Iterator[None]:
    """A line every few seconds: items done, rate, time left, set aside."""
    stop = threading.Event()
    began = time.monotonic()

    def watch() -> None:
        while not stop.wait(_PROGRESS_SECONDS):
            tally = read_tallies(staging)
            done = tally.total()
            if not done:
                continue  # the actors are still starting
            rate = done / (time.monotonic() - began)
            left = f"{(num_items - done) / rate:.0f} s left"
            log(f"{done}/{num_items} items  {rate:.1f}/s  {left}  {done - tally['']} set aside")

    thread = threading.Thread(target=watch, name="decode-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _check_complete(staging: Path, manifest: pa.Table) -> dict[str, float | str]:
    """Every item is in exactly one table, its clips numbered from 0; returns the counts.

    Raises:
        StageError: otherwise, naming an item; a defect of this program or of its storage.
    """
    clips = _columns(staging / "clips", ["item_id", "clip_idx"])
    aside = _columns(staging / "quarantine", ["item_id", "reason"])
    firsts = [item for item, idx in clips if idx == 0]
    seen = Counter(firsts) + Counter(item for item, _ in aside)
    wanted = manifest["item_id"].to_pylist()
    if wrong := [item for item in wanted if seen[item] != 1] or [item for item in seen if item not in set(wanted)]:
        raise StageError(f"item {wrong[0]!r} came out {seen[wrong[0]]} times, expected once; {len(wrong)} such items")
    if len(set(clips)) != len(clips) or {item for item, _ in clips} != set(firsts):
        raise StageError("some item's clips are not numbered 0, 1, ...; run the stage again")
    reasons = Counter(f"quarantined_{reason}" for _, reason in aside)
    return {
        "items": float(len(wanted)),
        "usable": float(len(firsts)),
        "clips": float(len(clips)),
        "quarantined": float(len(aside)),
        **{name: float(count) for name, count in sorted(reasons.items())},
    }


def _columns(folder: Path, names: list[str]) -> list[tuple[str, str | int]]:
    rows: list[tuple[str, str | int]] = []
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path, columns=names)
        rows += zip(table[names[0]].to_pylist(), table[names[1]].to_pylist(), strict=True)
    return rows


def _summarise(counts: dict[str, float | str], num_items: int, log: Callable[[str], None]) -> None:
    prefix = "quarantined_"
    reasons = {name.removeprefix(prefix): int(value) for name, value in counts.items() if name.startswith(prefix)}
    ordered = sorted(reasons.items(), key=lambda pair: -pair[1])
    text = ", ".join(f"{reason} {count}" for reason, count in ordered) or "nothing"
    if not counts["usable"]:
        raise StageError(
            f"none of the {num_items} items is usable: {text}; check media_uri, it must be an absolute path"
        )
    log(f"{counts['usable']:.0f} of {num_items} items usable, {counts['clips']:.0f} clips; set aside: {text}")


def _publish(staging: Path, out_clips: Path, out_quarantine: Path) -> None:
    """Replace both folders, or neither; a reader sees the old table or the new one."""
    if not any((staging / "quarantine").glob("*.parquet")):
        pq.write_table(QUARANTINE.empty_table(), staging / "quarantine" / "part-none.parquet")
    (staging / "clips").mkdir(exist_ok=True)
    undo: list[tuple[Path, Path]] = []
    try:
        for new, final in ((staging / "clips", out_clips), (staging / "quarantine", out_quarantine)):
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():
                old = staging / f"old-{new.name}"
                final.rename(old)
                undo.append((old, final))
            new.rename(final)
            undo.append((final, new))
    except OSError:
        for moved, back in reversed(undo):
            moved.rename(back)
        raise
