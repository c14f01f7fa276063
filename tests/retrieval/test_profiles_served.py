"""Towers that read more than a history: a list is the same alone, in a batch, by the batch job and by brute force."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from avrec_ray.bundle import load_bundle, load_bundle_profiles
from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import BundleError
from avrec_ray.pipelines.recommend_parts import part_path
from avrec_ray.pipelines.recommend_shards import write_shards
from avrec_ray.pipelines.recommend_users import RecommendUsers
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.ranking.recommend import recommend
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.training.histories import pad_histories, with_profiles
from avrec_ray.types import Event, Query
from serve_apps.gateway import known_users
from tests.pipelines.recommend_cases import histories_of, random_events, write_events
from tests.test_bundle import reseal
from tests.tiny_bundle import build_tiny_bundle
from tests.tiny_models import random_columns, tiny_profiles, tiny_towers

NUM_ITEMS = 40
USERS = [*(f"u{n}" for n in range(8)), "newcomer", "stranger"]
PROFILES = {"num_attribute_buckets": 32, "num_friends": 3, "friend_items": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "sasrec_time": {"time_bias": True},
    "hstu": {"user_blocks": "hstu"},
    "attributes": {"num_attribute_buckets": 32},
    "friends": {"num_friends": 3},
    "hstu_all": {"user_blocks": "hstu", **PROFILES},
}
MATCHER, POLICY = MatcherConfig(num_candidates=15, num_fresh=2), PolicyConfig(fresh_share=0.1)


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    towers = tiny_towers(**VARIANTS[request.param])
    return build_tiny_bundle(tmp_path_factory.mktemp("bundles") / "v-told", NUM_ITEMS, towers=towers, head_std=1.0)


def test_batch_job_gives_the_lists_of_single_requests(folder: Path, tmp_path: Path) -> None:
    rows = random_events(USERS, seed=3)
    events = write_events(tmp_path / "events.parquet", rows)
    write_shards(tmp_path, USERS, [Path(events)])
    worker = RecommendUsers(str(folder), str(tmp_path), to_dict(MATCHER), to_dict(POLICY), 7)
    worker({"shard": np.array([0])})
    found: dict[str, list[tuple[str, float]]] = {user: [] for user in USERS}
    for row in pq.read_table(part_path(tmp_path, 0)).to_pylist():
        found[row["user_id"]].append((row["item_id"], row["score"]))
    matcher, reranker, histories = Matcher(folder, MATCHER), Reranker(folder, POLICY), histories_of(rows)
    for user in USERS:
        (alone,) = recommend(matcher, reranker, [Query(user, histories.get(user, ()), k=7)])
        assert [item for item, _ in found[user]] == [item.item_id for item in alone]
        np.testing.assert_allclose([s for _, s in found[user]], [item.score for item in alone], atol=1e-5)


def test_matcher_scores_are_those_of_the_towers_on_training_features(folder: Path) -> None:
    """What the tower reads of a user in training, as arrays of columns, it reads at a request, by the bundle alone."""
    matcher = Matcher(folder, MATCHER)
    items, cfg = matcher.bundle.items, matcher.towers.cfg
    columns = tiny_profiles(random_columns(8, NUM_ITEMS, 0), cfg)
    events = ("view",) * len(columns.item_idx)
    columns.event[:] = 2  # "view"
    columns.watch_ratio[:] = np.nan
    spans = [(int(columns.starts[n]), int(columns.starts[n + 1])) for n in range(8)]
    with torch.inference_mode():
        history = pad_histories(columns, spans, cfg.history_length)
        vectors = matcher.towers.queries(history, matcher.embeddings)[:, -1] * matcher.towers.scale()
        expected = (vectors @ matcher.embeddings.T).numpy()
    for number, (start, stop) in enumerate(spans):
        past = tuple(
            Event(f"u{number}", items.item_ids[columns.item_idx[row]], events[row], columns.at_seconds[row])
            for row in range(start, stop)
        )
        scores = [c.score for c in matcher.score(Query(f"u{number}", past), items.item_ids)]
        np.testing.assert_allclose(scores, expected[number], atol=1e-4)


def test_a_user_without_history_is_served_by_profile_or_by_popularity(folder: Path) -> None:
    matcher = Matcher(folder, MATCHER)
    told = matcher.towers.cfg.reads_profiles
    found = matcher.match([Query("newcomer"), Query("stranger"), Query(None), Query("silent")])
    sources = [{candidate.source for candidate in each} - {"fresh"} for each in found]
    assert sources == [{"user_tower"} if told else {"popular"}, {"popular"}, {"popular"}, {"popular"}]
    assert ("newcomer" in known_users(load_bundle_profiles(folder))) == told
    assert not {"stranger", "silent"} & known_users(load_bundle_profiles(folder))


def test_a_list_depends_on_the_profile_and_on_nothing_of_other_users(folder: Path) -> None:
    matcher = Matcher(folder, MATCHER)
    past = tuple(Event("x", f"i0{n}", "view", 1e9 + n) for n in range(3))
    named, nameless = (matcher.score(Query(user, past), matcher.bundle.items.item_ids) for user in ("u2", "stranger"))
    same = [c.score for c in named] == pytest.approx([c.score for c in nameless], abs=1e-4)
    assert same == (not matcher.towers.cfg.reads_profiles)
    batch = matcher.match([Query(user, past) for user in USERS])
    for user, found in zip(USERS, batch, strict=True):
        (alone,) = matcher.match([Query(user, past)])
        assert [c.item_id for c in found] == [c.item_id for c in alone]
        assert [c.score for c in found] == pytest.approx([c.score for c in alone], abs=1e-4)


def test_a_bundle_without_the_profiles_that_its_towers_read_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "v-told"))
    if not load_bundle(copy).metadata.towers.reads_profiles:
        assert not (copy / "users.parquet").exists()
        assert load_bundle(copy).profiles is None
        return
    (copy / "users.parquet").write_bytes(b"changed")
    with pytest.raises(BundleError, match=r"users.parquet differs"):
        load_bundle(copy)
    (copy / "users.parquet").unlink()
    reseal(copy)
    with pytest.raises(BundleError, match=r"users.parquet is missing"):
        load_bundle(copy)


def test_profiles_of_columns_and_of_the_bundle_are_equal(folder: Path) -> None:
    cfg = load_bundle(folder).metadata.towers
    expected, found = tiny_profiles(random_columns(8, NUM_ITEMS, 0), cfg).profiles, load_bundle_profiles(folder)
    if expected is None or found is None:
        assert expected is found is None
        return
    assert found.user_ids == expected.user_ids
    np.testing.assert_array_equal(found.attribute_ids, expected.attribute_ids)
    assert with_profiles(random_columns(8, NUM_ITEMS, 0), found).profiles is found
