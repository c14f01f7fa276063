"""Dashboard, alerts and scraping speak of metrics, labels and runbooks that exist."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from serve_apps.metrics import GatewayMetrics

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "avrec_ray.json").read_text())
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}
"""What Prometheus's format puts behind the name of a metric, by type."""
ADDED = {"replica", "job", "instance"}
"""Labels that every series gets where it is exposed or scraped."""


def exposed() -> dict[str, set[str]]:
    """Label names of every series that a gateway can expose, by its name there."""
    found = {}
    metrics = GatewayMetrics()
    labels = {metric._name: set(metric._labelnames) for metric in metrics.registry._collector_to_names}
    for family in metrics.registry.collect():
        for suffix in SUFFIXES[family.type]:
            more = {"le"} if suffix == "_bucket" else set()
            found[family.name + suffix] = labels[family.name] | more
    return {**found, "up": set()}  # Prometheus's own, one a target


SERIES = exposed()


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression, and where it is."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


EXPRESSIONS = list(expressions())


def parts(node: Any) -> Iterator[Any]:
    """A parsed expression and all that it is made of."""
    yield node
    for name in ("lhs", "rhs", "expr", "param", "vector_selector", "vs"):
        child = getattr(node, name, None)
        if child is not None and type(child).__module__ == type(node).__module__:
            yield from parts(child)
    for child in getattr(node, "args", ()) or ():
        yield from parts(child)


def selectors(expression: str) -> list[Any]:
    return [n for n in parts(promql_parser.parse(expression)) if isinstance(n, promql_parser.VectorSelector)]


def test_the_walk_finds_every_metric_that_is_named() -> None:
    for where, expression in EXPRESSIONS:
        named = set(re.findall(r"avrec_\w+|\bup\b", expression.replace('job="avrec_ray"', "")))
        assert {s.name for s in selectors(expression)} == named, where


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_every_metric_and_label_exists(where: str, expression: str) -> None:
    found = selectors(expression)
    assert found
    for selector in found:
        assert selector.name in SERIES, f"{where}: {selector.name} is not exposed"
        labels = {matcher.name for matcher in selector.matchers.matchers}
        assert labels <= SERIES[selector.name] | ADDED, f"{where}: {selector.name} has no such label"
    every = {label for selector in found for label in SERIES[selector.name]} | ADDED
    for names in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {name.strip() for name in names.split(",")} <= every, where


@pytest.mark.parametrize(("label", "values"), [
    ("stage", {"total"}),
    ("operation", {"read", "write", "impressions"}),
    ("outcome", {"accepted", "rejected", "kept", "dropped"}),
    ("state", {"refused"}),
])  # fmt: skip
def test_values_that_are_asked_for_are_those_of_the_code(label: str, values: set[str]) -> None:
    """test_metrics.py sees each of them over HTTP."""
    matchers = [m for _, e in EXPRESSIONS for s in selectors(e) for m in s.matchers.matchers if m.name == label]
    assert {value for m in matchers for value in m.value.split("|")} == values


def test_what_degraded_means_in_alerts_are_the_reasons_of_the_flow() -> None:
    from serve_apps.stages import UNAVAILABLE

    (degraded,) = [rule["expr"] for rule in RULES if rule["alert"] == "AvrecDegraded"]
    (pattern,) = re.findall(r'reason=~"([^"]+)"', degraded)
    assert all(re.fullmatch(pattern, reason) for reason in [*UNAVAILABLE.values(), "deadline"])
    assert not any(re.fullmatch(pattern, reason) for reason in ("unknown_user", "text_not_encoded"))


def anchors(path: Path) -> set[str]:
    """Of a Markdown page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_every_alert_has_a_runbook(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor == rule["alert"].lower()
    assert anchor in anchors(ROOT / page)
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]


def test_every_runbook_has_an_alert() -> None:
    written = {anchor for anchor in anchors(ROOT / "docs" / "operations.md") if re.fullmatch(r"avrec[a-z]+", anchor)}
    assert written == {rule["alert"].lower() for rule in RULES}
    assert len(RULES) == len(written)


def test_the_links_of_the_page_lead_somewhere() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    links = [link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    for name, _, anchor in links:
        page = (ROOT / "docs" / name).resolve() if name else ROOT / "docs" / "operations.md"
        assert page.exists(), name
        assert not anchor or anchor in anchors(page), anchor


def test_panels_are_laid_out_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {s.name for panel in panels() for t in panel["targets"] for s in selectors(
        t["expr"].replace("$__rate_interval", "5m")
    )}  # fmt: skip
    for family in GatewayMetrics().registry.collect():
        assert any(family.name + suffix in shown for suffix in SUFFIXES[family.type]), family.name


def test_prometheus_loads_the_alerts_that_are_there_and_scrapes_what_is_served() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    assert all((PROMETHEUS / name).is_file() for name in config["rule_files"])
    (job,) = [job for job in config["scrape_configs"] if job["job_name"] == "avrec_ray"]
    assert job["metrics_path"] == "/metrics"
    # The label replica holds each series apart only if a window of rate() has several samples of each.
    assert config["global"]["scrape_interval"] == "15s"
