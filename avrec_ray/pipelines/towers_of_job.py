"""What the towers' config leaves to the data: the widths of vectors that come in a table."""

import dataclasses
from typing import Any

import pyarrow.parquet as pq

from avrec_ray.config import JobConfig
from avrec_ray.errors import ConfigError
from avrec_ray.item_vectors import vector_width
from avrec_ray.pipelines.storage import Storage


def with_widths(storage: Storage, job: JobConfig) -> JobConfig:
    """The job with `<modality>_width` of every precomputed modality as in the prepared items table.

    Raises:
        ConfigError: the table lacks the column, or the config names another width.
    """
    wanted = [name for name in job.towers.modalities if job.towers.encoder_of(name) == "precomputed"]
    if not wanted:
        return job
    schema = pq.read_schema(storage.items)
    widths: dict[str, Any] = {f"{name}_width": vector_width(schema, name) for name in wanted}
    for name, width in widths.items():
        if (given := getattr(job.towers, name)) not in (0, width):
            raise ConfigError(f"towers.{name}={given}, but the vectors of the items table have {width}; leave it at 0")
    return dataclasses.replace(job, towers=dataclasses.replace(job.towers, **widths))
