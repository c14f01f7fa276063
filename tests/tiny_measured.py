"""What a finished evaluation leaves, by hand: tables under a storage folder, and rankings of a tiny bundle."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.bundle import Bundle, load_bundle
from avrec_ray.evaluation.metrics import evaluate_rankings
from avrec_ray.evaluation.tuning import Question
from avrec_ray.media.clips import clip_columns, clips_table, write_clips
from avrec_ray.pipelines.measured import SERVED, Measured, Rankings, truth_table
from avrec_ray.pipelines.storage import Storage
from avrec_ray.types import ITEMS, RECOMMENDATIONS, USERS, Clip
from tests.tiny_bundle import build_tiny_bundle

NUM_ITEMS, NUM_USERS, DEPTH = 40, 60, 20
USER_IDS = [f"u{row:02d}" for row in range(NUM_USERS)]
GENDERS = [("F", "M", None)[row % 3] for row in range(NUM_USERS)]


def tiny_storage(root: Path, bundle: Bundle) -> Storage:
    """Items, users and clips: items 0 to 9 have both streams, 10 to 19 audio alone, later ones no clip, 39 no text."""
    storage = Storage.at(str(root))
    (root / "tables").mkdir(parents=True)
    (root / "clips").mkdir()
    rows = [
        {"item_id": item_id, "title": title if row < 39 else "", "description": None, "tags": None}
        for row, (item_id, title) in enumerate(zip(bundle.items.item_ids, bundle.items.titles, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows, ITEMS), storage.items)
    users = [
        {"user_id": user, "attributes": [("gender", gender)] if gender else None}
        for user, gender in zip(USER_IDS, GENDERS, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(users, USERS), root / "tables" / "users.parquet")
    clips = [_clip(item_id, has_video=row < 10) for row, item_id in enumerate(bundle.items.item_ids[:20])]
    write_clips(clips_table(clip_columns(clips)), root / "clips" / "part-0.parquet")
    return storage


def describe_split(root: Path, kind: str = "temporal", refit: bool = True) -> None:
    """splits/split.json of a split without hidden items."""
    described = {"kind": kind, "boundaries": {}, "hidden": {}, "candidates": None, "digests": {}, "refit": refit}
    (root / "splits" / "split.json").write_text(json.dumps(described))


def tiny_measured(folder: Path, seed: int = 0) -> Measured:
    """Served lists hold one target of every user in the first place; a baseline's hold none in the first ten."""
    bundle = load_bundle(build_tiny_bundle(folder, NUM_ITEMS))
    rng = np.random.default_rng(seed)
    orders = np.array([rng.permutation(NUM_ITEMS) for _ in range(NUM_USERS)])
    served, targets = orders[:, :DEPTH], [np.array([order[0], order[15]]) for order in orders]
    seen = [order[DEPTH : DEPTH + 2 + row % 10] for row, order in enumerate(orders)]
    rankings = {SERVED: served, "popularity": orders[:, 1 : DEPTH + 1]}
    results = {name: evaluate_rankings(ranked, targets, NUM_ITEMS) for name, ranked in rankings.items()}
    counts = np.rint(bundle.items.popularity * 1000).astype(np.int64)
    lists = recommendations(served, bundle)
    chosen = np.repeat(np.arange(NUM_ITEMS), counts)
    question = Question(
        users=USER_IDS,
        targets=targets,
        seen=seen,
        liked=seen,
        user_idx=np.zeros(len(chosen), np.int64),
        item_idx=chosen,
        at_seconds=np.zeros(len(chosen)),
        num_fitted_users=1,
        num_items=NUM_ITEMS,
        candidates=None,
    )
    truth = truth_table(question, bundle.items.item_ids)
    return Measured(USER_IDS, targets, seen, bundle, counts, lists, truth, rankings, results)


def recommendations(ranked: Rankings, bundle: Bundle) -> pa.Table:
    """Lists of catalogue rows as a recommendations table."""
    rows = [
        {"user_id": USER_IDS[user], "item_id": bundle.items.item_ids[item], "rank": place + 1, "score": 0.0}
        for user, items in enumerate(ranked.tolist())
        for place, item in enumerate(items)
    ]
    return pa.Table.from_pylist(rows, RECOMMENDATIONS)


def _clip(item_id: str, has_video: bool) -> Clip:
    frames, log_mel = np.zeros((1, 3, 4, 4), np.uint8), np.zeros((2, 3), np.float32)
    return Clip(item_id, 0, 0.0, 1.0, frames, log_mel, has_video, True, "none 0", "0" * 64)
