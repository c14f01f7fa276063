"""The planted catalogue and its behaviour as our tables, with the truth beside them and a render task an item."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa

from avrec_ray.datasets.config import SyntheticConfig
from avrec_ray.datasets.synthetic.behaviour import SKIP_BELOW, STILL_SECONDS, Exposure, behave, draw_budgets
from avrec_ray.datasets.synthetic.factors import FACTORS, PlantedItems, plant_items
from avrec_ray.datasets.synthetic.render import FORMS, RenderTask
from avrec_ray.datasets.synthetic.text import write_text
from avrec_ray.datasets.synthetic.truth import write_truth
from avrec_ray.datasets.synthetic.users import PlantedUsers, plant_users
from avrec_ray.datasets.table_files import Tables, check_tables
from avrec_ray.types import INTERACTIONS, ITEMS, USERS

AGE_GROUPS = ("13-17", "18-24", "25-34", "35-54", "55+")
COUNTRIES = ("DE", "FR", "IN", "JP", "US")
_MICROSECONDS = 1_000_000


def write_tables(folder: Path, cfg: SyntheticConfig, seed: int, media_folder: Path | None = None) -> list[RenderTask]:
    """Write items, interactions, users and truth/ under `folder`; nothing is rendered yet.

    Args:
        folder: where the tables go; absolute.
        cfg: size and strength of everything.
        seed: the same seed and config give the same bytes.
        media_folder: where the media will lie; `folder`/media unless given. A media_uri is an absolute path in it.

    Returns:
        A task for `render_item` for each item that has a media_uri.
    """
    items = plant_items(cfg, _rng(seed, "items"))
    users = plant_users(cfg, _rng(seed, "users"))
    tasks = _plan_rendering(cfg, items, seed, (media_folder or folder / "media").resolve())
    tables = _build_tables(cfg, items, users, tasks, seed)
    tables.write(folder)
    write_truth(folder / "truth", items, users)
    return list(tasks.values())


def _rng(seed: int, *stream: str | int) -> np.random.Generator:
    """A stream of its own for each purpose, so that a change in one leaves the others as they were."""
    return np.random.default_rng([seed, *(crc32(s.encode()) if isinstance(s, str) else s for s in stream)])


def _plan_rendering(cfg: SyntheticConfig, items: PlantedItems, seed: int, media_folder: Path) -> dict[str, RenderTask]:
    rng = _rng(seed, "media")
    num_planned = dict.fromkeys(FORMS, 0)
    tasks = {}
    for item_idx, (item_id, kind) in enumerate(zip(items.item_ids, items.kinds, strict=True)):
        num_frames = round(rng.uniform(cfg.min_seconds, cfg.max_seconds) * cfg.frames_per_second)
        if kind == "text":
            continue
        form = FORMS[kind][num_planned[kind] % len(FORMS[kind])]
        num_planned[kind] += 1
        tasks[item_id] = RenderTask(
            item_id=item_id,
            path=str(media_folder / f"{item_id}.{'mp4' if kind == 'broken' else form}"),
            kind=kind,
            form=form,
            factors=items.factor_values(item_idx),
            seed=int(_rng(seed, "render", item_idx).integers(2**31)),
            duration_seconds=float(num_frames / cfg.frames_per_second),
            frame_size=cfg.frame_size,
            frames_per_second=cfg.frames_per_second,
        )
    return tasks


def _build_tables(
    cfg: SyntheticConfig, items: PlantedItems, users: PlantedUsers, tasks: dict[str, RenderTask], seed: int
) -> Tables:
    durations = {t.item_id: t.duration_seconds for t in tasks.values() if t.kind != "image"}
    item_rows = [_item_row(items, i, tasks, durations, _rng(seed, "text", i)) for i in range(len(items.item_ids))]
    rows = sorted(_interaction_rows(cfg, items, users, durations, seed), key=lambda row: row["at"])
    for number, row in enumerate(rows):
        row["event_id"] = f"event{number:08d}"
    return check_tables(
        pa.Table.from_pylist(item_rows, schema=ITEMS),
        pa.Table.from_pylist(rows, schema=INTERACTIONS),
        pa.Table.from_pylist(list(_user_rows(users, _rng(seed, "attributes"))), schema=USERS),
    )


def _item_row(
    items: PlantedItems,
    item_idx: int,
    tasks: dict[str, RenderTask],
    durations: dict[str, float],
    rng: np.random.Generator,
) -> dict[str, Any]:
    item_id = items.item_ids[item_idx]
    shown = dict(zip(FACTORS, items.shown_NF[item_idx].tolist(), strict=True))
    text = write_text(items.factor_values(item_idx), shown, rng)
    return {
        "item_id": item_id,
        "media_uri": tasks[item_id].path if item_id in tasks else None,
        "title": text.title,
        "description": text.description,
        "tags": text.tags,
        "category": text.category,
        "creator_id": f"creator{items.creators[item_idx]:03d}",
        "language": text.language,
        "duration_seconds": durations.get(item_id),
        "published_at": _microseconds(items.published_at_seconds[item_idx]),
    }


def _interaction_rows(
    cfg: SyntheticConfig, items: PlantedItems, users: PlantedUsers, durations: dict[str, float], seed: int
) -> Iterator[dict[str, Any]]:
    budgets = draw_budgets(cfg, _rng(seed, "activity"))
    for user_idx, user_id in enumerate(users.user_ids):
        rng = _rng(seed, "behaviour", user_idx)
        for exposure in behave(cfg, items, users, user_idx, int(budgets[user_idx]), rng):
            item_id = items.item_ids[exposure.item_idx]
            for row in _exposure_rows(exposure, durations.get(item_id)):
                yield {"user_id": user_id, "item_id": item_id, **row}


def _exposure_rows(exposure: Exposure, duration_seconds: float | None) -> Iterator[dict[str, Any]]:
    """The view or skip, then a row for each reaction, a second apart after the watching."""
    watch_seconds = None if duration_seconds is None else exposure.watch_share * duration_seconds
    event = "view" if exposure.watch_share >= SKIP_BELOW else "skip"
    yield {"event": event, "at": _microseconds(exposure.at_seconds), "watch_seconds": watch_seconds}
    spent = STILL_SECONDS * exposure.watch_share if watch_seconds is None else watch_seconds
    for number, reaction in enumerate(exposure.reactions):
        yield {"event": reaction, "at": _microseconds(exposure.at_seconds + spent + 0.2 * number)}


def _user_rows(users: PlantedUsers, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Age goes with the archetype for most, so that attributes say a little about taste; the country says nothing."""
    for user_id, archetype in zip(users.user_ids, users.archetypes.tolist(), strict=True):
        typical = rng.random() < 0.7
        age_group = AGE_GROUPS[archetype % len(AGE_GROUPS)] if typical else str(rng.choice(AGE_GROUPS))
        attributes = [("age_group", age_group), ("country", str(rng.choice(COUNTRIES)))]
        yield {"user_id": user_id, "attributes": attributes}


def _microseconds(seconds: float) -> int:
    return round(float(seconds) * _MICROSECONDS)
