"""What /metrics says, asked over HTTP after something happened."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from avrec_ray.feedback.store import EventStore
from avrec_ray.types import RankedItem
from serve_apps.flow import RequestFlow
from serve_apps.metrics import GatewayMetrics, ScoreMoments
from tests.serve_apps.conftest import NUM_ITEMS, VERSION, CategoryModels, feedback_event, queue_of
from tests.serve_apps.test_impression_log import locked, wait_until

Samples = dict[tuple[str, tuple[str, ...]], float]


def samples(text: str) -> Samples:
    """Every series by name and label values, which come in the order of the labels' names."""
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


def scraped(client: httpx.Client) -> Samples:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return samples(answer.text)


def test_latency_is_by_route_template(client: httpx.Client) -> None:
    client.get("/v1/items/i1")
    client.get("/v1/items/i2")
    client.get("/nowhere")
    wait_until(lambda: ("avrec_request_seconds_count", ("none",)) in scraped(client))
    found = scraped(client)
    assert found["avrec_request_seconds_count", ("/v1/items/{item_id:path}",)] == 2
    assert 0 < found["avrec_request_seconds_sum", ("/v1/items/{item_id:path}",)] < 20


def test_items_are_counted_by_source_and_by_behaviour(client: httpx.Client, flow: RequestFlow) -> None:
    answer = client.post("/v1/recommend", json={"session": [{"item_id": "i1", "event": "like"}], "k": 20}).json()
    near = client.get("/v1/items/i5/similar?k=3").json()
    found = scraped(client)
    cold = [not flow.catalogue.warm[flow.catalogue.index_of[i["item_id"]]] for i in answer["items"] + near["items"]]
    assert found["avrec_cold_items_total", ()] == sum(cold) > 0
    assert found["avrec_items_total", ("similar",)] == 3
    assert found["avrec_items_total", ("none",)] == 20  # these models' reranker names no source
    assert found["avrec_candidates_total", ("test",)] == NUM_ITEMS - 1  # all but what the session holds
    assert found["avrec_catalogue_items", ()] == NUM_ITEMS
    assert found["avrec_bundle_info", ("v-index", VERSION)] == 1


def test_scores_are_those_of_lists_that_lacked_nothing(client: httpx.Client, models: CategoryModels) -> None:
    body = {"session": [{"item_id": "i1", "event": "like"}]}
    scores = [item["score"] for item in client.post("/v1/recommend", json=body).json()["items"]]
    models.failing = {"rerank"}
    client.post("/v1/recommend", json=body)
    client.get("/v1/items/i5/similar")
    found = scraped(client)
    assert found["avrec_score_mean", (VERSION,)] == pytest.approx(statistics.fmean(scores))
    assert found["avrec_score_variance", (VERSION,)] == pytest.approx(statistics.pvariance(scores))


def test_store_calls_are_timed_and_failures_counted(client: httpx.Client, store: EventStore) -> None:
    client.post("/v1/recommend", json={"user_id": "u1"})
    client.post("/v1/feedback", json={"events": [feedback_event("e1")]})
    wait_until(lambda: scraped(client)["avrec_impressions_total", ("kept",)] == 10)
    with locked(store):
        assert client.post("/v1/feedback", json={"events": [feedback_event("e2")]}).status_code == 503
        assert client.post("/v1/recommend", json={"user_id": "u1"}).status_code == 200  # readers do not wait
        wait_until(lambda: scraped(client)["avrec_store_failures_total", ("impressions",)] > 0)
        assert scraped(client)["avrec_impressions_waiting", ()] == 10
    wait_until(lambda: scraped(client)["avrec_impressions_waiting", ()] == 0)
    found = scraped(client)
    assert found["avrec_store_seconds_count", ("write",)] == 2
    assert found["avrec_store_failures_total", ("write",)] == 1
    assert found["avrec_store_seconds_count", ("read",)] == 2
    assert found["avrec_store_failures_total", ("read",)] == 0


