"""Decode every item's media into clips, or set it aside. Run: python -m jobs.decode_media data.items=/abs/i.parquet

With --estimate it says how long that would take and how much it would write, from a sample, and writes nothing.
"""

import sys

import hydra
from omegaconf import DictConfig

from avrec_ray import config
from avrec_ray.pipelines import decode_estimate, decode_media
from avrec_ray.pipelines.job import errors_as_one_line, job_session

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="decode_media")
def main(cfg: DictConfig) -> None:
    """One stage, with its errors as one line and exit code 1."""
    if cfg.estimate:
        with errors_as_one_line():
            decode_estimate.run(config.to_typed(cfg))
        return
    with job_session(cfg, "decode_media", next_job="pretrain") as (loop, job):
        decode_media.run(loop, job)


if __name__ == "__main__":
    sys.argv[1:] = ["estimate=true" if argument == "--estimate" else argument for argument in sys.argv[1:]]
    main()
