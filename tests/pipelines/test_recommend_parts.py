"""Shards, parts and the class that fills them, as Python: Ray is not needed for any of it."""

import dataclasses
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import ConfigError, TableError
from avrec_ray.feedback.bundle_names import BundleNames
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.pipelines.recommend_inputs import Wanted, distinct, output_path, read_ids, today, wanted_lists
from avrec_ray.pipelines.recommend_parts import Parts, open_parts, part_path
from avrec_ray.pipelines.recommend_shards import read_shard, shard_size, write_shards
from avrec_ray.pipelines.recommend_users import RecommendUsers, lists_table
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.types import RECOMMENDATIONS, RankedItem
from tests.pipelines.recommend_cases import (
    NUM_ITEMS,
    histories_of,
    job_for,
    lists_in,
    random_events,
    write_events,
    write_users,
)
from tests.tiny_bundle import build_tiny_bundle

USERS = [f"u{number:03d}" for number in range(150)]
ROWS = random_events(USERS)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bundle(tmp_path_factory.mktemp("bundles") / "v-parts", NUM_ITEMS, head_std=0.5)


@pytest.fixture
def wanted(bundle: Path, tmp_path: Path) -> Wanted:
    return Wanted(
        bundle=bundle,
        interactions=[Path(write_events(tmp_path / "events.parquet", ROWS))],
        users=USERS,
        matcher=MatcherConfig(),
        policy=PolicyConfig(),
        k=5,
    )


def recommender(parts: Parts, wanted: Wanted) -> RecommendUsers:
    matcher, policy = to_dict(wanted.matcher), to_dict(wanted.policy)
    folder, candidates = str(parts.folder), wanted.candidates
    return RecommendUsers(str(wanted.bundle), folder, matcher, policy, wanted.k, candidates, wanted.at_seconds)


def opened(folder: Path, wanted: Wanted) -> tuple[Parts, list[str]]:
    lines: list[str] = []
    return open_parts(folder, wanted, lines.append), lines


