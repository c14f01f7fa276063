"""A planted world without media: items known by a noisy vector of their factors, and people who live on.

The catalogue, the people and how they behave are those of the synthetic dataset; only the media, which would take
longer to render and to decode than all the rest, are left out. Used by benchmarks/learning.py and shilling.py.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.cluster_config import ClusterConfig, TrackingConfig
from avrec_ray.config import EvaluationConfig, JobConfig, TrainingConfig
from avrec_ray.datasets.config import DataConfig, SyntheticConfig
from avrec_ray.datasets.synthetic.behaviour import SKIP_BELOW, behave, draw_budgets
from avrec_ray.datasets.synthetic.factors import DAY_SECONDS, FACTORS, PlantedItems, plant_items
from avrec_ray.datasets.synthetic.users import PlantedUsers, plant_users
from avrec_ray.evaluation.tuning import BaselinesConfig
from avrec_ray.feedback.store import EventStore
from avrec_ray.item_vectors import VECTOR_COLUMNS
from avrec_ray.pipelines import full_loop
from avrec_ray.ranking.config import RerankerConfig
from avrec_ray.towers.config import TowersConfig
from avrec_ray.training.config import FinetuneConfig, OptimConfig, PretrainConfig
from avrec_ray.types import INTERACTIONS, ITEMS, Event

ITEM_SECONDS = 30.0
VECTOR_NOISE = 0.3
"""Standard deviation of what is added to each planted factor, which is 0 or 1."""


@dataclass(eq=False)
class World:
    """Planted items and people, and the settings that they come from."""

    cfg: SyntheticConfig
    items: PlantedItems
    users: PlantedUsers


def plant(num_items: int, num_users: int, num_interactions: int, num_days: int, seed: int) -> World:
    """A world whose tastes stay as they are for all of `num_days`."""
    cfg = SyntheticConfig(
        num_items=num_items, num_users=num_users, num_interactions=num_interactions, num_days=num_days, broken_items=0,
        cold_fraction=0.0, drift_fraction=0.0, single_modality_user_fraction=0.0,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    items = plant_items(cfg, rng)
    # Everything is out from the start: what is measured is tastes, not new items.
    published = np.minimum(items.published_at_seconds, items.published_at_seconds.min())
    return World(cfg, dataclasses.replace(items, published_at_seconds=published), plant_users(cfg, rng))


def shifted(world: World, share: float, seed: int) -> tuple[World, npt.NDArray[np.bool_]]:
    """The same people later: `share` of the kinds of people like something else, each kind the same new things.

    Returns the world and who changed, bool [U].
    """
    rng = np.random.default_rng(seed)
    kinds = np.unique(world.users.archetypes)
    changed_kinds = rng.permutation(kinds)[: round(share * len(kinds))]
    changed = np.isin(world.users.archetypes, changed_kinds)
    later = plant_users(dataclasses.replace(world.cfg), np.random.default_rng(seed + 1))
    row_of_kind = {int(kind): int(np.flatnonzero(later.archetypes == kind)[0]) for kind in np.unique(later.archetypes)}
    taste = world.users.end_UV.copy()
    for user in np.flatnonzero(changed):
        taste[user] = later.end_UV[row_of_kind[int(world.users.archetypes[user])]]
    return World(world.cfg, world.items, dataclasses.replace(world.users, start_UV=taste, end_UV=taste)), changed


def live(world: World, num_interactions: int, num_days: int, from_day: float, prefix: str, seed: int) -> list[Event]:
    """What everybody does in `num_days` from a day on, in order of time."""
    cfg = dataclasses.replace(world.cfg, num_interactions=num_interactions, num_days=num_days)
    budgets = draw_budgets(cfg, np.random.default_rng(seed))
    rows = []
    for user, budget in enumerate(budgets):
        rng = np.random.default_rng([seed, user])
        for met in behave(cfg, world.items, world.users, user, int(budget), rng):
            rows += [(met.at_seconds + from_day * DAY_SECONDS, user, met.item_idx, *what) for what in _acts(met)]
    rows.sort(key=lambda row: row[0])
    return [
        Event(world.users.user_ids[user], world.items.item_ids[item], event, at, watch, None, f"{prefix}{number:07d}")
        for number, (at, user, item, event, watch) in enumerate(rows)
    ]


def _acts(met: Any) -> Iterator[tuple[str, float | None]]:
    yield ("view" if met.watch_share >= SKIP_BELOW else "skip"), met.watch_share * ITEM_SECONDS
    for reaction in met.reactions:
        yield reaction, None


def items_table(world: World, seed: int) -> pa.Table:
    """The catalogue: tags by name, and the noisy vector that stands for media."""
    rng = np.random.default_rng(seed)
    vectors = world.items.vectors() + rng.normal(0, VECTOR_NOISE, world.items.vectors().shape).astype(np.float32)
    rows = [
        {
            "item_id": item_id, "title": f"item {number}", "tags": list(world.items.factor_values(number).values()),
            "category": world.items.factor_values(number)[next(iter(FACTORS))],
            "creator_id": f"creator{world.items.creators[number]:03d}", "duration_seconds": ITEM_SECONDS,
        }
        for number, item_id in enumerate(world.items.item_ids)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, ITEMS)
    return table.append_column(VECTOR_COLUMNS["video"][0], pa.array(vectors.tolist(), pa.list_(pa.float32())))


def interactions_table(events: list[Event]) -> pa.Table:
    """Events as an interactions table."""
    columns = {name: [getattr(e, name) for e in events] for name in INTERACTIONS.names if name != "at"}
    columns["at"] = [round(event.at_seconds * 1e6) for event in events]
    return pa.table(
        {f.name: pa.array(columns[f.name], pa.int64() if f.name == "at" else f.type) for f in INTERACTIONS}
    ).cast(INTERACTIONS)


def job_for(storage: Path, seed: int, epochs: int = 30) -> JobConfig:
    """Small towers over the vectors, every stage of the loop in its usual form."""
    given = storage / "given"
    return JobConfig(
        storage_path=str(storage),
        seed=seed,
        data=DataConfig(items=str(given / "items.parquet"), interactions=str(given / "log.parquet")),
        towers=TowersConfig(
            embedding_dim=32, model_dim=32, num_heads=2, history_length=30, user_layers=1, fusion_layers=1,
            video_encoder="precomputed", audio_encoder="none", text_encoder="none", max_clips=1,
        ),
        training=TrainingConfig(
            pretrain=PretrainConfig(epochs=1),
            finetune=FinetuneConfig(epochs=epochs, refresh_epochs=10, batch_size=32, learning_rate=3e-3),
        ),
        reranker=RerankerConfig(num_candidates=50, optim=OptimConfig(epochs=3, batch_size=32)),
        evaluation=EvaluationConfig(baselines=BaselinesConfig(names=["popularity"])),
        cluster=ClusterConfig(num_workers=1),
        tracking=TrackingConfig(system_metrics_seconds=0.0),
    )  # fmt: skip


def first_loop(world: World, past: list[Event], job: JobConfig) -> None:
    """The loop over the past, so that there is a champion and a filled event store."""
    given = Path(job.storage_path) / "given"
    given.mkdir(parents=True)
    pq.write_table(items_table(world, job.seed), given / "items.parquet")
    pq.write_table(interactions_table(past), given / "log.parquet")
    with full_loop.open_loop(job, "full_loop", full_loop.NUM_STAGES) as loop:
        full_loop.run(loop, job)


def post(job: JobConfig, events: list[Event]) -> None:
    """Events into the store, as the service puts them there."""
    store = EventStore(job.feedback.store_url(job.storage_path))
    for start in range(0, len(events), 500):
        chunk = events[start : start + 500]
        done = store.append(chunk, received_at_seconds=chunk[-1].at_seconds)
        if done.accepted != len(chunk):
            raise RuntimeError(f"{done} of {len(chunk)} events")
    store.close()
