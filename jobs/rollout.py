"""Bring a bundle into a running service, or take one out.

Run: python -m jobs.rollout action=canary bundle=models:/avrec_ray/3 share=0.05

action: swap, canary, ab, shadow or interleave with `bundle`; promote, stop, rollback, status without.
"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import rollout
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="rollout")
def main(cfg: DictConfig) -> None:
    """Ask the service's conductor, and wait until it says what came of it."""
    with job_session(cfg, "rollout", needs_ray=False) as (loop, job):
        rollout.run(loop, job)


if __name__ == "__main__":
    main()
