"""What a gateway replica does, and `build_app`, which joins it to matcher and reranker on Ray Serve.

The gateway loads the catalogue and the event store, never a model: with both model deployments dead it still answers.
"""

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.handle import DeploymentHandle

from avrec_ray.bundle import load_bundle_profiles, load_catalogue, load_metadata
from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.feedback.store import EventStore
from avrec_ray.new_items.eligible import why_not_encodable
from avrec_ray.ranking.rule_effects import RuleEffects
from avrec_ray.ranking.rules import load_rules
from avrec_ray.training.profiles import UserProfiles
from avrec_ray.types import Query
from serve_apps.access_log import AccessLog
from serve_apps.answers import FusedAnswer, Models
from serve_apps.api import create_api
from serve_apps.auth import Gate, check_host
from serve_apps.coalescing import Coalescer
from serve_apps.config import ServeConfig
from serve_apps.flow import RequestFlow
from serve_apps.following import FollowArgs
from serve_apps.keys import KeyRing, from_plain, keys_of_service
from serve_apps.loopback import keep_replica_on_loopback
from serve_apps.metrics import GatewayMetrics
from serve_apps.new_items import new_items_of
from serve_apps.packing import pack_queries, unpack_answers
from serve_apps.rate_actor import shared_take
from serve_apps.rate_limits import RateLimiter


