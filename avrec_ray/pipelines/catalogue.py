"""Tables of finished stages as the arrays that models eat."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from avrec_ray.catalogue import Catalogue
from avrec_ray.item_vectors import ALL_VECTOR_COLUMNS, VECTOR_COLUMNS, vector_column, vectors_with_gaps
from avrec_ray.media.text import item_text
from avrec_ray.towers.config import GIVEN, TowersConfig
from avrec_ray.towers.item_tower import ItemTokens, token_shapes
from avrec_ray.towers.text_ids import text_ids
from avrec_ray.types import MODALITIES, POSITIVE_EVENTS

PSEUDO_CHOICES = 2.0
"""What is believed of an item's choices by day beforehand weighs as much as so many choices."""


def read_items(items_path: Path, item_ids: list[str]) -> pa.Table:
    """Rows of the items table for `item_ids`, in that order; without the vector columns, which are wide."""
    names = [name for name in pq.read_schema(items_path).names if name not in ALL_VECTOR_COLUMNS]
    return _rows(items_path, item_ids, names)


def given_vectors(items_path: Path, item_ids: list[str], cfg: TowersConfig) -> dict[str, npt.NDArray[np.float32]]:
    """Vectors [N, W] of each modality that is precomputed or absent everywhere; NaN where an item has none."""
    found = {name: np.full((len(item_ids), 1), np.nan, np.float32) for name in MODALITIES if name not in cfg.modalities}
    for name in cfg.modalities:
        if cfg.encoder_of(name) == "precomputed":
            column = vector_column(pq.read_schema(items_path), name)
            found[name] = vectors_with_gaps(_rows(items_path, item_ids, ["item_id", column]), name)
    return found


def every_vector(items_path: Path, item_ids: list[str]) -> list[npt.NDArray[np.float32]]:
    """Vectors [N, W] of each modality that the items table has vectors of; NaN where an item has none."""
    schema = pq.read_schema(items_path)
    columns = {name: next((c for c in VECTOR_COLUMNS[name] if c in schema.names), None) for name in MODALITIES}
    return [
        vectors_with_gaps(_rows(items_path, item_ids, ["item_id", column]), name)
        for name, column in columns.items()
        if column
    ]


def _rows(items_path: Path, item_ids: list[str], columns: list[str]) -> pa.Table:
    table = pq.read_table(items_path, columns=columns)
    row_of = {item_id: row for row, item_id in enumerate(table["item_id"].to_pylist())}
    return table.take(pa.array([row_of[i] for i in item_ids], pa.int64()))


def word_ids(items: pa.Table, cfg: TowersConfig) -> npt.NDArray[np.int64]:
    """Ids of each item's title, description and tags, [N, S], 0 is padding: hashed words, or by the tokenizer of the
    text encoder; zeros where no encoder reads text.
    """
    if cfg.text_encoder in GIVEN:
        return np.zeros((items.num_rows, cfg.max_text_tokens), np.int64)
    columns = (items[name].to_pylist() for name in ("title", "description", "tags"))
    return text_ids(
        [item_text(title, description, tags) for title, description, tags in zip(*columns, strict=True)], cfg
    )


def read_fitted(storage_root: Path, parts: Sequence[str]) -> pa.Table:
    """Interactions of the named parts of the split, one behind the other; test is nobody's to read here."""
    return pa.concat_tables([pq.read_table(storage_root / "splits" / f"{part}.parquet") for part in parts])


def build_catalogue(
    items: pa.Table, fitted: pa.Table, durations: npt.NDArray[np.float32], half_life_days: float
) -> Catalogue:
    """The catalogue of a bundle; popularity and warmth come from the interactions that the towers learned from."""
    item_ids = items["item_id"].to_pylist()
    counts = positive_counts(fitted, item_ids)
    popularity = popularities(fitted, items, half_life_days)
    return Catalogue(
        item_ids=item_ids,
        titles=items["title"].to_pylist(),
        categories=items["category"].to_pylist(),
        tags=[tags or [] for tags in items["tags"].to_pylist()],
        creator_ids=items["creator_id"].to_pylist(),
        languages=items["language"].to_pylist(),
        durations=durations,
        popularity=popularity[:, 0],
        recent_popularity=popularity[:, 1],
        choices_per_day=popularity[:, 2],
        warm=counts > 0,
    )


def item_durations(items: pa.Table) -> npt.NDArray[np.float32]:
    """Seconds of each item, NaN where the table does not say or says 0, so that no watched share is infinite."""
    seconds = items["duration_seconds"].to_numpy().astype(np.float32)
    return np.where(seconds > 0, seconds, np.float32(np.nan))


def positive_counts(interactions: pa.Table, item_ids: list[str]) -> npt.NDArray[np.int64]:
    """Positive events of each item, [N]."""
    chosen = interactions.filter(pc.is_in(interactions["event"], value_set=pa.array(POSITIVE_EVENTS)))
    counted = {row["values"]: row["counts"] for row in pc.value_counts(chosen["item_id"]).to_pylist()}
    return np.array([counted.get(item_id, 0) for item_id in item_ids], np.int64)


