"""What decoding a manifest would take, from a sample of it: time, bytes, and what would be set aside. Writes nothing.

The sample is drawn in proportion from strata of file ending and file size, at least one item of each as far as it goes;
an item of the sample stands for as many as its stratum has of them.
"""

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from avrec_ray.errors import MediaError
from avrec_ray.media.clips import clip_columns, clips_table, write_clips
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode import ItemDecoder, text_only_clip
from avrec_ray.pipelines.decode_media import items_path, media_config
from avrec_ray.pipelines.decode_parts import cut_blocks, read_manifest
from avrec_ray.pipelines.storage import Storage
from avrec_ray.types import Clip

if TYPE_CHECKING:
    from avrec_ray.config import JobConfig

_MOST_CHILDREN = 2
_START_SECONDS = 8.0
"""Until the first block of a run: Ray's actors start and import."""


@dataclass(frozen=True)
class Outcome:
    """What became of one item of the sample."""

    seconds: float
    """Wall clock of decoding and writing it."""
    clips: int
    clip_bytes: float
    """Bytes of its clips on disk."""
    reason: str
    """Why it would be set aside; "" if it would not."""


@dataclass(frozen=True)
class Estimate:
    """A prediction for a whole manifest."""

    items: int
    text_only: int
    sampled: int
    seconds: float
    num_actors: int
    clips: float
    clips_bytes: float
    set_aside: dict[str, float]
    """Items by reason."""

    def lines(self) -> list[str]:
        """For people."""
        aside = sum(self.set_aside.values())
        reasons = ", ".join(f"{reason} {count:.0f}" for reason, count in sorted(self.set_aside.items()))
        return [
            f"items       {self.items}, of which {self.text_only} without media; {self.sampled} were decoded to see",
            f"time        about {_duration(self.seconds)} with {self.num_actors} decode actors",
            f"clips       about {self.clips:.0f}, {self.clips_bytes / 1e6:.1f} MB on disk",
            f"set aside   about {aside:.0f} items ({aside / self.items:.1%}){': ' if reasons else ''}{reasons}",
        ]


def run(job: "JobConfig", log: Callable[[str], None] = print) -> Estimate:
    """`jobs.decode_media --estimate`: predict what the stage would do. Needs no Ray and leaves storage_path alone.

    Raises:
        TableError: the items table cannot be read or breaks its schema.
    """
    items = items_path(Storage(Path(job.storage_path)), job)
    found = estimate(items, media_config(job), job.cluster.num_decode_actors, job.estimate_items, job.seed)
    for line in found.lines():
        log(line)
    return found


def estimate(items: Path, cfg: MediaConfig, num_actors: int, num_sampled: int = 32, seed: int = 0) -> Estimate:
    """Decode about `num_sampled` items of a table, on as many child processes as actors, two at most.

    Raises:
        TableError: the items table cannot be read or breaks its schema.
    """
    manifest = read_manifest(items)
    uris = [uri for uri in manifest["media_uri"].to_pylist() if uri]
    num_text_only = manifest.num_rows - len(uris)
    sample, weights = draw(strata_of(uris), num_sampled, np.random.default_rng(seed))
    cores = min(num_actors, os.cpu_count() or 1)  # this machine's: a cluster's nodes are not asked
    outcomes = _decode_sample([uris[row] for row in sample], cfg, min(cores, _MOST_CHILDREN))
    if num_text_only:
        outcomes.append(_text_only(num_text_only, cfg))
        weights.append(num_text_only)
    set_aside: dict[str, float] = {}
    for weight, outcome in zip(weights, outcomes, strict=True):
        if outcome.reason:
            set_aside[outcome.reason] = set_aside.get(outcome.reason, 0.0) + weight
    seconds, clips, clip_bytes = (
        sum(weight * getattr(outcome, name) for weight, outcome in zip(weights, outcomes, strict=True))
        for name in ("seconds", "clips", "clip_bytes")
    )
    num_files = min(len(cut_blocks(manifest, cfg)), manifest.num_rows - sum(set_aside.values()))
    return Estimate(
        items=manifest.num_rows,
        text_only=num_text_only,
        sampled=len(sample),
        seconds=_START_SECONDS + seconds / cores,
        num_actors=num_actors,
        clips=clips,
        clips_bytes=clip_bytes + num_files * _file_bytes(cfg),
        set_aside=set_aside,
    )


