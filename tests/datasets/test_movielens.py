import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from avrec_ray.datasets import movielens
from avrec_ray.datasets.config import MovieLensConfig
from avrec_ray.datasets.movielens_files import GENRES
from avrec_ray.errors import ConfigError, TableError
from avrec_ray.types import check_interactions, check_items


def write_recbole(parent: Path) -> Path:
    """ml-100k as RecBole publishes it, with two films."""
    source = parent / "ml-100k"
    source.mkdir()
    (source / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        '1\tToy Story\t1995\tAnimation Children\'s Comedy\n7\tAmélie "quoted"\t\tunknown\n',
        encoding="utf-8",
    )
    (source / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n9\t1\t3\t881250949\n8\t7\t5\t881250949\n"
    )
    (source / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n9\t24\tM\ttechnician\t85711\n"
    )
    return source


def write_original(parent: Path) -> Path:
    """ml-100k as GroupLens publishes it: pipes, latin-1, genre flags."""
    source = parent / "original"
    source.mkdir()
    flags = {"Toy Story (1995)": ("Animation", "Comedy"), "Café (1951)": ("Drama",), "unknown": ("unknown",)}
    rows = [
        "|".join([str(i), title, "01-Jan-1995", "", "http://x", *("1" if g in genres else "0" for g in GENRES)])
        for i, (title, genres) in enumerate(flags.items(), 1)
    ]
    (source / "u.item").write_text("\n".join(rows) + "\n", encoding="latin-1")
    (source / "u.data").write_text("9\t1\t3\t881250949\n8\t2\t5\t881250950\n")
    (source / "u.user").write_text("9|24|M|technician|85711\n8|53|F|other|94043\n")
    return source


