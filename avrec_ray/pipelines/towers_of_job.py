"""What the towers' config leaves to data and checkpoints: the widths of vectors that come in a table, or of tokens."""

import dataclasses
from typing import Any

import pyarrow.parquet as pq

from avrec_ray.config import JobConfig
from avrec_ray.errors import ConfigError
from avrec_ray.item_vectors import vector_width
from avrec_ray.pipelines.storage import Storage
from avrec_ray.towers.audio_checkpoints import check_audio
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.encoder_registry import encoder_width


def with_widths(storage: Storage, job: JobConfig) -> JobConfig:
    """The job with `<modality>_width` of every encoder that is not trained from scratch.

    Raises:
        ConfigError: the items table lacks a column, the config names another width than the table or checkpoint has,
            or clips are no input for the audio checkpoint.
    """
    towers = job.towers
    if towers.audio_encoder == "transformers":
        check_audio(towers)
    widths: dict[str, Any] = {}
    for name in towers.modalities:
        if towers.encoder_of(name) != "scratch":
            widths[f"{name}_width"] = found = _width(storage, towers, name)
            if (given := getattr(towers, f"{name}_width")) not in (0, found):
                raise ConfigError(
                    f"towers.{name}_width={given}, but {name}_encoder={towers.encoder_of(name)!r} has {found} here; "
                    "leave it at 0"
                )
    return dataclasses.replace(job, towers=dataclasses.replace(job.towers, **widths))


def _width(storage: Storage, towers: TowersConfig, modality: str) -> int:
    if towers.encoder_of(modality) == "precomputed":
        return vector_width(pq.read_schema(storage.items), modality)
    unknown: dict[str, Any] = {f"{modality}_width": 0}
    return encoder_width(modality, dataclasses.replace(towers, **unknown))
