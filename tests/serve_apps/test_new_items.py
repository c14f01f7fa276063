"""The routes of new items on a real HTTP server, with a worker and files; the models are plain Python."""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from avrec_ray.bundle import load_catalogue, load_metadata
from avrec_ray.catalogue import Catalogue
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.feedback.store import EventStore
from avrec_ray.new_items.config import NewItemsConfig
from avrec_ray.new_items.ingest import IngestWorker
from avrec_ray.new_items.store import NewItemStore
from serve_apps.api import create_api
from serve_apps.auth import Gate
from serve_apps.config import ServeConfig
from serve_apps.flow import RequestFlow
from serve_apps.new_items import follow_changes, inbox_of, new_item_store
from serve_apps.variants import Variants
from tests.media.render import tone, write_media
from tests.serve_apps.conftest import CategoryModels, served, small_catalogue
from tests.serve_apps.test_auth import ring_of_scopes
from tests.tiny_bundle import build_tiny_bundle, tiny_media


class Gateway:
    """A gateway over the catalogue of a bundle, and the worker that a service has beside it."""

    def __init__(self, client: httpx.Client, worker: IngestWorker, flow: RequestFlow, uploads: Path) -> None:
        self.client, self.worker, self.flow, self.uploads = client, worker, flow, uploads

    def post(self, **item: Any) -> httpx.Response:
        return self.client.post("/v1/items", json=item)

    def status(self, item_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/v1/items/{item_id}/status")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    return build_tiny_bundle(folder / "v-tiny", catalogue=small_catalogue(), media=tiny_media())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    return write_media(path, num_frames=10, fps=10, sound=tone(1.0))


@pytest.fixture
def make_gateway(bundle: Path, tmp_path: Path, clip: Path) -> Iterator[Callable[..., Gateway]]:
    """Gateways over one store, with the keywords of NewItemsConfig."""
    with contextlib.ExitStack() as stack:

        def make(bundle: Path = bundle, **settings: Any) -> Gateway:
            cfg = ServeConfig(
                bundle=str(bundle),
                storage_path=str(tmp_path),
                new_items=NewItemsConfig(poll_seconds=0.05, media_roots=[str(clip.parent)], **settings),
            )
            metadata, catalogue = load_metadata(bundle), load_catalogue(bundle)
            url = cfg.feedback.store_url(cfg.storage_path)
            models = CategoryModels(catalogue, matcher_version="v-tiny", reranker_version="v-tiny")
            flow = RequestFlow(models.as_models(), EventStore(url), catalogue, "v-tiny", "v-towers", 50, 5000)
            queue = new_item_store(cfg)
            follow_changes(cfg, flow, metadata, queue)
            variants = Variants(flow)
            api = create_api(variants, FeedbackConfig(), None, 20_000, new_items=inbox_of(cfg, variants, queue))
            client = httpx.Client(base_url=stack.enter_context(served(api)), timeout=60)
            stack.enter_context(client)
            uploads = cfg.new_items.uploads(cfg.storage_path)
            store = NewItemStore(url)
            stack.callback(store.close)
            worker = IngestWorker(bundle, store, cfg.new_items, uploads) if metadata.media else None
            if worker is not None:
                stack.callback(worker.close)
            return Gateway(client, worker, flow, uploads)  # type: ignore[arg-type]

        yield make


@pytest.fixture
def gateway(make_gateway: Callable[..., Gateway]) -> Gateway:
    return make_gateway()


def wait_until(is_true: Callable[[], bool], timeout_seconds: float = 60) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_item_by_path_is_queued_then_servable_then_deleted(gateway: Gateway, clip: Path) -> None:
    item = {"item_id": "a/new", "media_uri": str(clip), "title": "Cats", "tags": ["pets"], "category": "music"}
    answer = gateway.post(**item, published_at="2026-11-01T00:00:00Z")
    assert (answer.status_code, answer.json()) == (202, {"item_id": "a/new", "status": "queued"})
    assert gateway.status("a/new") == {"item_id": "a/new", "status": "queued", "served": False}
    assert gateway.client.get("/v1/items/a/new").status_code == 404
    assert gateway.worker.work_once()
    assert gateway.status("a/new") == {"item_id": "a/new", "status": "servable", "served": True}
    found = gateway.client.get("/v1/items/a/new").json()
    assert (found["title"], found["tags"], found["popularity"]) == ("Cats", ["pets"], 0.0)
    assert found["duration_seconds"] == pytest.approx(1.0, abs=0.1)
    listed = gateway.client.post("/v1/recommend", json={"k": 100}).json()["items"]
    assert "a/new" in [row["item_id"] for row in listed]
    ranked = gateway.client.post("/v1/rank", json={"user_id": "u", "items": ["a/new", "no"]}).json()
    assert ([r["item_id"] for r in ranked["items"]], ranked["unknown_items"]) == (["a/new"], ["no"])
    for _ in range(2):
        answer = gateway.client.delete("/v1/items/a/new")
        assert (answer.status_code, answer.json()["status"]) == (200, "deleted")
    assert gateway.client.get("/v1/items/a/new").status_code == 404
    assert gateway.status("a/new")["status"] == "deleted"
    listed = gateway.client.post("/v1/recommend", json={"k": 100}).json()["items"]
    assert "a/new" not in [row["item_id"] for row in listed]


@pytest.mark.parametrize("form", ["multipart", "raw"])
def test_uploaded_item_is_servable_and_its_file_goes_with_it(gateway: Gateway, clip: Path, form: str) -> None:
    item, content = json.dumps({"item_id": "up", "title": "Cats"}), clip.read_bytes()
    for expected in ("queued", "servable"):
        if form == "multipart":
            files = {"item": (None, item), "media": ("clip.mp4", content, "video/mp4")}
            answer = gateway.client.post("/v1/items", files=files)
        else:
            answer = gateway.client.post(
                "/v1/items", params={"item": item}, content=content, headers={"Content-Type": "video/mp4"}
            )
        assert (answer.status_code, answer.json()) == (202, {"item_id": "up", "status": expected})
        assert len(list(gateway.uploads.iterdir())) == 1
        while gateway.worker.work_once():
            pass
    assert gateway.status("up")["status"] == "servable"
    assert next(gateway.uploads.iterdir()).read_bytes() == content


def test_upload_above_the_limit_is_refused_and_leaves_nothing(make_gateway: Callable[..., Gateway]) -> None:
    gateway = make_gateway(max_upload_bytes=50_000)
    item = json.dumps({"item_id": "big"})

    def endless() -> Iterator[bytes]:
        for _ in range(400):
            yield bytes(10_000)

    headers = {"Content-Type": "video/mp4"}
    declared = gateway.client.post("/v1/items", params={"item": item}, content=bytes(400_000), headers=headers)
    streamed = gateway.client.post("/v1/items", params={"item": item}, content=endless(), headers=headers)
    parts = gateway.client.post("/v1/items", files={"item": (None, item), "media": ("x", bytes(60_000))})
    for answer in (declared, streamed, parts):
        assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")
    assert not gateway.uploads.exists() or list(gateway.uploads.iterdir()) == []
    assert gateway.client.get("/v1/items/big/status").status_code == 404
    too_long = gateway.post(item_id="x", description="y" * 30_000)
    assert too_long.status_code == 413  # JSON has the limit of all requests


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"title": "x"}, "item_id: got nothing"),
        ({"item_id": "x", "flavour": 1}, "flavour: got 1"),
        ({"item_id": "x"}, "neither media nor text"),
        ({"item_id": "x", "title": "a\0b"}, "without NUL"),
        ({"item_id": "x", "title": "t", "published_at": "soon"}, "published_at"),
        ({"item_id": "x", "title": "t", "tags": ["a"] * 101}, "tags"),
        ({"item_id": "", "title": "t"}, "item_id"),
    ],
)
def test_wrong_item_is_a_problem_that_says_what(gateway: Gateway, item: dict[str, Any], says: str) -> None:
    answer = gateway.post(**item)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert says in answer.json()["detail"]


