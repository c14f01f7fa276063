"""Lists over HTTP: personal, degraded, filtered."""

import time

import httpx
import pytest

from avrec_ray.catalogue import Catalogue
from avrec_ray.feedback.store import EventStore
from avrec_ray.ranking.rule_effects import RuleEffects
from avrec_ray.ranking.rules import read_rule
from avrec_ray.types import Event
from serve_apps.flow import RequestFlow
from tests.serve_apps.conftest import VERSION, CategoryModels, client_of, feedback_event


def recommend(client: httpx.Client, **body: object) -> dict:
    response = client.post("/v1/recommend", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def ids(answer: dict) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def like(store: EventStore, *item_ids: str, user_id: str = "u1") -> None:
    store.append([Event(user_id, i, "like", float(n), event_id=f"{user_id}{i}") for n, i in enumerate(item_ids)], 1e9)


def test_recommend_known_user_gets_a_personal_list(client: httpx.Client, store: EventStore) -> None:
    like(store, "i2", "i6")  # sport
    answer = recommend(client, user_id="u1", k=5)
    assert answer["degraded"] == []
    assert [item["category"] for item in answer["items"]] == ["sport"] * 5
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5]
    assert not {"i2", "i6"} & set(ids(answer))
    assert answer["items"][0]["title"] == "Title 10"
    assert answer["items"][0]["explanation"] is None
    assert (answer["model_version"], answer["variant"]) == (VERSION, "champion")
    assert all(answer["stages_ms"][stage] >= 0 for stage in ("profile", "match", "rerank"))
    assert answer["stages_ms"]["total"] >= answer["stages_ms"]["match"]


@pytest.mark.parametrize("failing", [set(), {"rerank"}, {"match"}])
def test_what_a_rule_blocks_is_on_no_rung(
    catalogue: Catalogue, models: CategoryModels, store: EventStore, failing: set[str]
) -> None:
    models.failing = failing
    rule = read_rule({"name": "down", "match": {"item_ids": ["i0", "i3"]}, "action": "block"}, 1)
    rules = RuleEffects([rule], catalogue)
    flow = RequestFlow(models.as_models(), store, catalogue, VERSION, "v-index", 50, 1500, rules=rules)
    with client_of(flow) as client:
        answers = [recommend(client, k=8), client.get("/v1/items/i1/similar", params={"k": 8}).json()]
    for answer in answers:
        assert answer["items"]
        assert not {"i0", "i3"} & set(ids(answer))
        assert [item["rank"] for item in answer["items"]] == list(range(1, len(answer["items"]) + 1))
        assert {item["propensity"] for item in answer["items"]} == {1.0}


def test_recommend_request_ids_differ(client: httpx.Client) -> None:
    assert recommend(client)["request_id"] != recommend(client)["request_id"]


def test_recommend_posted_like_changes_the_next_list(client: httpx.Client) -> None:
    client.post("/v1/feedback", json={"events": [feedback_event("e1", "i0")]})
    before = recommend(client, user_id="u1")
    answer = client.post("/v1/feedback", json={"events": [feedback_event(f"e{n}", f"i{n}") for n in (2, 3, 6)]})
    assert answer.json()["accepted"] == 3
    after = recommend(client, user_id="u1")
    assert before["items"][0]["category"] == "cooking"
    assert after["items"][0]["category"] == "sport"
    assert not {"i2", "i3", "i6"} & set(ids(after))


@pytest.mark.parametrize("body", [{}, {"user_id": "nobody"}])
def test_recommend_unknown_user_gets_a_marked_list(client: httpx.Client, body: dict) -> None:
    answer = recommend(client, **body)
    assert answer["degraded"] == ["unknown_user"]
    assert ids(answer) == [f"i{n}" for n in range(10)]


def test_recommend_to_a_user_known_by_profile_alone_is_not_marked(
    catalogue: Catalogue, models: CategoryModels, store: EventStore
) -> None:
    flow = RequestFlow(models.as_models(), store, catalogue, VERSION, "v-index", 50, 1500, known_users={"told"})
    with client_of(flow) as client:
        assert recommend(client, user_id="told")["degraded"] == []
        assert recommend(client, user_id="untold")["degraded"] == ["unknown_user"]
        assert recommend(client)["degraded"] == ["unknown_user"]


