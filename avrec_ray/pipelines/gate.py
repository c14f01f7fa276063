"""The gate before promotion: candidate and champion asked about the same users, and the candidate's own health."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from avrec_ray.bundle import Bundle, load_bundle
from avrec_ray.config import JobConfig
from avrec_ray.errors import BundleError
from avrec_ray.evaluation.audit import audit_items, group_codes, popularity_groups
from avrec_ray.evaluation.gate import Check, Verdict, check_audit, check_health, check_slices, embedding_health
from avrec_ray.evaluation.metrics import PER_USER, Floats
from avrec_ray.evaluation.slices import history_slices, popularity_slices, warmth_slices
from avrec_ray.pipelines.catalogue import positive_counts, read_fitted
from avrec_ray.pipelines.measured import rank_rows
from avrec_ray.pipelines.recommend import recommend_users
from avrec_ray.pipelines.split import FITTED, HISTORY, read_candidates
from avrec_ray.pipelines.stage import Loop, require_record

Targets = list[npt.NDArray[np.int64]]


def judge(loop: Loop, job: JobConfig, candidate_path: Path, log: Callable[[str], None]) -> Verdict:
    """Whether the evaluated bundle may replace the champion. Without a champion only its health counts."""
    evaluation = loop.storage.folder("evaluation")
    bundle = load_bundle(candidate_path)
    users, targets = read_truth(evaluation / "truth.parquet", bundle)
    ranked = rank_rows(pq.read_table(evaluation / "recommendations.parquet"), users, bundle)
    recall = require_record(loop.storage, "build_index").metrics["recall_at_100_of_exact"]
    checks = check_health(embedding_health(bundle.embeddings), recall, job.evaluation.gate)
    checks += _against_champion(loop, job, bundle, users, targets, ranked, log)
    checks += _audit(job, bundle, targets, ranked)
    return Verdict(tuple(checks))


def read_truth(path: Path, bundle: Bundle) -> tuple[list[str], Targets]:
    """Users and the catalogue rows that each went on to choose."""
    table = pq.read_table(path)
    targets: dict[str, list[int]] = {}
    for user, item in zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True):
        targets.setdefault(user, []).append(bundle.items.index_of[item])
    return list(targets), [np.array(rows, np.int64) for rows in targets.values()]


def _against_champion(
    loop: Loop,
    job: JobConfig,
    bundle: Bundle,
    users: list[str],
    targets: Targets,
    ranked: npt.NDArray[np.int64],
    log: Callable[[str], None],
) -> list[Check]:
    champion = loop.tracking.champion()
    if champion is None:
        return [Check("champion", True, "there is none yet", blocks=False)]
    if champion.model_version == bundle.metadata.model_version:
        return [Check("champion", True, "is this very bundle", blocks=False)]
    try:
        path = loop.tracking.resolve_bundle(champion.reference)
        load_bundle(path)
    except BundleError as error:
        return [Check("champion", True, f"version {champion.version} cannot be read, not compared: {error}", False)]
    log(f"comparing with champion {champion.model_version} (version {champion.version}) on {len(users)} users")
    root = loop.storage.root
    parts = [root / "splits" / f"{part}.parquet" for part in HISTORY]
    depth, candidates = job.evaluation.list_length, read_candidates(root)
    theirs = rank_rows(recommend_users(path, parts, users, job, depth, candidates, log), users, bundle)
    slices = _slices(loop, bundle, users)
    metric = job.evaluation.gate.metric
    mine = {name: on_slice(ranked, targets, *part, metric) for name, part in slices.items()}
    other = {name: on_slice(theirs, targets, *part, metric) for name, part in slices.items()}
    return check_slices(mine, other, job.evaluation.gate, job.seed)


Part = tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]
"""Which users [U] and which items [N] a slice counts."""


def _slices(loop: Loop, bundle: Bundle, users: list[str]) -> dict[str, Part]:
    """Slices by name, from the behaviour that the candidate was fitted on."""
    fitted = read_fitted(loop.storage.root, FITTED)
    lengths = dict(zip(*np.unique(fitted["user_id"].to_pylist(), return_counts=True), strict=True))
    named = {
        **warmth_slices(~bundle.items.warm),
        **history_slices(np.array([lengths.get(user, 0) for user in users])),
        **popularity_slices(positive_counts(fitted, bundle.items.item_ids)),
    }
    everybody, everything = np.ones(len(users), bool), np.ones(len(bundle.items), bool)
    parts = {name: (everybody if s.users is None else s.users, s.items) for name, s in named.items()}
    return {"all": (everybody, everything)} | {
        name: (chosen, everything if items is None else items) for name, (chosen, items) in parts.items()
    }


def on_slice(
    ranked: npt.NDArray[np.int64],
    targets: Targets,
    users: npt.NDArray[np.bool_],
    items: npt.NDArray[np.bool_],
    metric: str,
) -> Floats:
    """`metric`, such as ndcg_at_10, of the users of a slice, counting its targets alone; users without one are out."""
    name, k = metric.rsplit("_at_", 1)
    kept = [target[items[target]] for target in targets]
    rows = [row for row in np.flatnonzero(users) if len(kept[row])]
    return PER_USER[name](ranked[rows], [kept[row] for row in rows], int(k)) if rows else np.zeros(0)


def _audit(job: JobConfig, bundle: Bundle, targets: Targets, ranked: npt.NDArray[np.int64]) -> list[Check]:
    """Exposure of categories, creators and popularity groups against what users chose."""
    items, cfg = bundle.items, job.evaluation.audit
    grouped = {
        "category": group_codes(items.categories),
        "creator": group_codes(items.creator_ids),
        "popularity": popularity_groups(items.popularity),
    }
    findings = []
    for kind, (codes, names) in grouped.items():
        if names:
            findings += audit_items(ranked, targets, kind, codes, names, cfg, job.seed)
    return check_audit(findings, job.evaluation.gate)
