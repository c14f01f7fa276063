"""From the request that posts a new item to the moment when lists can hold it, in a catalogue of 100,000 items.

Run: PYTHONPATH=. python -m benchmarks.new_items [--items 100000] [--rounds 5]

One process has what a service has in four: gateway (a real HTTP server), matcher and reranker that follow, and a worker
with its decoding child; store, files, media and towers of the default sizes are real, vectors of the catalogue and
weights are drawn. An item is servable when gateway, matcher and reranker know it; then it must be the nearest of all to
its own vector. Below: what a request costs while items keep joining, as a ratio to the quiet service of the same run.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import torch

from avrec_ray.bundle import load_catalogue, load_metadata
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.feedback.store import EventStore
from avrec_ray.media.config import MediaConfig
from avrec_ray.new_items.config import NewItemsConfig
from avrec_ray.new_items.follow import Follower
from avrec_ray.new_items.ingest import IngestWorker
from avrec_ray.new_items.log import Change
from avrec_ray.new_items.store import NewItemStore
from avrec_ray.new_items.submission import Submission
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.towers.config import TowersConfig
from avrec_ray.types import Event, Query
from serve_apps.api import create_api
from serve_apps.config import ServeConfig
from serve_apps.flow import RequestFlow
from serve_apps.new_items import follow_changes, inbox_of, new_item_store
from serve_apps.variants import Variants
from tests.media.render import tone, write_media
from tests.serve_apps.conftest import CategoryModels, served
from tests.tiny_bundle import build_tiny_bundle

GIVE_UP_SECONDS = 120.0


def render(folder: Path) -> dict[str, Path]:
    """Files of several kinds; what they show does not matter."""
    sound = tone(10.0)
    return {
        "320x240, 10 s": write_media(folder / "a.mp4", 250, sound=sound, size=(320, 240)),
        "1280x720, 10 s": write_media(folder / "b.mp4", 250, sound=sound, size=(1280, 720)),
        "sound, 60 s": write_media(folder / "c.m4a", 0, sound=tone(60.0)),
    }


class Service:
    """Gateway, matcher, reranker and worker over one bundle."""

    def __init__(self, stack: ExitStack, folder: Path, bundle: Path) -> None:
        cfg = ServeConfig(
            bundle=str(bundle), storage_path=str(folder), new_items=NewItemsConfig(media_roots=[str(folder)])
        )
        metadata, catalogue = load_metadata(bundle), load_catalogue(bundle)
        self.store = NewItemStore(cfg.feedback.store_url(cfg.storage_path))
        self.matcher = Matcher(bundle, MatcherConfig(num_candidates=90, num_fresh=10))
        self.reranker = Reranker(bundle)
        built = frozenset(catalogue.item_ids)
        for model in (self.matcher, self.reranker):
            follower = Follower(self.store, metadata, built, model.apply, cfg.new_items.poll_seconds)
            follower.start()
            stack.callback(follower.stop)
        models = CategoryModels(catalogue, matcher_version=bundle.name, reranker_version=bundle.name)
        events = EventStore(cfg.feedback.store_url(cfg.storage_path))
        self.flow = RequestFlow(models.as_models(), events, catalogue, bundle.name, "v", 50, 5000)
        queue = new_item_store(cfg)
        follow_changes(cfg, self.flow, metadata, queue)
        variants = Variants(self.flow)
        api = create_api(variants, FeedbackConfig(), new_items=inbox_of(cfg, variants, queue))
        self.client = stack.enter_context(httpx.Client(base_url=stack.enter_context(served(api)), timeout=60))
        worker = IngestWorker(bundle, self.store, cfg.new_items, folder / "new_items")
        thread = threading.Thread(target=worker.run)
        thread.start()
        stack.callback(worker.close)
        stack.callback(thread.join)
        stack.callback(worker.stop)

    def seconds_to_servable(self, item_id: str, path: Path, is_upload: bool) -> float:
        """From before the POST to after the last of them knows the item."""
        began = time.perf_counter()
        if is_upload:
            item = f'{{"item_id": "{item_id}", "title": "a new clip"}}'
            answer = self.client.post("/v1/items", files={"item": (None, item), "media": path.open("rb")})
        else:
            answer = self.client.post(
                "/v1/items", json={"item_id": item_id, "title": "a new clip", "media_uri": str(path)}
            )
        assert answer.status_code == 202, answer.text
        while not (self.matcher.knows(item_id) and self.reranker.knows(item_id) and self.flow.catalogue.idx(item_id)):
            assert time.perf_counter() - began < GIVE_UP_SECONDS, self.store.status(item_id)
            time.sleep(0.005)
        taken = time.perf_counter() - began
        row = self.matcher.bundle.items.index_of[item_id]
        nearest = self.matcher.index.search_exact(self.matcher.bundle.embeddings[row][None], 3)[0][0]
        assert abs(nearest[0] - 1) < 1e-4
        return taken

    def request_ms(self, num_requests: int) -> np.ndarray:
        """Milliseconds of match and rerank of one request after the other."""
        rng = np.random.default_rng(0)
        names, taken = self.matcher.bundle.items.item_ids, []
        for _ in range(num_requests):
            rows = rng.integers(0, self.matcher.bundle.num_built, 30).tolist()
            history = tuple(Event("u", names[row], "view", 60.0 * n) for n, row in enumerate(rows))
            began = time.perf_counter()
            query = Query("u", history, 20)
            assert len(self.reranker.rerank(query, self.matcher.match([query])[0])) == 20
            taken.append(1e3 * (time.perf_counter() - began))
        return np.array(taken)


def while_joining(service: Service, put: Callable[[int], None], num_requests: int) -> tuple[np.ndarray, int]:
    """`request_ms` while another thread puts one item after another into the log; and how many came."""
    done, count = threading.Event(), 0

    def join() -> None:
        nonlocal count
        while not done.wait(0.05):
            put(count)
            count += 1

    thread = threading.Thread(target=join)
    thread.start()
    taken = service.request_ms(num_requests)
    done.set()
    thread.join()
    return taken, count


def apply_ms(model: Matcher | Reranker, vectors: bytes, count: int = 30) -> str:
    """What `apply` takes: of the first item, which makes room, and of the others."""
    taken = []
    for number in range(count):
        facts = Submission(f"applied{number}", "x")
        began = time.perf_counter()
        model.apply([Change(1, facts.item_id, "put", facts.to_json(), vectors)])
        taken.append(1e3 * (time.perf_counter() - began))
    return f"first {taken[0]:.2f} ms  median {np.median(taken):.2f} ms  most {max(taken):.2f} ms"


def main(num_items: int, rounds: int, num_requests: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        clips = render(folder)
        towers = TowersConfig(num_mel_frames=MediaConfig().log_mel_shape[1])
        bundle = build_tiny_bundle(
            folder / "v-large", num_items, towers=towers, media=MediaConfig(), random_vectors=True, num_users=10_000,
            num_choices=100_000,
        )  # fmt: skip
        service = Service(stack, folder, bundle)
        print(f"{num_items:,} items, {service.matcher.index.backend}; seconds from POST to servable, {rounds} rounds")
        slowest = 0.0
        for name, path in clips.items():
            for is_upload in (False, True):
                taken = [service.seconds_to_servable(f"{name}{is_upload}{n}", path, is_upload) for n in range(rounds)]
                slowest = max(slowest, *taken)
                how = "upload" if is_upload else "path"
                print(f"{name:16}{how:8} first {taken[0]:.2f}  median {np.median(taken):.2f}  most {max(taken):.2f}")
        print(f"slowest {slowest:.2f} s, bound 30 s: {slowest / 30:.3f}")
        service.request_ms(20)
        vectors = service.store.changes(0, service.matcher.bundle.metadata.towers_version)[0].vectors

        def put(number: int) -> None:
            service.store.submit(Submission(f"joined{number}", "x"))

        def put_ready(number: int) -> None:
            put(number)
            while (claim := service.store.claim("benchmark", 60)) is not None:
                service.store.finish(claim, service.matcher.bundle.metadata.towers_version, vectors)

        for name, model in (("matcher", service.matcher), ("reranker", service.reranker)):
            print(f"requests wait for one item that joins the {name}: {apply_ms(model, vectors)}")
        quiet = service.request_ms(num_requests)
        busy, count = while_joining(service, put_ready, num_requests)
        for name, taken in (("quiet", quiet), (f"{count} items joining", busy)):
            p50, p99 = np.quantile(taken, [0.5, 0.99])
            print(f"{name:24} request p50 {p50:7.2f} ms  p99 {p99:7.2f} ms")
        print(f"ratio of p50 {np.median(busy) / np.median(quiet):.2f}, of p99 "
              f"{np.quantile(busy, 0.99) / np.quantile(quiet, 0.99):.2f}")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200)
    arguments = parser.parse_args()
    main(arguments.items, arguments.rounds, arguments.requests)