def popularity_shares(interactions: pa.Table, item_ids: list[str], half_life_days: float) -> npt.NDArray[np.float32]:
    """Share of positive events that each item has, [N, 2]: all alike, and each counting half for every half-life that
    it lies before the newest one. Columns sum to 1, or are 0 without events.
    """
    chosen = interactions.filter(pc.is_in(interactions["event"], value_set=pa.array(POSITIVE_EVENTS)))
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    rows = np.array([row_of.get(item_id, -1) for item_id in chosen["item_id"].to_pylist()], np.int64)
    at_seconds = chosen["at"].cast(pa.int64()).to_numpy() / 1e6
    age_days = (at_seconds.max(initial=0.0) - at_seconds) / 86_400
    weights = np.stack([np.ones(len(rows)), 0.5 ** (age_days / half_life_days)], 1)[rows >= 0]
    shares = np.zeros((len(item_ids), 2))
    np.add.at(shares, rows[rows >= 0], weights)
    return (shares / np.maximum(shares.sum(0), 1e-12)).astype(np.float32)


def popularities(interactions: pa.Table, items: pa.Table, half_life_days: float) -> npt.NDArray[np.float32]:
    """Of each row of `items`, [N, 3]: both of `popularity_shares`, and `choices_per_day`."""
    shares = popularity_shares(interactions, items["item_id"].to_pylist(), half_life_days)
    return np.concatenate([shares, choices_per_day(interactions, items)[:, None]], 1)


def choices_per_day(interactions: pa.Table, items: pa.Table) -> npt.NDArray[np.float32]:
    """Positive events by day that an item was out within the log, [N]: what came late had less time to be chosen.

    Shrunk to the mean of all by PSEUDO_CHOICES of them, the mean of a gamma posterior; an item that nobody chose has
    the mean. An item is out from its publication, at the latest from its first event on; where the publication is
    unknown, from the log's begin on.
    """
    item_ids = items["item_id"].to_pylist()
    counts = positive_counts(interactions, item_ids)
    at_seconds = interactions["at"].cast(pa.int64()).to_numpy() / 1e6
    begin, end = at_seconds.min(initial=np.inf), at_seconds.max(initial=-np.inf)
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    rows = np.array([row_of.get(item_id, -1) for item_id in interactions["item_id"].to_pylist()], np.int64)
    out_seconds = pc.cast(items["published_at"], pa.int64()).to_numpy(zero_copy_only=False).astype(np.float64) / 1e6
    out_seconds = np.clip(np.nan_to_num(out_seconds, nan=-np.inf), begin, end) if len(at_seconds) else out_seconds
    np.minimum.at(out_seconds, rows[rows >= 0], at_seconds[rows >= 0])
    days = (end - out_seconds) / 86_400
    if not counts.any() or days.sum() <= 0:
        return np.full(len(item_ids), counts.mean() if len(counts) else 0.0, np.float32)
    mean = counts.sum() / days.sum()
    rates = (counts + PSEUDO_CHOICES) / (days + PSEUDO_CHOICES / mean)
    return np.where(counts > 0, rates, mean).astype(np.float32)


def write_item_tokens(path: Path, item_ids: list[str], tokens: ItemTokens, spans: npt.NDArray[np.float32]) -> None:
    """One row an item: flattened tokens and masks of each modality, and the span of each clip [N, C, 2]."""
    columns: dict[str, pa.Array] = {"item_id": pa.array(item_ids, pa.string())}
    for name in MODALITIES:
        columns[f"{name}_tokens"] = _list_column(tokens.tokens[name].flatten(1).numpy())
        columns[f"{name}_mask"] = _list_column(tokens.masks[name].numpy())
    columns["clip_spans"] = _list_column(spans.reshape(len(spans), -1))
    pq.write_table(pa.table(columns), path)


def read_item_tokens(path: Path, cfg: TowersConfig) -> tuple[list[str], ItemTokens, npt.NDArray[np.float32]]:
    """What `write_item_tokens` wrote: item ids, tokens, clip spans [N, C, 2]."""
    return item_tokens_of(pq.read_table(path), cfg)


def item_tokens_of(table: pa.Table, cfg: TowersConfig) -> tuple[list[str], ItemTokens, npt.NDArray[np.float32]]:
    """Rows of the item tokens table as tensors."""
    shapes = token_shapes(cfg)
    tokens, masks = {}, {}
    for name in MODALITIES:
        tokens[name] = torch.from_numpy(_matrix(table, f"{name}_tokens", np.float32)).view(-1, *shapes[name])
        masks[name] = torch.from_numpy(_matrix(table, f"{name}_mask", bool))
    spans = np.asarray(_matrix(table, "clip_spans", np.float32), np.float32).reshape(-1, cfg.max_clips, 2)
    return table["item_id"].to_pylist(), ItemTokens(tokens, masks), spans


def _list_column(matrix: npt.NDArray[np.generic]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def _matrix(table: pa.Table, name: str, dtype: type) -> npt.NDArray[np.generic]:
    flat = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.array(flat, dtype).reshape(table.num_rows, -1)
