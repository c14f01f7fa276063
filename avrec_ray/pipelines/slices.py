"""The parts on which a ranking is looked at, by name: one list of them for the report and for the gate."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.catalogue import Catalogue
from avrec_ray.evaluation.list_metrics import category_matrix
from avrec_ray.evaluation.slices import (
    Slice,
    Slices,
    category_slices,
    history_slices,
    modality_slices,
    popularity_slices,
    user_slices,
    warmth_slices,
)
from avrec_ray.evaluation.user_groups import attribute_groups
from avrec_ray.item_vectors import VECTOR_COLUMNS
from avrec_ray.media.clips import iter_clips
from avrec_ray.media.text import item_text
from avrec_ray.pipelines.catalogue import read_items
from avrec_ray.pipelines.storage import Storage
from avrec_ray.types import MODALITIES

NUM_CATEGORIES = 10
"""Categories with a slice of their own: those of most items."""


def named_slices(
    storage: Storage,
    items: Catalogue,
    users: Sequence[str],
    history_lengths: npt.NDArray[np.integer],
    choice_counts: npt.NDArray[np.integer],
    wanted: Collection[str] = (),
) -> Slices:
    """Every slice that the data allows: all, warmth, popularity, history, modalities, categories, user attributes.

    Names are such as "cold_items", "video_audio_text", "category_music", "gender_F". A name that an item slice has
    already is not taken by a user attribute.

    Args:
        history_lengths: [U] events in each user's history.
        choice_counts: [N] choices of each item before test.
        wanted: names of categories' slices to have beside the NUM_CATEGORIES largest.
    """
    slices: Slices = {
        "all": Slice(),
        **warmth_slices(~items.warm),
        **popularity_slices(choice_counts),
        **history_slices(history_lengths),
        **modality_slices(item_modalities(storage, items.item_ids)),
        **_categories(items.categories, wanted),
    }
    of_users = [user_slices(values, attribute) for attribute, values in user_attributes(storage, users).items()]
    return slices | {name: part for parts in of_users for name, part in parts.items() if name not in slices}


def user_attributes(storage: Storage, users: Sequence[str]) -> dict[str, list[str | None]]:
    """Group of each user by attribute, see `attribute_groups`; empty where no users table was given."""
    path = storage.root / "tables" / "users.parquet"
    if not path.is_file() or "attributes" not in pq.read_schema(path).names:
        return {}
    table = pq.read_table(path, columns=["user_id", "attributes"])
    known = dict(zip(table["user_id"].to_pylist(), table["attributes"].to_pylist(), strict=True))
    return attribute_groups([dict(known.get(user) or ()) for user in users])


def item_modalities(storage: Storage, item_ids: list[str]) -> npt.NDArray[np.bool_]:
    """Bool [N, M], columns as MODALITIES: what the clips of each item hold, whether it has any word, or a vector."""
    has = np.zeros((len(item_ids), 3), bool)
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    clips = storage.folder("clips")
    columns = ["item_id", "has_video", "has_audio"]
    for batch in iter_clips(clips, columns, batch_size=4096) if any(clips.glob("*.parquet")) else ():
        rows = np.array([row_of.get(str(item_id), -1) for item_id in batch["item_id"]], np.int64)
        for column, name in enumerate(("has_video", "has_audio")):
            has[rows[(rows >= 0) & batch[name]], column] = True
    has[:, 2] = _has_text(storage.items, item_ids)
    return has | _has_vector(storage.items, item_ids)


def _has_vector(items_path: Path, item_ids: list[str]) -> npt.NDArray[np.bool_]:
    """Bool [N, M]: a `<kind>_vector` of the items table."""
    names = set(pq.read_schema(items_path).names)
    columns = {name: [c for c in VECTOR_COLUMNS[name] if c in names] for name in MODALITIES}
    wanted = [column for given in columns.values() for column in given]
    table = pq.read_table(items_path, columns=["item_id", *wanted])
    row_of = {item_id: row for row, item_id in enumerate(table["item_id"].to_pylist())}
    rows = np.array([row_of[item_id] for item_id in item_ids], np.int64)
    has = np.zeros((table.num_rows, len(MODALITIES)), bool)
    for place, given in enumerate(columns.values()):
        for column in given:
            has[:, place] |= table[column].is_valid().to_numpy(zero_copy_only=False)
    return has[rows]


def _has_text(items_path: Path, item_ids: list[str]) -> list[bool]:
    table: pa.Table = read_items(items_path, item_ids)
    texts = zip(*(table[name].to_pylist() for name in ("title", "description", "tags")), strict=True)
    return [bool(item_text(title, description, tags)) for title, description, tags in texts]


def _categories(categories: Sequence[str | None], wanted: Collection[str]) -> Slices:
    """The largest categories, those of as many items in order of name, and the wanted ones."""
    counts = Counter(category for category in categories if category is not None)
    largest = sorted(counts, key=lambda name: (-counts[name], name))[:NUM_CATEGORIES]
    kept = {*largest, *(name for name in counts if f"category_{name}" in wanted)}
    return category_slices(*category_matrix([name if name in kept else None for name in categories]))
