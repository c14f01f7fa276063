"""What every entry point does: settings to dataclasses, Ray for the time of the job, errors as one line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from avrec_ray import config
from avrec_ray.config import JobConfig
from avrec_ray.errors import AvrecError
from avrec_ray.pipelines.full_loop import open_loop
from avrec_ray.pipelines.session import session
from avrec_ray.pipelines.stage import Loop

if TYPE_CHECKING:
    from omegaconf import DictConfig


@contextmanager
def job_session(
    cfg: "DictConfig", name: str, next_job: str = "", num_stages: int = 0, needs_ray: bool = True
) -> Iterator[tuple[Loop, JobConfig]]:
    """Yield the loop and the typed settings of a job; print what comes next, or the error and exit with 1."""
    with errors_as_one_line():
        job: JobConfig = config.to_typed(cfg)
        with session(job.cluster) if needs_ray else nullcontext(), open_loop(job, name, num_stages) as loop:
            yield loop, job
    if next_job:
        print(f"wrote to {job.storage_path}\nnext: python -m jobs.{next_job} storage_path={job.storage_path}")


@contextmanager
def errors_as_one_line() -> Iterator[None]:
    """Print an error of ours without its traceback and exit with 1; AVREC_TRACEBACK=1 shows it whole."""
    try:
        yield
    except AvrecError as error:
        if os.environ.get("AVREC_TRACEBACK") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
