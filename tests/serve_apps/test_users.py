"""Users at the door of the service: stored under pseudonyms, told what is kept of them, and forgotten."""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from avrec_ray.catalogue import Catalogue
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.receipts import from_json
from avrec_ray.feedback.store import EventStore
from avrec_ray.training.profiles import UserProfiles
from serve_apps.flow import RequestFlow
from tests.serve_apps.conftest import VERSION, CategoryModels, client_of, feedback_event

OLD = Pseudonyms([(1, b"1" * 32)])
KEYS = Pseudonyms([(2, b"2" * 32), (1, b"1" * 32)])
ALICE = "alice/of wonderland"
PATH = "/v1/users/alice%2Fof%20wonderland"


@pytest.fixture(params=["keys", "no_keys"])
def keys(request: pytest.FixtureRequest) -> Pseudonyms:
    return KEYS if request.param == "keys" else Pseudonyms()


@pytest.fixture
def kept(tmp_path: Path, keys: Pseudonyms) -> Iterator[EventStore]:
    store = EventStore(f"sqlite:///{tmp_path / 'users.db'}", pseudonyms=keys)
    yield store
    store.close()


@pytest.fixture
def profiles(keys: Pseudonyms) -> UserProfiles:
    """Of a bundle that was built under the older key."""
    names = [(OLD if keys.is_keyed else keys).of(user) for user in (ALICE, "bob")]
    return UserProfiles(names, np.array([[3, 5], [4, 0]]))


@contextlib.contextmanager
def replica(models: CategoryModels, store: EventStore, profiles: UserProfiles) -> Iterator[httpx.Client]:
    flow = RequestFlow(
        models.as_models(), store, models.catalogue, VERSION, "v-index", history_length=50, deadline_ms=5000,
        known_users=frozenset(profiles.user_ids), load_profiles=lambda: profiles,
    )  # fmt: skip
    with client_of(flow) as client:
        yield client


def like(client: httpx.Client, *items: str, user: str = ALICE, name: str = "e") -> httpx.Response:
    events = [feedback_event(f"{name}-{item}", item, user_id=user) for item in items]
    return client.post("/v1/feedback", json={"events": events})