def write_latest_small(parent: Path) -> Path:
    source = parent / "ml-latest-small"
    source.mkdir()
    (source / "movies.csv").write_text(
        'movieId,title,genres\n1,Toy Story (1995),Adventure|Comedy\n11,"American President, The (1995)",Drama\n'
        "5,Babylon 5,(no genres listed)\n"
    )
    (source / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,11,4.5,964982703\n2,1,0.5,964982704\n")
    return source


def write_posters(parent: Path, *names: str) -> Path:
    posters = parent / "posters"
    posters.mkdir()
    for name in names:
        Image.new("RGB", (14, 21), "red").save(posters / name)
    return posters


def rows(table: pa.Table) -> dict[str, dict[str, object]]:
    return {row["item_id"]: row for row in table.to_pylist()}


def test_write_tables_recbole_layout_gives_titles_with_year_genres_and_users(tmp_path: Path) -> None:
    tables = movielens.write_tables(tmp_path / "out", MovieLensConfig(source=str(write_recbole(tmp_path))))
    toy, unknown = rows(tables.items)["1"], rows(tables.items)["7"]
    assert toy["title"] == "Toy Story (1995)"
    assert toy["tags"] == ["Animation", "Children's", "Comedy"]
    assert toy["category"] == "Animation"
    assert toy["published_at"] == datetime(1995, 1, 1, tzinfo=UTC)
    assert (toy["media_uri"], toy["duration_seconds"]) == (None, None)
    assert unknown["title"] == 'Amélie "quoted"'
    assert (unknown["tags"], unknown["category"], unknown["published_at"]) == ([], None, None)
    assert tables.users is not None
    attributes = {row["user_id"]: dict(row["attributes"]) for row in tables.users.to_pylist()}
    assert attributes == {"9": {"age": "24", "gender": "M", "occupation": "technician"}, "8": {}}


def test_write_tables_ratings_become_views_in_file_order(tmp_path: Path) -> None:
    tables = movielens.write_tables(tmp_path / "out", MovieLensConfig(source=str(write_recbole(tmp_path))))
    first, second = tables.interactions.to_pylist()
    assert (first["user_id"], first["item_id"], first["event"], first["value"]) == ("9", "1", "view", 3.0)
    assert first["at"] == datetime.fromtimestamp(881250949, UTC)
    assert (second["user_id"], second["watch_seconds"]) == ("8", None)


def test_write_tables_files_pass_the_schema_checks(tmp_path: Path) -> None:
    movielens.write_tables(tmp_path / "out", MovieLensConfig(source=str(write_recbole(tmp_path))))
    items = pq.read_table(tmp_path / "out" / "items.parquet")
    interactions = pq.read_table(tmp_path / "out" / "interactions.parquet")
    assert check_items(items) == items
    assert check_interactions(interactions) == interactions
    assert (tmp_path / "out" / "users.parquet").is_file()


def test_write_tables_original_layout_reads_flags_and_latin_1(tmp_path: Path) -> None:
    tables = movielens.write_tables(tmp_path / "out", MovieLensConfig(source=str(write_original(tmp_path))))
    films = rows(tables.items)
    assert films["1"]["tags"] == ["Animation", "Comedy"]
    assert films["2"]["title"] == "Café (1951)"
    assert films["2"]["published_at"] == datetime(1951, 1, 1, tzinfo=UTC)
    assert films["3"]["tags"] == []
    assert tables.interactions.num_rows == 2


def test_write_tables_latest_small_reads_quoted_titles(tmp_path: Path) -> None:
    cfg = MovieLensConfig(variant="ml-latest-small", source=str(write_latest_small(tmp_path)))
    tables = movielens.write_tables(tmp_path / "out", cfg)
    films = rows(tables.items)
    assert films["11"]["title"] == "American President, The (1995)"
    assert films["1"]["tags"] == ["Adventure", "Comedy"]
    assert (films["5"]["category"], films["5"]["published_at"]) == (None, None)
    assert tables.interactions["value"].to_pylist() == [4.5, 0.5]
    assert tables.users is not None
    assert tables.users["user_id"].to_pylist() == ["1", "2"]


def test_write_tables_details_become_the_description(tmp_path: Path) -> None:
    source = write_recbole(tmp_path)
    details = [
        {"movie_id": 1, "description": "Toys live. ", "director": ["J. L."], "cast": ["A", "B", "C", "D", "E", "F"]}
    ]
    (source / movielens.DETAILS).write_text(json.dumps(details))
    tables = movielens.write_tables(tmp_path / "out", MovieLensConfig(source=str(source)))
    films = rows(tables.items)
    assert films["1"]["description"] == "Toys live. Directed by J. L. With A, B, C, D, E."
    assert films["7"]["description"] is None


def test_write_tables_poster_map_finds_posters_beside_the_source(tmp_path: Path) -> None:
    source, posters = write_recbole(tmp_path), write_posters(tmp_path, "42.jpg")
    (source / movielens.POSTER_MAP).write_text("ml100k_item_id,poster_file\n1,posters/42.jpg\n7,posters/missing.jpg\n")
    films = rows(movielens.write_tables(tmp_path / "out", MovieLensConfig(source=str(source))).items)
    assert films["1"]["media_uri"] == str(posters / "42.jpg")
    assert films["7"]["media_uri"] is None


def test_write_tables_latest_small_posters_go_by_item_id(tmp_path: Path) -> None:
    source, posters = write_latest_small(tmp_path), write_posters(tmp_path, "11.jpg")
    cfg = MovieLensConfig(variant="ml-latest-small", source=str(source), posters=str(posters))
    films = rows(movielens.write_tables(tmp_path / "out", cfg).items)
    assert films["11"]["media_uri"] == str(posters / "11.jpg")
    assert films["1"]["media_uri"] is None


def test_write_tables_without_poster_map_takes_no_poster_of_another_numbering(tmp_path: Path) -> None:
    source = write_recbole(tmp_path)
    write_posters(tmp_path, "1.jpg")
    films = rows(movielens.write_tables(tmp_path / "out", MovieLensConfig(source=str(source))).items)
    assert films["1"]["media_uri"] is None


def test_write_tables_posters_missing_folder_raises(tmp_path: Path) -> None:
    cfg = MovieLensConfig(source=str(write_recbole(tmp_path)), posters=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"movielens\.posters=.*none' is not a folder"):
        movielens.write_tables(tmp_path / "out", cfg)


def test_write_tables_without_source_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.movielens\.source is empty; expected the absolute folder of ml-100k"):
        movielens.write_tables(tmp_path, MovieLensConfig())


def test_write_tables_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"does not exist; set data\.movielens\.source to the unpacked ml-100k"):
        movielens.write_tables(tmp_path, MovieLensConfig(source=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("ml-100k", r"ml-100k\.inter \+ ml-100k\.item \+ ml-100k\.user or u\.data \+ u\.item \+ u\.user"),
        ("ml-latest-small", r"ratings\.csv \+ movies\.csv"),
    ],
)
def test_write_tables_missing_files_lists_found_and_expected(tmp_path: Path, variant: str, expected: str) -> None:
    (tmp_path / "u.data").write_text("")
    with pytest.raises(TableError, match=rf"holds \['u\.data'\], expected the files of {variant}: {expected}"):
        movielens.write_tables(tmp_path / "out", MovieLensConfig(variant=variant, source=str(tmp_path)))