def test_recommend_user_who_knows_only_items_of_other_catalogues_is_unknown(
    client: httpx.Client, store: EventStore
) -> None:
    like(store, "gone1", "gone2")
    assert recommend(client, user_id="u1")["degraded"] == ["unknown_user"]


def test_recommend_session_alone_personalises_and_is_not_stored(client: httpx.Client, store: EventStore) -> None:
    answer = recommend(client, session=[{"item_id": "i1", "event": "like"}, {"item_id": "i5", "event": "view"}])
    assert answer["degraded"] == []
    assert {item["category"] for item in answer["items"][:5]} == {"music"}
    assert not {"i1", "i5"} & set(ids(answer))
    assert store.count() == 0


def test_recommend_session_goes_on_after_the_stored_history(
    client: httpx.Client, store: EventStore, models: CategoryModels
) -> None:
    like(store, "i1", "i2")
    session = [
        {"item_id": "i2", "event": "like", "event_id": "u1i2"},  # stored already
        {"item_id": "i4", "event": "view"},
        {"item_id": "i3", "event": "skip", "at": "1970-01-01T00:00:00.5Z", "watch_seconds": 1},
    ]
    recommend(client, user_id="u1", session=session)
    history = models.queries[-1].history
    assert [e.item_id for e in history] == ["i1", "i3", "i2", "i4"]
    assert history[1].watch_seconds == 1.0
    assert abs(history[3].at_seconds - time.time()) < 60
    assert {e.user_id for e in history} == {"u1"}


def test_recommend_query_carries_every_dial(client: httpx.Client, models: CategoryModels) -> None:
    filters = {"categories": ["music"], "languages": ["en"], "max_duration_seconds": 90, "exclude_items": ["i1"]}
    recommend(client, user_id="u1", k=3, filters=filters, diversity=0.5, explain=True)
    query = models.queries[-1]
    assert (query.k, query.diversity, query.explain) == (3, 0.5, True)
    assert (query.filters.categories, query.filters.languages) == (("music",), ("en",))
    assert (query.filters.max_duration_seconds, query.filters.exclude_items) == (90.0, ("i1",))


def test_recommend_explain_names_the_watched_item(client: httpx.Client, store: EventStore) -> None:
    like(store, "i2")
    (first, *_) = recommend(client, user_id="u1", explain=True)["items"]
    reason = {"item_id": "i2", "weight": 0.5, "modality": "video", "start_seconds": 0.0, "end_seconds": 4.0}
    assert first["explanation"] == {"because": [reason], "tags": ["t0"]}


def test_recommend_matcher_dead_gives_popular_items_with_filters_and_seen_respected(
    client: httpx.Client, store: EventStore, models: CategoryModels
) -> None:
    like(store, "i5")
    models.failing = {"match"}
    filters = {"categories": ["music"], "exclude_items": ["i1"], "max_duration_seconds": 200}
    answer = recommend(client, user_id="u1", k=4, filters=filters, explain=True)
    assert answer["degraded"] == ["matcher_unavailable"]
    assert ids(answer) == ["i9", "i13", "i17"]
    assert answer["items"][0]["explanation"] == {"because": [], "tags": []}
    assert answer["stages_ms"]["rerank"] is None


@pytest.mark.parametrize("how", ["rerank", "nan"])
def test_recommend_reranker_failing_keeps_the_matchers_order(
    client: httpx.Client, store: EventStore, models: CategoryModels, how: str
) -> None:
    like(store, "i2")
    models.failing = {how}
    answer = recommend(client, user_id="u1", k=3)
    assert answer["degraded"] == ["reranker_unavailable"]
    assert ids(answer) == ["i6", "i10", "i14"]


@pytest.mark.parametrize(("stage", "reason"), [("match", "matcher_unavailable"), ("rerank", "reranker_unavailable")])
def test_recommend_slow_model_is_cut_at_the_clients_deadline(
    client: httpx.Client, store: EventStore, models: CategoryModels, stage: str, reason: str
) -> None:
    like(store, "i2")
    models.slow_seconds = {stage: 30.0}
    started = time.perf_counter()
    answer = recommend(client, user_id="u1", deadline_ms=150)
    assert time.perf_counter() - started < 5
    assert answer["degraded"] == [reason, "deadline"]
    assert len(answer["items"]) == 10


