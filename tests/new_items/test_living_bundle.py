"""Matcher and reranker while items join, change and leave: as if they had been there, and nothing else moves."""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.bundle import load_catalogue, load_metadata
from avrec_ray.errors import BundleError
from avrec_ray.new_items.encode import ItemEncoder
from avrec_ray.new_items.follow import Follower
from avrec_ray.new_items.growing import Growing
from avrec_ray.new_items.log import Change
from avrec_ray.new_items.store import NewItemStore
from avrec_ray.new_items.submission import Submission
from avrec_ray.new_items.vectors import NewItem, Predicted
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.ranking.recommend import recommend
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.types import Event, Filters, Query
from tests.tiny_bundle import TOWERS_VERSION, build_tiny_bundle, tiny_media

MATCHER = MatcherConfig(
    num_candidates=10, num_neighbours=5, num_item_to_item=5, num_popular=5, num_followed=5, num_fresh=5
)
POLICY = PolicyConfig(fresh_share=0.2, max_per_creator=4, exposure_groups="category")


def put(item: NewItem, seq: int = 1) -> Change:
    return Change(seq, item.facts.item_id, "put", item.facts.to_json(), item.to_bytes())


def delete(item_id: str, seq: int = 1) -> Change:
    return Change(seq, item_id, "delete", "", b"")


def history(*item_ids: str, event: str = "like") -> tuple[Event, ...]:
    return tuple(Event("u", item_id, event, 1e9 + n, 3.0, event_id=str(n)) for n, item_id in enumerate(item_ids))


def item_ids(found: Sequence[object]) -> list[str]:
    return [item.item_id for item in found]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def encoder(bundle: Path) -> ItemEncoder:
    return ItemEncoder(bundle)


@pytest.fixture(scope="module")
def make_item(encoder: ItemEncoder) -> Callable[..., NewItem]:
    def make(item_id: str, title: str = "cats play", **facts: object) -> NewItem:
        return encoder(Submission(item_id, title, **facts), [])  # type: ignore[arg-type]

    return make


@pytest.fixture
def models(bundle: Path) -> tuple[Matcher, Reranker]:
    return Matcher(bundle, MATCHER), Reranker(bundle, POLICY)


def test_new_item_is_matched_ranked_explained_filtered_and_similar(
    models: tuple[Matcher, Reranker], make_item: Callable[..., NewItem]
) -> None:
    matcher, reranker = models
    change = put(make_item("new", category="opera", creator_id="c0", tags=("calm",), language="en"))
    for model in models:
        model.apply([change])
    query = Query("u", history("i01", "i02", "i14", "i17"), k=30, explain=True)
    (listed,) = recommend(matcher, reranker, [query])
    (mine,) = [item for item in listed if item.item_id == "new"]
    assert mine.because
    assert np.isfinite(mine.score)
    only = dataclasses.replace(query, filters=Filters(categories=("opera",)))
    assert item_ids(recommend(matcher, reranker, [only])[0]) == ["new"]
    assert "new" not in item_ids(matcher.match([dataclasses.replace(query, history=history("i01", "new"))])[0])
    near = matcher.similar("new", 3)
    embeddings = matcher.bundle.embeddings
    best = np.argsort(-(embeddings[:40] @ embeddings[40]), kind="stable")[:3]
    assert item_ids(near) == [matcher.bundle.items.item_ids[row] for row in best]
    asked = matcher.score(query, ["new", "i05"])
    assert item_ids(asked) == ["new", "i05"]
    assert sorted(item_ids(reranker.rerank(query, asked))) == ["i05", "new"]
    # it can be a reason, too
    liked = Query("u", history("new"), k=5, explain=True)
    assert any(b.item_id == "new" for item in recommend(matcher, reranker, [liked])[0] for b in item.because)


def test_lists_without_new_items_are_those_of_the_bundle(
    models: tuple[Matcher, Reranker], make_item: Callable[..., NewItem]
) -> None:
    """A score depends neither on what has joined nor on what has left."""
    matcher, reranker = models
    query = Query("u", history("i01", "i02", "i14"), k=40)
    candidates = matcher.score(query, [f"i{n:02d}" for n in range(40)])
    before = {item.item_id: item.score for item in reranker.rerank(query, candidates)}
    changes = [put(make_item(f"n{n}", f"title {n}"), n + 1) for n in range(20)]
    for model in models:
        model.apply([*changes, delete("n3", 30), delete("i30", 31)])
    again = matcher.score(query, [f"i{n:02d}" for n in range(40)])
    kept = [c for c in candidates if c.item_id != "i30"]
    assert item_ids(again) == item_ids(kept)
    assert [c.score for c in again] == pytest.approx([c.score for c in kept], abs=1e-5)
    after = {item.item_id: item.score for item in reranker.rerank(query, again)}
    assert after == {item_id: pytest.approx(before[item_id], abs=1e-5) for item_id in before if item_id != "i30"}