def test_what_alerts_divide_by_is_there_before_anything_happens(client: httpx.Client) -> None:
    found = scraped(client)
    assert found["avrec_events_total", ("accepted",)] == found["avrec_impressions_total", ("dropped",)] == 0
    assert all(found["avrec_store_failures_total", (name,)] == 0 for name in ("read", "write", "impressions", "queue"))


def test_the_queue_of_new_items_and_how_far_the_catalogue_is(client: httpx.Client) -> None:
    wait_until(lambda: not math.isnan(scraped(client)["avrec_catalogue_current_timestamp_seconds", ()]))
    assert scraped(client)["avrec_new_items_oldest_seconds", ()] == 0
    assert client.post("/v1/items", json={"item_id": "n1", "title": "New"}).status_code == 202
    found = scraped(client)
    assert [found["avrec_new_items", (state,)] for state in ("queued", "decoding", "refused")] == [1, 0, 0]
    assert 0 < found["avrec_new_items_oldest_seconds", ()] < 20
    assert time.time() - found["avrec_catalogue_current_timestamp_seconds", ()] < 20
    client.delete("/v1/items/n1")
    wait_until(lambda: scraped(client)["avrec_catalogue_change", ()] == 1)


def test_without_the_store_the_queue_is_unknown_rather_than_empty(
    make_client: Callable[..., httpx.Client], flow: RequestFlow, store: EventStore, tmp_path: Path
) -> None:
    client = make_client(new_items=queue_of(flow, tmp_path))
    assert ("avrec_new_items", ("queued",)) in scraped(client)
    with store._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE new_items RENAME TO gone")
    found = scraped(client)
    assert ("avrec_new_items", ("queued",)) not in found
    assert math.isnan(found["avrec_new_items_oldest_seconds", ()])
    assert found["avrec_store_failures_total", ("queue",)] == 1


def test_without_new_items_no_time_is_claimed(make_client: Callable[..., httpx.Client]) -> None:
    found = scraped(make_client())
    assert math.isnan(found["avrec_catalogue_current_timestamp_seconds", ()])
    assert not any(name == "avrec_bundle_built_timestamp_seconds" for name, _ in found)


def test_the_bundles_own_time_is_told_where_it_has_one() -> None:
    metrics = GatewayMetrics()
    metrics.built("v-old", 0.0)
    metrics.built("v-new", 1.7e9)
    found = samples(metrics.text().decode())
    assert found["avrec_bundle_built_timestamp_seconds", ("v-new",)] == 1.7e9
    assert ("avrec_bundle_built_timestamp_seconds", ("v-old",)) not in found


def test_a_named_replica_names_all_its_series() -> None:
    metrics = GatewayMetrics(replica="a1")
    metrics.observe_scores("v1", [RankedItem("i1", 1, 0.5)])
    families = list(text_string_to_metric_families(metrics.text().decode()))
    assert {s.labels["replica"] for family in families for s in family.samples} == {"a1"}
    metrics.text()
    assert samples(metrics.text().decode())["avrec_score_mean", ("v1", "a1")] == 0.5  # not named twice


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=20))
def test_score_moments_of_few_lists_are_exact(lists: Sequence[list[float]]) -> None:
    moments = ScoreMoments(lists_remembered=20)
    for scores in lists:
        moments.add(scores)
    flat = [score for scores in lists for score in scores]
    assert moments.mean == pytest.approx(statistics.fmean(flat), abs=1e-6)
    assert moments.variance == pytest.approx(statistics.pvariance(flat), rel=1e-6, abs=1e-4)


def test_score_moments_follow_a_drift() -> None:
    moments = ScoreMoments(lists_remembered=10)
    for _ in range(1000):
        moments.add([0.0, 1.0])
    for _ in range(100):
        moments.add([5.0, 7.0])
    assert (moments.mean, moments.variance) == pytest.approx((6.0, 1.0), abs=0.01)
