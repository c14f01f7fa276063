"""How soon a like changes the user's list, whichever gateway replica answers.

Run: PYTHONPATH=. python -m benchmarks.freshness [--rounds 200] [--database sqlite]

A small bundle is served from two gateway replicas. A round: two lists of a user, whose times are what a request takes
by itself; then a like of the first item, and from its answer on lists until one is changed: the liked item is gone and
scores differ. Told is the time from that answer to the end of the first changed list, less the median of a request.
Then three more lists must be changed, too: by chance every second one is from the other replica.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from ray import serve

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.pipelines.session import session
from serve_apps.config import ServeConfig
from serve_apps.run import start
from tests.feedback.postgres_server import PostgresServer
from tests.serve_apps.conftest import free_port
from tests.tiny_bundle import build_tiny_bundle

NUM_ITEMS, K, MORE_LISTS = 400, 10, 3


def main(rounds: int, database: str) -> None:
    """Serve, and measure."""
    server = PostgresServer() if database == "postgresql" else None
    cluster = ClusterConfig(num_cpus=6, object_store_bytes=200_000_000)
    with tempfile.TemporaryDirectory() as folder, session(cluster):
        url = server.new_url() if server else ""
        bundle = build_tiny_bundle(Path(folder) / "v-fresh", NUM_ITEMS, head_std=1.0)
        cfg = ServeConfig(
            bundle=str(bundle), storage_path=folder, feedback=FeedbackConfig(url=url), port=free_port(),
            gateway_replicas=2,
        )  # fmt: skip
        with httpx.Client(base_url=start(cfg), timeout=30) as client:
            for number in range(20):
                one_round(client, number)  # warm: the first requests of a replica are slow
            taken = [one_round(client, 1000 + number) for number in range(rounds)]
        serve.shutdown()
    if server:
        server.stop()
    report(np.array(taken), database)


def one_round(client: httpx.Client, number: int) -> tuple[float, float, int]:
    """Seconds of a plain list, seconds from the like's answer to the first changed list, and lists until then."""
    user_id = f"user-{number}"
    post(client, user_id, f"first-{number}", f"i{number % 300:03d}")
    plain = []
    for _ in range(2):
        began = time.perf_counter()
        before = recommend(client, user_id)
        plain.append(time.perf_counter() - began)
    liked = before[0][0]
    post(client, user_id, f"like-{number}", liked)
    answered = time.perf_counter()
    num_lists = 1
    while not is_changed(before, recommend(client, user_id), liked):
        num_lists += 1
    changed = time.perf_counter() - answered
    for _ in range(MORE_LISTS):
        if not is_changed(before, recommend(client, user_id), liked):
            raise SystemExit(f"{user_id}: a later list knows nothing of the like")
    return float(np.mean(plain)), changed, num_lists


def is_changed(before: list[tuple[str, float]], after: list[tuple[str, float]], liked: str) -> bool:
    """The liked item is gone, and what is left has other scores."""
    scores = dict(before)
    same = [item_id for item_id, score in after if scores.get(item_id) == score]
    return all(item_id != liked for item_id, _ in after) and len(same) < len(after)


def recommend(client: httpx.Client, user_id: str) -> list[tuple[str, float]]:
    """Items and scores of a list, which must not be degraded by what is slow."""
    answer: dict[str, Any] = client.post("/v1/recommend", json={"user_id": user_id, "k": K}).raise_for_status().json()
    if set(answer["degraded"]) - {"unknown_user"}:
        raise SystemExit(f"degraded: {answer['degraded']}")
    return [(item["item_id"], item["score"]) for item in answer["items"]]


def post(client: httpx.Client, user_id: str, event_id: str, item_id: str) -> None:
    """One like, acknowledged."""
    event = {"event_id": event_id, "user_id": user_id, "item_id": item_id, "event": "like"}
    answer = client.post("/v1/feedback", json={"events": [event]}).raise_for_status().json()
    if answer["accepted"] != 1:
        raise SystemExit(f"not accepted: {answer}")


def report(taken: np.ndarray, database: str) -> None:
    """Quantiles in milliseconds."""
    plain = 1e3 * taken[:, 0]
    above = 1e3 * taken[:, 1] - np.median(plain)
    print(f"{database}, {len(taken)} rounds; a list by itself p50 {np.median(plain):.1f} ms")
    p50, p99 = np.quantile(above, [0.5, 0.99])
    print(f"changed list above that: p50 {p50:.1f} ms, p99 {p99:.1f} ms, at most {above.max():.1f} ms")
    print(f"the first list after the answer was changed in {(taken[:, 2] == 1).mean():.1%} of rounds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.database)
