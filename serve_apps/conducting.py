"""The conductor as a deployment of the service, over Ray Serve's applications and MLflow's registry."""

import asyncio
import logging
import math
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.schema import ApplicationStatusOverview

from avrec_ray.bundle import load_metadata
from avrec_ray.dataclass_io import from_dict
from avrec_ray.errors import StageError
from avrec_ray.feedback.store import EventStore
from avrec_ray.pipelines.storage import Storage
from avrec_ray.rollout.lineup import Arm
from avrec_ray.rollout.replay import DEPTH, Probe, probes_of
from avrec_ray.rollout.store import RolloutStore
from avrec_ray.types import Query
from serve_apps.conductor import Conductor
from serve_apps.config import ServeConfig
from serve_apps.loopback import keep_replica_on_loopback
from serve_apps.models_app import PREFIX, app_name, models_app, models_of

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.5
_PROBE_SECONDS = 30.0
_PROBES_AT_ONCE = 4
_HISTORY_LENGTH = 200


class ServeApps:
    """Applications of bundles on the connected Ray Serve. See `conductor.Apps`."""

    def __init__(self, cfg: ServeConfig) -> None:
        self._cfg = cfg
        self._asked_at, self._known = -1e9, dict[str, ApplicationStatusOverview]()

    def name(self, model_version: str) -> str:
        """See Apps."""
        return app_name(self._cfg, model_version)

    def names(self) -> list[str]:
        """See Apps."""
        return [name for name in self._status() if name.startswith(PREFIX)]

    def start(self, arm: Arm) -> None:
        """See Apps."""
        target = serve.RunTarget(models_app(self._cfg, arm.bundle), name=arm.app, route_prefix=None)
        serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
        self._asked_at = -1e9

    def state(self, app: str) -> str:
        """See Apps."""
        found = self._status().get(app)
        if found is None:
            return "missing"
        if found.status == "RUNNING":
            return "running"
        if found.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            return f"failed: {found.message}"
        return "missing" if found.status == "DELETING" else "starting"

    def lists(self, app: str, probes: Sequence[Probe]) -> list[list[str]]:
        """See Apps. Raises also where a list is another bundle's, or a score is not finite."""
        return asyncio.run(self._asked(app, probes))

    def delete(self, app: str) -> None:
        """See Apps."""
        serve.delete(app, _blocking=False)
        self._asked_at = -1e9

    def _status(self) -> dict[str, ApplicationStatusOverview]:
        """Of all applications, asked for once a tick: the controller has others to look after."""
        if time.monotonic() - self._asked_at > _TICK_SECONDS / 2:
            self._known, self._asked_at = serve.status().applications, time.monotonic()
        return self._known

    async def _asked(self, app: str, probes: Sequence[Probe]) -> list[list[str]]:
        models, turn = models_of(app, self._cfg), asyncio.Semaphore(_PROBES_AT_ONCE)

        async def ask(probe: Probe) -> list[str]:
            query = Query(user_id=None, history=probe.history, k=DEPTH)
            async with turn, asyncio.timeout(_PROBE_SECONDS):
                matched = await models.match(query)
                ranked = await models.rerank(query, matched.candidates)
            if ranked.model_version != matched.model_version:
                raise ValueError(f"matcher of {matched.model_version} and reranker of {ranked.model_version}")
            if not all(math.isfinite(item.score) for item in ranked.items):
                raise ValueError("a score is not finite")
            return [item.item_id for item in ranked.items]

        return list(await asyncio.gather(*(ask(probe) for probe in probes)))


class Registry:
    """The registry that the service follows. MLflow is imported when it is first asked."""

    def __init__(self, cfg: ServeConfig) -> None:
        self._cfg = cfg
        self._tracking: Any = None
        self._resolved: dict[str, Path] = {}

    def champion(self) -> tuple[str, str] | None:
        """Version and model_version; None before the first promotion, or while the registry does not answer."""
        try:
            found = self._opened().champion()
        except Exception:  # MLflow raises what it likes; the service goes on
            logger.warning("the registry does not answer", exc_info=True)
            return None
        return None if found is None else (found.version, found.model_version)

    def resolve(self, reference: str) -> Path:
        """Folder of a bundle that every node can read. A version of the registry is looked up once.

        Raises:
            StageError: it is not in the registry, or that does not answer.
        """
        if not reference.startswith("models:"):
            return Path(reference)
        if reference not in self._resolved:
            self._resolved[reference] = self._looked_up(reference)
        return self._resolved[reference]

    def _looked_up(self, reference: str) -> Path:
        if not reference.startswith("models:/"):
            reference = f"models:/{self._cfg.tracking.model_name}/{reference.removeprefix('models:')}"
        found: Path = self._opened().resolve_bundle(reference)
        root = Path(self._cfg.storage_path)
        return found if root in found.parents else _copied(found, root / "served")

    def _opened(self) -> Any:
        if self._tracking is None:
            from avrec_ray.pipelines.tracking import Tracking

            try:
                self._tracking = Tracking(self._cfg.tracking, Storage.at(self._cfg.storage_path))
            except Exception as error:  # MLflow raises what it likes
                raise StageError(f"the registry cannot be opened ({type(error).__name__}: {error})") from error
        return self._tracking


class RegistryWatch:
    """Asks the registry in a thread of its own: MLflow tries for minutes, and a rollback cannot wait."""

    def __init__(self, registry: Registry, poll_seconds: float) -> None:
        self.champion: tuple[str, str] | None = None
        self._registry, self._poll_seconds = registry, poll_seconds
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="registry", daemon=True).start()

    def stop(self) -> None:
        """End asking."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self.champion = self._registry.champion() or self.champion
            self._stopped.wait(self._poll_seconds)


class ConductorDeployment:
    """One conductor, in a thread."""

    def __init__(self, args: dict[str, Any]) -> None:
        keep_replica_on_loopback()
        cfg = from_dict(ServeConfig, args)
        url, busy_seconds = cfg.feedback.store_url(cfg.storage_path), cfg.feedback.busy_timeout_seconds
        events, registry = EventStore(url, busy_seconds), Registry(cfg)
        self._watch: RegistryWatch | None = None
        if cfg.rollout.follow_registry:
            # Its own connection: MLflow's are no matter of two threads.
            self._watch = RegistryWatch(Registry(cfg), cfg.rollout.registry_poll_seconds)

        def probes(known: set[str]) -> list[Probe]:
            users = events.recent_users(cfg.rollout.num_probes)
            return probes_of(events.histories(users, _HISTORY_LENGTH), known)

        self._conductor = Conductor(
            RolloutStore(url, busy_seconds),
            ServeApps(cfg),
            cfg.rollout,
            registry.resolve,
            probes,
            lambda: None if self._watch is None else self._watch.champion,
        )
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="conductor", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Serve calls this; a replica whose thread has ended is replaced."""
        if not self._thread.is_alive():
            raise RuntimeError("the conductor has ended")

    def __del__(self) -> None:
        """End with the replica."""
        if hasattr(self, "_stopped"):
            self._stopped.set()
            if self._watch is not None:
                self._watch.stop()

    def _run(self) -> None:
        while not self._stopped.wait(_TICK_SECONDS):
            try:
                self._conductor.tick()
            except Exception:  # the database or Serve's controller is away for a while
                logger.exception("the conductor's step failed; going on")


def _copied(bundle: Path, folder: Path) -> Path:
    """A bundle from an artifact store, where all nodes find it."""
    target = folder / load_metadata(bundle).model_version
    if not target.is_dir():
        part = target.with_name(target.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(bundle, part)
        part.rename(target)
    return target
