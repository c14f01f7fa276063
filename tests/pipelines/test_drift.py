"""Drift seen with a bundle's eyes: none where nothing changed, and a warning where people turn to other items."""

import numpy as np
import pyarrow as pa
import pytest

from avrec_ray.bundle import Bundle, load_bundle
from avrec_ray.evaluation.drift import DriftConfig
from avrec_ray.pipelines.drift import measure, warned
from avrec_ray.pipelines.retrain_tables import IS_NEW
from avrec_ray.pipelines.stage import StageRecord
from avrec_ray.types import INTERACTIONS
from tests.tiny_bundle import build_tiny_bundle

CFG = DriftConfig()
START_US = 1_700_000_000_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(build_tiny_bundle(tmp_path_factory.mktemp("drift") / "v-1", num_items=40))


def events(items: list[list[int]], seed: int = 0) -> pa.Table:
    """Views of 50 users, drawn from each part's items; the last part is new."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "user_id": f"u{rng.integers(50)}",
            "item_id": f"i{item:02d}",
            "event": "view",
            "at": START_US + part * 10**9 + n,
        }
        for part, drawn_from in enumerate(items)
        for n, item in enumerate(rng.choice(drawn_from, 600))
    ]
    is_new = pa.array([row["at"] >= START_US + (len(items) - 1) * 10**9 for row in rows])
    return pa.Table.from_pylist(rows, INTERACTIONS).append_column(IS_NEW, is_new)


def test_same_traffic_does_not_drift(bundle: Bundle) -> None:
    everything = list(range(40))
    found = {drift.name: drift for drift in measure(bundle, events([everything, everything]), CFG)}
    assert sorted(found) == ["embedding", "popularity", "score", "tags"]
    assert not any(drift.is_notable(CFG) for drift in found.values())


def test_people_who_turn_to_other_items_are_noticed(bundle: Bundle) -> None:
    music, sport = list(range(0, 40, 4)), list(range(1, 40, 4))  # other tags and categories
    found = {drift.name: drift for drift in measure(bundle, events([music, sport]), CFG)}
    for name in ("tags", "embedding", "score"):
        assert found[name].is_notable(CFG), found[name]


def test_nothing_new_and_unknown_items_are_no_drift(bundle: Bundle) -> None:
    table = events([list(range(40)), [0]])
    before = table.filter(pa.array([not new for new in table[IS_NEW].to_pylist()]))
    assert all(drift.psi == 0 for drift in measure(bundle, before, CFG))
    unknown = table.set_column(1, "item_id", pa.array(["unknown"] * table.num_rows))
    assert all(drift.psi == 0 for drift in measure(bundle, unknown, CFG))


def test_warned_reads_the_metrics_of_the_stage() -> None:
    metrics = {"drift/tags_psi": 0.5, "drift/tags_warned": 1.0, "drift/score_warned": 0.0}
    assert warned(StageRecord("drift", "f", [], metrics, "r", 1.0)) == ["tags"]
