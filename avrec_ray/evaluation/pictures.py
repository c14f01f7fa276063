"""Pictures of a report as PNG bytes: curves over k, exposure, a map of embeddings, thumbnails.

Dimension key: U users, K list length, N catalogue, D embedding.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from avrec_ray.evaluation.metrics import PER_USER, Ranked, match_targets
from avrec_ray.evaluation.report import COLORS, save_exposure_plot

KS = (1, 2, 5, 10, 20, 50, 100)


def curves_over_k(rankings: Mapping[str, Ranked], targets: Sequence[npt.NDArray[np.int64]]) -> bytes:
    """NDCG and recall of every model at growing k, up to the length of the lists."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for position, (model, ranked) in enumerate(rankings.items()):
        ks = [k for k in KS if k <= ranked.shape[1]]
        hits = match_targets(ranked, targets)
        for panel, name in zip(panels, ("ndcg", "recall"), strict=True):
            values = [float(PER_USER[name](ranked, hits, k).mean()) for k in ks]
            style = {"linewidth": 2.6} if position == 0 else {"linewidth": 1.2, "alpha": 0.8}
            panel.plot(ks, values, marker="o", markersize=3, label=model, color=_color(position), **style)
    for panel, name in zip(panels, ("NDCG at k", "recall at k"), strict=True):
        panel.set(xscale="log", xlabel="k", title=name)
        panel.set_xticks(KS, [str(k) for k in KS])
    panels[1].legend(frameon=False, fontsize=8)
    return _png(figure)


def exposure_against_popularity(
    rankings: Mapping[str, Ranked], popularity: npt.NDArray[np.floating], k: int = 10
) -> bytes:
    """See `save_exposure_plot`."""
    buffer = io.BytesIO()
    save_exposure_plot(rankings, popularity, buffer, k)
    return buffer.getvalue()


def embedding_map(embeddings: npt.NDArray[np.float32], groups: Sequence[str | None], max_items: int = 3000) -> bytes:
    """The two directions of most variance (PCA) of [N, D], coloured by the eight largest groups."""
    rows = np.random.default_rng(0).permutation(len(embeddings))[:max_items]
    centred = embeddings[rows].astype(np.float64) - embeddings[rows].mean(0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    points = centred @ directions[:2].T
    shares = singular**2 / max(float((singular**2).sum()), 1e-12)
    labels = [groups[row] for row in rows]
    names, counts = np.unique([label for label in labels if label is not None] or ["unknown"], return_counts=True)
    largest = names[np.argsort(-counts, kind="stable")][: len(COLORS) - 1].tolist()
    figure = Figure(figsize=(7, 6), layout="constrained")
    panel = figure.subplots()
    for position, name in enumerate([*largest, "others"]):
        chosen = np.array([label == name or (name == "others" and label not in largest) for label in labels])
        if chosen.any():
            panel.scatter(points[chosen, 0], points[chosen, 1], s=14, alpha=0.8, label=name, color=_color(position))
    panel.set(xlabel=f"first direction, {shares[0]:.0%} of the variance", xticks=[], yticks=[])
    panel.set_ylabel(f"second direction, {shares[1]:.0%}")
    panel.legend(frameon=False, fontsize=8, bbox_to_anchor=(1, 1), loc="upper left")
    return _png(figure)


def thumbnail(frame: npt.NDArray[np.uint8]) -> bytes:
    """A frame [3, H, W] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))).save(buffer, "PNG")
    return buffer.getvalue()


def _color(position: int) -> str:
    return COLORS[position % len(COLORS)]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
