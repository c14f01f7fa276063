"""How far what comes in now is from what was learned from: two samples compared, in shares of bins.

Population stability index: sum of (q - p) ln(q / p) over bins (Lewis, "An Introduction to Credit Scoring", 1994); by
custom 0.1 is a shift worth a look and 0.25 a large one. Where nothing changed, 1 / (1/n + 1/m) times the index is about
chi-squared with one less than the number of bins degrees of freedom (Yurdakul, "Statistical Properties of Population
Stability Index", 2018): small samples differ by chance, and `by_chance` says how much they do in 95 of 100 cases.

Jensen-Shannon divergence (Lin, "Divergence Measures Based on the Shannon Entropy", 1991), in bits: 0 the same, 1
nothing in common.

Dimension key: B bins, R rows of the reference, S rows now, D dimensions.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri

from avrec_ray.dataclass_io import check_range

Floats = npt.NDArray[np.float64]

_SMOOTHING = 0.5
"""Added to the count of each bin, so that an empty one is rare and not impossible (Jeffreys)."""


@dataclass(kw_only=True)
class DriftConfig:
    """When drift is worth a warning."""

    warn_psi: float = 0.1
    """Population stability index from which on a distribution is warned about, if chance does not explain it."""
    num_bins: int = 10
    num_components: int = 8
    """Principal components of embeddings whose distributions are compared."""
    max_events: int = 5_000
    """Newest events of either side that are looked at."""

    def __post_init__(self) -> None:
        check_range("retrain.drift.warn_psi", self.warn_psi, 0.0)
        check_range("retrain.drift.num_bins", self.num_bins, 2)
        check_range("retrain.drift.num_components", self.num_components, 1)
        check_range("retrain.drift.max_events", self.max_events, 1)


@dataclass(frozen=True)
class Drift:
    """Two samples of one quantity."""

    name: str
    psi: float
    js: float
    by_chance: float
    """The index that samples of these sizes from one distribution stay below in 95 of 100 cases."""

    def is_notable(self, cfg: DriftConfig) -> bool:
        """True where it is beyond both the threshold and chance."""
        return self.psi > max(cfg.warn_psi, self.by_chance)

    def line(self, cfg: DriftConfig) -> str:
        """For the terminal."""
        mark = "WARNING" if self.is_notable(cfg) else "ok"
        return f"{mark}  {self.name}: PSI {self.psi:.3f} (by chance up to {self.by_chance:.3f}), JS {self.js:.3f}"


def psi(p_B: Floats, q_B: Floats) -> float:
    """Population stability index of two distributions without empty bins.

    >>> round(psi(np.array([0.5, 0.5]), np.array([0.25, 0.75])), 4)
    0.2747
    """
    return float(((q_B - p_B) * np.log(q_B / p_B)).sum())


def jensen_shannon(p_B: Floats, q_B: Floats) -> float:
    """Divergence of two distributions in bits, from 0 to 1.

    >>> jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    1.0
    """
    middle = (p_B + q_B) / 2
    return float(max(0.0, (_kl(p_B, middle) + _kl(q_B, middle)) / 2))


def _kl(p_B: Floats, q_B: Floats) -> float:
    some = p_B > 0
    return float((p_B[some] * np.log2(p_B[some] / q_B[some])).sum())


def count_drift(name: str, reference_B: npt.NDArray[np.number], now_B: npt.NDArray[np.number]) -> Drift:
    """Drift between counts of the same bins; bins that are empty on both sides do not count."""
    some = (reference_B + now_B) > 0
    before, after = (np.asarray(counts[some], np.float64) for counts in (reference_B, now_B))
    if not before.sum() or not after.sum():
        return Drift(name, 0.0, 0.0, 0.0)
    p_B, q_B = (_smoothed(counts) for counts in (before, after))
    return Drift(
        name, psi(p_B, q_B), jensen_shannon(p_B, q_B), psi_by_chance(before.sum(), after.sum(), int(some.sum()))
    )


def value_drift(
    name: str, reference_R: npt.NDArray[np.floating], now_S: npt.NDArray[np.floating], num_bins: int
) -> Drift:
    """Drift between samples of a number: bins hold as many of the reference each; NaN is left out."""
    before, after = (values[~np.isnan(values)] for values in (reference_R, now_S))
    if not len(before) or not len(after):
        return Drift(name, 0.0, 0.0, 0.0)
    edges = np.unique(np.quantile(before, np.linspace(0, 1, num_bins + 1)[1:-1]))
    counts = [np.bincount(np.searchsorted(edges, v, "right"), minlength=len(edges) + 1) for v in (before, after)]
    return count_drift(name, *counts)


def vector_drift(
    name: str, reference_RD: npt.NDArray[np.floating], now_SD: npt.NDArray[np.floating], cfg: DriftConfig
) -> Drift:
    """Drift between samples of vectors: that of the principal component (of the reference) that moved furthest.

    By chance the furthest of several components moves further than one: `by_chance` takes that into account.
    """
    if not len(reference_RD) or not len(now_SD):
        return Drift(name, 0.0, 0.0, 0.0)
    middle = reference_RD.mean(0)
    _, _, axes = np.linalg.svd(reference_RD - middle, full_matrices=False)
    axes = axes[: cfg.num_components]
    found = [value_drift(name, (reference_RD - middle) @ axis, (now_SD - middle) @ axis, cfg.num_bins) for axis in axes]
    furthest = max(found, key=lambda drift: drift.psi)
    by_chance = psi_by_chance(len(reference_RD), len(now_SD), cfg.num_bins, num_compared=len(axes))
    return Drift(name, furthest.psi, furthest.js, by_chance)


def psi_by_chance(num_reference: float, num_now: float, num_bins: int, num_compared: int = 1) -> float:
    """Index that samples of one distribution stay below in 95 of 100 cases, all of `num_compared` of them together."""
    if num_bins < 2:
        return 0.0
    return float(chdtri(num_bins - 1, 0.05 / num_compared) * (1 / num_reference + 1 / num_now))


def _smoothed(counts_B: Floats) -> Floats:
    shares: Floats = (counts_B + _SMOOTHING) / (counts_B + _SMOOTHING).sum()
    return shares
