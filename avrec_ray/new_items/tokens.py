"""Tokens of items as content: their mean.

Dimension key: N items, T tokens, W width.
"""

import numpy as np
import numpy.typing as npt


def mean_tokens(tokens: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.floating]:
    """[N, W]: the mean of the tokens [N, T, W] that exist by `mask` [N, T]; zeros where none does."""
    kept = (tokens * mask[:, :, None]).sum(1)
    return np.asarray(kept / np.maximum(mask.sum(1, keepdims=True), 1))
