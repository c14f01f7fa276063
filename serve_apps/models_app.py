"""One bundle's models as a Serve application of their own: deployed beside others, asked by handle, taken down whole.

Nothing of it is shared with another bundle's, so a candidate that dies or dawdles takes nobody with it.
"""

import asyncio
import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from avrec_ray import __version__
from avrec_ray.bundle import load_metadata
from avrec_ray.dataclass_io import to_dict
from avrec_ray.new_items.eligible import why_not_encodable
from avrec_ray.types import Query
from serve_apps.answers import FusedAnswer, Models
from serve_apps.coalescing import Coalescer
from serve_apps.config import ServeConfig
from serve_apps.following import FollowArgs
from serve_apps.packing import pack_queries, unpack_answers

PREFIX = "models-"
"""Applications of this name are bundles', and the conductor's to take down."""
_FUSED = "-fused"
"""Ends the name of an application whose replicas hold both models: who asks it must know."""


def app_name(cfg: ServeConfig, model_version: str) -> str:
    """Name of a bundle's application under these settings; with others it is another one, swapped in like a bundle."""
    parts = {
        "code": __version__,
        "matcher": to_dict(cfg.matcher),
        "policy": to_dict(cfg.policy),
        "new_items": to_dict(cfg.new_items),
        "store": cfg.feedback.store_url(cfg.storage_path),
        "matchers": [cfg.max_matcher_replicas, cfg.matcher_ongoing_requests],
        "rerankers": [cfg.max_reranker_replicas, cfg.reranker_ongoing_requests],
        "scaling": [cfg.upscale_seconds, cfg.downscale_seconds],
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"{PREFIX}{model_version}-{digest[:6]}{_FUSED if cfg.fused_models else ''}"


def models_app(cfg: ServeConfig, bundle: str | Path) -> serve.Application:
    """Matcher, reranker and, where the bundle can encode, workers on new items.

    Raises:
        BundleError: there is no bundle.
    """
    # Imported late: they need torch, who only names an application does not.
    from serve_apps.ingest import IngestDeployment
    from serve_apps.matcher import MatcherDeployment
    from serve_apps.models import ModelsDeployment
    from serve_apps.reranker import RerankerDeployment

    metadata = load_metadata(bundle)
    url, busy_seconds = cfg.feedback.store_url(cfg.storage_path), cfg.feedback.busy_timeout_seconds
    follow = to_dict(FollowArgs(url=url, busy_timeout_seconds=busy_seconds, poll_seconds=cfg.new_items.poll_seconds))
    beside = []
    if cfg.new_items.num_workers and not why_not_encodable(metadata):
        workers = deployment(IngestDeployment, "ingest", 4, num_replicas=cfg.new_items.num_workers)
        beside.append(workers.bind({**to_dict(cfg), "bundle": str(bundle)}))
    if cfg.fused_models:
        quiet = {"enable_access_log": False}  # a line a call says nothing of a list; the gateway's does
        scaling = autoscaling(cfg, cfg.max_matcher_replicas, 1.5)
        fused = deployment(ModelsDeployment, "models", 16, logging_config=quiet, **scaling)
        return fused.bind(str(bundle), to_dict(cfg.matcher), to_dict(cfg.policy), follow, *beside)
    matching = autoscaling(cfg, cfg.max_matcher_replicas, cfg.matcher_ongoing_requests)
    ranking = autoscaling(cfg, cfg.max_reranker_replicas, cfg.reranker_ongoing_requests)
    matcher = deployment(MatcherDeployment, "matcher", _most(cfg.matcher_ongoing_requests), **matching)
    reranker = deployment(RerankerDeployment, "reranker", _most(cfg.reranker_ongoing_requests), **ranking)
    beside.insert(0, matcher.bind(str(bundle), to_dict(cfg.matcher), follow))
    return reranker.bind(str(bundle), to_dict(cfg.policy), follow, *beside)


def models_of(app: str, cfg: ServeConfig) -> Models:
    """The deployments of an application as the gateway's calls. They need not run yet."""
    if app.endswith(_FUSED):
        return fused_models(serve.get_deployment_handle("models", app, _check_exists=False), cfg)
    matcher = serve.get_deployment_handle("matcher", app, _check_exists=False)
    reranker = serve.get_deployment_handle("reranker", app, _check_exists=False)
    return models_over(matcher, reranker)


def models_over(matcher: DeploymentHandle, reranker: DeploymentHandle) -> Models:
    """Two handles as the gateway's calls."""

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


def fused_models(models: DeploymentHandle, cfg: ServeConfig) -> Models:
    """A deployment that holds both models; lists that are asked for at the same time go together."""

    async def ask(queries: list[Query]) -> list[FusedAnswer]:
        return unpack_answers(await models.recommend_many.remote(pack_queries(queries)))

    async def alone(query: Query) -> FusedAnswer:
        return (await ask([query]))[0]

    # One call a replica, and two where there is one: it has the next at hand while an answer is on its way. With more,
    # calls would carry less.
    together = Coalescer(ask, cfg.max_batch, max(2, cfg.max_matcher_replicas), cfg.deadline_ms / 1000)
    # Reasons take ten times as long as a list and more: nobody waits for another's.
    return dataclasses.replace(
        models_over(models, models), recommend=lambda query: alone(query) if query.explain else together(query)
    )


def deployment(replica: type, name: str, max_ongoing_requests: int, **options: Any) -> serve.Deployment:
    """A deployment with the settings that all of this service share."""
    return serve.deployment(
        name=name,
        max_ongoing_requests=max_ongoing_requests,
        max_queued_requests=128,
        max_surge_percent=100,  # a new replica is up before the old one goes
        graceful_shutdown_timeout_s=10,
        health_check_period_s=2,  # a replica that was killed is missed no sooner
        health_check_timeout_s=10,
        ray_actor_options={"num_cpus": options.pop("num_cpus", 0.5)},
        **options,
    )(replica)


def autoscaling(cfg: ServeConfig, max_replicas: int, target_ongoing_requests: float) -> dict[str, Any]:
    """Up within seconds, down after minutes: a short downscale delay flaps, because replicas start slowly."""
    config = {
        "min_replicas": 1,
        "max_replicas": max_replicas,
        "target_ongoing_requests": target_ongoing_requests,
        "upscale_delay_s": cfg.upscale_seconds,
        "downscale_delay_s": cfg.downscale_seconds,
    }
    return {"autoscaling_config": config}


def _most(ongoing_requests: float) -> int:
    """Requests that a replica works on at once, before others wait: with none to spare it would never be too many."""
    return max(4, math.ceil(4 * ongoing_requests))


async def _awaited(response: Any) -> Any:
    """A Serve response as a coroutine, which is what asyncio's timeouts take."""
    return await response
