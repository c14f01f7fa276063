"""Build the vector index over the embeddings. Run: python -m jobs.build_index index.backend=flat"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import build_index
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="build_index")
def main(cfg: DictConfig) -> None:
    """One stage, with its errors as one line and exit code 1."""
    with job_session(cfg, "build_index", next_job="train_reranker") as (loop, job):
        build_index.run(loop, job)


if __name__ == "__main__":
    main()
