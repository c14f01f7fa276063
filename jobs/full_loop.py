"""The whole loop, resumable. Run: python -m jobs.full_loop experiment=demo"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import full_loop
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="full_loop")
def main(cfg: DictConfig) -> None:
    """Every stage that is not done yet, then the metric table and what to do with the bundle."""
    with job_session(cfg, "full_loop", num_stages=full_loop.NUM_STAGES) as (loop, job):
        bundle = full_loop.run(loop, job)
    full_loop.print_summary(loop, bundle)


if __name__ == "__main__":
    main()
