"""What evaluation found, as its parts hand it on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from avrec_ray.bundle import Bundle

Rankings = npt.NDArray[np.int64]
SERVED = "avrec_ray"
"""Row of the served ranking in metric tables."""


@dataclass(eq=False)
class Measured:
    """Rankings of the same users by every model, and what they should have found."""

    users: list[str]
    targets: list[npt.NDArray[np.int64]]
    seen: list[npt.NDArray[np.int64]]
    """Catalogue rows of each user's history, in order of time."""
    bundle: Bundle
    choice_counts: npt.NDArray[np.int64]
    """[N] choices of each item before test."""
    recommendations: pa.Table
    rankings: dict[str, Rankings]
    results: dict[str, dict[str, float]]
