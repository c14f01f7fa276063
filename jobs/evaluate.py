"""Measure the bundle, or score a table. Run: python -m jobs.evaluate recommendations=r.parquet truth=t.parquet"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import evaluate
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """One `name value` line a metric; the same numbers go to MLflow."""
    scores_table = bool(cfg.recommendations)
    with job_session(cfg, "evaluate", needs_ray=not scores_table) as (loop, job):
        metrics = evaluate.score_table(loop, job) if scores_table else evaluate.run_beside_baselines(loop, job)
    for name, value in metrics.items():
        print(f"{name} {value:.6f}")


if __name__ == "__main__":
    main()
