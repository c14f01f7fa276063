"""Retraining on a small world: what it learns from, what it writes, and that a second run does nothing."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from avrec_ray.bundle import load_bundle
from avrec_ray.config import JobConfig
from avrec_ray.errors import StageError
from avrec_ray.feedback.suspicion import SUSPICIONS
from avrec_ray.new_items.follow import Follower
from avrec_ray.new_items.store import Change, NewItemStore
from avrec_ray.new_items.submission import Submission
from avrec_ray.pipelines import erase_user, retrain
from avrec_ray.pipelines.event_export import exported, read_events, read_impressions
from avrec_ray.pipelines.full_loop import open_loop
from avrec_ray.pipelines.retrain_plan import Outcome, last_finished, read_outcome
from avrec_ray.pipelines.stage import read_record
from avrec_ray.pipelines.storage import Storage
from avrec_ray.types import Event
from tests.media.render import tone, write_media
from tests.pipelines.retrain_world import (
    DAY_SECONDS,
    NUM_ITEMS,
    START_SECONDS,
    accept,
    days,
    first_loop,
    post,
    retrain_job,
    show,
    take_down,
    write_given,
)

# The first test carries two loops: minutes of starting processes on a crowded machine.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

PAST, NEW = days(0, 20, "past"), days(20, 5, "new", swapped=True)
BOT = [
    Event("bot", f"i{n % 40:02d}", "like", START_SECONDS + 24 * DAY_SECONDS + n / 5, event_id=f"bot{n}")
    for n in range(150)
]
SHOWN = [event.item_id for event in NEW if event.user_id == "u00"][:4]


@dataclass(frozen=True)
class Run:
    job: JobConfig
    outcome: Outcome | None
    lines: list[str]

    @property
    def storage(self) -> Storage:
        return Storage.at(self.job.storage_path)

    @property
    def folder(self) -> Path:
        assert self.outcome is not None
        return self.storage.folder("retrain") / self.outcome.name


def run(job: JobConfig) -> Run:
    lines: list[str] = []
    with open_loop(job, "retrain") as loop:
        loop.echo = lines.append
        outcome = retrain.run(loop, job)
    return Run(job, outcome, lines)


@pytest.fixture(scope="module")
def learned(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A loop over the past, nothing new, then a shift of tastes with a bot among it, and a retraining."""
    job = retrain_job(tmp_path_factory.mktemp("retrain"))
    write_given(Path(job.storage_path), PAST)
    with pytest.raises(StageError, match="stage 'prepare' has not finished"):
        run(job)
    first_loop(job)
    assert run(job).outcome is None
    post(job, NEW)
    post(job, BOT)
    show(job, "u00", SHOWN, START_SECONDS + 26 * DAY_SECONDS, "r1")
    return run(job)


def test_outcome_names_what_was_learned_and_what_was_held_back(learned: Run) -> None:
    outcome = learned.outcome
    assert outcome is not None
    assert outcome.num_new_events == len(NEW) + len(BOT)
    assert outcome.held_back == {"rate": len(BOT), "burst": 0, "clique": 0}
    assert "score" in outcome.drifted  # everybody likes what they did not like before
    assert read_outcome(learned.storage, last_finished(learned.storage)) == outcome
    assert load_bundle(outcome.bundle).metadata.model_version == outcome.model_version


def test_every_event_is_exported_once_and_in_one_table_of_the_run(learned: Run) -> None:
    upto = exported(learned.storage)
    ids = read_events(learned.storage, upto)["event_id"].to_pylist()
    assert sorted(ids) == sorted(event.event_id for event in [*PAST, *NEW, *BOT])
    assert read_impressions(learned.storage, upto)["item_id"].to_pylist() == SHOWN
    kept = pq.read_table(learned.folder / "tables" / "interactions.parquet")
    acted = kept.filter(pc.not_equal(kept["event"], "impression"))
    held = pq.read_table(learned.folder / "held_back" / "events.parquet")
    assert sorted([*acted["event_id"].to_pylist(), *held["event_id"].to_pylist()]) == sorted(ids)
    assert set(held["reason"].to_pylist()) <= set(SUSPICIONS)
    assert acted.filter(acted["is_new"])["event_id"].to_pylist() == [event.event_id for event in NEW]
    shown = kept.filter(pc.equal(kept["event"], "impression"))
    assert (shown["item_id"].to_pylist(), shown["position"].to_pylist()) == (SHOWN, [1, 2, 3, 4])


