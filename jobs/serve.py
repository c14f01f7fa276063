"""Serve a bundle over HTTP until Ctrl-C. Run: python -m jobs.serve bundle=models:/avrec_ray@champion"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines.job import job_session
from serve_apps import demo, run
from serve_apps.config import serve_config

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="serve")
def main(cfg: DictConfig) -> None:
    """Gateway, matcher and reranker on Ray Serve; without `bundle` the champion of the registry."""
    with job_session(cfg, "serve") as (loop, job):
        url = run.start(serve_config(job, loop.bundle_to_serve(job.bundle)))
        demo.wait(url)


if __name__ == "__main__":
    main()
