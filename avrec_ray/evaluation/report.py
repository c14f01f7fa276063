"""Results for people: a table for the terminal, bars of metrics, and who gets the exposure.

Dimension key: U users, K list length, N catalogue.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avrec_ray.evaluation.metrics import Ranked, exposure_at_k

Results = Mapping[str, Mapping[str, float]]
"""Metrics by model, then by name; models may lack some."""

MAX_WIDTH = 120
"""Characters of a table row; further metrics go into another block below."""
COLORS = (
    "#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860",
    "#da8bc3", "#8c8c8c", "#17becf", "#bcbd22", "#1f1f1f", "#f2a900",
)  # fmt: skip
"""One a model, in order; readable beside each other in print and with most colour blindness."""


def format_metric_table(results: Results) -> str:
    """Models as rows, metrics as columns, aligned; best value of a column is not marked, since lower may be better.

    >>> print(format_metric_table({"popularity": {"ndcg_at_10": 0.0413}, "ours": {"ndcg_at_10": 0.1}}))
    model       ndcg_at_10
    popularity      0.0413
    ours            0.1000
    """
    names = metric_names(results)
    if not names:
        return "no metrics"
    first = ["model", *results]
    columns = [[name, *(_cell(row.get(name)) for row in results.values())] for name in names]
    return "\n\n".join(_format_block([first, *block]) for block in _blocks(first, columns))


def save_metric_plot(results: Results, path: str | Path) -> None:
    """One panel of bars a metric, one bar a model; counts of users or items are left out. Writes PNG, PDF or SVG.

    Raises:
        ValueError: there is no metric to draw.
    """
    names = [name for name in metric_names(results) if not name.startswith("num_") and "_num_" not in name]
    if not names:
        raise ValueError(f"got {len(results)} models without a metric to draw; evaluate before plotting")
    num_columns = min(4, len(names))
    num_rows = -(-len(names) // num_columns)
    figure = Figure(figsize=(3.6 * num_columns, 0.9 + num_rows * (0.9 + 0.32 * len(results))), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        _draw_bars(panel, name, results)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    figure.savefig(path, dpi=120)


def save_exposure_plot(
    rankings: Mapping[str, Ranked], popularity: npt.NDArray[np.floating], path: str | Path | IO[bytes], k: int = 10
) -> None:
    """Share of exposure against share of popularity: items from the most to the least popular, both cumulated.

    On the diagonal items are shown as often as they were chosen; above it, popular ones more often.

    Args:
        rankings: lists [U, K] by model.
        popularity: [N] counts or shares of training choices.
    """
    order = np.argsort(-popularity, kind="stable")
    chosen = _cumulated(popularity[order].astype(np.float64))
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    panel = figure.subplots()
    for position, (model, ranked) in enumerate(rankings.items()):
        shown = _cumulated(exposure_at_k(ranked, len(popularity), k)[order].astype(np.float64))
        panel.plot(chosen, shown, label=model, color=COLORS[position % len(COLORS)], linewidth=1.8)
    panel.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1, label="as often as chosen")
    panel.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="share of choices in training, most popular items first")
    panel.set_ylabel(f"share of places in the first {k}")
    panel.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120)


def metric_names(results: Results) -> list[str]:
    """Every metric that any model has, in order of appearance."""
    return list(dict.fromkeys(name for row in results.values() for name in row))


def _draw_bars(panel: Axes, name: str, results: Results) -> None:
    models = [model for model, row in results.items() if np.isfinite(row.get(name, np.nan))]
    values = [results[model][name] for model in models]
    order = list(results)
    bars = panel.barh(models, values, color=[COLORS[order.index(model) % len(COLORS)] for model in models])
    panel.bar_label(bars, labels=[_cell(value) for value in values], padding=3, fontsize=8)
    panel.invert_yaxis()
    panel.set_title(name, fontsize=10)
    panel.margins(x=0.25)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _blocks(first: list[str], columns: list[list[str]]) -> list[list[list[str]]]:
    """Columns in groups that fit beside `first` into MAX_WIDTH."""
    blocks: list[list[list[str]]] = [[]]
    used = start = _width(first)
    for column in columns:
        if blocks[-1] and used + 2 + _width(column) > MAX_WIDTH:
            blocks.append([])
            used = start
        blocks[-1].append(column)
        used += 2 + _width(column)
    return blocks


def _format_block(columns: list[list[str]]) -> str:
    widths = [_width(column) for column in columns]
    rows = zip(*columns, strict=True)
    lines = (
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _width(column: list[str]) -> int:
    return max(map(len, column))


def _cell(value: float | None) -> str:
    if value is None or np.isnan(value):
        return "-"
    return f"{value:.0f}" if float(value).is_integer() and abs(value) > 1 else f"{value:.4f}"


def _cumulated(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    total = values.sum()
    return np.concatenate([[0.0], np.cumsum(values) / total if total else np.zeros_like(values)])