def test_write_tables_short_row_names_line(tmp_path: Path) -> None:
    source = write_recbole(tmp_path)
    with (source / "ml-100k.inter").open("a") as file:
        file.write("9\t7\t3\n")
    with pytest.raises(TableError, match=r"ml-100k\.inter line 4 has 3 fields, expected 4"):
        movielens.write_tables(tmp_path / "out", MovieLensConfig(source=str(source)))


def test_write_tables_rating_that_is_no_number_names_line(tmp_path: Path) -> None:
    source = write_latest_small(tmp_path)
    (source / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,11,good,964982703\n")
    with pytest.raises(TableError, match=r"ratings\.csv line 2: rating 'good' at '964982703' is not a number"):
        movielens.write_tables(tmp_path / "out", MovieLensConfig(variant="ml-latest-small", source=str(source)))


def test_write_tables_rating_of_unknown_film_names_row(tmp_path: Path) -> None:
    source = write_latest_small(tmp_path)
    (source / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,99,4,964982703\n")
    with pytest.raises(TableError, match="'item_id' holds '99' in row 0"):
        movielens.write_tables(tmp_path / "out", MovieLensConfig(variant="ml-latest-small", source=str(source)))


def test_write_tables_other_encoding_names_file(tmp_path: Path) -> None:
    source = write_recbole(tmp_path)
    (source / "ml-100k.user").write_bytes("9\t24\tM\tcafé\t1\n".encode("latin-1") * 2)
    with pytest.raises(TableError, match=r"ml-100k\.user is not utf-8 text"):
        movielens.write_tables(tmp_path / "out", MovieLensConfig(source=str(source)))


def test_write_tables_details_of_another_shape_raise(tmp_path: Path) -> None:
    source = write_recbole(tmp_path)
    (source / movielens.DETAILS).write_text('[{"id": 1}]')
    with pytest.raises(TableError, match="is not a list of films with movie_id, description, director and cast"):
        movielens.write_tables(tmp_path / "out", MovieLensConfig(source=str(source)))


def test_write_tables_poster_map_of_another_shape_raises(tmp_path: Path) -> None:
    source = write_recbole(tmp_path)
    (source / movielens.POSTER_MAP).write_text("id,file\n1,posters/1.jpg\n")
    with pytest.raises(TableError, match=r"has columns \['id', 'file'\], expected"):
        movielens.write_tables(tmp_path / "out", MovieLensConfig(source=str(source)))


def test_write_tables_error_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(TableError):
        movielens.write_tables(tmp_path / "out", MovieLensConfig(source=str(tmp_path)))
    assert not (tmp_path / "out").exists()


def test_write_tables_real_ml_100k_joins_text_and_posters(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "interactions" / "ml-100k"
    tables = movielens.write_tables(tmp_path, MovieLensConfig(source=str(source)))
    assert (tables.items.num_rows, tables.interactions.num_rows) == (1682, 100_000)
    assert tables.users is not None
    assert tables.users.num_rows == 943
    assert tables.items.num_rows - tables.items["media_uri"].null_count == 1563
    assert tables.items.num_rows - tables.items["description"].null_count == 1591
    toy = rows(tables.items)["1"]
    assert toy["title"] == "Toy Story (1995)"
    assert "Directed by" in str(toy["description"])
    with Image.open(str(toy["media_uri"])) as poster:
        assert poster.size[0] == 140


def test_write_tables_real_latest_small_is_read_whole(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "interactions" / "ml-latest-small"
    tables = movielens.write_tables(tmp_path, MovieLensConfig(variant="ml-latest-small", source=str(source)))
    assert (tables.items.num_rows, tables.interactions.num_rows) == (9742, 100_836)
    assert tables.items.num_rows - tables.items["media_uri"].null_count > 2000
