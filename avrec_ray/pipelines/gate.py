"""The gate before promotion: candidate and champion asked about the same users, and the candidate's own health."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from avrec_ray.bundle import Bundle, load_bundle
from avrec_ray.config import JobConfig
from avrec_ray.evaluation.gate import (
    Check,
    Verdict,
    check_audit,
    check_health,
    check_popularity,
    check_slices,
    embedding_health,
)
from avrec_ray.evaluation.slices import slice_values
from avrec_ray.pipelines.audits import audit_exposure, audit_quality
from avrec_ray.pipelines.catalogue import positive_counts, read_fitted
from avrec_ray.pipelines.champion import ask_champion
from avrec_ray.pipelines.measured import rank_rows
from avrec_ray.pipelines.slices import named_slices, user_attributes
from avrec_ray.pipelines.split import read_split
from avrec_ray.pipelines.stage import Loop, require_record

Targets = list[npt.NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Truth:
    """Users of an evaluation, what they went on to choose as catalogue rows, and the events in their histories [U]."""

    users: list[str]
    targets: Targets
    history_lengths: npt.NDArray[np.int64]


def judge(loop: Loop, job: JobConfig, candidate_path: Path, log: Callable[[str], None]) -> Verdict:
    """Whether the evaluated bundle may replace the champion. Without a champion only its health counts."""
    evaluation = loop.storage.folder("evaluation")
    bundle = load_bundle(candidate_path)
    truth = read_truth(evaluation / "truth.parquet", bundle)
    ranked = rank_rows(pq.read_table(evaluation / "recommendations.parquet"), truth.users, bundle)
    recall = require_record(loop.storage, "build_index").metrics["recall_at_100_of_exact"]
    checks = check_health(embedding_health(bundle.embeddings), recall, job.evaluation.gate)
    counts = positive_counts(
        read_fitted(loop.storage.root, read_split(loop.storage.root).fitted), bundle.items.item_ids
    )
    checks.append(check_popularity(bundle.items.popularity, counts))
    checks += _against_champion(loop, job, bundle, truth, ranked, counts, log)
    audit = (job.evaluation.audit, job.seed)
    findings = audit_exposure(ranked, truth.targets, bundle.items, *audit)
    attributes = user_attributes(loop.storage, truth.users)
    findings += audit_quality(ranked, truth.targets, attributes, truth.history_lengths, *audit)
    return Verdict((*checks, *check_audit(findings, job.evaluation.gate)))


def read_truth(path: Path, bundle: Bundle) -> Truth:
    """What evaluation kept of the choices that lists were scored against."""
    table = pq.read_table(path)
    targets: dict[str, list[int]] = {}
    for user, item in zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True):
        targets.setdefault(user, []).append(bundle.items.index_of[item])
    lengths = dict(zip(table["user_id"].to_pylist(), table["history_length"].to_pylist(), strict=True))
    of_users = np.array([lengths[user] for user in targets], np.int64)
    return Truth(list(targets), [np.array(rows, np.int64) for rows in targets.values()], of_users)


def _against_champion(
    loop: Loop,
    job: JobConfig,
    bundle: Bundle,
    truth: Truth,
    ranked: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    log: Callable[[str], None],
) -> list[Check]:
    champion = ask_champion(loop, job, bundle, truth.users, log, saved=loop.storage.folder("evaluation"))
    if champion.lists is None:
        return [Check("champion", True, champion.note, blocks=False)]
    theirs = rank_rows(champion.lists, truth.users, bundle)
    gate = job.evaluation.gate
    slices = named_slices(loop.storage, bundle.items, truth.users, truth.history_lengths, counts, wanted=gate.slices)
    mine, other = (slice_values(lists, truth.targets, slices, gate.metric) for lists in (ranked, theirs))
    return check_slices(mine, other, gate, job.seed)
