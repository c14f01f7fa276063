"""Prometheus metrics of one gateway replica.

No label holds an id or a text of a client: routes are templates, all other values are names of this code. Series that
alerts need exist from the start, at 0, so that "none came" can be told from "nobody counts".
"""

import math
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from avrec_ray.catalogue import Catalogue
from avrec_ray.types import Candidate, RankedItem

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_REQUEST_BUCKETS = (*_BUCKETS, 10.0, 30.0)
_LISTS_REMEMBERED = 1000
"""Mean and variance of scores are those of about so many lists, newer ones counting more."""


class GatewayMetrics:
    """What is counted, in a registry of its own, so that two gateways in one process do not clash."""

    def __init__(self, replica: str = "") -> None:
        """`replica`: name of this one among several that answer under one address; a label of all its series."""
        self.registry = registry = CollectorRegistry()
        self._replica = replica
        self.requests = Counter("avrec_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.request_seconds = Histogram(
            "avrec_request_seconds", "Time from the head of a request to the end of its answer.",
            ["route"], registry=registry, buckets=_REQUEST_BUCKETS,
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "avrec_stage_seconds", "Time by stage of a list.", ["stage"], registry=registry, buckets=_BUCKETS
        )
        self.degraded = Counter("avrec_degraded", "Lists that lacked something.", ["reason"], registry=registry)
        self.candidates = Counter("avrec_candidates", "Items that the matcher named.", ["source"], registry=registry)
        self.items = Counter("avrec_items", "Items of answered lists.", ["source"], registry=registry)
        self.cold_items = Counter(
            "avrec_cold_items", "Items of answered lists that had no behaviour in training.", registry=registry
        )
        self.events = Counter("avrec_events", "Feedback events.", ["outcome"], registry=registry)
        self.impressions = Counter("avrec_impressions", "Items of served lists.", ["outcome"], registry=registry)
        self.impressions_waiting = Gauge(
            "avrec_impressions_waiting", "Items of served lists that wait for the event store.", registry=registry
        )
        self.store_seconds = Histogram(
            "avrec_store_seconds", "Time of calls of the event store.",
            ["operation"], registry=registry, buckets=_REQUEST_BUCKETS,
        )  # fmt: skip
        self.store_failures = Counter(
            "avrec_store_failures", "Calls that the event store failed.", ["operation"], registry=registry
        )
        self._add_gauges(registry)
        self._add_variants(registry)
        for outcome in ("accepted", "duplicate", "rejected"):
            self.events.labels(outcome)
        for outcome in ("kept", "dropped", "refused"):
            self.impressions.labels(outcome)
        for operation in ("read", "write", "impressions", "queue"):
            self.store_seconds.labels(operation)
            self.store_failures.labels(operation)

    def _add_variants(self, registry: CollectorRegistry) -> None:
        self.variant_lists = Counter(
            "avrec_variant_lists", "Lists by what made them; shadow: shown to nobody.", ["variant", "outcome"],
            registry=registry,
        )  # fmt: skip
        self.variant_seconds = Histogram(
            "avrec_variant_seconds",
            "Time of lists by what made them.",
            ["variant"],
            registry=registry,
            buckets=_BUCKETS,
        )
        self.agreement = Histogram(
            "avrec_agreement", "Share of the first ten items that champion and candidate have in common, by request.",
            registry=registry, buckets=tuple(n / 10 for n in range(11)),
        )  # fmt: skip
        self.taken_back = Counter("avrec_candidates_taken_back", "Candidates that were not well.", registry=registry)
        self.lineup_revision = Gauge("avrec_lineup_revision", "Number of the served lineup.", registry=registry)
        self.lineup_behind = Gauge(
            "avrec_lineup_behind", "1 while a newer lineup is known that cannot be served yet.", registry=registry
        )
        self.candidate_info = Gauge(
            "avrec_candidate_info", "1, for the candidate beside the served bundle.", ["model_version", "mode"],
            registry=registry,
        )  # fmt: skip
        for variant in ("champion", "candidate"):
            for outcome in ("answered", "failed"):
                self.variant_lists.labels(variant, outcome)

    def count_variant(self, variant: str, failed: bool, seconds: float) -> None:
        """A list of one side; `failed`: its models did not answer, and something simpler was served."""
        self.variant_lists.labels(variant, "failed" if failed else "answered").inc()
        self.variant_seconds.labels(variant).observe(seconds)

    def _add_gauges(self, registry: CollectorRegistry) -> None:
        version = ["model_version"]
        self.bundle_info = Gauge(
            "avrec_bundle_info", "1, for the bundle that is served.", [*version, "index_version"], registry=registry
        )
        self.bundle_built = Gauge(
            "avrec_bundle_built_timestamp_seconds", "When the served bundle was built; absent where it does not say.",
            version, registry=registry,
        )  # fmt: skip
        self.score_mean = Gauge(
            "avrec_score_mean", "Mean score of personal lists that lacked nothing, lately.", version, registry=registry
        )
        self.score_variance = Gauge(
            "avrec_score_variance", "Variance of the same scores.", version, registry=registry
        )  # fmt: skip
        self._scores: dict[str, ScoreMoments] = {}
        self.catalogue_items = Gauge("avrec_catalogue_items", "Items that lists can hold now.", registry=registry)
        # Unknown until they are measured: 0 would be a time, or an empty queue.
        self.catalogue_current = _unknown(
            "avrec_catalogue_current_timestamp_seconds",
            "All that joined or left the catalogue before this time is known to this replica.",
            registry,
        )
        self.catalogue_change = _unknown(
            "avrec_catalogue_change", "Number of the last change of the catalogue that was applied.", registry
        )
        self.new_items = Gauge("avrec_new_items", "Submitted items by state.", ["state"], registry=registry)
        self.new_items_oldest = _unknown(
            "avrec_new_items_oldest_seconds", "How long the oldest queued item has waited; 0: none is queued.", registry
        )

    def serve(
        self, model_version: str, index_version: str, catalogue: Catalogue, candidate: tuple[str, str] | None = None
    ) -> None:
        """Name what is served; `candidate`: model_version and mode of one that is there beside it."""
        self.bundle_info.clear()
        self.bundle_info.labels(model_version, index_version).set(1)
        self.candidate_info.clear()
        if candidate is not None:
            self.candidate_info.labels(*candidate).set(1)
        self.catalogue_items.set_function(lambda: len(catalogue.index_of))

    def built(self, model_version: str, at_seconds: float) -> None:
        """When the served bundle was built, POSIX seconds; 0: unknown, and nothing is exposed."""
        if at_seconds:
            self.bundle_built.labels(model_version).set(at_seconds)

    def count_candidates(self, candidates: Sequence[Candidate]) -> None:
        """What the matcher named for a personal list."""
        self.count_sources(Tally(candidate.source for candidate in candidates))

    def count_sources(self, sources: Mapping[str, int]) -> None:
        """As `count_candidates`, of who counted them already."""
        for source, count in sources.items():
            self.candidates.labels(source or "none").inc(count)

    def count_list(
        self,
        stages_ms: Mapping[str, float],
        degraded: Iterable[str],
        items: Sequence[RankedItem],
        catalogue: Catalogue,
    ) -> None:
        """An answered list: where its time went, what it lacked, what it holds; all of its items are in `catalogue`."""
        for stage, ms in stages_ms.items():
            self.stage_seconds.labels(stage).observe(ms / 1000)
        for reason in degraded:
            self.degraded.labels(reason).inc()
        for source, count in Tally(item.source for item in items).items():
            self.items.labels(source or "none").inc(count)
        self.cold_items.inc(sum(not catalogue.warm[catalogue.index_of[item.item_id]] for item in items))

    def observe_scores(self, model_version: str, items: Sequence[RankedItem]) -> None:
        """Scores of a personal list that the whole chain made."""
        if items:
            moments = self._scores.setdefault(model_version, ScoreMoments())
            moments.add([item.score for item in items])
            self.score_mean.labels(model_version).set(moments.mean)
            self.score_variance.labels(model_version).set(moments.variance)

    @contextmanager
    def store_call(self, operation: str) -> Iterator[None]:
        """Time a call of the event store; one that the store failed is counted, one that it refused is not."""
        with self.store_seconds.labels(operation).time():
            try:
                yield
            except (SQLAlchemyError, OSError):
                self.store_failures.labels(operation).inc()
                raise

    def text(self) -> bytes:
        """The exposition format that Prometheus scrapes."""
        return generate_latest(_Named(self.registry, self._replica) if self._replica else self.registry)


