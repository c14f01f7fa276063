"""Last.fm of HetRec 2011 into our tables: artists as items, listening as views, friendships as edges.

Source: Cantador, Brusilovsky, Kuflik, HetRec, RecSys 2011. It says how often, never when: every row has one and the
same time, so that only splits which need none make sense (leave_one_out draws the held-out artist by a hash).
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from avrec_ray.datasets.config import LastFMConfig
from avrec_ray.datasets.table_files import Tables, check_tables
from avrec_ray.errors import ConfigError, TableError
from avrec_ray.types import EDGES, INTERACTIONS, ITEMS

LISTENED_FILES = ("user_artists.dat", "ratings.txt")
"""Names under which the table of user, artist and play count is published, with or without a head."""
FRIENDS_FILES = ("user_friends.dat", "trusts.txt")
ARTISTS_FILE = "artists.dat"
RELEASED_AT = datetime(2011, 10, 27, tzinfo=UTC)
"""The time of every row: the day of the workshop that published the data."""


def write_tables(folder: Path, cfg: LastFMConfig) -> Tables:
    """Write items, interactions and, where friendships are published, edges under `folder`, and return them.

    An artist without a published name is called after its number.

    Raises:
        ConfigError: source is not set.
        TableError: a file is missing or not as published; the message says what was expected.
    """
    if not cfg.source:
        raise ConfigError("data.lastfm.source is empty; expected the absolute folder of HetRec Last.fm")
    source = Path(cfg.source)
    listened = [_play(row) for row in _rows(_find(source, LISTENED_FILES), 3)]
    names = _read_names(source / ARTISTS_FILE)
    artists = dict.fromkeys(artist for _, artist, _ in listened)
    friends = next((source / name for name in FRIENDS_FILES if (source / name).is_file()), None)
    tables = check_tables(
        pa.Table.from_pylist(
            [{"item_id": a, "title": names.get(a, f"artist {a}"), "tags": []} for a in artists], ITEMS
        ),
        pa.Table.from_pylist([_view(*play) for play in listened], INTERACTIONS),
        edges=None if friends is None else pa.Table.from_pylist([_edge(row) for row in _rows(friends, 2)], EDGES),
    )
    tables.write(folder)
    return tables


def _find(source: Path, names: tuple[str, ...]) -> Path:
    found = next((source / name for name in names if (source / name).is_file()), None)
    if found is None:
        raise TableError(f"lastfm: {source} has none of {list(names)}; set data.lastfm.source to the unpacked folder")
    return found


def _rows(path: Path, num_columns: int) -> Iterator[list[str]]:
    """Columns split at white space; a head, whose first column is no number, is left out."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            row = line.split()
            if not row or (number == 0 and not row[0].isdigit()):
                continue
            if len(row) != num_columns or not all(_is_number(cell) for cell in row):
                raise TableError(
                    f"lastfm: {path} line {number + 1} is {line.strip()!r}; expected {num_columns} numbers"
                )
            yield row


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdigit()


def _read_names(path: Path) -> dict[str, str]:
    """artist -> name, from the tab separated file with a head; nothing where it is not published."""
    if not path.is_file():
        return {}
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:])
    return {row[0]: row[1] for row in rows if len(row) > 1}


def _play(row: list[str]) -> tuple[str, str, float]:
    return row[0], row[1], float(row[2])


def _view(user_id: str, item_id: str, count: float) -> dict[str, Any]:
    return {"user_id": user_id, "item_id": item_id, "event": "view", "at": RELEASED_AT, "value": count}


def _edge(row: list[str]) -> dict[str, Any]:
    return {"user_id": row[0], "friend_id": row[1], "weight": 1.0}
