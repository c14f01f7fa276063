"""Two evaluated runs side by side, from what each keeps in MLflow."""

from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq

from avrec_ray.config import JobConfig
from avrec_ray.errors import ConfigError
from avrec_ray.evaluation.compare import SliceComparison, compare_tables, same_truth, verdict
from avrec_ray.pipelines.stage import Loop

PARTS = ("recommendations.parquet", "truth.parquet")


def run(loop: Loop, job: JobConfig) -> list[str]:
    """jobs.compare: lines for the terminal; the numbers become an MLflow run of their own.

    Raises:
        ConfigError: a run is not named. StageError: it kept no evaluation. TableError: different questions were asked.
    """
    if not job.run_a or not job.run_b:
        raise ConfigError(
            f"run_a={job.run_a!r} and run_b={job.run_b!r}; give two MLflow run ids, see the UI's run pages"
        )
    (lists_a, truth_a), (lists_b, truth_b) = (_tables(loop, run_id) for run_id in (job.run_a, job.run_b))
    found = compare_tables(lists_a, lists_b, same_truth(truth_a, truth_b), tuple(job.evaluation.cutoffs), job.seed)
    sentence = verdict(found, job.evaluation.gate.metric)
    loop.parent.tags({"run_a": job.run_a, "run_b": job.run_b, "verdict": sentence})
    loop.parent.metrics({f"difference/{part.slice}/{c.metric}": c.difference for part in found for c in part.metrics})
    loop.parent.artifact_json([asdict(part) for part in found], "comparison.json")
    return [*_lines(found), "", sentence]


def _tables(loop: Loop, run_id: str) -> list[object]:
    folder = loop.tracking.artifacts_of(run_id, "evaluate", "evaluation")
    return [pq.read_table(Path(folder) / name) for name in PARTS]


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
