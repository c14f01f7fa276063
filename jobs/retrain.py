"""Learn from the events since the last run. Run: python -m jobs.retrain storage_path=... [retrain.every_hours=6]"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import retrain
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="retrain")
def main(cfg: DictConfig) -> None:
    """New events to a new bundle, champion if the gate lets it; a killed run goes on where it was."""
    with job_session(cfg, "retrain") as (loop, job):
        for outcome in retrain.run_scheduled(loop, job):
            retrain.print_summary(loop, outcome)


if __name__ == "__main__":
    main()
