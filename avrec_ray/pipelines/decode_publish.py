"""From decoded blocks to the two tables: every item accounted for, then both folders replaced, whenever it is killed.

`checked.json` appears once the blocks are complete, and publish/clips and publish/quarantine exist from before it until
each has become its table. So a run that is killed anywhere in between finishes the move, and decodes nothing again.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avrec_ray.errors import StageError
from avrec_ray.pipelines.atomic import write_text_atomically
from avrec_ray.pipelines.decode_parts import DecodeParts, remove_parts
from avrec_ray.types import QUARANTINE

TABLES = ("clips", "quarantine")


def check(parts: DecodeParts) -> dict[str, float]:
    """Counts over all blocks, checked once: every item is in exactly one table.

    Raises:
        StageError: some item is not; a defect of this program or of its storage. The parts are removed.
    """
    done = parts.folder / "checked.json"
    if not is_checked(parts):
        try:
            counts = check_complete(_read(parts, "clips"), _read(parts, "quarantine"), parts.item_ids())
        except (StageError, OSError, pa.ArrowInvalid) as error:
            parts.remove()
            raise StageError(
                f"decode_media: {error}; what was decoded is removed, run the same command again"
            ) from error
        for table in TABLES:
            (parts.folder / "publish" / table).mkdir(parents=True, exist_ok=True)
        write_text_atomically(done, json.dumps(counts))
    checked: dict[str, float] = json.loads(done.read_text())
    return checked


def check_complete(clips: pa.Table, aside: pa.Table, wanted: pa.ChunkedArray) -> dict[str, float]:
    """Every wanted item is in exactly one table, its clips numbered from 0; returns the counts.

    Raises:
        StageError: otherwise, naming an item.
    """
    firsts = clips.filter(pc.equal(clips["clip_idx"], 0))["item_id"]
    seen, expected = Counter(firsts.to_pylist() + aside["item_id"].to_pylist()), Counter(wanted.to_pylist())
    if wrong := [item for item in [*expected, *seen] if seen[item] != expected[item]]:
        raise StageError(
            f"item {wrong[0]!r} came out {seen[wrong[0]]} times, expected {expected[wrong[0]]}; "
            f"{len(set(wrong))} such items"
        )
    of_item = clips.group_by("item_id").aggregate(
        [("clip_idx", "count"), ("clip_idx", "count_distinct"), ("clip_idx", "max")]
    )
    count, last = of_item["clip_idx_count"].to_numpy(), of_item["clip_idx_max"].to_numpy()
    if (count != last + 1).any() or (count != of_item["clip_idx_count_distinct"].to_numpy()).any():
        raise StageError("some item's clips are not numbered 0, 1, ...")
    reasons = Counter(f"quarantined_{reason}" for reason in aside["reason"].to_pylist())
    return {
        "items": float(len(wanted)),
        "usable": float(len(firsts)),
        "clips": float(clips.num_rows),
        "quarantined": float(aside.num_rows),
        **{name: float(count) for name, count in sorted(reasons.items())},
    }


def is_checked(parts: DecodeParts) -> bool:
    """Whether the blocks were found complete: their files may have been moved since."""
    return (parts.folder / "checked.json").is_file()


def is_lost(parts: DecodeParts, finals: dict[str, Path]) -> bool:
    """Whether a table was moved out by an earlier run and somebody has deleted it since."""
    moved = [finals[name] for name in TABLES if not (parts.folder / "publish" / name).is_dir()]
    return is_checked(parts) and not all(final.is_dir() for final in moved)


def remove_published(folder: Path) -> None:
    """Remove parts whose tables are both in their places; those of a run that was broken off stay."""
    for path in folder.glob("*/checked.json"):
        if not any((path.parent / "publish" / name).is_dir() for name in TABLES):
            remove_parts(folder)


def publish(parts: DecodeParts, out_clips: Path, out_quarantine: Path) -> None:
    """Replace both folders, or neither: on an error both are as before, after a kill the next run goes on."""
    staged = {name: parts.folder / "publish" / name for name in TABLES}
    for name in TABLES:
        if staged[name].is_dir():
            _gather(parts, name, staged[name])
    undo: list[tuple[Path, Path]] = []
    try:
        for name, final in zip(TABLES, (out_clips, out_quarantine), strict=True):
            if not staged[name].is_dir():
                continue  # moved by a run that was killed right after
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():
                old = parts.folder / f"old-{name}"
                final.rename(old)
                undo.append((old, final))
            staged[name].rename(final)
            undo.append((final, staged[name]))
    except OSError:
        for moved, back in reversed(undo):
            moved.rename(back)
        raise


def example_details(folder: Path) -> dict[str, str]:
    """One "uri: detail" for each reason in a quarantine table."""
    examples: dict[str, str] = {}
    for path in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(path, columns=["media_uri", "reason", "detail"]).to_pylist():
            examples.setdefault(row["reason"], f"{row['media_uri']}: {row['detail']}")
    return examples


def _gather(parts: DecodeParts, name: str, target: Path) -> None:
    """Move a table's files out of the blocks; those that an earlier run has moved are there."""
    for block in range(parts.num_blocks):
        source = parts.block_path(block) / f"{name}.parquet"
        if source.is_file():
            source.rename(target / f"part-{block:05d}.parquet")
    if name == "quarantine" and not any(target.iterdir()):
        pq.write_table(QUARANTINE.empty_table(), target / "part-none.parquet")


def _read(parts: DecodeParts, name: str) -> pa.Table:
    schema = {
        "clips": pa.schema([pa.field("item_id", pa.string()), pa.field("clip_idx", pa.int32())]),
        "quarantine": pa.schema([pa.field("item_id", pa.string()), pa.field("reason", pa.string())]),
    }[name]
    paths = [parts.block_path(block) / f"{name}.parquet" for block in range(parts.num_blocks)]
    tables: list[Any] = [pq.read_table(path, columns=schema.names) for path in paths if path.is_file()]
    return pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in tables)])
