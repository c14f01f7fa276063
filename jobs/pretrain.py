"""Pretrain the item tower by contrast. Run: python -m jobs.pretrain training.pretrain.epochs=20"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import pretrain
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="pretrain")
def main(cfg: DictConfig) -> None:
    """One stage, with its errors as one line and exit code 1."""
    with job_session(cfg, "pretrain", next_job="finetune") as (loop, job):
        pretrain.run(loop, job)


if __name__ == "__main__":
    main()
