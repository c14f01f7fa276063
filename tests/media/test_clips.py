from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.errors import TableError
from avrec_ray.media.clips import COLUMNS, clip_columns, clips_table, iter_clips, read_clips, write_clips
from avrec_ray.types import Clip


def clip(item_id: str, clip_idx: int, seed: int = 0) -> Clip:
    rng = np.random.default_rng([seed, clip_idx])
    return Clip(
        item_id=item_id,
        clip_idx=clip_idx,
        start_seconds=clip_idx * 1.5,
        end_seconds=clip_idx * 1.5 + 1.5,
        frames=rng.integers(0, 256, (2, 3, 4, 4), np.uint8),
        log_mel=rng.standard_normal((5, 7)).astype(np.float32),
        has_video=clip_idx % 2 == 0,
        has_audio=True,
        decoder="pyav 18",
        media_sha256="ab" * 32,
    )


def write(folder: Path, clips: list[Clip], name: str = "part-0.parquet") -> None:
    write_clips(clips_table(clip_columns(clips)), folder / name)


def test_read_clips_gives_back_what_was_written_sorted(tmp_path: Path) -> None:
    clips = [clip("b", 1), clip("a", 0), clip("b", 0)]
    write(tmp_path, clips[:2], "part-0.parquet")
    write(tmp_path, clips[2:], "part-1.parquet")
    table = read_clips(tmp_path)
    assert tuple(table) == COLUMNS
    assert table["item_id"].tolist() == ["a", "b", "b"]
    assert table["clip_idx"].tolist() == [0, 0, 1]
    assert table["frames"].dtype == np.uint8
    assert table["log_mel"].dtype == np.float32
    np.testing.assert_array_equal(table["frames"], np.stack([clips[1].frames, clips[2].frames, clips[0].frames]))
    np.testing.assert_array_equal(table["log_mel"][2], clips[0].log_mel)
    assert table["has_video"].tolist() == [True, True, False]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(max_size=5), min_size=1, max_size=9, unique=True), st.integers(1, 4))
def test_iter_clips_batches_hold_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], size: int
) -> None:
    folder = tmp_path_factory.mktemp("clips")
    write(folder, [clip(item_id, 0, seed) for seed, item_id in enumerate(ids)])
    batches = list(iter_clips(folder, ["item_id", "frames"], batch_size=size))
    assert all(1 <= len(batch["item_id"]) <= size for batch in batches)
    assert [item for batch in batches for item in batch["item_id"]] == ids
    assert batches[0]["frames"].shape[1:] == (2, 3, 4, 4)


def test_read_clips_some_columns_only(tmp_path: Path) -> None:
    write(tmp_path, [clip("a", 0)])
    assert set(read_clips(tmp_path, ["has_audio"])) == {"has_audio"}


def test_read_clips_empty_or_foreign_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no \*\.parquet .* run jobs\.decode_media"):
        read_clips(tmp_path)
    pq.write_table(pa.table({"item_id": ["a"], "frames": [[1]]}), tmp_path / "x.parquet")
    with pytest.raises(TableError, match="column 'clip_idx' is missing"):
        read_clips(tmp_path)
    with pytest.raises(TableError, match=r"expected arrow\.fixed_shape_tensor"):
        list(iter_clips(tmp_path, ["frames"]))


def test_clips_table_wrong_dtype_names_the_column() -> None:
    columns = clip_columns([clip("a", 0)])
    columns["frames"] = columns["frames"].astype(np.int32)
    with pytest.raises(TableError, match="'frames' is int32"):
        clips_table(columns)


def test_clips_table_on_disk_needs_no_extension_of_ours(tmp_path: Path) -> None:
    write(tmp_path, [clip("a", 0)])
    schema = pq.read_schema(tmp_path / "part-0.parquet")
    assert schema.field("frames").type == pa.fixed_shape_tensor(pa.uint8(), (2, 3, 4, 4))
    assert not list(tmp_path.glob("*.tmp"))
