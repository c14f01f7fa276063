"""Blocks on disk: cut, written once, counted only when whole, published whenever the driver is killed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import StageError
from avrec_ray.media.child import DEFAULT_DECODER
from avrec_ray.media.clips import clip_columns, clips_table, read_clips
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode import text_only_clip
from avrec_ray.media.decode_clips import DecodeClips, split_rows
from avrec_ray.pipelines.decode_blocks import DecodeBlocks
from avrec_ray.pipelines.decode_parts import MAX_BEGINNINGS, DecodeParts, cut_blocks, open_parts
from avrec_ray.pipelines.decode_publish import check, check_complete, is_lost, publish, remove_published
from avrec_ray.types import QUARANTINE

CFG = MediaConfig(num_frames=2, frame_size=16, clip_seconds=1.0)


def manifest_of(uris: list[str | None]) -> pa.Table:
    ids = [f"i{row:03d}" for row in range(len(uris))]
    return pa.table({"item_id": pa.array(ids), "media_uri": pa.array(uris, pa.string())})


def opened(folder: Path, uris: list[str | None], cfg: MediaConfig = CFG, lines: list[str] | None = None) -> DecodeParts:
    log = (lines if lines is not None else []).append
    return open_parts(folder / "clips.parts", manifest_of(uris), "digest", cfg, DEFAULT_DECODER, log)


def decode(parts: DecodeParts, blocks: list[int]) -> dict[str, Any]:
    worker = DecodeBlocks(str(parts.folder), parts.run, to_dict(CFG), DEFAULT_DECODER)
    return worker({"block": np.array(blocks)})


URIS: list[str | None] = ["/nowhere/a.mp4", "", "/nowhere/b.mp4", None, "http://127.0.0.1:9/c.mp4"]
"""Cut into four blocks: one for each of the three that name media, and one for the two without."""


@given(st.lists(st.sampled_from([None, "", "/a", "/b"]), min_size=1, max_size=400), st.sampled_from([64, 512]))
def test_cut_blocks_holds_every_item_once_and_text_apart(uris: list[str | None], frame_size: int) -> None:
    cfg = MediaConfig(frame_size=frame_size)
    blocks = cut_blocks(manifest_of(uris), cfg)
    ids = [item for block in blocks for item in block["item_id"].to_pylist()]
    assert sorted(ids) == manifest_of(uris)["item_id"].to_pylist()
    kinds = [{bool(uri) for uri in block["media_uri"].to_pylist()} for block in blocks]
    assert all(len(kind) == 1 for kind in kinds)
    assert kinds == sorted(kinds, key=lambda kind: kind == {False})
    media = sum(map(bool, uris))
    assert sum(kind == {True} for kind in kinds) >= min(media, 32)


def test_write_block_counts_and_reports_what_is_on_disk(tmp_path: Path) -> None:
    parts = opened(tmp_path, URIS)
    assert parts.num_blocks == 4
    found = decode(parts, [3, 0])
    assert {name: list(values) for name, values in found.items()} == {
        "items": [2, 1],
        "reasons": ["{}", '{"missing": 1}'],
        "error": ["", ""],
        "sandbox": ["", ""],
    }
    assert parts.missing() == [1, 2]
    assert sorted(path.name for path in parts.block_path(0).iterdir()) == ["quarantine.parquet", "tally.json"]


def test_write_block_text_only_equals_what_decode_clips_gives(tmp_path: Path) -> None:
    ids = [f"i{row:03d}" for row in range(7)]
    parts = opened(tmp_path, [None, ""] * 3 + [None])
    worker = DecodeBlocks(str(parts.folder), parts.run, to_dict(CFG), DEFAULT_DECODER)
    assert worker.write_block(0).clips == 7
    batch = {"item_id": np.array(ids, object), "media_uri": np.array([None] * 7, object)}
    expected, aside = split_rows(DecodeClips(to_dict(CFG))(batch))
    assert aside.num_rows == 0
    assert pq.read_table(parts.block_path(0) / "clips.parquet").equals(expected)
    assert worker._text_only(pa.array(["x", "y"]))["item_id"].to_pylist() == ["x", "y"]  # a smaller block after it
    assert worker.decode.decoder._process.pid is None


def test_write_block_the_first_one_stays(tmp_path: Path) -> None:
    parts = opened(tmp_path, ["/a.mp4"])
    clips = clips_table(clip_columns([text_only_clip("i000", CFG)]))
    first = parts.write(0, clips, QUARANTINE.empty_table(), {})
    aside = pa.table({"item_id": ["i000"], "media_uri": ["/a.mp4"], "reason": ["timeout"], "detail": [""],
                      "at": pa.array([0], pa.timestamp("us", tz="UTC"))}, schema=QUARANTINE)  # fmt: skip
    again = parts.write(0, clips.slice(0, 0), aside, {"timeout": 1})
    assert again == first
    assert [path.name for path in (parts.folder / "blocks").iterdir()] == ["00000"]
    assert sorted(path.name for path in parts.block_path(0).iterdir()) == ["clips.parquet", "tally.json"]


@pytest.mark.parametrize("damage", ["cut", "no_tally", "half_tally", "gone"])
def test_missing_block_that_is_not_whole_is_decoded_again(tmp_path: Path, damage: str) -> None:
    parts = opened(tmp_path, URIS)
    decode(parts, [0, 1, 2, 3])
    assert parts.missing() == []
    quarantine, tally = (parts.block_path(1) / name for name in ("quarantine.parquet", "tally.json"))
    if damage == "cut":
        quarantine.write_bytes(quarantine.read_bytes()[:-10])
    if damage == "gone":
        quarantine.unlink()
    if damage == "no_tally":
        tally.unlink()
    if damage == "half_tally":
        tally.write_text(tally.read_text()[:5])
    assert parts.missing() == [1]
    again = opened(tmp_path, URIS)
    assert not again.block_path(1).exists()
    decode(again, [1])
    assert check(again)["items"] == 5


def test_open_parts_resumes_the_same_and_removes_others_with_a_line(tmp_path: Path) -> None:
    decode(opened(tmp_path, URIS), [0, 3])
    lines: list[str] = []
    parts = opened(tmp_path, URIS, lines=lines)
    assert lines == ["resumed: 2 of 4 blocks were decoded before and are kept"]
    assert parts.missing() == [1, 2]
    (tmp_path / "clips.parts" / "mine.txt").write_text("somebody's")
    lines.clear()
    other = opened(tmp_path, URIS, MediaConfig(num_frames=3, frame_size=16, clip_seconds=1.0), lines)
    assert lines == [f"{tmp_path}/clips.parts holds decoded blocks of other settings or items: removed, "
                     "decoding starts anew"]  # fmt: skip
    assert not parts.folder.exists()
    assert (tmp_path / "clips.parts" / "mine.txt").exists()
    assert other.missing() == [0, 1, 2, 3]


def test_worker_that_outlived_its_driver_begins_nothing_more(tmp_path: Path) -> None:
    orphan = opened(tmp_path, URIS)
    parts = opened(tmp_path, URIS)
    assert "another run works in" in decode(orphan, [0])["error"][0]
    decode(parts, [0])
    # What it had begun before it may still finish, before or after: one of the two stays.
    tally = orphan.write(0, clips_table(clip_columns([text_only_clip("x", CFG)])), QUARANTINE.empty_table(), {})
    assert tally == parts.tally(0)
    parts.remove()
    with pytest.raises(FileNotFoundError):
        orphan.write(1, clips_table(clip_columns([text_only_clip("x", CFG)])), QUARANTINE.empty_table(), {})
    assert not parts.folder.exists()


def test_block_whose_worker_dies_again_and_again_ends_the_run(tmp_path: Path) -> None:
    parts = opened(tmp_path, ["/a.mp4"])
    for _ in range(MAX_BEGINNINGS):
        parts.begin(0)
    with pytest.raises(StageError, match="the worker of items i000 to i000 died 5 times"):
        parts.begin(0)
    opened(tmp_path, ["/a.mp4"]).begin(0)  # a new run tries anew


@pytest.mark.parametrize(
    ("clips", "aside", "message"),
    [
        ([("a", 0)], [], "item 'b' came out 0 times"),
        ([("a", 0), ("b", 0)], ["b"], "item 'b' came out 2 times"),
        ([("a", 0), ("b", 0), ("c", 0)], [], "item 'c' came out 1 times, expected 0"),
        ([("a", 0), ("b", 1)], [], "item 'b' came out 0 times"),
        ([("a", 0), ("b", 0), ("b", 1), ("b", 1)], [], "not numbered"),
        ([("a", 0), ("b", 0), ("b", 2)], [], "not numbered"),
        ([("a", 0)], ["b", "b"], "item 'b' came out 2 times"),
    ],
)
def test_check_complete_lost_or_doubled_item_is_named(
    clips: list[tuple[str, int]], aside: list[str], message: str
) -> None:
    rows = pa.table({"item_id": [item for item, _ in clips], "clip_idx": pa.array([n for _, n in clips], pa.int32())})
    reasons = pa.table({"item_id": pa.array(aside, pa.string()), "reason": ["x"] * len(aside)})
    with pytest.raises(StageError, match=message):
        check_complete(rows, reasons, pa.chunked_array([["a", "b"]]))


def test_check_that_fails_removes_the_parts(tmp_path: Path) -> None:
    parts = opened(tmp_path, ["/a.mp4"])
    parts.write(0, clips_table(clip_columns([text_only_clip("other", CFG)])), QUARANTINE.empty_table(), {})
    with pytest.raises(StageError, match="item 'i000' came out 0 times.*what was decoded is removed"):
        check(parts)
    assert not parts.folder.exists()


class Killed(BaseException):
    """Ends the driver where it stands, as SIGKILL does: no handler for errors runs."""


def tables_of(folder: Path) -> tuple[list[str], list[str]]:
    aside = pq.read_table(folder / "quarantine")["item_id"].to_pylist()
    return read_clips(folder / "clips", ["item_id"])["item_id"].tolist(), sorted(aside)


@pytest.mark.parametrize("killed_at", range(10))
def test_publish_killed_anywhere_is_finished_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    for name in ("clips", "quarantine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old.parquet").write_text("old")
    parts = opened(tmp_path, URIS)
    decode(parts, [0, 1, 2, 3])
    rename, renames = Path.rename, [0]

    def rename_until_killed(source: Path, target: Path) -> Path:
        if renames[0] == killed_at:
            raise Killed
        renames[0] += 1
        return rename(source, target)

    check(parts)
    finals = {name: tmp_path / name for name in ("clips", "quarantine")}
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename_until_killed)
        if killed_at < 8:  # four files out of the blocks, two old and two new folders
            with pytest.raises(Killed):
                publish(parts, *finals.values())
        else:
            publish(parts, *finals.values())
    lines: list[str] = []
    again = opened(tmp_path, URIS, lines=lines)
    assert lines == ["resumed: 4 of 4 blocks were decoded before and are kept"]
    assert not is_lost(again, finals)
    assert check(again)["items"] == 5
    publish(again, *finals.values())
    assert tables_of(tmp_path) == (["i001", "i003"], ["i000", "i002", "i004"])
    remove_published(tmp_path / "clips.parts")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "quarantine"]


def test_publish_that_fails_half_way_puts_back_the_old_tables(tmp_path: Path) -> None:
    parts = opened(tmp_path, URIS)
    decode(parts, [0, 1, 2, 3])
    check(parts)
    old = tmp_path / "clips"
    old.mkdir()
    (old / "old.parquet").write_text("old")
    (tmp_path / "blocked").write_text("a file where a folder is needed")
    with pytest.raises(OSError, match="blocked"):
        publish(parts, old, tmp_path / "blocked" / "quarantine")
    assert [path.name for path in old.iterdir()] == ["old.parquet"]
    publish(parts, old, tmp_path / "quarantine")
    assert tables_of(tmp_path)[0] == ["i001", "i003"]


def test_published_table_that_was_deleted_is_noticed(tmp_path: Path) -> None:
    parts = opened(tmp_path, URIS)
    decode(parts, [0, 1, 2, 3])
    check(parts)
    finals = {name: tmp_path / name for name in ("clips", "quarantine")}
    publish(parts, *finals.values())
    finals["clips"].rename(tmp_path / "elsewhere")
    assert is_lost(opened(tmp_path, URIS), finals)


def test_manifest_json_says_what_is_decoded_how(tmp_path: Path) -> None:
    about = json.loads((opened(tmp_path, URIS).folder / "manifest.json").read_text())
    assert about["num_items"] == 5
    assert about["media"] == to_dict(CFG)
    assert set(about) >= {"fingerprint", "decoder", "av", "decord", "pillow"}
