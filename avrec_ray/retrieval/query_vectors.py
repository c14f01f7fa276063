"""Query vectors of a bundle: what its user tower makes of histories and profiles, for the matcher and for explanations.

Dimension key: B queries, D embedding, K candidates.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from avrec_ray.bundle import Bundle
from avrec_ray.catalogue import Catalogue
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.histories import EventColumns, columns_from_events, pad_histories, with_profiles
from avrec_ray.training.weights import load_weights
from avrec_ray.types import Query

SHORTEST_PADDING = 16
"""Events that the shortest histories are padded to; longer ones to the next power of two."""


class QueryVectors:
    """The towers of a bundle, loaded once.

    Attention over padding costs as much as over events, so that histories are not padded to all that the tower can read
    but each to a length of its own: that of the batch would let rounding depend on who else is in it.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.towers = TwoTower(bundle.metadata.towers, bundle.num_built)
        load_weights(bundle.path / "towers.safetensors", self.towers)
        self.towers.eval()

    @property
    def embeddings(self) -> torch.Tensor:
        """float32 [N, D], the memory of the bundle's, which grows when items join."""
        return torch.from_numpy(self.bundle.embeddings)

    def of_queries(self, queries: Sequence[Query]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """As `of_columns`, of the histories and users of queries."""
        items = self.bundle.items
        columns = columns_from_events([q.history for q in queries], items.index_of, items.durations)
        return self.of_columns(columns, [query.user_id for query in queries])

    @torch.inference_mode()
    def of_columns(
        self, columns: EventColumns, user_ids: Sequence[str | None]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Scaled query vectors [B, D], so that a dot product is a logit, and whether each says anything of the user.

        Args:
            user_ids: whose profile each of the B histories of `columns` goes with.
        """
        columns = with_profiles(columns, self.bundle.profiles, user_ids)
        spans = [(columns.rows(row).start, columns.rows(row).stop) for row in range(len(user_ids))]
        lengths = np.array([stop - start for start, stop in spans], np.int64)
        padded = padded_lengths(lengths, self.towers.cfg.history_length)
        vectors = torch.empty(len(spans), self.embeddings.shape[1])
        for length in np.unique(padded).tolist():
            rows = np.flatnonzero(padded == length).tolist()
            history = pad_histories(columns, [spans[row] for row in rows], length, rows)
            vectors[rows] = self.towers.queries(history, self.embeddings)[:, -1] * self.towers.scale()
        known = lengths > 0
        if self.bundle.profiles is not None and columns.profile_row is not None:
            known |= np.append(self.bundle.profiles.telling, False)[columns.profile_row]  # row -1: nothing is known
        return vectors.numpy(), known


def padded_lengths(lengths: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """What histories of these lengths are padded to, at most `most`, which the tower reads.

    >>> padded_lengths(np.array([0, 16, 17, 100, 900, 5000]), 1000).tolist()
    [16, 16, 32, 128, 1000, 1000]
    """
    above = np.maximum(lengths, SHORTEST_PADDING)
    return np.minimum(2 ** np.ceil(np.log2(above)).astype(np.int64), most)


def log_popularity(items: Catalogue, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """float32 [K]: the score of an item where nothing is known of the user, floored at one choice in a million."""
    return np.log(np.maximum(items.popularity[rows], 1e-6))