def test_recommend_client_cannot_raise_the_deadline(client: httpx.Client, models: CategoryModels) -> None:
    models.slow_seconds = {"match": 30.0}
    started = time.perf_counter()
    assert "deadline" in recommend(client, user_id="u1", deadline_ms=60_000)["degraded"]
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(("matcher", "reranker"), [("v-other", VERSION), (VERSION, "v-other"), ("v-other", "v-other")])
def test_recommend_models_of_another_bundle_are_never_mixed(
    client: httpx.Client, store: EventStore, models: CategoryModels, matcher: str, reranker: str
) -> None:
    like(store, "i2")
    models.matcher_version, models.reranker_version = matcher, reranker
    answer = recommend(client, user_id="u1", k=3)
    assert answer["degraded"] == ["mixed_model"]
    assert ids(answer) == ["i0", "i1", "i3"]


def test_recommend_store_unreadable_is_marked(client: httpx.Client, store: EventStore) -> None:
    with store._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE events RENAME TO gone")
    answer = recommend(client, user_id="u1")
    assert answer["degraded"] == ["profile_unavailable"]
    assert len(answer["items"]) == 10


def test_recommend_more_than_there_is_gives_all_there_is(client: httpx.Client) -> None:
    assert len(recommend(client, k=100)["items"]) == 40


def test_rank_orders_the_given_items_and_names_unknown_ones(client: httpx.Client, store: EventStore) -> None:
    like(store, "i2")
    body = {"user_id": "u1", "items": ["i0", "nothing", "i2", "i6", "i0"], "explain": True}
    answer = client.post("/v1/rank", json=body).json()
    assert ids(answer) == ["i2", "i6", "i0"]
    assert answer["unknown_items"] == ["nothing"]
    assert answer["items"][0]["explanation"]["because"][0]["item_id"] == "i2"


@pytest.mark.parametrize(
    ("failing", "version", "expected", "reason"),
    [
        ({"match"}, VERSION, ["i1", "i2", "i6"], "matcher_unavailable"),
        ({"rerank"}, VERSION, ["i2", "i6", "i1"], "reranker_unavailable"),
        (set(), "v-other", ["i1", "i2", "i6"], "mixed_model"),
    ],
)
def test_rank_with_a_model_missing_still_orders(
    client: httpx.Client,
    store: EventStore,
    models: CategoryModels,
    failing: set[str],
    version: str,
    expected: list[str],
    reason: str,
) -> None:
    like(store, "i2")
    models.failing, models.reranker_version = failing, version
    answer = client.post("/v1/rank", json={"user_id": "u1", "items": ["i6", "i1", "i2"]}).json()
    assert ids(answer) == expected
    assert answer["degraded"] == [reason]


def test_rank_unknown_user_is_marked(client: httpx.Client) -> None:
    answer = client.post("/v1/rank", json={"user_id": "nobody", "items": ["i3", "i1"]}).json()
    assert (ids(answer), answer["degraded"]) == (["i1", "i3"], ["unknown_user"])


def test_similar_gives_neighbours_without_the_item(client: httpx.Client) -> None:
    answer = client.get("/v1/items/i5/similar", params={"k": 2}).json()
    assert (ids(answer), answer["degraded"]) == (["i4", "i6"], [])


def test_similar_matcher_dead_gives_popular_items_of_the_category_first(
    client: httpx.Client, models: CategoryModels
) -> None:
    models.failing = {"match"}
    answer = client.get("/v1/items/i5/similar", params={"k": 11}).json()
    assert ids(answer) == ["i1", "i9", "i13", "i17", "i21", "i25", "i29", "i33", "i37", "i0", "i2"]
    assert answer["degraded"] == ["matcher_unavailable"]


def test_item_tells_what_the_bundle_knows(client: httpx.Client) -> None:
    assert client.get("/v1/items/i3").json() == {
        "item_id": "i3",
        "title": "Title 3",
        "category": None,
        "tags": ["t0"],
        "creator_id": "c3",
        "language": "en",
        "duration_seconds": None,
        "popularity": pytest.approx(37 / 820),
        "model_version": VERSION,
    }


def test_item_with_a_slash_in_its_id_is_found(client: httpx.Client) -> None:
    assert client.get("/v1/items/a%2Fb").json()["item_id"] == "a/b"
    assert client.get("/v1/items/a%2Fb/similar?k=1").json()["items"][0]["item_id"] == "i38"


@pytest.mark.parametrize("path", ["/v1/items/nothing", "/v1/items/nothing/similar"])
def test_item_unknown_is_404(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"] == f"item 'nothing' is not in the catalogue of {VERSION}"
