"""From a head's logit to a probability: what happens as often as it says.

A logit that was fitted to order a list says nothing of how often its item is chosen, and one that was fitted on few
outcomes is too sure of itself. Two numbers a head, fitted on users who were set aside (Platt, Probabilistic Outputs for
Support Vector Machines, 1999), make it one that holds on average.

Dimension key: E outcomes.
"""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

Values = npt.NDArray[np.floating]


def fit_platt(logits_E: Values, happened_E: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Slope, at least 0, and intercept, under which sigmoid(slope * logit + intercept) fits the outcomes best.

    Outcomes are taken for slightly less than certain, as Platt does, so that a logit that tells them apart perfectly
    does not get an endless slope. Without outcomes: 1 and 0.
    """
    if not len(logits_E):
        return 1.0, 0.0
    num_happened = int(happened_E.sum())
    high, low = (num_happened + 1) / (num_happened + 2), 1 / (len(happened_E) - num_happened + 2)
    target_E = np.where(happened_E, high, low)
    centre, unit = float(np.mean(logits_E)), max(float(np.std(logits_E)), 1e-6)
    scaled_E = (logits_E.astype(np.float64) - centre) / unit

    def loss(weights: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        said_E = weights[0] * scaled_E + weights[1]
        excess_E = expit(said_E) - target_E
        value = np.mean(np.logaddexp(0.0, said_E) - target_E * said_E)
        return float(value), np.array([np.mean(excess_E * scaled_E), np.mean(excess_E)])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)])
    slope = float(found.x[0]) / unit
    return slope, float(found.x[1]) - slope * centre


def calibration_error(probability_E: Values, happened_E: npt.NDArray[np.bool_], num_bins: int = 10) -> float:
    """Expected calibration error in [0, 1]: outcomes in `num_bins` groups of rising probability and as many members;
    the mean distance between what a group was said to do and what it did (Naeini et al., 2015). NaN without outcomes.
    """
    if not len(probability_E):
        return float("nan")
    order = np.argsort(probability_E, kind="stable")
    groups = [group for group in np.array_split(order, num_bins) if len(group)]
    distances = [abs(float(probability_E[group].mean() - happened_E[group].mean())) for group in groups]
    return float(np.average(distances, weights=[len(group) for group in groups]))
