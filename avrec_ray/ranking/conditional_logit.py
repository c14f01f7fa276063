"""How far to trust each of several scores: the weights under which what was chosen stands out best in its list.

McFadden, Conditional Logit Analysis of Qualitative Choice Behavior, 1974.

Dimension key: L lists, K candidates, F features.
"""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import logsumexp

Array = npt.NDArray[np.floating]
Matrix = npt.NDArray[np.float64]
_LEAST_DEVIATION = 1e-5
"""Of a feature within lists; below is rounding."""


def fit_weights(
    features_LKF: Array, target_LK: Array, may_oppose_F: npt.NDArray[np.bool_], list_weight_L: Array | None = None
) -> Matrix:
    """Weights [F] of the least mean cross entropy between softmax(features @ weights) and the target, a convex problem.

    Solved in units of each feature's deviation within lists: one may be a hundredth of another, and the solver would
    stop before such a weight has grown. A feature that never differs within a list gets 0.

    Args:
        target_LK: shares that sum to 1 in each list.
        may_oppose_F: whether the weight may be below 0.
        list_weight_L: how much each list counts; None: all the same.
    """
    share_L = np.ones(len(target_LK)) if list_weight_L is None else list_weight_L.astype(np.float64)
    share_L = share_L / share_L.sum()
    centred_LKF = features_LKF.astype(np.float64) - features_LKF.mean(1, keepdims=True, dtype=np.float64)
    deviation_F = np.sqrt((centred_LKF**2).mean((0, 1)))
    varies_F = deviation_F > _LEAST_DEVIATION
    unit_F = np.where(varies_F, deviation_F, 1.0)
    scaled_LKF = centred_LKF / unit_F * varies_F

    def loss(weights_F: Matrix) -> tuple[float, Matrix]:
        logits_LK = scaled_LKF @ weights_F
        log_share_LK = logits_LK - logsumexp(logits_LK, axis=1, keepdims=True)
        excess_LK = np.exp(log_share_LK) - target_LK
        gradient_F = np.tensordot(excess_LK * share_L[:, None], scaled_LKF, 2)
        return float(-share_L @ (target_LK * log_share_LK).sum(1)), gradient_F

    bounds = [(None if may else 0.0, None) for may in may_oppose_F]
    found = minimize(loss, np.zeros(len(unit_F)), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    return np.asarray(found.x / unit_F * varies_F)
