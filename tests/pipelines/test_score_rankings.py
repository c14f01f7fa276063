"""Every ranking gets the same metrics, those beyond accuracy at the first cut-off, against what users chose."""

from pathlib import Path

import numpy as np
import pytest

from avrec_ray.evaluation.list_metrics import category_matrix, miscalibration_at_k
from avrec_ray.evaluation.list_quality import LIST_QUALITY
from avrec_ray.pipelines.evaluate import score_rankings
from avrec_ray.pipelines.measured import SERVED
from tests.tiny_measured import tiny_measured


def test_rankings_are_scored_beyond_accuracy(tmp_path: Path) -> None:
    measured = tiny_measured(tmp_path / "v-1")
    liked = [items[:1] for items in measured.seen]
    results = score_rankings(measured.rankings, measured.targets, measured.seen, liked, measured.bundle, [5, 20])
    for row in results.values():
        assert {f"{name}_at_5" for name in LIST_QUALITY} <= set(row)
        assert not {f"{name}_at_20" for name in LIST_QUALITY} & set(row)
        assert {"ndcg_at_20", "coverage_at_5", "cold_recall_at_20"} <= set(row)
    assert results["popularity"]["unexpected_hits_at_5"] == 0.0  # the obvious list itself
    # One of two targets stands first in the served lists, where the obvious one lacks it; 5 places.
    assert results[SERVED]["unexpected_hits_at_5"] == pytest.approx(1 / 5)
    categories, _ = category_matrix(measured.bundle.items.categories)
    expected = miscalibration_at_k(measured.rankings[SERVED], liked, categories, 5)
    assert results[SERVED]["miscalibration_at_5"] == pytest.approx(np.nanmean(expected))
