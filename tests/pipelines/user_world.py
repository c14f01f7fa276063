"""A storage path in which users are everywhere: events, lists, tables, bundle, MLflow, exports, parts of a job."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avrec_ray.cluster_config import TrackingConfig
from avrec_ray.config import JobConfig
from avrec_ray.datasets.config import DataConfig
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.feedback.impressions import Impression
from avrec_ray.feedback.profile_files import replace_in_bundle
from avrec_ray.feedback.pseudonyms import USER_COLUMNS, Pseudonyms
from avrec_ray.feedback.store import EventStore
from avrec_ray.pipelines import load_events, prepare, split
from avrec_ray.pipelines.stage import Loop
from avrec_ray.pipelines.storage import Storage
from tests.tiny_bundle import build_tiny_bundle
from tests.tiny_models import tiny_towers

NUM_ITEMS = 20
DAY_US = 86_400_000_000


def user_ids(num_users: int) -> list[str]:
    return [f"person-{number:04d}@example.org" for number in range(num_users)]


@dataclass(frozen=True)
class World:
    root: Path
    job: JobConfig
    users: list[str]

    def loop(self) -> Loop:
        return Loop(Storage.at(str(self.root)), TrackingConfig(), "world", echo=lambda _: None)

    def store(self, pseudonyms: Pseudonyms | None = None) -> EventStore:
        return EventStore(self.job.feedback.store_url(str(self.root)), pseudonyms=pseudonyms)


def open_world(root: Path, num_users: int, url: str = "") -> World:
    source = root.parent / f"{root.name}-source"
    data = DataConfig(**{name: str(source / f"{name}.parquet") for name in ("items", "interactions", "users", "edges")})
    return World(
        root, JobConfig(storage_path=str(root), data=data, feedback=FeedbackConfig(url=url)), user_ids(num_users)
    )


def build_world(root: Path, num_users: int, url: str = "") -> World:
    """With the keys of the environment, or none."""
    world = open_world(root, num_users, url)
    _write_source(world)
    loop = world.loop()
    prepare.run(loop, world.job)
    split.run(loop, world.job)
    load_events.run(loop, world.job)
    store = world.store()
    names = [store.pseudonyms.of(user) for user in world.users]
    for number, name in enumerate(names):
        shown = [Impression(f"r-{number}", name, f"i{n:02d}", n, 0.5, "v", "", "", time.time()) for n in range(3)]
        store.record_impressions(shown)
    store.backup(root / "backups" / "first")
    store.close()
    _write_files(world, names, loop)
    loop.close()
    return world


def _write_source(world: World) -> None:
    """What the operator brings, under ids; it lies outside of the storage path and is the operator's to keep."""
    rng, users = np.random.default_rng(0), world.users
    folder = Path(world.job.data.items).parent
    folder.mkdir(parents=True)
    items = [f"i{number:02d}" for number in range(NUM_ITEMS)]
    pq.write_table(
        pa.table({"item_id": items, "media_uri": pa.nulls(NUM_ITEMS, pa.string()), "title": items}),
        folder / "items.parquet",
    )
    rows = [(user, int(rng.integers(NUM_ITEMS)), day) for user in users for day in range(10)]
    at = pa.array([1_700_000_000_000_000 + day * DAY_US + n for n, (_, _, day) in enumerate(rows)])
    table = {
        "user_id": [user for user, _, _ in rows],
        "item_id": [items[item] for _, item, _ in rows],
        "event": ["like"] * len(rows),
        "at": at.cast(pa.timestamp("us", tz="UTC")),
    }
    pq.write_table(pa.table(table), folder / "interactions.parquet")
    attributes = pa.array([[("age", str(n % 9))] for n in range(len(users))], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"user_id": users, "attributes": attributes}), folder / "users.parquet")
    pq.write_table(
        pa.table(
            {
                "user_id": users,
                "friend_id": [*users[1:], users[0]],
                "weight": pa.array([1.0] * len(users), pa.float32()),
            }
        ),
        folder / "edges.parquet",
    )


def _write_files(world: World, names: list[str], loop: Loop) -> None:
    """What later stages, jobs and people leave under the storage path."""
    root = world.root
    lists = pa.table({"user_id": names, "item_id": ["i00"] * len(names), "rank": [1] * len(names)})
    (root / "evaluation").mkdir()
    pq.write_table(lists, root / "evaluation" / "recommendations.parquet")
    (root / "evaluation" / "report.html").write_text(f"<h1>Ten users</h1><td>{names[0]}</td><td>{names[-1]}</td>")
    pq.write_table(lists.set_column(0, "user_id", pa.array(world.users)), root / "lists.parquet")
    folder = root / "lists.parquet.parts" / "0123456789abcdef"
    folder.mkdir(parents=True)
    with pa.OSFile(str(folder / "users.arrow"), "wb") as sink, pa.ipc.new_file(sink, lists.schema) as writer:
        writer.write_table(lists)
    (root / "exports").mkdir()
    lines = [json.dumps({"user_id": name, "item_id": "i01"}) for name in names]
    (root / "exports" / "events.jsonl").write_text("\n".join(lines) + "\n")
    (root / "exports" / "events.csv").write_text("user_id,item_id\n" + "".join(f"{name},i01\n" for name in names))
    bundle = build_tiny_bundle(root / "bundle" / "v-1", towers=tiny_towers(num_attribute_buckets=16, num_friends=3))
    profiles = pq.read_table(bundle / "users.parquet")
    spread = [names[number * (len(names) - 1) // (profiles.num_rows - 1)] for number in range(profiles.num_rows)]
    replace_in_bundle(
        bundle / "users.parquet", profiles.set_column(0, profiles.schema.field(0), pa.array(spread)), ".x"
    )
    loop.parent.artifact(root / "evaluation" / "recommendations.parquet", "evaluation")
    loop.parent.artifact_json({"worst_users": names}, "evaluation/worst.json")
    loop.tracking.register(loop.parent, bundle, "v-1", {})


def tables_of(world: World) -> dict[str, pa.Table]:
    """Every table under the storage path that names users, backups left out, and the store's, by name."""
    found = {}
    for path in sorted(world.root.rglob("*.parquet")):
        if "backups" not in path.parts and not set(USER_COLUMNS).isdisjoint(pq.read_schema(path).names):
            found[str(path.relative_to(world.root))] = pq.read_table(path)
    store = world.store()
    found["events"], found["impressions"] = store.export_interactions()[0], store.export_impressions()[0]
    store.close()
    return found


def without(tables: dict[str, pa.Table], names: list[str]) -> dict[str, list[dict[str, object]]]:
    """Rows that name none of `names`; of profiles, whose rows point at each other, what does not point."""
    kept = {}
    for place, table in tables.items():
        for column in set(USER_COLUMNS) & set(table.column_names):
            table = table.filter(pc.invert(pc.is_in(table[column], value_set=pa.array(names, pa.string()))))
        pointing = [name for name in table.column_names if name.startswith("friend_") and name != "friend_id"]
        kept[place] = table.drop_columns(pointing).to_pylist()
    return kept