def test_malformed_forms_are_problems(gateway: Gateway) -> None:
    item = json.dumps({"item_id": "x", "title": "t"})
    boundary = {"Content-Type": "multipart/form-data; boundary=b"}
    part = f'--b\r\nContent-Disposition: form-data; name="item"\r\n\r\n{item}\r\n'
    for headers, body in [
        (boundary, b"nonsense"),
        (boundary, part.encode() + b"--b--\r\n"),
        (boundary, part.encode() * 2 + b"--b--\r\n"),
        (boundary, part.encode()),
        ({"Content-Type": "multipart/form-data"}, part.encode()),
        ({"Content-Type": "video/mp4"}, b"media without an item"),
        ({"Content-Type": "application/json"}, b"{"),
    ]:
        answer = gateway.client.post("/v1/items", content=body, headers=headers)
        assert answer.status_code == 422, (body, answer.text)
    both = {"item_id": "x", "title": "t", "media_uri": "/etc/passwd"}
    answer = gateway.client.post("/v1/items", files={"item": (None, json.dumps(both)), "media": ("x", b"x")})
    assert "got both a place and an upload" in answer.json()["detail"]
    assert list(gateway.uploads.iterdir()) == []


def test_refused_item_says_why(gateway: Gateway, clip: Path) -> None:
    headers = {"Content-Type": "video/mp4"}
    item = {"item": json.dumps({"item_id": "bad"})}
    answer = gateway.client.post("/v1/items", params=item, content=b"#EXTM3U\n/etc/passwd", headers=headers)
    assert answer.status_code == 202
    gateway.post(item_id="path", media_uri="/etc/passwd")
    while gateway.worker.work_once():
        pass
    bad, path = gateway.status("bad"), gateway.status("path")
    assert (bad["status"], bad["reason"], bad["served"]) == ("refused", "not_media", False)
    assert (path["status"], path["reason"]) == ("refused", "forbidden")
    assert "first bytes" in bad["detail"]