def test_ids_do_not_pass_the_door(
    models: CategoryModels, kept: EventStore, profiles: UserProfiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with replica(models, kept, profiles) as client:
        assert like(client, "i1", "i5").json()["accepted"] == 2
        got = client.post("/v1/recommend", json={"user_id": ALICE, "session": [{"item_id": "i9", "event": "view"}]})
        ranked = client.post("/v1/rank", json={"user_id": ALICE, "items": ["i1", "i2"]})
        client.get(f"{PATH}/data")
        receipt = client.delete(PATH)
    assert [len(query.history) for query in models.queries] == [3]
    assert "unknown_user" not in got.json()["degraded"]
    assert {query.user_id for query in models.queries} == {profiles.user_ids[0]}
    logged = "".join(r.getMessage() for r in caplog.records if not r.name.startswith("http"))  # the client's own
    if kept.pseudonyms.is_keyed:
        assert {event.user_id for event in models.queries[0].history} == {kept.pseudonyms.of(ALICE)}
        assert "wonderland" not in got.text + ranked.text + receipt.text + logged
        files = [path.read_bytes() for path in tmp_path.iterdir()]
        assert not any(b"wonderland" in content for content in files)


def test_user_data_is_all_that_is_kept(models: CategoryModels, kept: EventStore, profiles: UserProfiles) -> None:
    with replica(models, kept, profiles) as client:
        like(client, "i1", "i2")
        like(client, "i3", user="bob", name="b")
        data = client.get(f"{PATH}/data").json()
        nobody = client.get("/v1/users/nobody/data").json()
    assert (data["user_id"], data["erased_at"]) == (ALICE, None)
    assert [(e["event_id"], e["item_id"]) for e in data["events"]] == [("e-i1", "i1"), ("e-i2", "i2")]
    assert data["profile"] == {"attribute_buckets": [3, 5]}
    assert (nobody["events"], nobody["impressions"], nobody["profile"]) == ([], [], None)


def test_erased_user_is_unknown_to_every_replica_at_once(
    models: CategoryModels, kept: EventStore, profiles: UserProfiles, keys: Pseudonyms, tmp_path: Path
) -> None:
    other = EventStore(f"sqlite:///{tmp_path / 'users.db'}", pseudonyms=keys)
    with replica(models, kept, profiles) as client, replica(models, other, profiles) as second:
        like(client, "i1", "i2")
        like(client, "i3", user="bob", name="b")
        before = second.post("/v1/recommend", json={"user_id": "bob"}).json()["items"]
        response = client.delete(PATH)
        assert response.status_code == 200
        receipt = from_json(response.json())
        kept.verify_receipt(receipt, keys.of(ALICE))
        assert receipt.removed == {"events": 2, "impressions": 0}
        assert second.delete(PATH).json() == response.json()
        for one in (client, second):
            got = one.post("/v1/recommend", json={"user_id": ALICE}).json()
            stranger = one.post("/v1/recommend", json={"user_id": "stranger"}).json()
            assert got["degraded"] == stranger["degraded"] == ["unknown_user"]
            assert got["items"] == stranger["items"]
            assert models.queries[-2].user_id not in profiles.user_ids
            data = one.get(f"{PATH}/data").json()
            assert (data["events"], data["profile"]) == ([], None)
        assert second.post("/v1/recommend", json={"user_id": "bob"}).json()["items"] == before
        again = like(client, "i1")
        assert again.json()["accepted"] == 0
        assert "erased" in again.json()["rejected"][0]["reason"]
        assert like(client, "i7").json()["accepted"] == 1
        second.post("/v1/recommend", json={"user_id": ALICE})
        assert [event.item_id for event in models.queries[-1].history] == ["i7"]
        assert models.queries[-1].user_id not in profiles.user_ids


@pytest.mark.parametrize(("part", "allowed"), [("data", "GET"), ("profile", "GET"), ("claim", "POST")])
def test_what_lies_below_a_user_is_not_deleted_as_somebody_else(
    models: CategoryModels, kept: EventStore, profiles: UserProfiles, part: str, allowed: str
) -> None:
    with replica(models, kept, profiles) as client:
        answer = client.delete(f"/v1/users/u1/{part}")
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert "jobs.erase_user" in answer.json()["detail"]
        assert client.delete(f"/v1/users/{part}").status_code == 200  # an id of its own


def test_bad_ids_and_a_store_that_fails(
    models: CategoryModels, kept: EventStore, profiles: UserProfiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replica(models, kept, profiles) as client:
        assert client.delete(f"/v1/users/{'x' * 300}").status_code == 422
        assert client.delete("/v1/users/a%01b").status_code == 400
        assert client.get("/v1/users/u1").status_code in (404, 405)

        def fail(*_: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(kept, "erase", fail)
        response = client.delete(PATH)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert json.loads(response.text)["status"] == 503


def test_without_the_store_no_profile_is_used(
    models: CategoryModels, kept: EventStore, profiles: UserProfiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could say whether the user was erased."""

    def fail(*_: object) -> None:
        raise OSError("gone")

    monkeypatch.setattr(kept, "history", fail)
    with replica(models, kept, profiles) as client:
        assert client.post("/v1/recommend", json={"user_id": ALICE}).json()["degraded"] == ["profile_unavailable"]
    assert models.queries[-1].user_id is None


def test_profile_tells_interests_and_knows_a_like_at_once(
    kept: EventStore, profiles: UserProfiles, catalogue: Catalogue
) -> None:
    with replica(CategoryModels(catalogue), kept, profiles) as client:
        empty = client.get(f"{PATH}/profile").json()
        assert (empty["user_id"], empty["num_events"], empty["recent"]) == (ALICE, 0, [])
        like(client, "i1", "i5")  # music, both
        told = client.get(f"{PATH}/profile").json()
        assert (told["num_events"], told["model_version"]) == (2, VERSION)
        assert [a["name"] for a in told["short_term"]["categories"]] == ["music"]
        assert told["long_term"]["categories"][0]["share"] == 1
        assert {row["item_id"] for row in told["recent"]} == {"i1", "i5"}
        assert client.get("/v1/users/bob/profile").json()["num_events"] == 0


def test_a_visitors_past_is_the_users_after_the_claim(
    kept: EventStore, profiles: UserProfiles, catalogue: Catalogue
) -> None:
    with replica(CategoryModels(catalogue), kept, profiles) as client:
        like(client, "i1", "i5", user="anonymous:7", name="v")
        claimed = client.post(f"{PATH}/claim", json={"anonymous_id": "anonymous:7"})
        assert claimed.json() == {"events": 2}
        assert client.post(f"{PATH}/claim", json={"anonymous_id": "anonymous:7"}).json() == {"events": 0}
        assert client.get(f"{PATH}/profile").json()["num_events"] == 2
        listed = client.post("/v1/recommend", json={"user_id": ALICE, "k": 40}).json()["items"]
        assert not {"i1", "i5"} & {item["item_id"] for item in listed}
        refused = client.post(f"{PATH}/claim", json={"anonymous_id": "bob-the-builder"})
        assert (refused.status_code, "anonymous:" in refused.json()["detail"]) == (422, True)
