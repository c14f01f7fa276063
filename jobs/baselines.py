"""Fit and measure every baseline. Run: python -m jobs.baselines experiment=demo"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import baselines, decode_media, prepare, split
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="baselines")
def main(cfg: DictConfig) -> None:
    """Dataset to an MLflow run a baseline; needs no model."""
    with job_session(cfg, "baselines", next_job="full_loop", num_stages=4) as (loop, job):
        prepare.run(loop, job)
        decode_media.run(loop, job)
        split.run(loop, job)
        metrics = baselines.run(loop, job).metrics
    for name, value in metrics.items():
        print(f"{name} {value:.6f}")


if __name__ == "__main__":
    main()
