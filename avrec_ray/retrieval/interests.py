"""What stands for each interest of a history: medoids of Ward's clusters, as in PinnerSage (Pal et al., KDD 2020).

Dimension key: L items of a history, D embedding.
"""

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, ward


def medoids(vectors_LD: npt.NDArray[np.float32], max_interests: int) -> npt.NDArray[np.int64]:
    """Places of the items that stand for the interests, each interest's nearest to all its items; the same each time.

    Interests come in the order in which they were met last. Of equally near items the newest stands for its interest.

    Args:
        vectors_LD: the newest item first; any length.
        max_interests: at least 1; of so few items or fewer each is an interest.

    >>> medoids(np.array([[0, 1], [1, 0], [0.9, 0.1], [0.1, 0.9], [0, 1]], np.float32), 2).tolist()
    [0, 1]
    """
    if len(vectors_LD) <= max_interests:
        return np.arange(len(vectors_LD))
    points = vectors_LD.astype(np.float64)
    interest_L = fcluster(ward(points), max_interests, "maxclust")
    _, first_met = np.unique(interest_L, return_index=True)
    chosen = []
    for newest in np.sort(first_met):
        members = np.flatnonzero(interest_L == interest_L[newest])
        distance = ((points[members, None] - points[members]) ** 2).sum((1, 2))
        chosen.append(members[np.argmin(np.round(distance, 9))])  # equal distances must not be told by their rounding
    return np.array(chosen, np.int64)
