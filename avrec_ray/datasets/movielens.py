"""MovieLens into our tables: ratings as views, films as items with text, genres and, where given, plot and poster."""

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from avrec_ray.datasets.config import MovieLensConfig
from avrec_ray.datasets.movielens_files import Film, Published, read_details, read_published
from avrec_ray.datasets.table_files import Tables, check_tables
from avrec_ray.errors import ConfigError, TableError
from avrec_ray.types import INTERACTIONS, ITEMS, USERS

DETAILS = "movielens100k_details.json"
POSTER_MAP = "poster_map.csv"


def write_tables(folder: Path, cfg: MovieLensConfig) -> Tables:
    """Write items, interactions and users under `folder`, and return them.

    Ids are those published. Every rating is an event "view" with the rating as value: whoever rated a film has seen
    it. Interactions keep the file's order; MovieLens times are often equal, so sort stably and break ties by chance.

    Raises:
        ConfigError: source is not set, or posters names a folder that is not there.
        TableError: a file is missing or not as published; the message says what was expected.
    """
    if not cfg.source:
        raise ConfigError(f"data.movielens.source is empty; expected the absolute folder of {cfg.variant}")
    source = Path(cfg.source)
    published = read_published(cfg.variant, source)
    details = read_details(source / DETAILS) if (source / DETAILS).is_file() else {}
    posters = _find_posters(cfg, source, published.films)
    tables = check_tables(
        pa.Table.from_pylist([_item_row(f, details, posters) for f in published.films], schema=ITEMS),
        _interactions(published),
        pa.Table.from_pylist(_user_rows(published), schema=USERS),
    )
    tables.write(folder)
    return tables


def _find_posters(cfg: MovieLensConfig, source: Path, films: list[Film]) -> dict[str, str]:
    """item_id -> absolute path of a poster that exists. A poster is named by poster_map.csv, else by the item_id."""
    folder = Path(cfg.posters) if cfg.posters else source.parent / "posters"
    if cfg.posters and not folder.is_dir():
        raise ConfigError(f"data.movielens.posters={cfg.posters!r} is not a folder; expected one with <name>.jpg files")
    names = {film.item_id: f"{film.item_id}.jpg" for film in films}
    if cfg.variant == "ml-100k":  # the posters are named after the ids of ml-latest-small
        names = _read_poster_map(source / POSTER_MAP) if (source / POSTER_MAP).is_file() else {}
    paths = {item_id: folder / name for item_id, name in names.items()}
    return {item_id: str(path) for item_id, path in paths.items() if path.is_file()}


def _read_poster_map(path: Path) -> dict[str, str]:
    """item_id -> file name; the map's folder part says where the posters lay when it was made."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != ["ml100k_item_id", "poster_file"]:
            raise TableError(
                f"movielens: {path} has columns {reader.fieldnames}, expected ['ml100k_item_id', 'poster_file']"
            )
        return {row["ml100k_item_id"]: Path(row["poster_file"]).name for row in reader}


def _item_row(film: Film, details: dict[str, str], posters: dict[str, str]) -> dict[str, Any]:
    return {
        "item_id": film.item_id,
        "media_uri": posters.get(film.item_id),
        "title": film.title,
        "description": details.get(film.item_id),
        "tags": film.genres,
        "category": film.genres[0] if film.genres else None,
        "published_at": datetime(film.year, 1, 1, tzinfo=UTC) if film.year else None,
    }


def _interactions(published: Published) -> pa.Table:
    ratings = published.ratings
    columns: dict[str, list[Any]] = {
        "user_id": [r.user_id for r in ratings],
        "item_id": [r.item_id for r in ratings],
        "event": ["view"] * len(ratings),
        "at": [round(r.at_seconds * 1_000_000) for r in ratings],
        "value": [r.value for r in ratings],
    }
    return pa.table({name: pa.array(values, INTERACTIONS.field(name).type) for name, values in columns.items()})


def _user_rows(published: Published) -> list[dict[str, Any]]:
    """Every user who rated, with attributes where published."""
    rated = dict.fromkeys(rating.user_id for rating in published.ratings)
    attributes = {user_id: published.users.get(user_id, {}) for user_id in {**published.users, **rated}}
    return [{"user_id": user_id, "attributes": list(pairs.items())} for user_id, pairs in attributes.items()]
