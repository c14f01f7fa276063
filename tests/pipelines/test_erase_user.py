"""Fifty of two hundred users out of a whole storage path; keys changed; and either of them killed at every step."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avrec_ray.bundle import load_bundle
from avrec_ray.cluster_config import TrackingConfig
from avrec_ray.errors import ConfigError, StageError
from avrec_ray.feedback.erasure_scan import scan_folder
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.receipts import from_json, to_json
from avrec_ray.pipelines import erase_user, export_user, load_events, prepare, rotate_user_keys, split
from avrec_ray.pipelines.stage import Loop, forget_record
from avrec_ray.pipelines.storage import Storage
from tests.feedback.conftest import postgres_server  # noqa: F401  the fixture
from tests.pipelines.user_world import World, build_world, open_world, tables_of, without

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
KEYS = {1: f"1:{'11' * 32}", 2: f"2:{'22' * 32}"}
OLD, NEW = (Pseudonyms([(v, bytes.fromhex(KEYS[v][2:]))]) for v in (1, 2))


def all_names(users: list[str]) -> list[str]:
    return [name for user in users for name in (user, OLD.of(user), NEW.of(user))]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "sqlite" else request.getfixturevalue("postgres_server").new_url()


@pytest.mark.parametrize("key", ["keys", "no_keys"])
def test_fifty_users_are_gone_and_the_rest_is_as_before(
    url: str, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if key == "keys":
        monkeypatch.setenv("AVREC_USER_KEYS", KEYS[1])
    world = build_world(tmp_path / "run", 200, url)
    gone = world.users[::4]
    names = Pseudonyms.from_environment()
    stored = [names.of(user) for user in gone]
    before = tables_of(world)
    assert len(before) == 14
    planted = scan_folder(world.root, all_names(gone))
    assert len(planted.found) >= 15, planted.found
    pq.write_table(pa.table({"user_id": gone}), tmp_path / "gone.parquet")
    world.job.users = str(tmp_path / "gone.parquet")
    lines: list[str] = []
    loop = world.loop()
    loop.echo = lines.append
    receipts = erase_user.run(loop, world.job)

    store = world.store()
    for user, receipt in zip(gone, receipts, strict=True):
        store.verify_receipt(from_json(to_json(receipt)), store.pseudonyms.of(user))
        assert (receipt.removed["events"], receipt.removed["impressions"]) == (10, 3)
        assert not any(name in to_json(receipt) for name in all_names([user]))
        assert store.history(store.pseudonyms.of(user), 10) == ()
    assert len(store.erased_users()) == 50
    store.close()
    found = scan_folder(world.root, all_names(gone))
    assert found.found == []
    assert all(place.startswith("backups/first/") for place in found.in_backups)
    after = tables_of(world)
    assert without(after, []) == without(before, stored + gone)
    assert {place: table.schema for place, table in after.items()} == {p: t.schema for p, t in before.items()}
    load_bundle(world.root / "bundle" / "v-1")
    assert erase_user.run(world.loop(), world.job) == receipts

    # The next training, from the operator's tables, in which they are still.
    forget_record(loop.storage, "prepare")
    for stage in (prepare, split, load_events):
        stage.run(world.loop(), world.job)
    assert scan_folder(world.root, all_names(gone)).found == []
    again = tables_of(world)
    for place in ("tables/interactions.parquet", "tables/users.parquet", "tables/edges.parquet", "events"):
        assert without(again, [])[place] == without(after, [])[place]
    assert sum(again[f"splits/{part}.parquet"].num_rows for part in ("train", "valid", "context", "test")) <= 1500
    monkeypatch.setattr(erase_user, "erase_from_files", lambda *_: {})
    (world.root / "notes.txt").write_text(f"call {gone[0]}")
    with pytest.raises(StageError, match=r"users are still in 1 places, 'notes.txt, bytes' first"):
        erase_user.run(world.loop(), world.job)


def test_export_of_a_user_and_refused_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVREC_USER_KEYS", KEYS[1])
    world = build_world(tmp_path / "run", 20)
    world.job.bundle = str(world.root / "bundle" / "v-1")
    for settings, problem in (({}, "either user=<id> or users="), ({"user": "a", "users": "b"}, "either user=<id>")):
        world.job.user, world.job.users = settings.get("user", ""), settings.get("users", "")
        with pytest.raises(ConfigError, match=problem):
            erase_user.run(world.loop(), world.job)
    world.job.user = world.job.users = ""
    with pytest.raises(ConfigError, match="user is empty"):
        export_user.run(world.loop(), world.job)
    world.job.user = world.users[0]
    world.job.output = "here.json"
    with pytest.raises(ConfigError, match="not absolute"):
        export_user.run(world.loop(), world.job)
    world.job.output = str(tmp_path / "me.json")
    data = export_user.run(world.loop(), world.job)
    assert json.loads(Path(world.job.output).read_text()) == data
    assert Path(world.job.output).stat().st_mode & 0o077 == 0
    assert (len(data["events"]), len(data["impressions"]), data["user_id"]) == (10, 3, world.users[0])
    assert data["profile"]["num_friends"] >= 1
    erase_user.run(world.loop(), world.job)
    data = export_user.run(world.loop(), world.job)
    assert (data["events"], data["impressions"], data["profile"]) == ([], [], None)


def test_artifacts_that_mlflow_keeps_elsewhere_are_changed_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVREC_USER_KEYS", KEYS[1])
    world, kept = build_world(tmp_path / "run", 12), tmp_path / "elsewhere"
    kept.mkdir()
    elsewhere = TrackingConfig(uri=f"sqlite:///{kept / 'mlflow.db'}")
    loop = Loop(Storage.at(str(world.root)), elsewhere, "elsewhere", echo=lambda _: None)
    loop.parent.artifact(world.root / "evaluation" / "recommendations.parquet", "evaluation")
    loop.tracking.register(loop.parent, world.root / "bundle" / "v-1", "v-1", {})
    loop.tracking.start("without artifacts", {})
    world.job.user = world.users[0]
    name = OLD.of(world.users[0])
    assert len(scan_folder(kept, [name]).found) == 2
    (receipt,) = erase_user.run(loop, world.job)
    assert scan_folder(kept, [name]).found == []
    assert len(scan_folder(kept, [OLD.of(world.users[1])]).found) == 2
    assert (
        sum(place.endswith("/bundle/users.parquet") for place in receipt.removed) == 2
    )  # the copy under storage_path, too
    (bundle,) = kept.rglob("bundle")
    load_bundle(bundle)


def test_rotation_renames_everything_and_loses_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVREC_USER_KEYS", KEYS[1])
    world = build_world(tmp_path / "run", 60, url)
    before = tables_of(world)
    monkeypatch.setenv("AVREC_USER_KEYS", f"{KEYS[2]},{KEYS[1]}")
    assert rotate_user_keys.run(world.loop(), world.job).retired == (1,)
    monkeypatch.setenv("AVREC_USER_KEYS", KEYS[2])
    check_rotated(world, before)


def check_rotated(world: World, before: dict[str, pa.Table]) -> None:
    """Read with the new key alone: no old name outside of backups, every row under its new one."""
    assert scan_folder(world.root, [OLD.of(user) for user in world.users]).found == []
    new_name = {OLD.of(user): NEW.of(user) for user in world.users}
    expected = without(before, [])
    for rows in expected.values():
        for row in rows:
            row |= {c: new_name.get(str(row[c]), NEW.of(str(row[c]))) for c in ("user_id", "friend_id") if c in row}
            row.pop("event_id", None)  # of imported rows: made from their content, names included
    found = without(tables_of(world), [])
    for rows in found.values():
        for row in rows:
            row.pop("event_id", None)
    assert found == expected
    load_bundle(world.root / "bundle" / "v-1")
    count = len(found["events"])
    load_events_again(world)
    assert len(tables_of(world)["events"]) == count


def load_events_again(world: World) -> None:
    forget_record(world.loop().storage, "load_events")
    load_events.run(world.loop(), world.job)


ERASING = [
    "erase.tombstone", "erase.some_events", "erase.events", "erase.impressions", "erase.receipt", "job.store",
    "files.bundle_staged", "files.bundle_half", "files.one", "job.files", "job.compacted",
]  # fmt: skip
ROTATING = [
    "rekey.digests", "rekey.events", "rekey.impressions", "rekey.renamed", "rekey.retired", "rotate.store",
    "files.bundle_staged", "files.bundle_half", "files.renamed", "rotate.files",
]  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVREC_USER_KEYS", KEYS[1])
        build_world(root, 12)
    return root


@pytest.fixture
def copied(template: Path, tmp_path: Path) -> World:
    """A copy: the artifacts of MLflow lie in it as files, which is all that is looked at."""
    shutil.copytree(template, tmp_path / "run")
    return open_world(tmp_path / "run", 12)


def die_and_go_on(label: str, between: Callable[[], None], run: Callable[[], object]) -> None:
    """A child process that ends at `label`, what must hold then, and the run after it."""
    pid = os.fork()
    if pid == 0:
        try:
            os.environ["AVREC_CRASH_AT"] = label
            run()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 137
    between()
    run()


@pytest.mark.parametrize("label", ERASING)
def test_erasure_that_dies_anywhere_is_completed_by_the_next(
    copied: World, label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVREC_USER_KEYS", KEYS[1])
    gone = copied.users[::3]
    before = tables_of(copied)
    pq.write_table(pa.table({"user_id": gone}), tmp_path / "gone.parquet")

    def first_is_forgotten() -> None:
        store = copied.store()
        assert store.history(OLD.of(gone[0]), 10) == ()
        assert store.user_data(OLD.of(gone[0]))["impressions"] == []
        assert len(store.history(OLD.of(copied.users[1]), 10)) == 10
        store.close()

    copied.job.users = str(tmp_path / "gone.parquet")
    die_and_go_on(label, first_is_forgotten, lambda: erase_user.run(copied.loop(), copied.job))
    assert scan_folder(copied.root, all_names(gone)).found == []
    assert without(tables_of(copied), []) == without(before, [*gone, *map(OLD.of, gone)])
    load_bundle(copied.root / "bundle" / "v-1")
    store = copied.store()
    for user in gone:
        receipt = store.erase(OLD.of(user))
        assert (receipt.removed["events"], receipt.removed["impressions"]) == (10, 3)
        store.verify_receipt(receipt, OLD.of(user))
    store.close()


@pytest.mark.parametrize("label", ROTATING)
def test_rotation_that_dies_anywhere_is_completed_by_the_next(
    copied: World, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVREC_USER_KEYS", KEYS[1])
    before = tables_of(copied)
    monkeypatch.setenv("AVREC_USER_KEYS", f"{KEYS[2]},{KEYS[1]}")

    def nothing_is_lost() -> None:
        store = copied.store()
        assert all(len(store.history(NEW.of(user), 100)) == 10 for user in copied.users)
        store.close()

    die_and_go_on(label, nothing_is_lost, lambda: rotate_user_keys.run(copied.loop(), copied.job))
    monkeypatch.setenv("AVREC_USER_KEYS", KEYS[2])
    check_rotated(copied, before)
