"""Forget users, and prove it. Run: python -m jobs.erase_user storage_path=... user=<id>, or users=<parquet: user_id>"""

import json

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.dataclass_io import to_dict
from avrec_ray.pipelines import erase_user
from avrec_ray.pipelines.atomic import write_text_atomically
from avrec_ray.pipelines.job import job_session
from avrec_ray.pipelines.users_of_job import absolute

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="erase_user")
def main(cfg: DictConfig) -> None:
    """Event store, files and artifacts; a signed receipt a user as a line of JSON, printed or in `output`."""
    with job_session(cfg, "erase_user", needs_ray=False) as (loop, job):
        output = absolute(job.output) if job.output else None
        lines = [json.dumps(to_dict(receipt), sort_keys=True) for receipt in erase_user.run(loop, job)]
        if output:
            write_text_atomically(output, "\n".join(lines) + "\n")
        print(f"receipts in {output}" if output else "\n".join(lines))
        print("next: python -m jobs.full_loop, so that the next model leaves them out")


if __name__ == "__main__":
    main()
