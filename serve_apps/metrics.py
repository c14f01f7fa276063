"""Prometheus metrics of one gateway replica."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class GatewayMetrics:
    """Counters and histograms in a registry of their own, so that two gateways in one process do not clash."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "avrec_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "avrec_stage_seconds", "Time by stage.", ["stage"], registry=self.registry, buckets=_BUCKETS
        )
        self.degraded = Counter(
            "avrec_degraded", "Lists that lacked something.", ["reason"], registry=self.registry
        )  # fmt: skip
        self.events = Counter("avrec_events", "Feedback events.", ["outcome"], registry=self.registry)
        self.impressions = Counter(
            "avrec_impressions", "Items of served lists.", ["outcome"], registry=self.registry
        )  # fmt: skip

    def text(self) -> bytes:
        """The exposition format that Prometheus scrapes."""
        return generate_latest(self.registry)
