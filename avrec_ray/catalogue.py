"""The catalogue: the items that can be served, in memory and as a bundle's items.parquet."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(eq=False)
class Catalogue:
    """The items that can be served, as columns; row number is `item_idx`."""

    item_ids: list[str]
    titles: list[str]
    categories: list[str | None]
    tags: list[list[str]]
    creator_ids: list[str | None]
    languages: list[str | None]
    durations: npt.NDArray[np.float32]
    """Seconds, NaN where unknown."""
    popularity: npt.NDArray[np.float32]
    """Share of training positives, sums to 1 (or all 0)."""
    recent_popularity: npt.NDArray[np.float32]
    """The same with newer positives counting more, see `RerankerConfig.popularity_half_life_days`."""
    choices_per_day: npt.NDArray[np.float32]
    """Training positives by day that the item was out, see `pipelines.catalogue`."""
    warm: npt.NDArray[np.bool_]
    """True where the item had behaviour in training."""

    @cached_property
    def index_of(self) -> dict[str, int]:
        """`item_id` to `item_idx`."""
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @property
    def popularities(self) -> npt.NDArray[np.float32]:
        """[N, 3]: of all time, of late, and by day."""
        return np.stack([self.popularity, self.recent_popularity, self.choices_per_day], 1)

    @cached_property
    def popular_order(self) -> npt.NDArray[np.int64]:
        """Rows from the most popular down; ties in catalogue order."""
        return np.argsort(-self.popularity, kind="stable")

    def idx(self, item_id: str) -> int | None:
        """Row of an item, or None when it is not in the catalogue."""
        return self.index_of.get(item_id)

    def take(self, rows: Sequence[int]) -> "Catalogue":
        """Some items, as a catalogue of their own."""
        columns: dict[str, Any] = {}
        for column in fields(self):
            values = getattr(self, column.name)
            columns[column.name] = [values[row] for row in rows] if isinstance(values, list) else values[list(rows)]
        return Catalogue(**columns)

    def __len__(self) -> int:
        return len(self.item_ids)


def catalogue_table(catalogue: Catalogue) -> pa.Table:
    """The catalogue as the bundle's items table."""
    return pa.table(
        {
            "item_id": pa.array(catalogue.item_ids, pa.string()),
            "title": pa.array(catalogue.titles, pa.string()),
            "category": pa.array(catalogue.categories, pa.string()),
            "tags": pa.array(catalogue.tags, pa.list_(pa.string())),
            "creator_id": pa.array(catalogue.creator_ids, pa.string()),
            "language": pa.array(catalogue.languages, pa.string()),
            "duration_seconds": pa.array(catalogue.durations, pa.float32()),
            "popularity": pa.array(catalogue.popularity, pa.float32()),
            "recent_popularity": pa.array(catalogue.recent_popularity, pa.float32()),
            "choices_per_day": pa.array(catalogue.choices_per_day, pa.float32()),
            "warm": pa.array(catalogue.warm, pa.bool_()),
        }
    )


def catalogue_from_table(table: pa.Table) -> Catalogue:
    """Read a table of `catalogue_table` back."""
    return Catalogue(
        item_ids=table["item_id"].to_pylist(),
        titles=table["title"].to_pylist(),
        categories=table["category"].to_pylist(),
        tags=[tags or [] for tags in table["tags"].to_pylist()],
        creator_ids=table["creator_id"].to_pylist(),
        languages=table["language"].to_pylist(),
        durations=np.array(table["duration_seconds"].to_numpy(), np.float32),
        popularity=np.array(table["popularity"].to_numpy(), np.float32),
        recent_popularity=np.array(table["recent_popularity"].to_numpy(), np.float32),
        choices_per_day=np.array(table["choices_per_day"].to_numpy(), np.float32),
        warm=np.array(table["warm"].to_numpy(zero_copy_only=False), bool),
    )
