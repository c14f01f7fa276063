"""What items say of each other, for a bundle: tables from behaviour, content for items without any, likeness."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from avrec_ray.config import JobConfig
from avrec_ray.evaluation.text_vectors import fit_words
from avrec_ray.media.text import item_text
from avrec_ray.new_items.predict import PUBLISHED, TAGS, WORDS, ContentSpace, Predictor, build_predictor
from avrec_ray.new_items.tokens import mean_tokens
from avrec_ray.pipelines.catalogue import item_durations, read_fitted, read_item_tokens, read_items
from avrec_ray.ranking.config import ClassesConfig
from avrec_ray.ranking.content_likeness import fit_likeness_map
from avrec_ray.ranking.lists import ItemToItem
from avrec_ray.ranking.user_class_fitting import fit_classes
from avrec_ray.ranking.user_classes import UserClasses, item_vectors
from avrec_ray.retrieval.cold_items import (
    ContentView,
    ContentWeights,
    choose_weights,
    known_rows,
    sampled_scores,
    with_cold_items,
)
from avrec_ray.retrieval.neighbours import ItemNeighbours, Rows, fit_neighbours
from avrec_ray.training.histories import POSITIVE_CODES, columns_from_table

MAX_WORDS = 2048
"""Words that tell the content of items apart, the most frequent."""


def fit_item_to_item(
    folder: Path, job: JobConfig, parts: tuple[str, ...], item_ids: list[str], embeddings: npt.NDArray[np.float32]
) -> ItemToItem:
    """Both tables, likeness weighed, and kinds of users, over the choices in the named parts of the split."""
    return fit_with_predictor(folder, job, parts, item_ids, embeddings)[0]


def fit_with_predictor(
    folder: Path, job: JobConfig, parts: tuple[str, ...], item_ids: list[str], embeddings: npt.NDArray[np.float32]
) -> tuple[ItemToItem, Predictor]:
    """As `fit_item_to_item`, and what says the same of items that join later."""
    index = {item_id: row for row, item_id in enumerate(item_ids)}
    durations = item_durations(read_items(folder / "tables" / "items.parquet", item_ids))
    columns = columns_from_table(read_fitted(folder, parts), index, durations)
    chosen = np.isin(columns.event, POSITIVE_CODES)
    user_idx = np.repeat(np.arange(len(columns.user_ids)), np.diff(columns.starts))[chosen]
    item_idx = columns.item_idx[chosen]
    counts = np.bincount(item_idx, minlength=len(item_ids))
    histories = np.split(item_idx, np.flatnonzero(np.diff(user_idx)) + 1)
    space, views = content_views(folder, job, item_ids)
    content, likeness = fit_likeness_map(views, histories, len(item_ids), job.reranker.content_dim, job.seed)
    tables: dict[str, ItemNeighbours] = {}
    weights: dict[str, ContentWeights] = {}
    for name, cfg in (("taste", job.reranker.taste), ("session", job.reranker.session)):
        table = fit_neighbours(user_idx, item_idx, len(columns.user_ids), len(item_ids), cfg)
        found = _content_weights(table, views, histories, counts, job)
        if found is not None:
            weights[name] = found
            table = with_cold_items(table, views, found, counts, job.reranker.cold_neighbours)
        tables[name] = table
    predictor = build_predictor(space, views, known_rows(counts), weights, likeness)
    kinds = job.reranker.classes if "classes" in job.reranker.scores else ClassesConfig(num_classes=0)
    tastes = fit_classes(columns, item_vectors(embeddings, content.vectors), kinds, job.seed)
    classes = UserClasses(tastes, embeddings, content.vectors)
    return ItemToItem(tables["taste"], tables["session"], content, classes), predictor


def _content_weights(
    table: ItemNeighbours, views: list[ContentView], histories: list[Rows], counts: Rows, job: JobConfig
) -> ContentWeights | None:
    """How much each kind of content says; None where there is nothing to tell it by."""
    known = np.flatnonzero(counts)
    if not views or len(known) < 2 or not job.reranker.cold_neighbours:
        return None
    return choose_weights(views, known, sampled_scores(table, histories, known, job.seed), job.seed)


def content_views(folder: Path, job: JobConfig, item_ids: list[str]) -> tuple[ContentSpace, list[ContentView]]:
    """What is known of items without behaviour: tags, words, time of publication, and each modality's tokens."""
    items = read_items(folder / "tables" / "items.parquet", item_ids)
    texts = [
        item_text(*row) for row in zip(*(items[n].to_pylist() for n in ("title", "description", "tags")), strict=True)
    ]
    pairs = list(zip(items["tags"].to_pylist(), items["category"].to_pylist(), strict=True))
    space = ContentSpace(_tag_columns(pairs), fit_words(texts, MAX_WORDS))
    views = [
        ContentView(
            TAGS, np.concatenate([space.tag_vector(tags or (), category) for tags, category in pairs]), "words"
        ),
        ContentView(WORDS, space.words.vectors(texts), "words"),
        ContentView(PUBLISHED, _days(items["published_at"])[:, None], "time"),
    ]
    found_ids, tokens, _ = read_item_tokens(folder / "item_tokens" / "tokens.parquet", job.towers)
    row_of = {item_id: row for row, item_id in enumerate(found_ids)}
    rows = np.array([row_of[item_id] for item_id in item_ids])
    for name in job.towers.modalities:
        views.append(
            ContentView(name, mean_tokens(tokens.tokens[name].numpy()[rows], tokens.masks[name].numpy()[rows]))
        )
    return space, [view for view in views if np.nan_to_num(view.vectors).any()]


def _tag_columns(pairs: Sequence[tuple[Sequence[str] | None, str | None]]) -> dict[str, int]:
    """Place of each tag and category."""
    said = {tag for tags, category in pairs for tag in (*(tags or ()), *([category] if category else ()))}
    return {tag: place for place, tag in enumerate(sorted(said))}


def _days(times: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Days since 1970, NaN where unknown."""
    micros = pc.cast(times, pa.int64()).to_numpy(zero_copy_only=False).astype(np.float64)
    return micros / 86_400e6
