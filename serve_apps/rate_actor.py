"""The buckets of all gateway replicas: an actor of one cluster, known by name.

It needs no database write a request, as buckets in the event store would. It lives as long as the replica that made it:
when that one goes, the next to ask makes a new one with full buckets, so that at most one burst is forgotten.
"""

from typing import Any

import ray
from ray.exceptions import RayActorError

from serve_apps.rate_limits import TokenBuckets

NAMESPACE = "avrec"


class SharedBuckets:
    """The actor that all gateway replicas of a service ask."""

    def __init__(self, service: str) -> None:
        """Begins to start the actor, where there is none yet."""
        self._service = service
        self._actor = _actor(service)

    async def started(self) -> None:
        """Until the actor has begun: a write that comes before would be refused, since it cannot be counted.

        Raises:
            RayActorError: it could not begin.
        """
        await self._actor.__ray_ready__.remote()

    async def take(self, name: str, per_second: float, burst: int, wanted: int) -> tuple[int, float]:
        """See `TokenBuckets.take`; an actor that died is started anew."""
        try:
            granted: tuple[int, float] = await self._actor.take.remote(name, per_second, burst, wanted)
        except RayActorError:
            self._actor = _actor(self._service)
            granted = await self._actor.take.remote(name, per_second, burst, wanted)
        return granted


def _actor(service: str) -> Any:
    options: dict[str, Any] = {"name": f"rate_limits/{service}", "namespace": NAMESPACE, "get_if_exists": True}
    return ray.remote(TokenBuckets).options(num_cpus=0, max_concurrency=1, **options).remote()
