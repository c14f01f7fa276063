"""The files of MovieLens as published: three layouts, read into the same nouns."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from avrec_ray.errors import TableError

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""Order of the genre flags in u.item."""

_NO_GENRE = {"unknown", "(no genres listed)"}
_YEAR = re.compile(r"\((\d{4})\)\s*$")


@dataclass(frozen=True)
class Film:
    """One item. `year` is None where the title does not say."""

    item_id: str
    title: str
    year: int | None
    genres: list[str]


@dataclass(frozen=True)
class Rating:
    """One interaction; `at_seconds` is a POSIX time."""

    user_id: str
    item_id: str
    value: float
    at_seconds: float


@dataclass(frozen=True)
class Published:
    """What a folder holds. `users` maps a user_id to its attributes; a folder without a users file lists none."""

    films: list[Film]
    ratings: list[Rating]
    users: dict[str, dict[str, str]] = field(default_factory=dict)


def read_published(variant: str, source: Path) -> Published:
    """Read a folder of `variant`.

    Raises:
        TableError: the folder or a file is missing, or a row is not as published.
    """
    if not source.is_dir():
        raise TableError(
            f"movielens: folder {source} does not exist; set data.movielens.source to the unpacked {variant}"
        )
    layouts = LAYOUTS[variant]
    for files, read in layouts:
        if all((source / name).is_file() for name in files):
            return read(source)
    expected = " or ".join(" + ".join(files) for files, _ in layouts)
    found = sorted(path.name for path in source.iterdir())[:12]
    raise TableError(f"movielens: {source} holds {found}, expected the files of {variant}: {expected}")


def read_details(path: Path) -> dict[str, str]:
    """item_id -> plot, director and first actors, from movielens100k_details.json."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {str(row["movie_id"]): _describe(row["description"], row["director"], row["cast"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(
            f"movielens: {path} is not a list of films with movie_id, description, director and cast ({error!r})"
        ) from error


def _describe(plot: str, directors: list[str], cast: list[str]) -> str:
    parts = [plot.strip()]
    if directors:
        parts.append(f"Directed by {', '.join(directors).rstrip('.')}.")
    if cast:
        parts.append(f"With {', '.join(cast[:5]).rstrip('.')}.")
    return " ".join(parts)


def _recbole(source: Path) -> Published:
    films = []
    for item_id, title, year, genres in _rows(source / "ml-100k.item", "\t", 4, skip=1):
        known = int(year) if year.isdigit() else None
        films.append(Film(item_id, f"{title} ({known})" if known else title, known, _genres(genres.split(" "))))
    users = {
        user_id: {"age": age, "gender": gender, "occupation": occupation}
        for user_id, age, gender, occupation, _ in _rows(source / "ml-100k.user", "\t", 5, skip=1)
    }
    return Published(films, _ratings(source / "ml-100k.inter", "\t", skip=1), users)


def _original(source: Path) -> Published:
    films = []
    for row in _rows(source / "u.item", "|", 5 + len(GENRES), encoding="latin-1"):
        flagged = [genre for genre, flag in zip(GENRES, row[5:], strict=True) if flag == "1"]
        films.append(Film(row[0], row[1].strip(), _year_of(row[1]), _genres(flagged)))
    users = {
        user_id: {"age": age, "gender": gender, "occupation": occupation}
        for user_id, age, gender, occupation, _ in _rows(source / "u.user", "|", 5)
    }
    return Published(films, _ratings(source / "u.data", "\t"), users)


def _latest_small(source: Path) -> Published:
    films = [
        Film(item_id, title.strip(), _year_of(title), _genres(genres.split("|")))
        for item_id, title, genres in _rows(source / "movies.csv", ",", 3, skip=1)
    ]
    return Published(films, _ratings(source / "ratings.csv", ",", skip=1))


LAYOUTS: dict[str, list[tuple[tuple[str, ...], Callable[[Path], Published]]]] = {
    "ml-100k": [
        (("ml-100k.inter", "ml-100k.item", "ml-100k.user"), _recbole),
        (("u.data", "u.item", "u.user"), _original),
    ],
    "ml-latest-small": [(("ratings.csv", "movies.csv"), _latest_small)],
}
"""Variant -> the layouts it is published in: the files needed, and their reader."""


def _rows(path: Path, delimiter: str, width: int, skip: int = 0, encoding: str = "utf-8") -> Iterator[list[str]]:
    """Rows of `width` fields."""
    try:
        text = path.read_text(encoding)
    except UnicodeDecodeError as error:
        raise TableError(f"movielens: {path} is not {encoding} text ({error})") from error
    for number, row in enumerate(_reader(text.splitlines(), delimiter), 1):
        if number <= skip or not row:
            continue
        if len(row) != width:
            raise TableError(f"movielens: {path} line {number} has {len(row)} fields, expected {width}: {row[:4]}")
        yield row


def _reader(file: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Only the comma layout quotes; elsewhere a quotation mark is part of a title."""
    if delimiter == ",":
        return csv.reader(file)
    return csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)


def _ratings(path: Path, delimiter: str, skip: int = 0) -> list[Rating]:
    """Ratings in the file's order."""
    ratings = []
    for number, (user_id, item_id, value, at) in enumerate(_rows(path, delimiter, 4, skip), skip + 1):
        try:
            ratings.append(Rating(user_id, item_id, float(value), float(at)))
        except ValueError as error:
            raise TableError(f"movielens: {path} line {number}: rating {value!r} at {at!r} is not a number") from error
    return ratings


def _genres(names: list[str]) -> list[str]:
    return [name for name in names if name and name not in _NO_GENRE]


def _year_of(title: str) -> int | None:
    found = _YEAR.search(title)
    return int(found[1]) if found else None