class ScoreMoments:
    """Mean and variance of the scores of lists: exact for the first, then with exponential weights of lists."""

    def __init__(self, lists_remembered: int = _LISTS_REMEMBERED) -> None:
        self._lists_remembered = lists_remembered
        self._num_lists = 0
        self.mean = self.variance = 0.0

    def add(self, scores: Sequence[float]) -> None:
        """A list's scores, one at least. Each list counts the same, whatever its length.

        Mean and variance are those of the mixture of what was there, by 1 - w, and this list, by w: Pebay,
        "Formulas for Robust, One-Pass Parallel Computation of Covariances", 2008, with weights for counts.
        """
        self._num_lists = min(self._num_lists + 1, self._lists_remembered)
        weight = 1 / self._num_lists
        mean = math.fsum(scores) / len(scores)
        variance = math.fsum((score - mean) ** 2 for score in scores) / len(scores)
        apart = mean - self.mean
        self.variance = (1 - weight) * self.variance + weight * variance + weight * (1 - weight) * apart**2
        self.mean += weight * apart


class _Named(Collector):
    """Every series of a registry with the replica's name. Scrapes of one address reach one replica or another: without
    it Prometheus would take two counters for one that jumps."""

    def __init__(self, registry: CollectorRegistry, replica: str) -> None:
        self._registry, self._replica = registry, replica

    def collect(self) -> Iterable[Metric]:
        for family in self._registry.collect():
            family.samples = [s._replace(labels={**s.labels, "replica": self._replica}) for s in family.samples]
            yield family


def _unknown(name: str, documentation: str, registry: CollectorRegistry) -> Gauge:
    gauge = Gauge(name, documentation, registry=registry)
    gauge.set(math.nan)
    return gauge
