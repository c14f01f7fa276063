"""The buckets of all gateway replicas: an actor of one cluster, known by name.

It needs no database write a request, as buckets in the event store would. It lives as long as the replica that made it:
when that one goes, the next to ask makes a new one with full buckets, so that at most one burst is forgotten.
"""

from typing import Any

import ray
from ray.exceptions import RayActorError

from serve_apps.rate_limits import Take, TokenBuckets

NAMESPACE = "avrec"


def shared_take(service: str) -> Take:
    """`TokenBuckets.take` of the actor that all replicas of the service share."""
    actor = _actor(service)

    async def take(name: str, per_second: float, burst: int, wanted: int) -> tuple[int, float]:
        nonlocal actor
        try:
            granted: tuple[int, float] = await actor.take.remote(name, per_second, burst, wanted)
        except RayActorError:
            actor = _actor(service)
            granted = await actor.take.remote(name, per_second, burst, wanted)
        return granted

    return take


def _actor(service: str) -> Any:
    options: dict[str, Any] = {"name": f"rate_limits/{service}", "namespace": NAMESPACE, "get_if_exists": True}
    return ray.remote(TokenBuckets).options(num_cpus=0, max_concurrency=1, **options).remote()
