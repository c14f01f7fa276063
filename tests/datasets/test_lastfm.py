from pathlib import Path

import pytest

from avrec_ray.datasets.config import LastFMConfig
from avrec_ray.datasets.lastfm import RELEASED_AT, write_tables
from avrec_ray.errors import ConfigError, TableError


def published(folder: Path, plain: bool) -> LastFMConfig:
    if plain:
        (folder / "ratings.txt").write_text("2\t51\t13883\n2 52 11690\n3 51 1\n")
        (folder / "trusts.txt").write_text("2\t3\n3\t2\n")
    else:
        (folder / "user_artists.dat").write_text("userID\tartistID\tweight\n2\t51\t13883\n2\t52\t11690\n3\t51\t1\n")
        (folder / "user_friends.dat").write_text("userID\tfriendID\n2\t3\n3\t2\n")
        (folder / "artists.dat").write_text("id\tname\turl\n51\tDuran Duran\thttp\n")
    return LastFMConfig(source=str(folder))


@pytest.mark.parametrize("plain", [True, False])
def test_both_layouts_give_the_same_behaviour(tmp_path: Path, plain: bool) -> None:
    tables = write_tables(tmp_path / "tables", published(tmp_path, plain))
    rows = tables.interactions.to_pylist()
    assert [(r["user_id"], r["item_id"], r["value"]) for r in rows] == [
        ("2", "51", 13883.0),
        ("2", "52", 11690.0),
        ("3", "51", 1.0),
    ]
    assert {r["at"] for r in rows} == {RELEASED_AT}
    assert {r["event"] for r in rows} == {"view"}
    assert tables.edges is not None
    assert tables.edges.to_pylist()[0] == {"user_id": "2", "friend_id": "3", "weight": 1.0}
    assert tables.items["title"].to_pylist() == (["artist 51", "artist 52"] if plain else ["Duran Duran", "artist 52"])


def test_friends_are_optional(tmp_path: Path) -> None:
    cfg = published(tmp_path, plain=True)
    (tmp_path / "trusts.txt").unlink()
    assert write_tables(tmp_path / "tables", cfg).edges is None


def test_a_line_that_is_not_as_published_is_named(tmp_path: Path) -> None:
    cfg = published(tmp_path, plain=True)
    (tmp_path / "ratings.txt").write_text("2 51 13883\n2 radiohead 1\n")
    with pytest.raises(TableError, match="line 2 is '2 radiohead 1'; expected 3 numbers"):
        write_tables(tmp_path / "tables", cfg)


def test_missing_source_and_missing_files_say_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data.lastfm.source is empty"):
        write_tables(tmp_path, LastFMConfig())
    with pytest.raises(TableError, match="has none of"):
        write_tables(tmp_path, LastFMConfig(source=str(tmp_path)))
