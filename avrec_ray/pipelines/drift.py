"""Drift of what came in since the run before against what was learned from, seen with the champion's eyes."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from avrec_ray.bundle import Bundle, load_bundle
from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.evaluation.drift import Drift, DriftConfig, count_drift, value_drift, vector_drift
from avrec_ray.pipelines.retrain_plan import Plan
from avrec_ray.pipelines.retrain_tables import IS_NEW
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.histories import (
    LABEL_WEIGHT,
    POSITIVE_CODES,
    columns_from_table,
    pad_histories,
    with_profiles,
)
from avrec_ray.training.weights import load_weights
from avrec_ray.types import INTERACTIONS, POSITIVE_EVENTS

_MAX_TAGS = 50
"""Tags with a bin of their own, the most frequent; the others share one."""
_MAX_SCORED = 1_000
"""Events of either side whose score is worked out: each needs a pass of the user tower."""
_BATCH = 128


def run(loop: Loop, job: JobConfig, plan: Plan, champion: Path) -> StageRecord:
    """Stage `drift`: the run's interactions, new ones against those of before; metrics `drift/<what>_psi` and `_js`."""

    def work(stage: StageRun) -> dict[str, float]:
        cfg = job.retrain.drift
        found = measure(load_bundle(champion), pq.read_table(loop.storage.interactions), cfg)
        for drift in found:
            stage.log(drift.line(cfg))
        metrics = {f"drift/{d.name}_{kind}": value for d in found for kind, value in (("psi", d.psi), ("js", d.js))}
        metrics |= {f"drift/{d.name}_warned": float(d.is_notable(cfg)) for d in found}
        loop.parent.metrics(metrics)
        return metrics

    return loop.stage(
        "drift",
        work,
        settings={"drift": to_dict(job.retrain.drift), "champion": plan.champion_version},
        inputs={"prepare": require_record(loop.storage, "prepare").fingerprint},
        outputs=[],
    )


def warned(record: StageRecord) -> list[str]:
    """What a finished stage warned about."""
    suffix = "_warned"
    named = ((name.removeprefix("drift/"), value) for name, value in record.metrics.items())
    return [name.removesuffix(suffix) for name, value in named if name.endswith(suffix) and value]


def measure(bundle: Bundle, interactions: pa.Table, cfg: DriftConfig) -> list[Drift]:
    """Drift of choices: tags, popularity and embedding of the chosen items, and the champion's score of each choice.

    Args:
        interactions: with a column IS_NEW; the newest `max_events` choices of either side are compared.
    """
    chosen = _choices(interactions, bundle)
    before, now = (_newest(chosen.filter(pc.equal(chosen[IS_NEW], side)), cfg.max_events) for side in (False, True))
    rows = [
        np.array([bundle.items.index_of[i] for i in side["item_id"].to_pylist()], np.int64) for side in (before, now)
    ]
    tags = [_tag_shares(bundle.items.tags, side) for side in rows]
    popularity = [np.log(bundle.items.popularity[side] + 1e-6) for side in rows]
    vectors = [bundle.embeddings[side] for side in rows]
    scores = _scores(bundle, interactions)
    return [
        count_drift("tags", *_tag_counts(tags[0], tags[1])),
        value_drift("popularity", popularity[0], popularity[1], cfg.num_bins),
        vector_drift("embedding", vectors[0], vectors[1], cfg),
        value_drift("score", scores[0], scores[1], cfg.num_bins),
    ]


def _choices(interactions: pa.Table, bundle: Bundle) -> pa.Table:
    positive = pc.is_in(interactions["event"], pa.array(POSITIVE_EVENTS))
    known = pc.is_in(interactions["item_id"], pa.array(bundle.items.item_ids))
    return interactions.filter(pc.and_(positive, known))


def _newest(choices: pa.Table, most: int) -> pa.Table:
    return choices.sort_by([("at", "descending")]).slice(0, most)


def _tag_shares(tags: list[list[str]], rows: npt.NDArray[np.int64]) -> dict[str, float]:
    """How often each tag was chosen; an item with several tags counts once in all, one without for "none"."""
    found: dict[str, float] = {}
    for row, times in zip(*np.unique(rows, return_counts=True), strict=True):
        names = tags[int(row)] or ["none"]
        for name in names:
            found[name] = found.get(name, 0.0) + float(times) / len(names)
    return found


def _tag_counts(
    before: dict[str, float], now: dict[str, float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Counts of the most frequent tags of both sides, and of all others together."""
    total = {tag: before.get(tag, 0.0) + now.get(tag, 0.0) for tag in before | now}
    named = sorted(total, key=lambda tag: (-total[tag], tag))
    counts = np.array([[side.get(tag, 0.0) for tag in named] for side in (before, now)])
    shown, others = counts[:, :_MAX_TAGS], counts[:, _MAX_TAGS:].sum(1, keepdims=True)
    both = np.concatenate([shown, others], 1)
    return both[0], both[1]


@torch.inference_mode()
def _scores(bundle: Bundle, interactions: pa.Table) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The champion's score of the newest choices of either side, each from the history that the user had then."""
    cfg = bundle.metadata.towers
    towers = TwoTower(cfg, len(bundle.items))
    load_weights(bundle.path / "towers.safetensors", towers)
    towers.eval()
    # Which side an event is of goes along with it as its weight.
    sides = pa.array(interactions[IS_NEW].to_numpy().astype(np.float32))
    marked = interactions.select(INTERACTIONS.names).append_column(LABEL_WEIGHT, sides)
    columns = columns_from_table(marked, bundle.items.index_of, bundle.items.durations)
    columns = with_profiles(columns, bundle.profiles)
    embeddings, scale = torch.from_numpy(bundle.embeddings), float(towers.scale())
    user = np.repeat(np.arange(len(columns.user_ids)), np.diff(columns.starts))
    is_asked = (np.arange(len(user)) > columns.starts[user]) & np.isin(columns.event, POSITIVE_CODES)
    found = []
    for side in (0.0, 1.0):
        rows = np.flatnonzero((columns.label_weight == side) & is_asked)
        rows = rows[np.argsort(-columns.at_seconds[rows], kind="stable")][:_MAX_SCORED]
        parts = [np.zeros(0, np.float32)]
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            spans = [(int(columns.starts[user[row]]), int(row)) for row in some]
            queries = towers.queries(pad_histories(columns, spans, cfg.history_length), embeddings)[:, -1]
            parts.append((queries * embeddings[columns.item_idx[some]]).sum(1).numpy() * np.float32(scale))
        found.append(np.concatenate(parts))
    return found[0], found[1]
