"""What items say of each other, for a bundle: tables from behaviour, content for items without any, likeness."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from avrec_ray.config import JobConfig
from avrec_ray.evaluation.text_vectors import text_vectors
from avrec_ray.media.text import item_text
from avrec_ray.pipelines.catalogue import read_fitted, read_item_tokens, read_items
from avrec_ray.ranking.content_likeness import fit_likeness
from avrec_ray.ranking.lists import ItemToItem
from avrec_ray.retrieval.cold_items import ContentView, choose_weights, sampled_scores, with_cold_items
from avrec_ray.retrieval.neighbours import ItemNeighbours, Rows, fit_neighbours
from avrec_ray.training.histories import POSITIVE_CODES, columns_from_table

MAX_WORDS = 2048
"""Words that tell the content of items apart, the most frequent."""


def fit_item_to_item(folder: Path, job: JobConfig, parts: tuple[str, ...], item_ids: list[str]) -> ItemToItem:
    """Both tables, and likeness weighed, over the choices in the named parts of the split."""
    index = {item_id: row for row, item_id in enumerate(item_ids)}
    columns = columns_from_table(read_fitted(folder, parts), index, np.full(len(item_ids), np.nan, np.float32))
    chosen = np.isin(columns.event, POSITIVE_CODES)
    user_idx = np.repeat(np.arange(len(columns.user_ids)), np.diff(columns.starts))[chosen]
    item_idx = columns.item_idx[chosen]
    counts = np.bincount(item_idx, minlength=len(item_ids))
    histories = np.split(item_idx, np.flatnonzero(np.diff(user_idx)) + 1)
    views = content_views(folder, job, item_ids)
    content = fit_likeness(views, histories, len(item_ids), job.reranker.content_dim, job.seed)
    taste, session = (
        _with_cold(
            fit_neighbours(user_idx, item_idx, len(columns.user_ids), len(item_ids), cfg),
            views,
            histories,
            counts,
            job,
        )
        for cfg in (job.reranker.taste, job.reranker.session)
    )
    return ItemToItem(taste, session, content)


def _with_cold(
    table: ItemNeighbours, views: list[ContentView], histories: list[Rows], counts: Rows, job: JobConfig
) -> ItemNeighbours:
    known = np.flatnonzero(counts)
    if not views or len(known) < 2 or len(known) == len(counts) or not job.reranker.cold_neighbours:
        return table
    weights = choose_weights(views, known, sampled_scores(table, histories, known, job.seed), job.seed)
    return with_cold_items(table, views, weights, counts, job.reranker.cold_neighbours)


def content_views(folder: Path, job: JobConfig, item_ids: list[str]) -> list[ContentView]:
    """What is known of items without behaviour: tags, words, time of publication, and each modality's tokens."""
    items = read_items(folder / "tables" / "items.parquet", item_ids)
    texts = [
        item_text(*row) for row in zip(*(items[n].to_pylist() for n in ("title", "description", "tags")), strict=True)
    ]
    views = [
        ContentView("tags", _tag_matrix(items), "words"),
        ContentView("words", text_vectors(texts, MAX_WORDS), "words"),
        ContentView("published", _days(items["published_at"])[:, None], "time"),
    ]
    found_ids, tokens, _ = read_item_tokens(folder / "item_tokens" / "tokens.parquet", job.towers)
    row_of = {item_id: row for row, item_id in enumerate(found_ids)}
    rows = np.array([row_of[item_id] for item_id in item_ids])
    for name in job.towers.modalities:
        mask = tokens.masks[name].numpy()[rows, :, None]
        mean = (tokens.tokens[name].numpy()[rows] * mask).sum(1) / np.maximum(mask.sum(1), 1)
        views.append(ContentView(name, mean))
    return [view for view in views if np.nan_to_num(view.vectors).any()]


def _tag_matrix(items: pa.Table) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """1 where an item has a tag or is of a category, [N, tags]."""
    pairs = zip(items["tags"].to_pylist(), items["category"].to_pylist(), strict=True)
    said = [{*(tags or []), *([category] if category else [])} for tags, category in pairs]
    column = {tag: place for place, tag in enumerate(sorted(set().union(*said)))}
    matrix = np.zeros((len(said), max(len(column), 1)), np.float32)
    for row, tags in enumerate(said):
        matrix[row, [column[tag] for tag in tags]] = 1.0
    return matrix


def _days(times: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Days since 1970, NaN where unknown."""
    micros = pc.cast(times, pa.int64()).to_numpy(zero_copy_only=False).astype(np.float64)
    return micros / 86_400e6
