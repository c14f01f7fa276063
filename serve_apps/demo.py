"""What `make demo` shows at its end: the metric table, three users with their lists and the reasons, a curl line."""

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avrec_ray.bundle import load_catalogue
from avrec_ray.catalogue import Catalogue
from avrec_ray.config import JobConfig
from avrec_ray.errors import ConfigError
from avrec_ray.feedback.store import EventStore
from avrec_ray.pipelines.full_loop import MLFLOW_UI_URL
from avrec_ray.types import POSITIVE_EVENTS, Event

NUM_USERS = 3
NUM_ITEMS = 5


def show(url: str, bundle: Path, events_url: str, say: Callable[[str], None] = print) -> str:
    """Ask the running service for three users' lists and print them beside what they watched; return a user id."""
    catalogue = load_catalogue(bundle)
    store = EventStore(events_url)
    try:
        if store.pseudonyms.is_keyed:
            raise ConfigError(
                "the demo asks for users by their ids, which a store with user keys does not have; unset them"
            )
        users = example_users(store)
        for user in users:
            say(f"\n{user} watched   " + "; ".join(watched_titles(store.history(user, 200), catalogue)))
            answer = recommend(url, user, NUM_ITEMS)
            say(f"{' ' * len(user)} is shown  " + item_line(answer["items"][0]))
            for item in answer["items"][1:]:
                say(f"{' ' * (len(user) + 11)}" + item_line(item))
    finally:
        store.close()
    return users[0]


def example_users(store: EventStore) -> list[str]:
    """Users with some of the longest histories, spread over them: they show most."""
    table, _ = store.export_interactions()
    counts = sorted(table["user_id"].value_counts().to_pylist(), key=lambda row: (-row["counts"], row["values"]))
    step = max(1, len(counts) // (2 * NUM_USERS))
    return [str(row["values"]) for row in counts[::step][:NUM_USERS]]


def watched_titles(history: tuple[Event, ...], catalogue: Catalogue) -> list[str]:
    """Titles of the newest items that the user chose, newest first."""
    chosen = [e.item_id for e in reversed(history) if e.event in POSITIVE_EVENTS]
    rows = [catalogue.idx(item_id) for item_id in dict.fromkeys(chosen)]
    return [catalogue.titles[row] for row in rows if row is not None][:NUM_ITEMS]


def item_line(item: dict[str, Any]) -> str:
    """One recommended item and why."""
    line = f"{item['rank']}. {item['title']} ({item['score']:.2f})"
    why = (item.get("explanation") or {}).get("sentence")
    return f"{line}  {why}" if why else line


def recommend(url: str, user_id: str, k: int, explain: bool = True) -> dict[str, Any]:
    """POST /v1/recommend."""
    body = json.dumps({"user_id": user_id, "k": k, "explain": explain}).encode()
    request = urllib.request.Request(f"{url}/v1/recommend", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def finish(url: str, user_id: str, job: JobConfig, tracking_uri: str, say: Callable[[str], None] = print) -> None:
    """With `once`, ask one request, print the answer and return; else leave the service running until Ctrl-C."""
    curl = f"curl -s {url}/v1/recommend -H 'Content-Type: application/json' -d"
    query = json.dumps({"user_id": user_id, "k": 10, "explain": True})
    say(f"\nservice    {url}   (API: {url}/docs)")
    say(f"ask it     {curl} '{query}'")
    say(f"MLflow UI  .venv/bin/mlflow ui --backend-store-uri {tracking_uri}   then open {MLFLOW_UI_URL}")
    if job.once:
        answer = recommend(url, user_id, 10, explain=False)
        say(f"\nPOST /v1/recommend for {user_id}:")
        say(json.dumps(answer, indent=1))
        return
    wait(url, say)


def wait(url: str, say: Callable[[str], None] = print) -> None:
    """Leave the service running until Ctrl-C."""
    say(f"\nserving at {url} until Ctrl-C")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        say("\nstopping")
