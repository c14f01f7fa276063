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
from avrec_ray.evaluation.baselines import rank_in_parts
from avrec_ray.evaluation.content_baselines import ContentNeighbours
from avrec_ray.evaluation.list_quality import ItemFacts, list_quality
from avrec_ray.evaluation.metrics import cold_item_metrics, evaluate_rankings
from avrec_ray.evaluation.recommendations import read_table, score_recommendations
from avrec_ray.evaluation.report import format_metric_table, save_metric_plot
from avrec_ray.pipelines import baselines
from avrec_ray.pipelines.baselines import NOBODY_ASKED, read_baselines
from avrec_ray.pipelines.bundle import bundle_folder
from avrec_ray.pipelines.catalogue import read_fitted
from avrec_ray.pipelines.champion import ask_champion_if_possible
from avrec_ray.pipelines.measured import SERVED, Measured, Rankings, rank_rows, truth_table
from avrec_ray.pipelines.question import ask
from avrec_ray.pipelines.recommend import recommend_users
from avrec_ray.pipelines.recommend_inputs import policy_settings
from avrec_ray.pipelines.report import write_report
from avrec_ray.pipelines.split import history_paths, note_inputs, read_candidates
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record

EMBEDDINGS = "embedding_knn"
"""Neighbours of the history in the served embeddings: what they say without the user tower."""
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
            pq.write_table(measured.truth, folder / "truth.parquet")
            (folder / "metrics.txt").write_text(format_metric_table(measured.results) + "\n")
            (folder / "headline.txt").write_text(format_metric_table(headline(measured.results)) + "\n")
            save_metric_plot(measured.results, folder / "metrics.png")
            champion.save(folder)
            write_report(folder / "report.html", measured, champion, storage, job)
            for path in sorted(folder.iterdir()):
                stage.run.artifact(path, "evaluation")
        metrics = flat_metrics(measured.results)
        loop.parent.metrics({name: value for name, value in metrics.items() if name.startswith("test/")})
        loop.parent.tags({"model": SERVED})
        for run in (loop.parent, stage.run):
            note_inputs(run, storage.root)
        return metrics

    return loop.stage(
        "evaluate",
        work,
        settings={
            "evaluation": to_dict(job.evaluation),
            "matcher": to_dict(job.matcher),
            "policy": policy_settings(job.policy),
        },
        inputs={name: require_record(storage, name).fingerprint for name in ("bundle", "baselines")},
        outputs=[storage.folder("evaluation") / name for name in ("recommendations.parquet", "headline.txt")],
    )


def run_beside_baselines(loop: Loop, job: JobConfig) -> dict[str, float]:
    """jobs.evaluate: the bundle under storage_path, after the baselines where these are not up to date."""
    baselines.run(loop, job)
    return run(loop, job).metrics


def measure(loop: Loop, job: JobConfig, bundle_path: Path, log: Callable[[str], None]) -> Measured:
    """Rank for every user with held-out choices, by the bundle and by the oracle, and score beside the baselines."""
    root, depth = loop.storage.root, job.evaluation.list_length
    bundle = load_bundle(bundle_path)
    question = ask(root, bundle.items.index_of, bundle.items.durations)
    users = question.users
    if not users:
        raise StageError(f"evaluate: {NOBODY_ASKED}")
    candidates = read_candidates(root)
    log(f"{len(users)} users with held-out choices, {len(candidates or bundle.items.item_ids)} items ranked for each")
    recommendations = recommend_users(bundle_path, history_paths(root), users, job, depth, candidates, log)
    tables = {SERVED: recommendations, **read_baselines(root / "baselines")}
    rankings = {name: rank_rows(table, users, bundle) for name, table in tables.items()}
    rankings[EMBEDDINGS] = question.rank(question.fit(ContentNeighbours(bundle.embeddings)), depth)
    for name, score in oracle(loop.storage.truth, read_fitted(root, ("test",)), users, bundle):
        rankings[name] = rank_in_parts(score, question.seen, depth, len(bundle.items), question.candidates)
    results = score_rankings(rankings, question.targets, question.seen, question.liked, bundle, job.evaluation.cutoffs)
    counts = np.bincount(question.item_idx, minlength=len(bundle.items))
    truth = truth_table(question, bundle.items.item_ids)
    return Measured(users, question.targets, question.seen, bundle, counts, recommendations, truth, rankings, results)


def score_table(loop: Loop, job: JobConfig) -> dict[str, float]:
    """jobs.evaluate with a table: ours or somebody else's recommendations against a truth table, logged as a run."""
    if not job.truth:
        raise ConfigError("truth is empty; give truth=<parquet with user_id, item_id> beside recommendations")
    lists, truth = read_table(job.recommendations), read_table(job.truth)
    optional = {name: read_table(path) if path else None for name, path in _optional_tables(job).items()}
    metrics = score_recommendations(lists, truth, **optional, ks=tuple(job.evaluation.cutoffs))
    loop.parent.metrics(metrics)
    return metrics


def _optional_tables(job: JobConfig) -> dict[str, str]:
    return {"candidates": job.candidates, "seen": job.seen}


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


def oracle(truth: Path, test: pa.Table, users: list[str], bundle: Bundle) -> Iterator[Scorer]:
    """On synthetic data, someone who knows the planted preferences; nobody elsewhere."""
    if not truth.is_dir():
        return
    from avrec_ray.datasets.synthetic import oracle_scores

    at_seconds = np.full(len(users), test["at"].cast(pa.int64()).to_numpy().min() / 1e6)
    yield "oracle", lambda part: oracle_scores(truth, users[part], bundle.items.item_ids, at_seconds[part])
