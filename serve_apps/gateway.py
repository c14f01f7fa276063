"""What a gateway replica does, and `build_app`, which deploys gateways and conductor on Ray Serve.

The gateway loads catalogues and the event store, never a model: with all models dead it still answers. Which bundle it
asks is in the lineup, see lineup_watch.py; the models of each bundle are an application of their own, models_app.py.
"""

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.handle import DeploymentHandle

from avrec_ray.bundle import load_bundle_profiles, load_catalogue, load_metadata
from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.errors import BundleError
from avrec_ray.feedback.store import EventStore
from avrec_ray.new_items.store import NewItemStore
from avrec_ray.ranking.rule_effects import RuleEffects
from avrec_ray.ranking.rules import load_rules
from avrec_ray.rollout.lineup import Arm, Lineup
from avrec_ray.rollout.store import LineupConflictError, Numbered, RolloutStore
from avrec_ray.towers.vector_tables import vectors_of
from avrec_ray.training.profiles import UserProfiles
from serve_apps.access_log import AccessLog
from serve_apps.api import create_api
from serve_apps.auth import Gate, check_host
from serve_apps.conducting import ConductorDeployment
from serve_apps.config import ServeConfig
from serve_apps.fallback import Vectors
from serve_apps.flow import RequestFlow, history_readers
from serve_apps.keys import KeyRing, from_plain, keys_of_service
from serve_apps.lineup_watch import LineupWatch
from serve_apps.loopback import keep_replica_on_loopback
from serve_apps.metrics import GatewayMetrics
from serve_apps.models_app import app_name, deployment, models_of
from serve_apps.new_items import follow_changes, inbox_of, new_item_store
from serve_apps.rate_actor import SharedBuckets
from serve_apps.rate_limits import RateLimiter
from serve_apps.tracing import begin_tracing
from serve_apps.variants import Variants

logger = logging.getLogger(__name__)

_WARM_SECONDS = 5.0
_BUCKETS_SECONDS = 20.0
"""A process takes seconds to start on a busy node. Both waits together are within Serve's health check of 30 s."""


