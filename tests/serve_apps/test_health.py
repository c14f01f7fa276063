import httpx

from avrec_ray.feedback.store import EventStore
from tests.serve_apps.conftest import VERSION, CategoryModels, feedback_event


def test_live_answers(client: httpx.Client) -> None:
    assert client.get("/health/live").json() == {"status": "live"}


def test_ready_names_model_and_index(client: httpx.Client) -> None:
    response = client.get("/health/ready")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ready",
        "missing": [],
        "model_version": VERSION,
        "index_version": "v-index",
    }


def test_ready_models_not_up_yet_is_503(client: httpx.Client, models: CategoryModels) -> None:
    models.failing = {"versions"}
    response = client.get("/health/ready")
    assert response.status_code == 503
    assert (response.json()["status"], response.json()["missing"]) == ("not_ready", ["models"])


def test_ready_models_dead_later_is_degraded_and_live(client: httpx.Client, models: CategoryModels) -> None:
    assert client.get("/health/ready").json()["status"] == "ready"
    models.failing = {"versions"}
    response = client.get("/health/ready")
    assert response.status_code == 200
    assert response.json()["status"] == "degraded"
    assert client.get("/health/live").status_code == 200


def test_ready_models_of_another_bundle_are_missing(client: httpx.Client, models: CategoryModels) -> None:
    models.reranker_version = "v-other"
    assert client.get("/health/ready").json()["missing"] == ["models"]


def test_ready_without_event_store_is_503(client: httpx.Client, store: EventStore) -> None:
    client.get("/health/ready")
    with store._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE store_info RENAME TO gone")
    response = client.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["missing"] == ["event_store"]


def test_metrics_count_what_happened_by_route_template(client: httpx.Client, models: CategoryModels) -> None:
    models.failing = {"match"}
    client.post("/v1/recommend", json={"user_id": "u1"})
    client.post("/v1/recommend", json={"k": "x"})
    client.get("/v1/items/i1")
    client.get("/v1/items/nothing")
    client.get("/nowhere/else")
    client.post("/v1/feedback", json={"events": [feedback_event("e1"), feedback_event("e1"), {}]})
    text = client.get("/metrics").text
    for line in (
        'avrec_requests_total{route="/v1/recommend",status="200"} 1.0',
        'avrec_requests_total{route="/v1/recommend",status="422"} 1.0',
        'avrec_requests_total{route="/v1/items/{item_id:path}",status="200"} 1.0',
        'avrec_requests_total{route="/v1/items/{item_id:path}",status="404"} 1.0',
        'avrec_requests_total{route="none",status="404"} 1.0',
        'avrec_degraded_total{reason="matcher_unavailable"} 1.0',
        'avrec_degraded_total{reason="unknown_user"} 1.0',
        'avrec_stage_seconds_count{stage="total"} 1.0',
        'avrec_stage_seconds_count{stage="profile"} 1.0',
        'avrec_events_total{outcome="accepted"} 1.0',
        'avrec_events_total{outcome="duplicate"} 1.0',
        'avrec_events_total{outcome="rejected"} 1.0',
    ):
        assert line in text.splitlines(), f"{line} not in\n{text}"
