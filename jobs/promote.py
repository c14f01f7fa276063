"""Make a registered bundle the champion, or go back. Run: python -m jobs.promote version=3, or rollback=true"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import promote
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="promote")
def main(cfg: DictConfig) -> None:
    """Move the alias; what the gate refused needs force=true."""
    with job_session(cfg, "promote", needs_ray=False) as (loop, job):
        champion = promote.run(loop, job)
    print(f"champion is version {champion.version}: {champion.model_version}")
    print(f"next: python -m jobs.serve storage_path={job.storage_path}")


if __name__ == "__main__":
    main()
