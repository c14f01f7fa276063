"""Bring a dataset into our tables, checked. Run: python -m jobs.prepare data=synthetic"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import prepare
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="prepare")
def main(cfg: DictConfig) -> None:
    """One stage, with its errors as one line and exit code 1."""
    renders = cfg.data.dataset == "synthetic"
    with job_session(cfg, "prepare", next_job="decode_media", needs_ray=renders) as (loop, job):
        prepare.run(loop, job)


if __name__ == "__main__":
    main()