def test_training_counts_what_labels_say(learned: Run) -> None:
    labels = pq.read_table(learned.folder / "labels" / "labels.parquet")
    pairs = {(r["user_id"], r["item_id"]): r for r in labels.to_pylist()}
    for row in pq.read_table(learned.folder / "splits" / "train.parquet").to_pylist():
        label = pairs.get((row["user_id"], row["item_id"]))
        expected = label["weight"] if label and label["label"] == 1 and row["event"] != "impression" else 0.0
        assert row["label_weight"] == pytest.approx(expected)
    assert {"bot"}.isdisjoint(labels["user_id"].to_pylist())


def test_newest_choices_are_for_test_and_champion_is_asked_about_them(learned: Run) -> None:
    train, test = (pq.read_table(learned.folder / "splits" / f"{part}.parquet") for part in ("train", "test"))
    assert pc.max(train["at"]).as_py() <= pc.min(test["at"]).as_py()
    assert any("asking champion" in line for line in learned.lines)


def test_stages_of_the_first_loop_are_left_alone(learned: Run) -> None:
    root = learned.storage
    assert (root.root / "splits" / "train.parquet").is_file()
    assert pq.read_table(root.interactions).num_rows == len(PAST)
    record = read_record(root, "finetune")
    assert record is not None
    assert all(Path(path).exists() for path in record.outputs)


def test_second_run_does_nothing(learned: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in learned.storage.root.rglob("*") if path.is_file()}
    again = run(learned.job)
    assert again.outcome is None
    assert any(
        line.startswith("nothing to learn: 0 new events behind watermark") and "the last run knew" in line
        for line in again.lines
    )
    after = {path: path.stat().st_mtime_ns for path in learned.storage.root.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"retrain.lock", "events.db", "events.db-wal", "events.db-shm"}


def test_too_few_new_events_wait(learned: Run) -> None:
    """It posts more."""
    post(learned.job, days(26, 1, "more", per_user=1)[:7])
    patient = retrain_job(learned.storage.root, min_new_events=8)
    assert any("7 new events" in line for line in run(patient).lines)
    assert last_finished(learned.storage) is not None


