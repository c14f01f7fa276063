"""Fine-tune both towers on behaviour. Run: python -m jobs.finetune training.finetune.epochs=20"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import finetune, split
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="finetune")
def main(cfg: DictConfig) -> None:
    """One stage, with its errors as one line and exit code 1."""
    with job_session(cfg, "finetune", next_job="embed_items") as (loop, job):
        split.run(loop, job)
        finetune.run(loop, job)
        finetune.refresh(loop, job)


if __name__ == "__main__":
    main()
