"""Evaluation: the served ranking of a bundle against baselines, full ranking, on behaviour nobody was fitted on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.bundle import Bundle, load_bundle
from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import ConfigError, StageError
from avrec_ray.evaluation.baselines import build_baselines, rank_in_parts
from avrec_ray.evaluation.list_quality import ItemFacts, list_quality
from avrec_ray.evaluation.metrics import cold_item_metrics, evaluate_rankings
from avrec_ray.evaluation.recommendations import read_table, score_recommendations
from avrec_ray.evaluation.report import format_metric_table, save_metric_plot
from avrec_ray.evaluation.slices import popularity_slices
from avrec_ray.evaluation.split import eval_targets
from avrec_ray.pipelines.bundle import bundle_folder
from avrec_ray.pipelines.catalogue import positive_counts, read_fitted
from avrec_ray.pipelines.champion import ask_champion_if_possible
from avrec_ray.pipelines.measured import SERVED, Measured, Rankings, rank_rows
from avrec_ray.pipelines.recommend import recommend_users
from avrec_ray.pipelines.report import write_report
from avrec_ray.pipelines.split import FITTED, HISTORY, read_candidates
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.training.histories import POSITIVE_CODES, EventColumns, columns_from_table

HEADLINE = (
    "ndcg_at_10",
    "recall_at_10",
    "mrr_at_10",
    "ndcg_at_20",
    "recall_at_20",
    "coverage_at_10",
    "cold_recall_at_20",
)


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `evaluate`: bundle and splits/ to evaluation/ (recommendations.parquet, metrics, plots)."""
    storage = loop.storage
    bundle_path = bundle_folder(loop, job)

    def work(stage: StageRun) -> dict[str, float]:
        measured = measure(loop, job, bundle_path, stage.log)
        champion = ask_champion_if_possible(loop, job, measured.bundle, measured.users, stage.log)
        with stage.publish("evaluation") as (folder,):
            pq.write_table(measured.recommendations, folder / "recommendations.parquet")
            pq.write_table(truth_table(measured), folder / "truth.parquet")
            (folder / "metrics.txt").write_text(format_metric_table(measured.results) + "\n")
            (folder / "headline.txt").write_text(format_metric_table(headline(measured.results)) + "\n")
            save_metric_plot(measured.results, folder / "metrics.png")
            champion.save(folder)
            write_report(folder / "report.html", measured, champion, storage, job)
            for path in sorted(folder.iterdir()):
                stage.run.artifact(path, "evaluation")
        metrics = flat_metrics(measured.results)
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
        outputs=[storage.folder("evaluation") / name for name in ("recommendations.parquet", "headline.txt")],
    )


def measure(loop: Loop, job: JobConfig, bundle_path: Path, log: Callable[[str], None]) -> Measured:
    """Rank for every user with held-out choices, by the bundle, by the baselines and by the oracle, and score."""
    root, depth = loop.storage.root, job.evaluation.list_length
    bundle = load_bundle(bundle_path)
    history, test = read_fitted(root, HISTORY), read_fitted(root, ("test",))
    candidates = read_candidates(root)
    targets = _known_targets(eval_targets(test, history), bundle)
    users = sorted(targets)
    log(f"{len(users)} users with held-out choices, {len(candidates or bundle.items.item_ids)} items ranked for each")
    columns = columns_from_table(history, bundle.items.index_of, bundle.items.durations)
    seen = _items_of(columns, users, np.ones(len(columns.event), bool))
    allowed = np.isin(bundle.items.item_ids, candidates) if candidates is not None else None
    parts = [root / "splits" / f"{part}.parquet" for part in HISTORY]
    recommendations = recommend_users(bundle_path, parts, users, job, depth, candidates)
    rankings = {SERVED: rank_rows(recommendations, users, bundle)}
    fitted = columns_from_table(read_fitted(root, FITTED), bundle.items.index_of, bundle.items.durations)
    liked = _items_of(columns, users, np.isin(columns.event, POSITIVE_CODES))
    scorers = [
        *fitted_baselines(fitted, liked, bundle, job.seed, log),
        *oracle(loop.storage.truth, test, users, bundle),
    ]
    for name, score in scorers:
        rankings[name] = rank_in_parts(score, seen, depth, len(bundle.items), allowed)
    in_order = [targets[user] for user in users]
    results = score_rankings(rankings, in_order, seen, liked, bundle, job.evaluation.cutoffs)
    counts = positive_counts(read_fitted(root, FITTED), bundle.items.item_ids)
    return Measured(users, in_order, seen, bundle, counts, recommendations, rankings, results)


