"""Embed the catalogue: one vector an item, and its moments. Run: python -m jobs.embed_items cluster.num_workers=4"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import embed_items
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="embed_items")
def main(cfg: DictConfig) -> None:
    """One stage, with its errors as one line and exit code 1."""
    with job_session(cfg, "embed_items", next_job="build_index") as (loop, job):
        embed_items.run(loop, job)


if __name__ == "__main__":
    main()
