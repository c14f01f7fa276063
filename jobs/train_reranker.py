"""Train the reranker on the matcher's candidates. Run: python -m jobs.train_reranker"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import train_reranker
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="train_reranker")
def main(cfg: DictConfig) -> None:
    """One stage, with its errors as one line and exit code 1."""
    with job_session(cfg, "train_reranker", next_job="full_loop") as (loop, job):
        train_reranker.run(loop, job)


if __name__ == "__main__":
    main()
