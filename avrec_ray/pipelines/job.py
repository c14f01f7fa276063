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
        # The loop first: a storage_path that cannot be is refused before Ray takes ten seconds to start.
        with open_loop(job, name, num_stages) as loop, session(job.cluster) if needs_ray else nullcontext():
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
        # Ray wraps what a task raised, and prints its stack as the message.
        print(f"error: {getattr(error, 'cause', error)}", file=sys.stderr)
        sys.exit(1)
