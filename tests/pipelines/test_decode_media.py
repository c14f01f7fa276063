import fcntl
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from avrec_ray.cluster_config import TrackingConfig
from avrec_ray.config import JobConfig
from avrec_ray.datasets.config import DataConfig
from avrec_ray.errors import StageError, TableError
from avrec_ray.media.clips import read_clips
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.manifest import items_from_folder
from avrec_ray.pipelines import decode_media
from avrec_ray.pipelines.decode_media import decode_manifest
from avrec_ray.pipelines.full_loop import open_loop
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
    assert lines[-8].split() == ["set", "aside", "items", "for", "example"]
    assert lines[-7].split()[:2] == ["forbidden", "3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "clips.lock", "items.parquet", "quarantine"]
    assert sum(line.startswith("sandbox: rlimits, no_new_privs, ") for line in lines) == 1
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


def test_run_beside_another_one_of_the_same_tables_is_refused(tmp_path: Path) -> None:
    items = write_items(tmp_path / "items.parquet", {"a": None})
    with (tmp_path / "clips.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StageError, match="another run decodes into .*clips; wait until it has ended"):
            decode_manifest(items, str(tmp_path / "clips"), str(tmp_path / "q"), CFG, 1, print)


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


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_run_worker_that_cannot_decode_ends_the_run_in_plain_words(tmp_path: Path) -> None:
    items = write_items(tmp_path / "items.parquet", {"a": str(write_media(tmp_path / "a.mp4", 5)), "b": None})
    with pytest.raises(StageError, match="the decoding process does not start"):
        decode_manifest(items, str(tmp_path / "c"), str(tmp_path / "q"), CFG, 2, print, decoder="no.such:decoder")
    assert not (tmp_path / "c").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_stage_logs_over_time_and_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    film = write_media(tmp_path / "film.mp4", 25)
    items = write_items(tmp_path / "items.parquet", {"a": str(film), "b": None, "c": "/nowhere.mp4"})
    job = JobConfig(
        storage_path=str(tmp_path / "storage"),
        data=DataConfig(items=items),
        media=CFG,
        tracking=TrackingConfig(system_metrics_seconds=0),
    )
    lines: list[str] = []
    for _ in range(2):
        with open_loop(job, "decode_media") as loop:
            loop.echo = lines.append
            record = decode_media.run(loop, job)
            uri = loop.tracking_uri
    assert lines[-1] == "[1/1] decode_media: already done with these inputs, skipped"
    client = MlflowClient(uri)
    assert client.get_metric_history(record.run_id, "decode/items_done")[-1].value == 3
    assert client.get_run(record.run_id).data.metrics["decode/items_set_aside"] == 1
    assert client.get_run(record.run_id).data.metrics["quarantined_missing"] == 1
    assert not list((tmp_path / "storage").glob("*.parts"))
