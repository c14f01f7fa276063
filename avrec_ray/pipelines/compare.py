"""Two evaluated runs side by side, from what each keeps in MLflow."""

from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.config import JobConfig
from avrec_ray.errors import ConfigError
from avrec_ray.evaluation.compare import SliceComparison, compare_tables, same_truth, seed_means, verdict
from avrec_ray.evaluation.significance import over_seeds
from avrec_ray.pipelines.stage import Loop

PARTS = ("recommendations.parquet", "truth.parquet")


def run(loop: Loop, job: JobConfig) -> list[str]:
    """jobs.compare: lines for the terminal; the numbers become an MLflow run of their own.

    Raises:
        ConfigError: a run is not named. StageError: it kept no evaluation. TableError: different questions were asked.
    """
    if not job.run_a or not job.run_b:
        raise ConfigError(
            f"run_a={job.run_a!r} and run_b={job.run_b!r}; give an MLflow run id each, or several seeds with + between"
        )
    runs = {"a": job.run_a.split("+"), "b": job.run_b.split("+")}
    tables = {name: [_tables(loop, run_id) for run_id in ids] for name, ids in runs.items()}
    truth = same_truth([truth for seeds in tables.values() for _, truth in seeds])
    lists = {name: [table for table, _ in seeds] for name, seeds in tables.items()}
    metric = job.evaluation.gate.metric
    found = compare_tables(lists["a"], lists["b"], truth, tuple(job.evaluation.cutoffs), job.seed, metric)
    sentence = verdict(found, metric)
    loop.parent.tags({"run_a": job.run_a, "run_b": job.run_b, "verdict": sentence})
    loop.parent.metrics({f"difference/{part.slice}/{c.metric}": c.difference for part in found for c in part.metrics})
    loop.parent.artifact_json([asdict(part) for part in found], "comparison.json")
    spread = [_seeds(name, lists[name], truth, metric) for name in lists if len(lists[name]) > 1]
    return [*_lines(found), "", *spread, sentence]


def _tables(loop: Loop, run_id: str) -> tuple[pa.Table, pa.Table]:
    """Lists and truth of a run."""
    folder = loop.tracking.artifacts_of(run_id, "evaluate", "evaluation")
    lists, truth = (pq.read_table(folder / name) for name in PARTS)
    return lists, truth


def _seeds(name: str, lists: list[pa.Table], truth: pa.Table, metric: str) -> str:
    """How far the seeds of a model lie apart."""
    means = seed_means(lists, truth, metric)
    over = over_seeds(means)
    each = ", ".join(f"{mean:.4f}" for mean in means)
    return f"{name}: {metric} of {over.num_seeds} seeds {each}; mean {over.mean:.4f} [{over.low:.4f}, {over.high:.4f}]"


def _lines(found: list[SliceComparison]) -> list[str]:
    """A row a slice and metric."""
    head = (
        f"{'slice':<12}{'users':>6}  {'metric':<14}{'a':>8}{'b':>9}{'a - b':>10}  {'95 % interval':<20}{'p':>7}  better"
    )
    rows = [
        f"{part.slice:<12}{part.num_users:>6}  {c.metric:<14}{c.mean_a:>8.4f}{c.mean_b:>9.4f}{c.difference:>+10.4f}  "
        f"[{c.low:+.4f}, {c.high:+.4f}]   {c.p_value:>6.3f}  {c.better}"
        for part in found
        for c in part.metrics
    ]
    return [head, *rows]
