import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from avrec_ray.errors import StageError, TableError
from avrec_ray.media.clips import read_clips
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.manifest import items_from_folder
from avrec_ray.pipelines import decode_media
from avrec_ray.pipelines.decode_media import decode_manifest
from avrec_ray.types import QUARANTINE, check_items, check_table
from tests.media.render import barcode, read_barcode, tone, write_media

CFG = MediaConfig(num_frames=4, clip_seconds=1.0, timeout_seconds=5.0)

EXPECTED_REASONS = {
    "text": "not_media",
    "cut": "truncated",
    "fifo": "forbidden",
    "url": "forbidden",
    "away": "forbidden",
    "absent": "missing",
    "spin": "timeout",
    "abort": "crashed",
}


def write_items(path: Path, uris: dict[str, str | None]) -> str:
    table = check_items(pa.table({"item_id": list(uris), "media_uri": list(uris.values()), "title": list(uris)}))
    pq.write_table(table, path)
    return str(path)


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Twelve items: four usable in their own way, eight each bad in its own way."""
    root = tmp_path_factory.mktemp("media")
    film = write_media(root / "film.mp4", 50, options={"g": "12"}, sound=tone(2.0))
    write_media(root / "sound.ogg", 0, sound=tone(0.5), audio_codec="libopus")
    Image.fromarray(barcode(77)).save(root / "picture.png")
    (root / "text.mp4").write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    (root / "cut.mp4").write_bytes(film.read_bytes()[:3000])
    os.mkfifo(root / "fifo.mp4")
    (root / "away.mp4").symlink_to("/etc/passwd")
    for word in ("spin", "abort"):
        (root / word).write_bytes(b"OggS" + word.encode())
    names = ["film.mp4", "sound.ogg", "picture.png", "text.mp4", "cut.mp4", "fifo.mp4", "away.mp4", "absent.mp4"]
    found: dict[str, str | None] = {name.split(".")[0]: str(root / name) for name in [*names, "spin", "abort"]}
    return {**found, "url": "http://127.0.0.1:9/a.mp4", "only_text": None}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_run_every_item_is_in_exactly_one_table(uris: dict[str, str | None], tmp_path: Path) -> None:
    lines: list[str] = []
    root = os.path.dirname(str(uris["film"]))
    cfg = MediaConfig(num_frames=4, clip_seconds=1.0, timeout_seconds=5.0, media_roots=[root])
    counts = decode_manifest(
        write_items(tmp_path / "items.parquet", uris),
        str(tmp_path / "clips"),
        str(tmp_path / "quarantine"),
        cfg,
        2,
        lines.append,
        decoder="tests.media.hostile_decoders:extract_or_misbehave",
    )
    clips = read_clips(tmp_path / "clips")
    assert clips["item_id"].tolist() == ["film", "film", "only_text", "picture", "sound"]
    assert clips["frames"].shape == (5, 4, 3, 64, 64)
    assert [read_barcode(frame) for frame in clips["frames"][0]] == [3, 9, 15, 21]
    assert [read_barcode(frame) for frame in clips["frames"][3]] == [77] * 4
    assert clips["has_video"].tolist() == [True, True, False, True, False]
    assert clips["has_audio"].tolist() == [True, True, False, False, True]
    aside = check_table(pq.read_table(tmp_path / "quarantine"), QUARANTINE, "quarantine", unique=["item_id"])
    assert dict(zip(aside["item_id"].to_pylist(), aside["reason"].to_pylist(), strict=True)) == EXPECTED_REASONS
    assert (counts["items"], counts["usable"], counts["clips"], counts["quarantined"]) == (12, 4, 5, 8)
    assert counts["quarantined_forbidden"] == 3
    assert "4 of 12 items usable, 5 clips; set aside: forbidden 3" in lines[-1]
    assert not list(tmp_path.glob("*.staging"))
    check_readable_by_ray(tmp_path / "clips")
    check_second_run_without_usable_item_keeps_the_tables(uris, tmp_path)


def check_readable_by_ray(folder: Path) -> None:
    import ray

    batch = ray.data.read_parquet(str(folder)).take_batch(5, batch_format="numpy")
    assert batch["frames"].shape == (5, 4, 3, 64, 64)
    assert batch["log_mel"].shape == (5, 80, 100)
    assert batch["frames"].dtype == np.uint8


def check_second_run_without_usable_item_keeps_the_tables(uris: dict[str, str | None], tmp_path: Path) -> None:
    bad = {name: uris[name] for name in ("url", "absent", "text")}
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*.parquet")}
    with pytest.raises(StageError, match=r"none of the 3 items is usable: .*missing 1"):
        decode_manifest(
            write_items(tmp_path / "bad.parquet", bad),
            str(tmp_path / "clips"),
            str(tmp_path / "quarantine"),
            CFG,
            2,
            print,
        )
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*.parquet")} == before


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": ["a"], "media_uri": ["/x"]}, "column 'title' is missing"),
        ({"item_id": ["a", "a"], "media_uri": ["/x", "/y"], "title": ["", ""]}, "repeats 'a' in row 1"),
        ({"item_id": ["a"], "media_uri": [1], "title": [None]}, "column 'title' is null in row 0"),
    ],
)
def test_run_malformed_items_table_names_the_column(
    tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    with pytest.raises(TableError, match=message):
        decode_manifest(str(tmp_path / "items.parquet"), str(tmp_path / "c"), str(tmp_path / "q"), CFG, 1, print)


def test_run_file_that_is_no_table_or_empty_says_so(tmp_path: Path) -> None:
    (tmp_path / "items.parquet").write_text("not a table")
    with pytest.raises(TableError, match="cannot be read as Parquet"):
        decode_manifest(str(tmp_path / "items.parquet"), str(tmp_path / "c"), str(tmp_path / "q"), CFG, 1, print)
    write_items(tmp_path / "none.parquet", {})
    with pytest.raises((StageError, TableError)):
        decode_manifest(str(tmp_path / "none.parquet"), str(tmp_path / "c"), str(tmp_path / "q"), CFG, 1, print)


def staged(tmp_path: Path, clips: list[tuple[str, int]], aside: list[str]) -> Path:
    for name in ("clips", "quarantine"):
        (tmp_path / name).mkdir()
    items, numbers = [item for item, _ in clips], [idx for _, idx in clips]
    pq.write_table(pa.table({"item_id": items, "clip_idx": numbers}), tmp_path / "clips" / "p.parquet")
    pq.write_table(pa.table({"item_id": aside, "reason": ["x"] * len(aside)}), tmp_path / "quarantine" / "p.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("clips", "aside", "message"),
    [
        ([("a", 0)], [], "item 'b' came out 0 times"),
        ([("a", 0), ("b", 0)], ["b"], "item 'b' came out 2 times"),
        ([("a", 0), ("b", 0), ("c", 0)], [], "item 'c' came out 1 times"),
        ([("a", 0), ("b", 1)], [], "item 'b' came out 0 times"),
        ([("a", 0), ("b", 0), ("b", 1), ("b", 1)], [], "not numbered"),
    ],
)
def test_check_complete_lost_or_doubled_item_is_named(
    tmp_path: Path, clips: list[tuple[str, int]], aside: list[str], message: str
) -> None:
    manifest = pa.table({"item_id": ["a", "b"]})
    with pytest.raises(StageError, match=message):
        decode_media._check_complete(staged(tmp_path, clips, aside), manifest)


def test_publish_that_fails_half_way_puts_back_the_old_tables(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    staging = staged(tmp_path / "new", [("a", 0)], ["b"])
    old = tmp_path / "clips"
    old.mkdir()
    (old / "old.parquet").write_text("old")
    (tmp_path / "blocked").write_text("a file where a folder is needed")
    with pytest.raises(OSError, match="blocked"):
        decode_media._publish(staging, old, tmp_path / "blocked" / "quarantine")
    assert [path.name for path in old.iterdir()] == ["old.parquet"]
    assert (staging / "clips" / "p.parquet").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_run_real_broken_files_are_each_accounted_for(shared_data: Path, tmp_path: Path) -> None:
    items = items_from_folder(shared_data / "media" / "broken")
    pq.write_table(items, tmp_path / "items.parquet")
    counts = decode_manifest(
        str(tmp_path / "items.parquet"), str(tmp_path / "clips"), str(tmp_path / "quarantine"), MediaConfig(), 2, print
    )
    assert counts["items"] == 34
    assert float(counts["usable"]) + float(counts["quarantined"]) == 34
    assert float(counts["usable"]) >= 14
    assert "quarantined_crashed" not in counts
    assert "quarantined_timeout" not in counts
