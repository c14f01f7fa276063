"""Recommend to many users at once. Run: python -m jobs.recommend bundle=... users=u.parquet k=20 output=r.parquet"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import recommend
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="recommend")
def main(cfg: DictConfig) -> None:
    """Bundle and users to a recommendations table, by the serving path."""
    with job_session(cfg, "recommend") as (loop, job):
        output = recommend.run(loop, job)
    print(f"wrote {output}\nnext: python -m jobs.evaluate recommendations={output} truth=<parquet: user_id, item_id>")


if __name__ == "__main__":
    main()
