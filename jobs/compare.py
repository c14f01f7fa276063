"""Which of two runs is better, where, how sure. Run: python -m jobs.compare run_a=<id> run_b=<id> storage_path=..."""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import compare
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="compare")
def main(cfg: DictConfig) -> None:
    """One line a slice and metric, and a sentence; the numbers go to MLflow too."""
    with job_session(cfg, "compare", needs_ray=False) as (loop, job):
        lines = compare.run(loop, job)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