def test_full_queue_is_503_and_a_bundle_that_takes_none_409(
    make_gateway: Callable[..., Gateway], tmp_path: Path
) -> None:
    gateway = make_gateway(max_waiting=1)
    assert gateway.post(item_id="one", title="t").status_code == 202
    answer = gateway.post(item_id="two", title="t")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    old = make_gateway(build_tiny_bundle(tmp_path / "v-tiny", catalogue=small_catalogue()))
    answer = old.post(item_id="x", title="t")
    assert answer.status_code == 409
    assert "does not say how media become clips" in answer.json()["detail"]
    assert old.client.delete("/v1/items/i3").status_code == 200  # but items can be taken down
    assert old.client.get("/v1/items/i3").status_code == 404


def test_every_gateway_follows_without_being_asked(make_gateway: Callable[..., Gateway]) -> None:
    one, other = make_gateway(), make_gateway()
    one.post(item_id="new", title="Cats")
    one.worker.work_once()
    wait_until(lambda: other.flow.catalogue.idx("new") is not None)
    assert one.client.delete("/v1/items/i1").json() == {"item_id": "i1", "status": "deleted"}
    assert one.client.delete("/v1/items/never").status_code == 404
    wait_until(lambda: other.flow.catalogue.idx("i1") is None)
    popular = other.client.post("/v1/recommend", json={"k": 100}).json()["items"]
    assert "i1" not in [row["item_id"] for row in popular]


def test_items_need_a_key_where_there_are_keys(bundle: Path, tmp_path: Path) -> None:
    from avrec_ray.bundle import load_catalogue as load

    catalogue: Catalogue = load(bundle)
    cfg = ServeConfig(bundle=str(bundle), storage_path=str(tmp_path))
    url = cfg.feedback.store_url(cfg.storage_path)
    flow = RequestFlow(CategoryModels(catalogue).as_models(), EventStore(url), catalogue, "v", "v", 50, 500)
    variants = Variants(flow)
    inbox = inbox_of(cfg, variants, new_item_store(cfg))
    api = create_api(variants, FeedbackConfig(), Gate(ring_of_scopes()), 1000, new_items=inbox)
    with served(api) as address:
        for method, path in (("POST", "/v1/items"), ("GET", "/v1/items/i1/status"), ("DELETE", "/v1/items/i1")):
            assert httpx.request(method, address + path).status_code == 401
        video = {"Content-Type": "video/mp4"}
        assert httpx.post(address + "/v1/items", content=bytes(5000), headers=video).status_code == 401
    assert not (tmp_path / "new_items").exists()


def test_upload_that_cannot_be_written_is_503(make_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    gateway = make_gateway(uploads_folder=str(tmp_path / "a_file"))
    params = {"item": json.dumps({"item_id": "x"})}
    answer = gateway.client.post("/v1/items", params=params, content=b"abc", headers={"Content-Type": "video/mp4"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert gateway.client.get("/v1/items/x/status").status_code == 404


def test_upload_that_ends_before_its_end_leaves_nothing(gateway: Gateway) -> None:
    address = gateway.client.base_url
    with socket.create_connection((address.host, address.port or 80)) as connection:
        head = "POST /v1/items?item=%7B%22item_id%22:%22half%22%7D HTTP/1.1\r\nHost: localhost\r\n"
        kind = "Content-Type: video/mp4\r\nContent-Length: 3000000\r\n\r\n"
        connection.sendall((head + kind).encode() + bytes(2_000_000))
        wait_until(lambda: gateway.uploads.is_dir() and any(p.stat().st_size for p in gateway.uploads.iterdir()))
    wait_until(lambda: list(gateway.uploads.iterdir()) == [])
    assert gateway.client.get("/v1/items/half/status").status_code == 404


def test_api_description_and_its_page_hold_the_routes(gateway: Gateway) -> None:
    paths = gateway.client.get("/openapi.json").json()["paths"]
    assert set(paths["/v1/items"]["post"]["requestBody"]["content"]) == {
        "application/json",
        "multipart/form-data",
        "application/octet-stream",
    }
    assert "/v1/items/{item_id}/status" in paths
    assert "delete" in paths["/v1/items/{item_id}"]
    assert "/v1/items" in gateway.client.get("/docs").text
