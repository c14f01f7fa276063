"""Corpus, whole loop and service in one. Run: python -m jobs.demo storage_path=/abs/runs/demo [once=true]"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import full_loop
from avrec_ray.pipelines.job import job_session
from avrec_ray.pipelines.load_events import events_url
from serve_apps import demo, run
from serve_apps.config import serve_config

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="demo")
def main(cfg: DictConfig) -> None:
    """Every stage that is not done, the metric table, three users' lists with reasons, and the running service."""
    with job_session(cfg, "full_loop", num_stages=full_loop.NUM_STAGES) as (loop, job):
        full_loop.print_summary(loop, full_loop.run(loop, job))
        bundle = loop.bundle_to_serve("")  # the new one, unless the gate refused it
        url = run.start(serve_config(job, bundle))
        user_id = demo.show(url, bundle, events_url(loop, job))
        demo.finish(url, user_id, job, loop.tracking_uri)


if __name__ == "__main__":
    main()