def test_deleted_item_is_in_no_list_whatever_names_it(bundle: Path, make_item: Callable[..., NewItem]) -> None:
    matcher, reranker = Matcher(bundle, MATCHER), Reranker(bundle)
    users = [
        Query(None, k=40),
        Query("u", history("i01", "i09", event="follow"), k=40),
        Query("u", history("i05"), k=40),
    ]
    doomed = sorted({c.item_id for found in matcher.match(users) for c in found})[::2]
    stale = matcher.match(users)
    for model in (matcher, reranker):
        model.apply([delete(item_id, n) for n, item_id in enumerate(doomed, start=1)])
        model.apply([delete(doomed[0], 99)])  # twice is once
    for query, old, found in zip(users, stale, matcher.match(users), strict=True):
        assert found
        assert not set(doomed) & set(item_ids(found))
        assert not set(doomed) & set(item_ids(reranker.rerank(query, old)))  # of a matcher that lags behind
    assert not set(doomed) & set(item_ids(matcher.similar("i39", 40)))
    assert matcher.score(users[0], doomed) == []
    with pytest.raises(KeyError):
        matcher.similar(doomed[0], 3)


def test_changed_item_has_its_new_facts_and_its_behaviour(
    models: tuple[Matcher, Reranker], make_item: Callable[..., NewItem]
) -> None:
    matcher, reranker = models
    was_popular = float(matcher.bundle.items.popularity[5])
    query = Query("u", history("i01", "i02"), k=30)
    recommend(matcher, reranker, [query])  # groups are found before they change
    for model in models:
        model.apply([put(make_item("i05", "quite another", category="opera", creator_id="c9"))])
    (found,) = recommend(matcher, reranker, [dataclasses.replace(query, filters=Filters(categories=("opera",)))])
    assert item_ids(found) == ["i05"]
    items = matcher.bundle.items
    assert (items.titles[5], items.creator_ids[5], float(items.popularity[5])) == ("quite another", "c9", was_popular)
    assert len(items) == 40
    vector = matcher.bundle.embeddings[5]
    assert matcher.index.search(vector[None], 1)[1][0, 0] == 5


def test_item_that_comes_back_is_a_new_one(models: tuple[Matcher, Reranker], make_item: Callable[..., NewItem]) -> None:
    matcher, reranker = models
    for model in models:
        model.apply([put(make_item("new"), 1), delete("new", 2), delete("i05", 3), put(make_item("i05"), 4)])
    items = matcher.bundle.items
    assert items.idx("new") is None
    assert items.idx("i05") == 41
    assert not items.warm[41]
    (listed,) = recommend(matcher, reranker, [Query("u", history("i01"), k=40)])
    assert "i05" in item_ids(listed)
    assert "new" not in item_ids(listed)


def test_predictions_of_this_bundle_speak_for_a_new_item_and_those_of_another_do_not(
    bundle: Path, make_item: Callable[..., NewItem]
) -> None:
    for version in ("v-tiny", "v-other"):
        matcher, reranker = Matcher(bundle, MATCHER), Reranker(bundle)
        item = make_item("new")
        told = (["i01", "gone"], np.array([5.0, 1.0], np.float32))
        item.predicted = Predicted(version, np.ones(6, np.float16), {"taste": told, "session": told})
        matcher.apply([put(item)])
        reranker.apply([put(item)])
        tables, new = reranker.scorer.item_to_item, np.array([40])
        said = [table.relative_scores(np.array([1]), new)[0] for table in (tables.taste, tables.session)]
        said.append(tables.content.scores(np.array([1]), new)[0])
        assert matcher.stock.session is not None
        said.append(matcher.stock.session.scores(np.array([1]))[40:].sum())
        assert [bool(value) for value in said] == [version == "v-tiny"] * 4


def test_rules_hold_for_items_that_join(bundle: Path, tmp_path: Path, make_item: Callable[..., NewItem]) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("- {name: no opera, match: {category: [opera]}, action: block}\n")
    matcher, reranker = Matcher(bundle, MATCHER), Reranker(bundle, PolicyConfig(rules=str(rules)))
    for model in (matcher, reranker):
        model.apply([put(make_item("new", category="opera"), 1), put(make_item("ok", category="music"), 2)])
    (listed,) = recommend(matcher, reranker, [Query("u", history("i01"), k=50)], at_seconds=1e9)
    assert ("ok" in item_ids(listed), "new" in item_ids(listed)) == (True, False)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "delete"]), st.sampled_from(["a", "b", "i05", "i09", "i10"])), max_size=12
)