@pytest.fixture(scope="module")
def later(learned: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """After the tests above: a user was erased, items came, changed and went, and the next retraining knows it.

    i03 was taken down, i04 has another title and a sound, i05 another title; gone came and went, lost came as a file
    that is no more, and told at a path that this job may not read.
    """
    job = learned.job
    before = read_events(learned.storage, exported(learned.storage)).filter(pc.field("user_id") != "u07")
    erase(replace(job, user="u07", scan=True))
    assert read_events(learned.storage, exported(learned.storage)).equals(before)
    media = tmp_path_factory.mktemp("media") / "sound.mp4"
    write_media(media, num_frames=10, fps=10, sound=tone(1.0))
    for item_id in ("heard", "i04", "lost", "gone"):
        accept(job, Submission(item_id, f"anew {item_id}", tags=("new",)), media)
    accept(job, Submission("told", "never", media_uri=str(media)))
    accept(job, Submission("read", "words alone", tags=("new",)))
    accept(job, Submission("i05", "anew i05"))
    (job.new_items.uploads(job.storage_path) / "lost0").unlink()
    take_down(job, "gone")
    take_down(job, "i03")
    at = START_SECONDS + 28.5 * DAY_SECONDS
    liked = [
        Event(f"u{n:02d}", item, "like", at + n, event_id=f"{item}-{n}")
        for item in ("heard", "read", "gone")
        for n in range(0, 20, 2)
    ]
    post(job, [event for event in [*days(28, 2, "after"), *liked] if event.user_id != "u07"])
    return run(job)


def test_erased_user_is_nowhere_and_in_no_later_run(later: Run) -> None:
    interactions = pq.read_table(later.folder / "tables" / "interactions.parquet")
    assert set(interactions["user_id"].to_pylist()) == {f"u{n:02d}" for n in range(40) if n != 7}
    erase(replace(later.job, user="u07", scan=True))  # looks through all once more, and raises if the user is in any


def test_new_items_are_in_the_next_bundle_and_deleted_ones_are_not(later: Run) -> None:
    assert later.outcome is not None
    bundle = load_bundle(later.outcome.bundle)
    assert set(bundle.items.item_ids) == {f"i{n:02d}" for n in range(NUM_ITEMS) if n != 3} | {"heard", "read"}
    titles = dict(zip(bundle.items.item_ids, bundle.items.titles, strict=True))
    assert [titles[i] for i in ("heard", "read", "i04", "i06")] == ["anew heard", "words alone", "anew i04", "t6"]
    store = NewItemStore(later.job.feedback.store_url(later.job.storage_path))
    assert bundle.metadata.new_items_watermark == store.accepted_items()[1] == 9
    assert (later.outcome.num_new_items, later.outcome.num_new_items_set_aside) == (4, 2)
    aside = pq.read_table(later.folder / "quarantine").to_pylist()
    assert {row["item_id"]: row["reason"] for row in aside} == {"lost": "missing", "told": "forbidden"}
    assert any("give this job the new_items.media_roots" in line for line in later.lines)
    followed: list[Change] = []
    Follower(store, bundle.metadata, frozenset(bundle.items.item_ids), followed.extend).catch_up()
    store.close()
    # No vectors of these towers are there yet; of what the bundle holds none will be asked for.
    assert [(change.kind, change.item_id) for change in followed] == [("delete", "gone"), ("delete", "i03")]


def test_new_items_are_heard_and_learned_from(later: Run) -> None:
    assert later.outcome is not None
    bundle = load_bundle(later.outcome.bundle)
    row = bundle.items.index_of
    assert [bool(bundle.items.warm[row[i]]) for i in ("heard", "read")] == [True, True]
    assert bundle.items.durations[row["heard"]] == pytest.approx(1.0, abs=0.1)
    kept = pq.read_table(later.folder / "tables" / "interactions.parquet")
    by_item = Counter(kept["item_id"].to_pylist())
    assert (by_item["heard"], by_item["read"], by_item["gone"], by_item["i03"]) == (10, 10, 0, 0)
    weights = {r["item_id"]: r["label_weight"] for r in kept.to_pylist() if r["event_id"] in ("heard-2", "read-2")}
    assert all(weight > 0 for weight in weights.values())
    assert len(weights) == 2
    tokens = {r["item_id"]: r for r in pq.read_table(later.folder / "item_tokens" / "tokens.parquet").to_pylist()}
    assert sorted(tokens) == bundle.items.item_ids
    heard = {i: any(tokens[i]["audio_mask"]) for i in ("heard", "i04", "read", "i06")}
    assert heard == {"heard": True, "i04": True, "read": False, "i06": False}
    before = {r["item_id"]: r for r in pq.read_table(later.storage.root / "item_tokens").to_pylist()}
    assert tokens["i06"] == before["i06"]  # kept
    assert tokens["i05"]["text_tokens"] != before["i05"]["text_tokens"]


def erase(job: JobConfig) -> None:
    with open_loop(job, "erase_user") as loop:
        loop.echo = lambda line: None
        (receipt,) = erase_user.run(loop, job)
    assert receipt.signature
