"""All that is kept of a user, as JSON. Run: python -m jobs.export_user storage_path=... user=<id> output=<json>"""

import json

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import export_user
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="export_user")
def main(cfg: DictConfig) -> None:
    """Events, impressions and the bundle's profile, printed or in `output`."""
    with job_session(cfg, "export_user", needs_ray=False) as (loop, job):
        data = export_user.run(loop, job)
        print(f"wrote {job.output}" if job.output else json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
