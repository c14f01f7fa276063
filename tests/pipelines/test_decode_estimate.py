"""What --estimate says against what decoding then does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.dataclass_io import to_dict
from avrec_ray.media.child import DEFAULT_DECODER
from avrec_ray.media.config import MediaConfig
from avrec_ray.pipelines.decode_blocks import DecodeBlocks
from avrec_ray.pipelines.decode_estimate import draw, estimate
from avrec_ray.pipelines.decode_parts import open_parts, read_manifest
from avrec_ray.types import check_items
from tests.media.render import tone, write_media

ROOT = Path(__file__).parents[2]
CFG = MediaConfig()


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty items: short and long videos, sounds, cut files, and text."""
    folder = tmp_path_factory.mktemp("manifest")
    uris: list[str | None] = []
    for number in range(40):
        path = folder / f"{number}.mp4"
        if number % 5 == 0:
            uris.append(None)
            continue
        if number % 5 == 1:
            path = write_media(path.with_suffix(".ogg"), 0, sound=tone(1.0, 200 + number), audio_codec="libopus")
        else:
            write_media(path, 150 if number % 5 == 2 else 30, sound=tone(1.0, 200 + number))
        if number % 5 == 4:
            path.write_bytes(path.read_bytes()[:2000])
        uris.append(str(path))
    names = [f"i{number}" for number in range(40)]
    pq.write_table(check_items(pa.table({"item_id": names, "media_uri": uris, "title": names})), folder / "i.parquet")
    return folder / "i.parquet"


def test_estimate_is_near_what_decoding_does(items: Path, tmp_path: Path) -> None:
    found = estimate(items, CFG, num_actors=2, num_sampled=16)
    parts = open_parts(tmp_path / "clips.parts", read_manifest(items), "", CFG, DEFAULT_DECODER, print)
    worker = DecodeBlocks(str(parts.folder), parts.run, to_dict(CFG), DEFAULT_DECODER)
    worker({"block": np.arange(parts.num_blocks)})
    worker.decode.decoder.close()
    tallies = [parts.tally(block) for block in range(parts.num_blocks)]
    assert found.items == sum(tally.items for tally in tallies if tally) == 40
    assert found.text_only == 8
    assert found.sampled == 16
    assert found.set_aside == {"truncated": 8.0}
    assert found.clips == sum(tally.clips for tally in tallies if tally)
    written = sum(path.stat().st_size for path in parts.folder.glob("blocks/*/clips.parquet"))
    assert abs(found.clips_bytes / written - 1) < 0.2, (found.clips_bytes, written)
    assert found.seconds > 0


@given(
    st.dictionaries(st.integers(0, 60), st.integers(1, 50), min_size=1),
    st.integers(1, 64),
)
def test_draw_stands_for_every_row_and_sees_every_stratum(sizes: dict[int, int], num_sampled: int) -> None:
    rows = iter(range(sum(sizes.values())))
    strata = {("", key): [next(rows) for _ in range(size)] for key, size in sizes.items()}
    sample, weights = draw(strata, num_sampled, np.random.default_rng(0))
    assert len(set(sample)) == len(sample)
    assert sum(weights) == pytest.approx(sum(sizes.values()))
    if len(strata) <= num_sampled:
        assert all(set(stratum) & set(sample) for stratum in strata.values())
    assert len(sample) <= num_sampled + len(strata)


def test_job_with_estimate_prints_it_and_writes_nothing(items: Path, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    ran = subprocess.run(
        [sys.executable, "-m", "jobs.decode_media", "--estimate", f"storage_path={storage}", f"data.items={items}",
         "estimate_items=8"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["items", "time", "clips", "set"]
    assert lines[0] == "items       40, of which 8 without media; 8 were decoded to see"
    assert not storage.exists()
