import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avrec_ray.evaluation.report import (
    MAX_WIDTH,
    format_metric_table,
    metric_names,
    save_exposure_plot,
    save_metric_plot,
)

RESULTS = {
    "ours": {"ndcg_at_10": 0.1036, "recall_at_10": 0.2, "cold_recall_at_10": 0.05, "num_users": 943.0},
    "popularity": {"ndcg_at_10": 0.0413, "recall_at_10": float("nan"), "num_users": 943.0},
}


def test_table_aligns_models_as_rows_and_marks_what_is_missing() -> None:
    lines = format_metric_table(RESULTS).splitlines()
    assert lines[0].split() == ["model", "ndcg_at_10", "recall_at_10", "cold_recall_at_10", "num_users"]
    assert lines[1].split() == ["ours", "0.1036", "0.2000", "0.0500", "943"]
    assert lines[2].split() == ["popularity", "0.0413", "-", "-", "943"]
    ends = {line.index(cell) + len(cell) for line, cell in zip(lines, ("ndcg_at_10", "0.1036", "0.0413"), strict=True)}
    assert len(ends) == 1


def test_table_with_many_metrics_goes_on_below_and_loses_none() -> None:
    names = [f"metric_{n}_at_10" for n in range(30)]
    text = format_metric_table({model: dict.fromkeys(names, 0.5) for model in ("a", "b")})
    assert max(map(len, text.splitlines())) <= MAX_WIDTH
    assert [name for name in text.split() if name.startswith("metric_")] == names
    assert text.count("0.5000") == 60
    blocks = text.split("\n\n")
    assert len(blocks) > 2
    assert all(block.splitlines()[0].startswith("model") for block in blocks)


def test_table_of_nothing_says_so() -> None:
    assert format_metric_table({}) == "no metrics"
    assert format_metric_table({"ours": {}}) == "no metrics"


def test_metric_names_keep_their_order_over_models() -> None:
    assert metric_names({"a": {"x": 1.0}, "b": {"y": 1.0, "x": 2.0}}) == ["x", "y"]


def test_metric_plot_is_a_picture_that_grows_with_metrics(tmp_path: Path) -> None:
    save_metric_plot(RESULTS, tmp_path / "few.png")
    save_metric_plot({"a": {f"m{n}": n / 9 for n in range(9)}, "b": {"m0": 0.5}}, tmp_path / "many.png")
    with Image.open(tmp_path / "few.png") as few, Image.open(tmp_path / "many.png") as many:
        assert np.asarray(few.convert("L")).std() > 10
        assert many.size > few.size


def test_metric_plot_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without a metric to draw"):
        save_metric_plot({"ours": {"num_users": 3.0}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_exposure_plot_takes_empty_lists_and_unchosen_catalogues(tmp_path: Path) -> None:
    rankings = {"ours": np.array([[0, 1], [2, -1]]), "silent": np.full((2, 2), -1)}
    save_exposure_plot(rankings, np.array([5, 2, 1, 0]), tmp_path / "exposure.png", k=2)
    save_exposure_plot(rankings, np.zeros(4), tmp_path / "unchosen.svg", k=2)
    with Image.open(tmp_path / "exposure.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    assert "</svg>" in (tmp_path / "unchosen.svg").read_text()


@pytest.mark.parametrize("name", ["baselines", "metrics", "report", "split"])
def test_examples_in_docstrings_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"avrec_ray.evaluation.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