def test_shards_hold_every_history_in_order_of_time_then_row(wanted: Wanted, tmp_path: Path) -> None:
    write_shards(tmp_path, USERS, wanted.interactions)
    size = shard_size(len(USERS))
    shards = [read_shard(tmp_path, shard) for shard in range(-(-len(USERS) // size))]
    assert [len(users) for users, _ in shards] == [64, 64, 22]
    found = {user: events for users, histories in shards for user, events in zip(users, histories, strict=True)}
    expected = histories_of(ROWS)
    assert found == {user: expected.get(user, ()) for user in USERS}
    assert found[USERS[0]] == ()


def test_shards_of_several_files_keep_the_order_of_the_files(tmp_path: Path) -> None:
    first, second = [{**row, "at": ROWS[0]["at"]} for row in ROWS[:200]], [{**row} for row in ROWS[200:400]]
    paths = [Path(write_events(tmp_path / f"{name}.parquet", rows)) for name, rows in (("a", first), ("b", second))]
    write_shards(tmp_path, USERS, paths)
    _, histories = read_shard(tmp_path, 0)
    expected = histories_of([*first, *second])
    assert histories == [expected.get(user, ()) for user in USERS[:64]]


def test_shards_of_users_without_any_event_are_empty(wanted: Wanted, tmp_path: Path) -> None:
    strangers = [f"x{number:03d}" for number in range(70)]
    write_shards(tmp_path, strangers, wanted.interactions)
    assert read_shard(tmp_path, 1) == (strangers[64:], [()] * 6)


def test_shards_refuse_a_table_that_breaks_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"], "event": ["wink"]}), path)
    with pytest.raises(TableError, match=r"events\.parquet: interactions: column 'at' is missing"):
        write_shards(tmp_path, ["u"], [path])


def test_a_part_is_a_recommendations_table_of_its_shard(wanted: Wanted, tmp_path: Path) -> None:
    parts, _ = opened(tmp_path / "parts", wanted)
    told = recommender(parts, wanted)({"shard": np.array([2])})
    table = pq.read_table(part_path(parts.folder, 2))
    assert table.schema == RECOMMENDATIONS
    assert told["num_rows"].tolist() == [table.num_rows] == [5 * 22]
    assert list(lists_in(table)) == USERS[128:]
    assert parts.missing() == [0, 1]
    assert not list(tmp_path.rglob("*.part"))


def test_candidates_are_all_that_is_listed(wanted: Wanted, tmp_path: Path) -> None:
    few = dataclasses.replace(wanted, candidates=[f"i{row:02d}" for row in range(10, 20)])
    parts, _ = opened(tmp_path / "parts", few)
    recommender(parts, few)({"shard": np.array([2])})
    lists, histories = lists_in(pq.read_table(part_path(parts.folder, 2))), histories_of(ROWS)
    for user in USERS[128:]:
        met = {event.item_id for event in histories.get(user, ()) if event.event != "impression"}
        assert len(lists[user]) == min(5, len(set(few.candidates or ()) - met))
        assert {item for item, _, _ in lists[user]} <= set(few.candidates or ()) - met


def test_the_same_lists_are_resumed(wanted: Wanted, tmp_path: Path) -> None:
    parts, lines = opened(tmp_path / "parts", wanted)
    assert lines == []
    recommender(parts, wanted)({"shard": np.array([1])})
    again, lines = opened(tmp_path / "parts", dataclasses.replace(wanted))
    assert again == parts
    assert lines == ["resumed: 1 of 3 shards were done before and are kept"]
    assert again.missing() == [0, 2]


CHANGES = {
    "k": {"k": 6},
    "policy": {"policy": PolicyConfig(max_per_creator=1)},
    "matcher": {"matcher": MatcherConfig(num_candidates=7)},
    "candidates": {"candidates": ["i01", "i02"]},
    "users": {"users": USERS[:-1]},
}


@pytest.mark.parametrize("case", CHANGES)
def test_other_lists_are_started_anew(case: str, wanted: Wanted, tmp_path: Path) -> None:
    parts, _ = opened(tmp_path / "parts", wanted)
    recommender(parts, wanted)({"shard": np.array([1])})
    other, lines = opened(tmp_path / "parts", dataclasses.replace(wanted, **CHANGES[case]))
    assert lines == [f"{tmp_path / 'parts'} holds lists of other settings or inputs: started anew"]
    assert other.missing() == list(other.shards)
    assert not parts.folder.exists()


def test_rules_of_another_content_are_other_lists(wanted: Wanted, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("- {name: a, match: {item_ids: [i01]}, action: block}\n")
    ruled = dataclasses.replace(wanted, policy=PolicyConfig(rules=str(rules)))
    before = ruled.fingerprint
    rules.write_text("- {name: a, match: {item_ids: [i02]}, action: block}\n")
    assert dataclasses.replace(ruled).fingerprint != before
    rules.write_text("- {name: a}\n")
    with pytest.raises(ConfigError, match="rule 'a': action=None"):
        assert dataclasses.replace(ruled).fingerprint


def test_a_policy_that_asks_for_the_day_gets_the_day_of_the_job(wanted: Wanted) -> None:
    lists = {
        policy.exploration: wanted_lists(wanted.bundle, [], USERS, JobConfig(policy=policy), 5, None).at_seconds
        for policy in (PolicyConfig(), PolicyConfig(exploration=0.5))
    }
    assert lists[0.0] is None
    assert lists[0.5] == today(lists[0.5] + 86_399) == today(time.time())


def test_parts_of_a_policy_with_a_memory_are_the_same_whoever_computes_them(wanted: Wanted, tmp_path: Path) -> None:
    policy = PolicyConfig(
        exploration=0.3, exposure_groups="warm", exposure_targets={"cold": 0.5}, exposure_strength=4.0
    )
    wanted = dataclasses.replace(wanted, policy=policy, at_seconds=today(1.8e9))
    first, _ = opened(tmp_path / "one", wanted)
    other, _ = opened(tmp_path / "two", wanted)
    recommender(first, wanted)({"shard": np.array([0, 1])})
    recommender(other, wanted)({"shard": np.array([1])})
    assert pq.read_table(part_path(first.folder, 1)).equals(pq.read_table(part_path(other.folder, 1)))


def test_other_interactions_are_other_lists(wanted: Wanted, tmp_path: Path) -> None:
    before = wanted.fingerprint
    write_events(wanted.interactions[0], ROWS[:-1])
    assert dataclasses.replace(wanted).fingerprint != before


def test_shards_without_a_manifest_do_not_count(wanted: Wanted, tmp_path: Path) -> None:
    parts, _ = opened(tmp_path / "parts", wanted)
    recommender(parts, wanted)({"shard": np.array([1])})
    (parts.folder / "manifest.json").unlink()
    again, lines = opened(tmp_path / "parts", wanted)
    assert (again.missing(), lines) == ([0, 1, 2], [])


def test_a_torn_part_is_missing(wanted: Wanted, tmp_path: Path) -> None:
    parts, _ = opened(tmp_path / "parts", wanted)
    recommender(parts, wanted)({"shard": np.array([0, 1])})
    part_path(parts.folder, 0).write_bytes(part_path(parts.folder, 0).read_bytes()[:50])
    assert parts.missing() == [0, 2]


def test_merged_parts_are_one_sorted_table(wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avrec_ray.pipelines.recommend_parts.ROW_GROUP_ROWS", 400)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "mine.txt").write_text("not of this program")
    parts, _ = opened(tmp_path / "parts", wanted)
    recommender(parts, wanted)({"shard": np.array([2, 0, 1])})
    parts.merge(tmp_path / "lists.parquet")
    table = pq.read_table(tmp_path / "lists.parquet")
    assert table.schema == RECOMMENDATIONS
    assert table.num_rows == parts.num_rows() == 5 * len(USERS)
    assert table == table.sort_by([("user_id", "ascending"), ("rank", "ascending")])
    assert pq.read_metadata(tmp_path / "lists.parquet").num_row_groups == 2
    parts.remove()
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["mine.txt"]


def test_users_named_twice_get_one_list() -> None:
    lines: list[str] = []
    assert distinct(["b", "a", "b", "b"], lines.append) == ["b", "a"]
    assert lines == ["2 rows of users repeat a user_id; each user gets one list"]


def test_a_user_without_an_id_is_refused(tmp_path: Path) -> None:
    path = write_users(tmp_path / "users.parquet", ["a", None])
    with pytest.raises(TableError, match="column 'user_id' is null in row 1"):
        read_ids(path, "users", "user_id")


def test_a_table_without_a_row_is_refused(tmp_path: Path) -> None:
    path = write_users(tmp_path / "users.parquet", [])
    with pytest.raises(TableError, match="has no row; give at least one user_id"):
        read_ids(path, "users", "user_id")


OUTPUTS = {
    "none": ("", "give two absolute Parquet paths"),
    "relative": ("lists.parquet", "is not absolute"),
    "unknown_folder": ("{folder}/nowhere/lists.parquet", "lies in .*nowhere, which is no folder; give a Parquet file"),
    "a_folder": ("{folder}", "is a folder; give a Parquet file"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_an_output_that_cannot_be_written_is_refused(case: str, bundle: Path, tmp_path: Path) -> None:
    output, message = OUTPUTS[case]
    job = job_for(tmp_path, bundle, users="/users.parquet", output=output.format(folder=tmp_path))
    with pytest.raises(ConfigError, match=message):
        output_path(job)


def test_users_are_named_as_the_bundle_does_in_between_and_as_asked_in_the_output(tmp_path: Path) -> None:
    """Ids in, ids out; on disk in between the names of the bundle, one of an older key among them."""
    old, keys = Pseudonyms([(1, b"1" * 32)]), Pseudonyms([(2, b"2" * 32), (1, b"1" * 32)])
    names = BundleNames(keys, {old.of("ada")})
    assert names.of_many(["ada", "bob", old.of("bob")]) == [old.of("ada"), keys.of("bob"), keys.of("bob")]
    at = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [{"user_id": u, "item_id": f"i-{n}", "event": "like", "at": at} for n, u in enumerate(("ada", "bob", "cy"))]
    pq.write_table(pa.Table.from_pylist([*rows, {**rows[0], "user_id": old.of("ada")}]), tmp_path / "e.parquet")
    asked = names.of_many(["ada", "bob"])
    write_shards(tmp_path, asked, [tmp_path / "e.parquet"], names)
    users, histories = read_shard(tmp_path, 0)
    assert users == asked
    assert [[event.item_id for event in history] for history in histories] == [["i-0", "i-0"], ["i-1"]]
    assert b"ada" not in (tmp_path / "users.arrow").read_bytes()
    lists = lists_table(asked, [[RankedItem("i", 1, 0.5)], [RankedItem("j", 1, 0.4)]])
    pq.write_table(lists, part_path(tmp_path, 0))
    Parts(tmp_path, 2, 64).merge(tmp_path / "lists.parquet", dict(zip(asked, ["ada", "bob"], strict=True)))
    assert pq.read_table(tmp_path / "lists.parquet")["user_id"].to_pylist() == ["ada", "bob"]