def truth_table(measured: Measured) -> pa.Table:
    """What each user went on to choose, with what slices need to know: the lists can be scored again anywhere."""
    items = measured.bundle.items
    pairs = [(u, int(row)) for u, rows in enumerate(measured.targets) for row in rows]
    tier = dict.fromkeys(range(len(items)), "tail")
    for name, part in popularity_slices(measured.choice_counts).items():
        assert part.items is not None
        tier |= dict.fromkeys(np.flatnonzero(part.items).tolist(), name.removesuffix("_items"))
    columns = {
        "user_id": [measured.users[u] for u, _ in pairs],
        "item_id": [items.item_ids[row] for _, row in pairs],
        "is_cold": [not items.warm[row] for _, row in pairs],
        "popularity": [tier[row] for _, row in pairs],
        "history_length": [len(measured.seen[u]) for u, _ in pairs],
    }
    return pa.table(columns)


def score_table(loop: Loop, job: JobConfig) -> dict[str, float]:
    """jobs.evaluate with a table: ours or somebody else's recommendations against a truth table, logged as a run."""
    if not job.truth:
        raise ConfigError("truth is empty; give truth=<parquet with user_id, item_id> beside recommendations")
    tables = [read_table(path) for path in (job.recommendations, job.truth)]
    metrics = score_recommendations(*tables, ks=tuple(job.evaluation.cutoffs))
    loop.parent.metrics(metrics)
    return metrics


def headline(results: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The few metrics that are printed at the end of a loop."""
    return {model: {name: row[name] for name in HEADLINE if name in row} for model, row in results.items()}


def flat_metrics(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """`test/ndcg_at_10` for the served ranking, `popularity/ndcg_at_10` and so on for the others."""
    prefix = {SERVED: "test"}
    return {f"{prefix.get(name, name)}/{key}": value for name, row in results.items() for key, value in row.items()}


def score_rankings(
    rankings: dict[str, Rankings],
    targets: list[npt.NDArray[np.int64]],
    seen: list[npt.NDArray[np.int64]],
    liked: list[npt.NDArray[np.int64]],
    bundle: Bundle,
    cutoffs: list[int],
) -> dict[str, dict[str, float]]:
    """Metrics of each ranking; where there are targets without training behaviour, those of cold items too.

    What lists are like beside right is measured at the first cut-off, calibration against what users `liked`.
    """
    facts = ItemFacts.of(bundle.embeddings, bundle.items.popularity, bundle.items.categories)
    obvious = rankings.get("popularity")
    cold = ~bundle.items.warm
    num_seen = np.array([len(np.unique(items)) for items in seen], np.int64)
    has_cold = any(cold[t].any() for t in targets)
    results = {}
    for name, ranked in rankings.items():
        results[name] = evaluate_rankings(ranked, targets, len(bundle.items), tuple(cutoffs))
        results[name] |= list_quality(ranked, targets, liked, facts, cutoffs[0], obvious)
        if has_cold:
            results[name] |= cold_item_metrics(ranked, targets, cold, max(cutoffs), num_seen)
    return results


Scorer = tuple[str, Callable[[slice], npt.NDArray[np.float32]]]
"""Name of a model, and its scores [part, N] of a slice of the users."""


def fitted_baselines(
    fitted: EventColumns,
    liked: list[npt.NDArray[np.int64]],
    bundle: Bundle,
    seed: int,
    log: Callable[[str], None],
) -> Iterator[Scorer]:
    """Every baseline, fitted on the choices in `fitted` and asked with what users `liked`."""
    chosen = np.isin(fitted.event, POSITIVE_CODES)
    user_of_row = np.repeat(np.arange(len(fitted.user_ids)), np.diff(fitted.starts))
    for name, baseline in build_baselines(bundle.embeddings, seed).items():
        try:
            baseline.fit(
                user_of_row[chosen],
                fitted.item_idx[chosen],
                fitted.at_seconds[chosen],
                num_users=len(fitted.user_ids),
                num_items=len(bundle.items),
            )
        except ConfigError as error:  # a dense baseline on a large catalogue
            log(f"baseline {name} left out: {error}")
            continue
        yield name, lambda part, baseline=baseline: baseline.score(liked[part])  # type: ignore[misc]


def oracle(truth: Path, test: pa.Table, users: list[str], bundle: Bundle) -> Iterator[Scorer]:
    """On synthetic data, someone who knows the planted preferences; nobody elsewhere."""
    if not truth.is_dir():
        return
    from avrec_ray.datasets.synthetic import oracle_scores

    at_seconds = np.full(len(users), test["at"].cast(pa.int64()).to_numpy().min() / 1e6)
    yield "oracle", lambda part: oracle_scores(truth, users[part], bundle.items.item_ids, at_seconds[part])


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
