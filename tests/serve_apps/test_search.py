"""GET /v1/search: by embedding, by words where that fails, and the answer says which it was."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from serve_apps.flow import RequestFlow
from tests.serve_apps.conftest import CategoryModels


def search(client: httpx.Client, q: str, **params: Any) -> dict[str, Any]:
    response = client.get("/v1/search", params={"q": q, **params})
    assert response.status_code == 200, response.text
    return response.json()


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_search_answers_the_models_list(client: httpx.Client) -> None:
    answer = search(client, "3 7 11", k=2)
    assert (answer["kind"], answer["degraded"], ids(answer)) == ("embedding", [], ["i3", "i7"])
    assert [item["rank"] for item in answer["items"]] == [1, 2]
    assert answer["model_version"] == "v-test"
    assert answer["request_id"]


def test_search_without_a_text_encoder_is_lexical_and_says_so(client: httpx.Client, models: CategoryModels) -> None:
    models.failing.add("encode")
    answer = search(client, "TITLE 17", k=3)
    assert (answer["kind"], answer["degraded"]) == ("lexical", ["text_not_encoded"])
    assert ids(answer)[0] == "i17"
    assert len(ids(answer)) == 3
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[1]


@pytest.mark.parametrize("trouble", ["dead", "slow", "other_bundle"])
def test_search_without_the_matcher_is_lexical_and_says_why(
    client: httpx.Client, models: CategoryModels, flow: RequestFlow, trouble: str
) -> None:
    reasons = {"dead": "matcher_unavailable", "slow": "deadline", "other_bundle": "mixed_model"}
    flow._deadline_ms = 300
    if trouble == "dead":
        models.failing.add("match")
    elif trouble == "slow":
        models.slow_seconds["match"] = 10
    else:
        models.matcher_version = "v-other"
    answer = search(client, "cooking 4")
    assert (answer["kind"], reasons[trouble] in answer["degraded"]) == ("lexical", True)
    assert ids(answer)[0] == "i4"


def test_search_by_words_when_asked_is_not_degraded(client: httpx.Client) -> None:
    answer = search(client, "title 3", kind="lexical", k=1)
    assert (answer["kind"], answer["degraded"], ids(answer)) == ("lexical", [], ["i3"])


def test_search_that_finds_nothing_is_an_empty_list(client: httpx.Client) -> None:
    for kind in ("embedding", "lexical"):
        assert ids(search(client, "zzz", kind=kind)) == []


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "q"),
        ({"q": ""}, "q"),
        ({"q": "x" * 257}, "q"),
        ({"q": "a\nb"}, "q"),
        ({"q": "a", "k": 0}, "k"),
        ({"q": "a", "k": 101}, "k"),
        ({"q": "a", "kind": "fuzzy"}, "kind"),
    ],
)
def test_search_bad_parameter_is_422_naming_it(client: httpx.Client, params: dict[str, Any], field: str) -> None:
    response = client.get("/v1/search", params=params)
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, field)


def test_search_finds_in_a_catalogue_with_a_rule_no_blocked_item(
    make_client: Callable[..., httpx.Client], flow: RequestFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = [row for row, item_id in enumerate(flow.catalogue.item_ids) if item_id == "i3"]
    monkeypatch.setattr(flow.rules, "blocked", lambda rows, _now: rows == blocked[0])
    client = make_client()
    assert ids(search(client, "3 7")) == ["i7"]
    assert "i3" not in ids(search(client, "title 3", kind="lexical", k=40))
