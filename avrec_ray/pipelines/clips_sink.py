"""Where decoded blocks land: a Ray Data sink that writes the clips and the quarantine table in one pass."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from ray.data import Datasink
from ray.data.block import BlockAccessor

from avrec_ray.media.clips import write_clips
from avrec_ray.media.decode_clips import split_rows


class ClipsSink(Datasink):
    """Writes rows of `DecodeClips` under `folder`: clips/, quarantine/ and tallies/, one part a block.

    A part is named after its task, so that a task that runs again overwrites its own parts. A tally holds the number
    of items of a part and the reasons among them: what progress is counted from.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_write_start(self, schema: Any = None) -> None:
        """Make the folders."""
        for name in ("clips", "quarantine", "tallies"):
            Path(self.folder, name).mkdir(parents=True, exist_ok=True)

    def write(self, blocks: Iterable[Any], ctx: Any) -> None:
        """Write the blocks of one task."""
        for number, block in enumerate(blocks):
            accessor = BlockAccessor.for_block(block)
            if accessor.num_rows():
                self._write_part(accessor.to_batch_format("numpy"), f"part-{ctx.task_idx:06d}-{number:03d}")

    def _write_part(self, rows: dict[str, Any], name: str) -> None:
        clips, aside = split_rows(rows)
        root = Path(self.folder)
        if clips.num_rows:
            write_clips(clips, root / "clips" / f"{name}.parquet")
        if aside.num_rows:
            pq.write_table(aside, root / "quarantine" / f"{name}.parquet")
        reasons = Counter(str(reason) for reason, idx in zip(rows["reason"], rows["clip_idx"], strict=True) if idx == 0)
        (root / "tallies" / f"{name}.json").write_text(json.dumps(reasons))


def read_tallies(folder: str | Path) -> Counter[str]:
    """Items written so far, by reason; "" counts the usable ones."""
    total: Counter[str] = Counter()
    for path in Path(folder, "tallies").glob("*.json"):
        try:
            total.update(json.loads(path.read_text()))
        except json.JSONDecodeError:  # this very moment being written; counted at the next look
            continue
    return total
