from pathlib import Path

import pyarrow.parquet as pq
import pytest

from avrec_ray.errors import StageError
from avrec_ray.media.manifest import items_from_folder, main
from avrec_ray.types import ITEMS


def fill(folder: Path) -> None:
    (folder / "video").mkdir(parents=True)
    for name in ("video/a film.mp4", "b.wav", "notes.md", ".hidden.mp4"):
        (folder / name).write_bytes(b"x")


def test_items_from_folder_names_items_by_path_and_stem(tmp_path: Path) -> None:
    fill(tmp_path)
    table = items_from_folder(tmp_path)
    assert table.schema.names == ITEMS.names
    assert table["item_id"].to_pylist() == ["b.wav", "video/a film.mp4"]
    assert table["title"].to_pylist() == ["b", "a film"]
    assert table["media_uri"].to_pylist() == [str(tmp_path / "b.wav"), str(tmp_path / "video/a film.mp4")]


def test_items_from_folder_manifest_overrides_titles_and_tags(tmp_path: Path) -> None:
    root = tmp_path / "media"
    fill(root)
    (root / "manifest.csv").write_text("path,title,label\nmedia/b.wav,Bees,insects\nvideo/a film.mp4,,\n")
    rows = {row["item_id"]: row for row in items_from_folder(root).to_pylist()}
    assert (rows["b.wav"]["title"], rows["b.wav"]["tags"]) == ("Bees", ["insects"])
    assert (rows["video/a film.mp4"]["title"], rows["video/a film.mp4"]["tags"]) == ("a film", [])


def test_items_from_folder_without_files_says_so(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no folder with files"):
        items_from_folder(tmp_path)


def test_main_writes_a_table_and_names_the_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "media")
    main(str(tmp_path / "media"), str(tmp_path / "items.parquet"))
    assert pq.read_table(tmp_path / "items.parquet").num_rows == 2
    assert "python -m jobs.decode_media data.items=" in capsys.readouterr().out
