"""Evaluation: the served ranking of a bundle against baselines, full ranking, on behaviour nobody was fitted on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.bundle import Bundle, load_bundle
from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import ConfigError, StageError
from avrec_ray.evaluation.baselines import BASELINES, top_k
from avrec_ray.evaluation.metrics import cold_item_metrics, evaluate_rankings
from avrec_ray.evaluation.recommendations import read_table, score_recommendations
from avrec_ray.evaluation.report import format_metric_table, save_metric_plot
from avrec_ray.evaluation.split import eval_targets
from avrec_ray.pipelines.bundle import bundle_folder
from avrec_ray.pipelines.recommend import recommend_users
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.training.histories import POSITIVE_CODES, EventColumns, columns_from_table

Rankings = npt.NDArray[np.int64]
SERVED = "avrec_ray"
"""Row of the served ranking in metric tables."""


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `evaluate`: bundle and splits/ to evaluation/ (recommendations.parquet, metrics, plots)."""
    storage = loop.storage
    bundle_path = bundle_folder(loop, job)

    def work(stage: StageRun) -> dict[str, float]:
        bundle = load_bundle(bundle_path)
        splits = storage.folder("splits")
        fitted = [splits / "train.parquet", splits / "valid.parquet"]
        history = pa.concat_tables([pq.read_table(path) for path in fitted])
        test = pq.read_table(splits / "test.parquet")
        targets = _known_targets(eval_targets(test, history), bundle)
        users = sorted(targets)
        stage.log(f"{len(users)} users with held-out choices, {len(bundle.items)} items ranked for each")
        recommendations = recommend_users(bundle_path, fitted, users, job, job.evaluation.list_length)
        rankings = {SERVED: ranked_rows(recommendations, users, bundle, job.evaluation.list_length)}
        columns = columns_from_table(history, bundle.items.index_of, bundle.items.durations)
        seen = _items_of(columns, users, np.ones(len(columns.event), bool))
        rankings |= baseline_rankings(columns, users, seen, bundle, job.evaluation.list_length)
        rankings |= oracle_rankings(storage.truth, test, users, seen, bundle, job.evaluation.list_length)
        results = score_rankings(rankings, [targets[user] for user in users], seen, bundle, job.evaluation.cutoffs)
        with stage.publish("evaluation") as (folder,):
            pq.write_table(recommendations, folder / "recommendations.parquet")
            (folder / "metrics.txt").write_text(format_metric_table(results) + "\n")
            save_metric_plot(results, folder / "metrics.png")
            for path in sorted(folder.iterdir()):
                stage.run.artifact(path, "evaluation")
        metrics = flat_metrics(results)
        loop.parent.metrics(metrics)
        return metrics

    return loop.stage(
        "evaluate",
        work,
        settings={
            "evaluation": to_dict(job.evaluation),
            "matcher": to_dict(job.matcher),
            "policy": to_dict(job.policy),
        },
        inputs={"bundle": require_record(storage, "bundle").fingerprint},
        outputs=[storage.folder("evaluation") / "recommendations.parquet"],
    )


def score_table(loop: Loop, job: JobConfig) -> dict[str, float]:
    """jobs.evaluate with a table: ours or somebody else's recommendations against a truth table, logged as a run."""
    if not job.truth:
        raise ConfigError("truth is empty; give truth=<parquet with user_id, item_id> beside recommendations")
    tables = [read_table(path) for path in (job.recommendations, job.truth)]
    metrics = score_recommendations(*tables, ks=tuple(job.evaluation.cutoffs))
    loop.parent.metrics(metrics)
    return metrics


def flat_metrics(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """`test/ndcg_at_10` for the served ranking, `popularity/ndcg_at_10` and so on for the others."""
    prefix = {SERVED: "test"}
    return {f"{prefix.get(name, name)}/{key}": value for name, row in results.items() for key, value in row.items()}


def score_rankings(
    rankings: dict[str, Rankings],
    targets: list[npt.NDArray[np.int64]],
    seen: list[npt.NDArray[np.int64]],
    bundle: Bundle,
    cutoffs: list[int],
) -> dict[str, dict[str, float]]:
    """Metrics of each ranking; where there are targets without training behaviour, those of cold items too."""
    cold = ~bundle.items.warm
    num_seen = np.array([len(np.unique(items)) for items in seen], np.int64)
    has_cold = any(cold[t].any() for t in targets)
    results = {}
    for name, ranked in rankings.items():
        results[name] = evaluate_rankings(ranked, targets, len(bundle.items), tuple(cutoffs))
        if has_cold:
            results[name] |= cold_item_metrics(ranked, targets, cold, max(cutoffs), num_seen)
    return results


def ranked_rows(table: pa.Table, users: list[str], bundle: Bundle, k: int) -> Rankings:
    """A recommendations table as catalogue rows [users, k], -1 where a list is shorter."""
    row_of = {user: row for row, user in enumerate(users)}
    ranked = np.full((len(users), k), -1, np.int64)
    rows = np.array([row_of[user] for user in table["user_id"].to_pylist()], np.int64)
    items = np.array([bundle.items.index_of[item] for item in table["item_id"].to_pylist()], np.int64)
    ranked[rows, table["rank"].to_numpy() - 1] = items
    return ranked


def baseline_rankings(
    columns: EventColumns, users: list[str], seen: list[npt.NDArray[np.int64]], bundle: Bundle, k: int
) -> dict[str, Rankings]:
    """Lists of every baseline, fitted on the same history that the served ranking reads."""
    chosen = np.isin(columns.event, POSITIVE_CODES)
    user_of_row = np.repeat(np.arange(len(columns.user_ids)), np.diff(columns.starts))
    liked = _items_of(columns, users, chosen)
    rankings = {}
    for name, build in BASELINES.items():
        baseline = build()
        baseline.fit(
            user_of_row[chosen],
            columns.item_idx[chosen],
            columns.at_seconds[chosen],
            num_users=len(columns.user_ids),
            num_items=len(bundle.items),
        )
        rankings[name] = top_k(baseline.score(liked), seen, k)
    return rankings


def oracle_rankings(
    truth: Path, test: pa.Table, users: list[str], seen: list[npt.NDArray[np.int64]], bundle: Bundle, k: int
) -> dict[str, Rankings]:
    """On synthetic data, the list of someone who knows the planted preferences; empty elsewhere."""
    if not truth.is_dir():
        return {}
    from avrec_ray.datasets.synthetic import oracle_scores

    at_seconds = np.full(len(users), test["at"].cast(pa.int64()).to_numpy().min() / 1e6)
    scores = oracle_scores(truth, users, bundle.items.item_ids, at_seconds)
    return {"oracle": top_k(scores, seen, k)}


def _items_of(columns: EventColumns, users: list[str], keep: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int64]]:
    """Catalogue rows that each user met, where `keep` is true, in order of time."""
    row_of: Callable[[str], int | None] = {user: row for row, user in enumerate(columns.user_ids)}.get
    rows = [row_of(user) for user in users]
    spans = [slice(0, 0) if row is None else columns.rows(row) for row in rows]
    return [columns.item_idx[span][keep[span]] for span in spans]


def _known_targets(targets: dict[str, list[str]], bundle: Bundle) -> dict[str, npt.NDArray[np.int64]]:
    """Targets as catalogue rows; items set aside for bad media are in no list and no target."""
    index = bundle.items.index_of
    known = {user: np.array([index[i] for i in items if i in index], np.int64) for user, items in targets.items()}
    known = {user: rows for user, rows in known.items() if len(rows)}
    if not known:
        raise StageError("evaluate: no user with a history has held-out choices; give a longer span of interactions")
    return known
