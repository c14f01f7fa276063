"""One default corpus for the session (tables only, a second), and one small one with its media rendered."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avrec_ray.datasets.config import SyntheticConfig
from avrec_ray.datasets.synthetic import RenderTask, render_item, write_tables

SMALL = SyntheticConfig(num_items=60, num_users=20, num_interactions=220, broken_items=4, max_seconds=4.5)


@dataclass(frozen=True)
class Corpus:
    """What write_tables left."""

    folder: Path
    cfg: SyntheticConfig
    tasks: list[RenderTask]
    items: pa.Table
    interactions: pa.Table
    users: pa.Table


def write_corpus(folder: Path, cfg: SyntheticConfig, seed: int) -> Corpus:
    """Write and read back."""
    tasks = write_tables(folder, cfg, seed)
    names = ("items", "interactions", "users")
    return Corpus(folder, cfg, tasks, *(pq.read_table(folder / f"{name}.parquet") for name in names))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The default size, seed 0; nothing rendered."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), SyntheticConfig(), seed=0)


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], RenderTask]:
    """(kind, form) -> the first task of that kind and form in a small corpus, rendered."""
    tasks: dict[tuple[str, str], RenderTask] = {}
    for task in write_tables(tmp_path_factory.mktemp("rendered"), SMALL, seed=1):
        tasks.setdefault((task.kind, task.form), task)
    for task in tasks.values():
        render_item(task)
    return tasks