class GatewayDeployment:
    """The FastAPI application over two deployment handles."""

    def __init__(
        self,
        args: dict[str, Any],
        keys: Mapping[str, Any],
        matcher: DeploymentHandle,
        reranker: DeploymentHandle,
        _ingest: DeploymentHandle | None = None,
    ) -> None:
        """`keys`: what `keys_of_service` found where the service was deployed.

        `_ingest` is never called: an application runs what its ingress is given.
        """
        keep_replica_on_loopback()
        cfg = from_dict(ServeConfig, args)
        ring = KeyRing(from_plain(keys["fixed"]), keys["file"])
        metadata = load_metadata(cfg.bundle)
        catalogue = load_catalogue(cfg.bundle)
        metrics = GatewayMetrics(replica=serve.get_replica_context().replica_id.unique_id)
        metrics.built(metadata.model_version, metadata.built_at_seconds)
        flow = RequestFlow(
            models=fused_models_of(matcher, cfg) if cfg.fused_models else models_of(matcher, reranker),
            store=EventStore(cfg.feedback.store_url(cfg.storage_path), cfg.feedback.busy_timeout_seconds),
            catalogue=catalogue,
            model_version=metadata.model_version,
            index_version=metadata.towers_version,
            # A list must not depend on who asks: batch recommendation reads as much as the towers do.
            history_length=max(cfg.feedback.history_length, metadata.towers.history_length),
            deadline_ms=cfg.deadline_ms,
            metrics=metrics,
            known_users=known_users(load_bundle_profiles(cfg.bundle)),
            load_profiles=lambda: load_bundle_profiles(cfg.bundle),
            rules=RuleEffects(load_rules(cfg.policy.rules) if cfg.policy.rules else (), catalogue),
        )
        admit = RateLimiter(cfg.limits, shared_take(str(cfg.port))).admit if ring.closed else None
        # Ray Serve's proxy puts the id of a request into the answer, the client's or one that it made.
        self._api = create_api(
            flow,
            cfg.feedback,
            Gate(ring, admit),
            cfg.max_body_bytes,
            cfg.limits,
            cfg.event_names,
            echoes_request_id=False,
            new_items=new_items_of(cfg, flow, metadata),
            access_log=AccessLog(metadata.model_version) if cfg.access_log else None,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._api


def known_users(profiles: UserProfiles | None) -> frozenset[str]:
    """Users of whom the towers know something without a history."""
    if profiles is None:
        return frozenset()
    return frozenset(u for u, telling in zip(profiles.user_ids, profiles.telling, strict=True) if telling)


def models_of(matcher: DeploymentHandle, reranker: DeploymentHandle) -> Models:
    """The two deployments as the gateway's calls."""

    async def versions() -> tuple[str, str]:
        found = await asyncio.gather(_awaited(matcher.version.remote()), _awaited(reranker.version.remote()))
        return found[0], found[1]

    return Models(
        match=lambda query: _awaited(matcher.match.remote(query)),
        score=lambda query, item_ids: _awaited(matcher.score.remote(query, item_ids)),
        similar=lambda item_id, k: _awaited(matcher.similar.remote(item_id, k)),
        rerank=lambda query, candidates: _awaited(reranker.rerank.remote(query, candidates)),
        versions=versions,
        search=lambda text, k: _awaited(matcher.search.remote(text, k)),
    )


def fused_models_of(models: DeploymentHandle, cfg: ServeConfig) -> Models:
    """A deployment that holds both models; lists that are asked for at the same time go together."""

    async def ask(queries: list[Query]) -> list[FusedAnswer]:
        return unpack_answers(await models.recommend_many.remote(pack_queries(queries)))

    async def alone(query: Query) -> FusedAnswer:
        return (await ask([query]))[0]

    # Two calls a replica: it never waits for the next while an answer is on its way.
    together = Coalescer(ask, cfg.max_batch, 2 * cfg.max_matcher_replicas, cfg.deadline_ms / 1000)
    # Reasons take a hundred times as long as a list: nobody else waits for them.
    return dataclasses.replace(
        models_of(models, models), recommend=lambda query: alone(query) if query.explain else together(query)
    )


async def _awaited(response: Any) -> Any:
    """A Serve response as a coroutine, which is what asyncio's timeouts take."""
    return await response


def build_app(args: Mapping[str, Any]) -> serve.Application:
    """The application for ServeConfig values; serve_config.yaml names this function.

    Raises:
        ConfigError: a value is wrong, or the host is open to others without API keys.
        BundleError: there is no bundle to serve.
    """
    cfg = from_dict(ServeConfig, args)
    keys = keys_of_service()
    check_host(cfg.host, bool(keys["fixed"] or keys["file"]))
    metadata = load_metadata(cfg.bundle)  # fail here, with the reason, rather than in a replica that restarts for ever
    if cfg.policy.rules:
        load_rules(cfg.policy.rules)
    # Imported late: they need torch, the gateway's replica does not.
    from serve_apps.ingest import IngestDeployment
    from serve_apps.matcher import MatcherDeployment
    from serve_apps.models import ModelsDeployment
    from serve_apps.reranker import RerankerDeployment

    matcher = _deployment(MatcherDeployment, "matcher", 32, **_autoscaling(cfg.max_matcher_replicas, 8))
    reranker = _deployment(RerankerDeployment, "reranker", 16, **_autoscaling(cfg.max_reranker_replicas, 4))
    overload = BackpressureConfig(status_code=429, retry_after_s=1)
    replicas = {"num_replicas": cfg.gateway_replicas, "backpressure_config": overload}
    gateway = _deployment(serve.ingress()(GatewayDeployment), "gateway", 64, **replicas)
    store_url, busy_seconds = cfg.feedback.store_url(cfg.storage_path), cfg.feedback.busy_timeout_seconds
    follow = to_dict(
        FollowArgs(url=store_url, busy_timeout_seconds=busy_seconds, poll_seconds=cfg.new_items.poll_seconds)
    )
    ingest = []
    if cfg.new_items.num_workers and not why_not_encodable(metadata):
        ingest = [_deployment(IngestDeployment, "ingest", 4, num_replicas=cfg.new_items.num_workers).bind(to_dict(cfg))]
    if cfg.fused_models:
        fused = _deployment(ModelsDeployment, "models", 16, **_autoscaling(cfg.max_matcher_replicas, 1.5))
        both = fused.bind(cfg.bundle, to_dict(cfg.matcher), to_dict(cfg.policy), follow)
        return gateway.bind(to_dict(cfg), keys, both, both, *ingest)
    return gateway.bind(
        to_dict(cfg),
        keys,
        matcher.bind(cfg.bundle, to_dict(cfg.matcher), follow),
        reranker.bind(cfg.bundle, to_dict(cfg.policy), follow),
        *ingest,
    )


def _deployment(replica: type, name: str, max_ongoing_requests: int, **options: Any) -> serve.Deployment:
    return serve.deployment(
        name=name,
        max_ongoing_requests=max_ongoing_requests,
        max_queued_requests=128,
        max_surge_percent=100,  # a new replica is up before the old one goes
        graceful_shutdown_timeout_s=10,
        health_check_period_s=5,
        health_check_timeout_s=10,
        ray_actor_options={"num_cpus": 0.5},
        **options,
    )(replica)


def _autoscaling(max_replicas: int, target_ongoing_requests: float) -> dict[str, Any]:
    """Up within seconds, down after minutes: a short downscale delay flaps, because replicas start slowly."""
    config = {
        "min_replicas": 1,
        "max_replicas": max_replicas,
        "target_ongoing_requests": target_ongoing_requests,
        "upscale_delay_s": 10,
        "downscale_delay_s": 300,
    }
    return {"autoscaling_config": config}
