"""The service in the variants that benchmarks/serve.py compares, each for a process of its own.

Run: python -m benchmarks.served VARIANT BUNDLE FOLDER PORT, FOLDER with an event store (benchmarks/serve.py does).
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
import yaml

from avrec_ray.bundle import load_bundle_profiles, load_catalogue, load_metadata
from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.feedback.store import EventStore
from avrec_ray.types import Candidate, Query
from serve_apps.answers import MatchAnswer, Models, RankAnswer, SearchAnswer
from serve_apps.api import create_api
from serve_apps.config import ServeConfig
from serve_apps.flow import RequestFlow

PRESETS = Path(__file__).parents[1] / "serve_apps"


def newest_bundle(storage: Path) -> Path:
    """The bundle of a finished loop that was built last."""
    found = sorted((storage / "bundle").glob("v-*"), key=lambda folder: folder.stat().st_mtime)
    if not found:
        raise SystemExit(f"{storage}/bundle holds no bundle; give the storage of a finished loop")
    return found[-1]


def config(bundle: Path, folder: Path, port: int, **values: Any) -> ServeConfig:
    """A service on loopback, without new items: they are no part of what is measured."""
    args = {"bundle": str(bundle), "storage_path": str(folder), "port": port}
    return from_dict(ServeConfig, {**args, "new_items": {"num_workers": 0}, **values})


def in_process(cfg: ServeConfig) -> None:
    """Matcher, reranker, flow and store in one process of FastAPI and uvicorn, called as functions."""
    import torch

    from avrec_ray.ranking.reranker import Reranker
    from avrec_ray.retrieval.matcher import Matcher

    torch.set_num_threads(1)
    matcher, reranker = Matcher(cfg.bundle, cfg.matcher), Reranker(cfg.bundle, cfg.policy)
    version = matcher.model_version

    async def match(query: Query) -> MatchAnswer:
        return MatchAnswer(version, matcher.match([query])[0])

    async def score(query: Query, item_ids: Sequence[str]) -> MatchAnswer:
        return MatchAnswer(version, matcher.score(query, item_ids))

    async def similar(item_id: str, k: int) -> MatchAnswer:
        return MatchAnswer(version, matcher.similar(item_id, k))

    async def rerank(query: Query, candidates: Sequence[Candidate]) -> RankAnswer:
        return RankAnswer(version, reranker.rerank(query, candidates, time.time()))

    async def versions() -> tuple[str, str]:
        return version, version

    async def search(text: str, k: int) -> SearchAnswer:
        return SearchAnswer(version, matcher.search(text, k))

    metadata = load_metadata(cfg.bundle)
    profiles = load_bundle_profiles(cfg.bundle)
    flow = RequestFlow(
        models=Models(match, score, similar, rerank, versions, search),
        store=EventStore(cfg.feedback.store_url(cfg.storage_path), cfg.feedback.busy_timeout_seconds),
        catalogue=load_catalogue(cfg.bundle),
        model_version=version,
        index_version=metadata.towers_version,
        history_length=max(cfg.feedback.history_length, metadata.towers.history_length),
        deadline_ms=cfg.deadline_ms,
        known_users=frozenset() if profiles is None else frozenset(profiles.user_ids),
    )
    uvicorn.run(create_api(flow, cfg.feedback), host=cfg.host, port=cfg.port, log_level="warning", access_log=False)


def by_defaults(cfg: ServeConfig) -> None:
    """The three deployments with Ray Serve's own options: one replica each, five requests at work in it."""
    from ray import serve
    from ray.serve.config import HTTPOptions

    from avrec_ray.pipelines.session import session
    from serve_apps.gateway import GatewayDeployment, begin_lineup, first_lineup
    from serve_apps.keys import keys_of_service
    from serve_apps.matcher import MatcherDeployment
    from serve_apps.reranker import RerankerDeployment

    lineup = first_lineup(cfg)
    begin_lineup(cfg, lineup)
    matcher = serve.deployment(MatcherDeployment, name="matcher").bind(cfg.bundle, to_dict(cfg.matcher))
    models = serve.deployment(RerankerDeployment, name="reranker")
    gateway = serve.deployment(serve.ingress()(GatewayDeployment), name="gateway")
    with session(ClusterConfig()):
        serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=cfg.host, port=cfg.port))
        models_app = models.bind(cfg.bundle, to_dict(cfg.policy), None, matcher)
        serve.run(models_app, name=lineup.champion.app, route_prefix=None)
        serve.run(gateway.bind(to_dict(cfg), keys_of_service()), name="avrec", route_prefix="/")
        _wait_for_the_end()


def by_preset(cfg: ServeConfig) -> None:
    """As `python -m jobs.serve` starts it."""
    from avrec_ray.pipelines.session import session
    from serve_apps import run

    with session(ClusterConfig()):
        run.start(cfg)
        _wait_for_the_end()


def preset_values(name: str) -> dict[str, Any]:
    """The settings of one of the files that are shipped, without its address and its folders."""
    values = yaml.safe_load((PRESETS / name).read_text())["applications"][0]["args"]
    return {k: v for k, v in values.items() if k not in ("bundle", "storage_path", "host", "port", "new_items")}


def preset_environment(name: str) -> dict[str, str]:
    """What a file of NAME=value lines sets."""
    lines = [line for line in (PRESETS / name).read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def _wait_for_the_end() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


VARIANTS: dict[str, tuple[Callable[[ServeConfig], None], str, str]] = {
    "process": (in_process, "", ""),
    "defaults": (by_defaults, "", ""),
    "laptop": (by_preset, "serve_config.yaml", ""),
    "production": (by_preset, "serve_config_production.yaml", "production.env"),
}
"""What starts each variant, and the files of its settings and of its environment."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", choices=list(VARIANTS))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings over those of the variant")
    args = parser.parse_args()
    start, settings, _ = VARIANTS[args.variant]
    values = preset_values(settings) if settings else {}
    values |= {key: yaml.safe_load(value) for key, value in (given.split("=", 1) for given in args.set)}
    start(config(args.bundle.resolve(), args.folder.resolve(), args.port, **values))


if __name__ == "__main__":
    main()