class GatewayDeployment:
    """The FastAPI application over the bundles of the lineup."""

    def __init__(
        self, args: dict[str, Any], keys: Mapping[str, Any], _conductor: DeploymentHandle | None = None
    ) -> None:
        """`keys`: what `keys_of_service` found where the service was deployed.

        `_conductor` is never called: an application runs what its ingress is given.
        """
        keep_replica_on_loopback()
        begin_tracing(serve.get_replica_context().replica_id.unique_id)
        cfg = from_dict(ServeConfig, args)
        ring = KeyRing(from_plain(keys["fixed"]), keys["file"])
        metrics = GatewayMetrics(replica=serve.get_replica_context().replica_id.unique_id)
        rollouts, new_items = rollout_store(cfg), new_item_store(cfg)
        flows = FlowOpener(cfg, metrics, new_items)
        first, flow = flows.first(rollouts.current())
        # One revision behind: if there is a candidate, the watch takes it up with the rest of the lineup.
        self._is_warm = False
        self._variants = variants = Variants(flow, first.revision - 1, first.lineup, cfg.rollout)
        self._watch = LineupWatch(rollouts, variants, flows)
        self._buckets = SharedBuckets(str(cfg.port)) if ring.closed else None
        admit = RateLimiter(cfg.limits, self._buckets.take).admit if self._buckets else None
        # Ray Serve's proxy puts the id of a request into the answer, the client's or one that it made.
        self._api = create_api(
            variants,
            cfg.feedback,
            Gate(ring, admit),
            cfg.max_body_bytes,
            cfg.limits,
            cfg.event_names,
            echoes_request_id=False,
            new_items=inbox_of(cfg, variants, new_items),
            access_log=AccessLog(lambda: variants.champion.model_version) if cfg.access_log else None,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._api

    async def check_health(self) -> None:
        """Serve calls this before the first request, and then now and again; a gateway is well without models, too.

        The first call through a handle takes long; a client's request should not be the one. Nor should a write be the
        one that finds nothing to count it by.
        """
        if self._is_warm:
            return
        self._is_warm = True
        # Lists come without models meanwhile; writes are asked to come again.
        await _begun("models", self._variants.champion.models.versions(), _WARM_SECONDS)
        if self._buckets is not None:
            await _begun("the actor that counts requests", self._buckets.started(), _BUCKETS_SECONDS)


async def _begun(what: str, answer: Awaitable[object], longest_seconds: float) -> None:
    try:
        async with asyncio.timeout(longest_seconds):
            await answer
    except Exception:
        logger.warning("%s: no answer yet", what, exc_info=True)


class FlowOpener:
    """Loads what a gateway needs of a bundle; all flows share the event store, its threads, and the metrics."""

    def __init__(self, cfg: ServeConfig, metrics: GatewayMetrics, new_items: NewItemStore) -> None:
        self._cfg, self._metrics, self._new_items = cfg, metrics, new_items
        self._store = EventStore(cfg.feedback.store_url(cfg.storage_path), cfg.feedback.busy_timeout_seconds)
        self._readers = history_readers()

    def first(self, found: Numbered | None) -> tuple[Numbered, RequestFlow]:
        """The newest lineup and the flow of its champion; where its bundle is gone, of the deployed one alone."""
        deployed = first_lineup(self._cfg)
        if found is None:
            return Numbered(0, deployed), self(deployed.champion)
        try:
            return found, self(found.lineup.champion)
        except BundleError:
            if found.lineup.champion.bundle == deployed.champion.bundle:
                raise
            logger.exception("the champion of lineup %d cannot be read; serving the deployed bundle", found.revision)
            return Numbered(found.revision, deployed), self(deployed.champion)

    def __call__(self, arm: Arm) -> RequestFlow:
        """The flow of a bundle, caught up with new items.

        Raises:
            BundleError: it cannot be read.
        """
        cfg, bundle = self._cfg, arm.bundle
        metadata, catalogue = load_metadata(bundle), load_catalogue(bundle)
        self._metrics.built(metadata.model_version, metadata.built_at_seconds)
        flow = RequestFlow(
            models=models_of(arm.app, cfg),
            store=self._store,
            catalogue=catalogue,
            model_version=metadata.model_version,
            index_version=metadata.towers_version,
            # A list must not depend on who asks: batch recommendation reads as much as the towers do.
            history_length=max(cfg.feedback.history_length, metadata.towers.history_length),
            deadline_ms=cfg.deadline_ms,
            metrics=self._metrics,
            known_users=known_users(load_bundle_profiles(bundle)),
            load_profiles=lambda: load_bundle_profiles(bundle),
            rules=RuleEffects(load_rules(cfg.policy.rules) if cfg.policy.rules else (), catalogue),
            readers=self._readers,
            vectors=fallback_vectors(bundle, cfg.max_fallback_items),
        )
        follow_changes(cfg, flow, metadata, self._new_items)
        return flow


def known_users(profiles: UserProfiles | None) -> frozenset[str]:
    """Users of whom the towers know something without a history."""
    if profiles is None:
        return frozenset()
    return frozenset(u for u, telling in zip(profiles.user_ids, profiles.telling, strict=True) if telling)


def fallback_vectors(bundle: str, most_items: int) -> Vectors | None:
    """Vectors of a bundle's items, half precise, for lists without a model; None where there are too many to hold."""
    metadata = load_metadata(bundle)
    path = Path(bundle) / "embeddings.parquet"
    if pq.read_metadata(path).num_rows > most_items:
        return None
    return vectors_of(pq.read_table(path), "embedding", metadata.towers.embedding_dim).astype(np.float16)


def build_app(args: Mapping[str, Any]) -> serve.Application:
    """The application for ServeConfig values; serve_config.yaml names this function.

    The bundle becomes the champion, unless the last deployment named it too: then the lineup goes on as it is.

    Raises:
        ConfigError: a value is wrong, or the host is open to others without API keys.
        BundleError: there is no bundle to serve.
    """
    cfg = from_dict(ServeConfig, args)
    keys = keys_of_service()
    check_host(cfg.host, bool(keys["fixed"] or keys["file"]))
    lineup = first_lineup(cfg)  # fail here, with the reason, rather than in a replica that restarts for ever
    if cfg.policy.rules:
        load_rules(cfg.policy.rules)
    begin_lineup(cfg, lineup)
    overload = BackpressureConfig(status_code=429, retry_after_s=1)
    replicas = {"num_replicas": cfg.gateway_replicas, "backpressure_config": overload}
    gateway = deployment(serve.ingress()(GatewayDeployment), "gateway", 64, **replicas)
    conductor = deployment(ConductorDeployment, "conductor", 4, num_replicas=1, num_cpus=0.1)
    return gateway.bind(to_dict(cfg), keys, conductor.bind(to_dict(cfg)))


def first_lineup(cfg: ServeConfig) -> Lineup:
    """The deployed bundle alone."""
    version = load_metadata(cfg.bundle).model_version
    champion = Arm(model_version=version, bundle=cfg.bundle, app=app_name(cfg, version))
    return Lineup(champion=champion, deployed=cfg.bundle, reason=f"{version} deployed")


def begin_lineup(cfg: ServeConfig, lineup: Lineup) -> None:
    """Write the lineup of a deployment, unless the last one named the same bundle."""
    store = rollout_store(cfg)
    try:
        while True:
            found = store.current()
            if found is not None and found.lineup.deployed == lineup.deployed:
                return
            try:
                store.append(lineup, 0 if found is None else found.revision)
                return
            except LineupConflictError:
                continue  # a gateway took a candidate back just now
    finally:
        store.close()


def rollout_store(cfg: ServeConfig) -> RolloutStore:
    """The store that a service's settings name."""
    return RolloutStore(cfg.feedback.store_url(cfg.storage_path), cfg.feedback.busy_timeout_seconds)
