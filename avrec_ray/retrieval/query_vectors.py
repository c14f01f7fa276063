"""Query vectors of a bundle: what its user tower makes of histories and profiles, for the matcher and for explanations.

Dimension key: B queries, D embedding, K candidates.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from avrec_ray.bundle import Bundle, Catalogue
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.checkpoint import load_weights
from avrec_ray.training.histories import EventColumns, columns_from_events, pad_histories, with_profiles
from avrec_ray.types import Query


class QueryVectors:
    """The towers of a bundle, loaded once."""

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
        self, columns: EventColumns, user_ids: Sequence[str | None], length: int | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Scaled query vectors [B, D], so that a dot product is a logit, and whether each says anything of the user.

        Args:
            user_ids: whose profile each of the B histories of `columns` goes with.
            length: pad to so many events instead of to all that the tower can read; where no history is longer, only
                rounding differs, and the time is that of the histories there are.
        """
        columns = with_profiles(columns, self.bundle.profiles, user_ids)
        spans = [(columns.rows(row).start, columns.rows(row).stop) for row in range(len(user_ids))]
        longest = self.towers.cfg.history_length if length is None else min(length, self.towers.cfg.history_length)
        history = pad_histories(columns, spans, longest, range(len(user_ids)))
        vectors = self.towers.queries(history, self.embeddings)[:, -1] * self.towers.scale()
        known = history.mask.any(1).numpy()
        if self.bundle.profiles is not None and columns.profile_row is not None:
            known |= np.append(self.bundle.profiles.telling, False)[columns.profile_row]  # row -1: nothing is known
        return vectors.numpy(), known


def log_popularity(items: Catalogue, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """float32 [K]: the score of an item where nothing is known of the user, floored at one choice in a million."""
    return np.log(np.maximum(items.popularity[rows], 1e-6))