def strata_of(uris: Sequence[str]) -> dict[tuple[str, int], list[int]]:
    """Rows by file ending and by magnitude of the size in bytes, powers of four; -1 where there is no local file."""
    strata: dict[tuple[str, int], list[int]] = {}
    for row, uri in enumerate(uris):
        try:
            magnitude = int(math.log(max(1, os.stat(uri).st_size), 4))
        except (OSError, ValueError):
            magnitude = -1
        strata.setdefault((PurePosixPath(uri).suffix.lower(), magnitude), []).append(row)
    return strata


def draw(
    strata: dict[tuple[str, int], list[int]], num_sampled: int, rng: np.random.Generator
) -> tuple[list[int], list[float]]:
    """Rows, and how many rows of the manifest each stands for; the weights sum to all rows.

    Strata beyond `num_sampled` are drawn from as one.
    """
    ordered = sorted(strata.values(), key=len, reverse=True)
    if len(ordered) > num_sampled:
        ordered = [*ordered[: num_sampled - 1], list(chain(*ordered[num_sampled - 1 :]))]
    total = sum(map(len, ordered))
    rows: list[int] = []
    weights: list[float] = []
    for stratum in ordered:
        size = min(len(stratum), max(1, round(num_sampled * len(stratum) / total)))
        rows += rng.choice(stratum, size, replace=False).tolist()
        weights += [len(stratum) / size] * size
    return rows, weights


def _decode_sample(uris: Sequence[str], cfg: MediaConfig, num_children: int) -> list[Outcome]:
    """Outcomes in the order of `uris`; each thread keeps a child process."""
    outcomes: dict[int, Outcome] = {}

    def work(child: int) -> None:
        with ItemDecoder(cfg) as decoder, tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clips.parquet"
            if uris[child:]:
                _outcome(decoder, uris[child], cfg, path)  # the child starts outside of the measurement
            for row in range(child, len(uris), num_children):
                outcomes[row] = _outcome(decoder, uris[row], cfg, path)

    with ThreadPoolExecutor(num_children) as pool:
        list(pool.map(work, range(num_children)))
    return [outcomes[row] for row in range(len(uris))]


def _outcome(decoder: ItemDecoder, uri: str, cfg: MediaConfig, path: Path) -> Outcome:
    began = time.perf_counter()
    try:
        clips = decoder.decode("estimated", uri)
    except MediaError as error:
        return Outcome(time.perf_counter() - began, 0, 0.0, error.reason)
    written = _written_bytes(clips, path)
    return Outcome(time.perf_counter() - began, len(clips), written, "")


def _text_only(count: int, cfg: MediaConfig) -> Outcome:
    """Of one item without media, seen by a block of them."""
    clips = [text_only_clip(f"text {number}", cfg) for number in range(min(count, 100))]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        written = _written_bytes(clips, Path(folder) / "clips.parquet")
        seconds = time.perf_counter() - began
    return Outcome(seconds / len(clips), 1, written / len(clips), "")


def _written_bytes(clips: Sequence[Clip], path: Path) -> float:
    """Bytes of the clips in a file of them: all but schema and footer."""
    write_clips(clips_table(clip_columns(clips)), path)
    group = pq.read_metadata(path).row_group(0)
    return float(sum(group.column(column).total_compressed_size for column in range(group.num_columns)))


def _file_bytes(cfg: MediaConfig) -> float:
    """Schema and footer of a file of clips."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clips.parquet"
        written = _written_bytes([text_only_clip("text", cfg)], path)
        return path.stat().st_size - written


def _duration(seconds: float) -> str:
    """
    >>> _duration(42), _duration(600), _duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
