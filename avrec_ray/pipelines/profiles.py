"""The users and edges tables of a prepared dataset, where the towers read them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.errors import StageError
from avrec_ray.towers.config import TowersConfig
from avrec_ray.training.histories import EventColumns
from avrec_ray.training.profile_tables import profiles_from_tables
from avrec_ray.training.profiles import UserProfiles


def read_profiles(tables: Path, towers: TowersConfig, columns: EventColumns) -> UserProfiles | None:
    """Profiles from the folder of prepared tables, with friends' choices in `columns`; None where towers read none.

    Raises:
        StageError: the towers read a table that this dataset does not have.
    """
    if not towers.reads_profiles:
        return None
    users = _read(tables / "users.parquet", "num_attribute_buckets") if towers.num_attribute_buckets else None
    edges = _read(tables / "edges.parquet", "num_friends") if towers.num_friends else None
    return profiles_from_tables(users, edges, columns, towers)


def _read(path: Path, setting: str) -> pa.Table:
    if not path.is_file():
        raise StageError(
            f"towers.{setting} is above 0, but this dataset has no {path.name}; give data.{path.stem}, or set it to 0"
        )
    return pq.read_table(path)
