"""Users' names under a new key. Run: AVREC_USER_KEYS=2:<new>,1:<old> python -m jobs.rotate_user_keys"""

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import rotate_user_keys
from avrec_ray.pipelines.job import job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="rotate_user_keys")
def main(cfg: DictConfig) -> None:
    """The store and the files under storage_path; the service may go on, if it has both keys."""
    with job_session(cfg, "rotate_user_keys", needs_ray=False) as (loop, job):
        rekeyed = rotate_user_keys.run(loop, job)
    if rekeyed.retired:
        print(f"retired key versions {list(rekeyed.retired)}\nnext: take them out of AVREC_USER_KEYS, and destroy them")


if __name__ == "__main__":
    main()