@settings(max_examples=8)
@given(OPERATIONS, st.integers(1, 12))
def test_any_changes_in_any_batches_give_the_same_lists(
    bundle: Path, make_item: Callable[..., NewItem], operations: list[tuple[str, str]], batch: int
) -> None:
    changes = [
        put(make_item(item_id, f"title {n}", category="music"), n) if kind == "put" else delete(item_id, n)
        for n, (kind, item_id) in enumerate(operations, start=1)
    ]
    one, other = (
        (Matcher(bundle, MATCHER), Reranker(bundle, POLICY)),
        (Matcher(bundle, MATCHER), Reranker(bundle, POLICY)),
    )
    for model in one:
        for change in changes:
            model.apply([change])
    for model in other:
        for start in range(0, len(changes), batch):
            model.apply(changes[start : start + batch])
    last = {item_id: kind for kind, item_id in operations}
    for query in (Query("u", history("i01", "i02", "a"), k=50), Query(None, k=50)):
        lists = [recommend(*models, [query])[0] for models in (one, other)]
        assert lists[0] == lists[1]
        assert not {item_id for item_id, kind in last.items() if kind == "delete"} & set(item_ids(lists[0]))
    for model in one:
        assert {item_id for item_id in last if model.knows(item_id)} == {
            item_id for item_id, kind in last.items() if kind == "put"
        }


def test_requests_go_on_while_items_join_and_leave(
    models: tuple[Matcher, Reranker], make_item: Callable[..., NewItem]
) -> None:
    matcher, reranker = models
    failures: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        query = Query("u", history("i01", "i02", "n1"), k=20, explain=True)
        while not done.is_set():
            try:
                assert recommend(matcher, reranker, [query])[0]
            except BaseException as error:
                failures.append(error)
                return

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    for n in range(30):
        change = put(make_item(f"n{n % 7}", f"title {n}"), n) if n % 3 else delete(f"n{n % 7}", n)
        for model in models:
            model.apply([change])
    done.set()
    for thread in asking:
        thread.join()
    assert failures == []


def test_damaged_change_is_left_out_and_holds_up_no_other(
    store: NewItemStore, bundle: Path, make_item: Callable[..., NewItem]
) -> None:
    for item_id, vectors in (("n1", b"torn"), ("n2", make_item("n2").to_bytes())):
        store.submit(Submission(item_id, "x"))
        claim = store.claim("w", 60)
        assert claim is not None
        store.finish(claim, TOWERS_VERSION, vectors)
    matcher = Matcher(bundle, MATCHER)
    with pytest.raises(BundleError, match="vectors of new item 'n1' cannot be read"):
        matcher.apply(store.changes(0, TOWERS_VERSION))
    assert not matcher.knows("n2")
    follower = Follower(store, load_metadata(bundle), frozenset(), matcher.apply)
    follower.catch_up()
    assert (matcher.knows("n1"), matcher.knows("n2")) == (False, True)
    assert follower.catch_up() == 0


def test_follower_keeps_up_by_itself_and_starts_from_the_log(
    store: NewItemStore, bundle: Path, make_item: Callable[..., NewItem]
) -> None:
    first, second = Matcher(bundle, MATCHER), Matcher(bundle, MATCHER)
    built = frozenset(load_catalogue(bundle).item_ids)
    follower = Follower(store, load_metadata(bundle), built, first.apply, poll_seconds=0.02)
    follower.start()
    store.submit(Submission("n1", "x"))
    claim = store.claim("w", 60)
    assert claim is not None
    store.finish(claim, TOWERS_VERSION, make_item("n1").to_bytes())
    store.delete("i07", is_served=True)
    deadline = time.monotonic() + 30
    while not first.knows("n1") or first.knows("i07"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    follower.stop()
    Follower(store, load_metadata(bundle), built, second.apply).catch_up()
    assert (second.knows("n1"), second.knows("i07")) == (True, False)


def test_next_bundle_is_not_changed_by_what_it_holds_already(
    store: NewItemStore, bundle: Path, tmp_path: Path, make_item: Callable[..., NewItem]
) -> None:
    def submitted(item_id: str, title: str) -> None:
        store.submit(Submission(item_id, title))
        claim = store.claim("w", 60)
        assert claim is not None
        store.finish(claim, TOWERS_VERSION, make_item(item_id, title).to_bytes())

    submitted("i03", "exported")  # the next bundle has it
    store.delete("i04", is_served=True)  # the next bundle should not, but does
    submitted("n1", "exported, but lost on the way")
    _, watermark = store.accepted_items()
    submitted("i06", "changed since")
    after = build_tiny_bundle(tmp_path / "v-next", media=tiny_media(), new_items_watermark=watermark)
    matcher = Matcher(after, MATCHER)
    titles = list(matcher.bundle.items.titles)
    Follower(store, load_metadata(after), frozenset(matcher.bundle.items.item_ids), matcher.apply).catch_up()
    items = matcher.bundle.items
    assert items.titles[3] == titles[3]
    assert items.idx("i04") is None
    assert items.idx("n1") == 40
    assert items.titles[6] == "changed since"


@settings(max_examples=30)
@given(st.lists(st.integers(0, 400), max_size=8))
def test_growing_array_holds_all_its_rows(sizes: list[int]) -> None:
    start = np.arange(6, dtype=np.float32).reshape(3, 2)
    growing, expected = Growing(start.copy()), start
    for size in sizes:
        rows = np.random.default_rng(size).normal(size=(size, 2)).astype(np.float32)
        growing.append(rows)
        expected = np.concatenate([expected, rows])
        np.testing.assert_array_equal(growing.rows, expected)
