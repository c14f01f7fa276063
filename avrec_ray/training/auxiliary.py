"""Auxiliary heads of fine-tuning: beside which item comes next, whether it was liked, how long watched, or skipped.

They shape the two towers and are thrown away afterwards: what is served is the dot product alone.

Dimension key: E events, Q queries, D embedding, H heads.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avrec_ray.training.config import AUXILIARY_HEADS
from avrec_ray.training.histories import LIKE_CODES, SKIP_CODES, EventColumns
from avrec_ray.training.watch_quantiles import watch_quantiles


def auxiliary_targets(columns: EventColumns, durations: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """float32 [E, H] in 0..1: what came of each user's first meeting with an item; NaN for others and where unknown.

    What counts is all that the log says of the user and the item: a like is a row of its own behind the view.

    Args:
        durations: [N] seconds of the catalogue, NaN where unknown.
    """
    liked = np.isin(columns.event, LIKE_CODES)
    skipped = np.isin(columns.event, SKIP_CODES)
    watched = watch_quantiles(columns.watch_ratio, durations[columns.item_idx])
    targets = np.full((len(columns.item_idx), len(AUXILIARY_HEADS)), np.nan, np.float32)
    for user in range(len(columns.user_ids)):
        rows = columns.rows(user)
        _, first, pair = np.unique(columns.item_idx[rows], return_index=True, return_inverse=True)
        longest = np.full(len(first), -np.inf, np.float32)
        np.fmax.at(longest, pair, watched[rows])  # fmax passes over NaN
        targets[rows.start + first, 0] = np.bincount(pair, liked[rows]) > 0
        targets[rows.start + first, 1] = np.where(np.isinf(longest), np.nan, longest)
        targets[rows.start + first, 2] = np.bincount(pair, skipped[rows]) > 0
    return targets


class AuxiliaryHeads(nn.Module):
    """Query and item to a logit a head."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * embedding_dim, embedding_dim)
        self.out = nn.Linear(embedding_dim, len(AUXILIARY_HEADS))

    def forward(self, queries_QD: Tensor, items_QD: Tensor) -> Tensor:
        """Logits [Q, H]."""
        pair = torch.cat([queries_QD, items_QD, queries_QD * items_QD], -1)
        logits_QH: Tensor = self.out(F.gelu(self.hidden(pair)))
        return logits_QH


def auxiliary_losses(
    logits_QH: Tensor, targets_QH: Tensor, totals_H: Tensor, weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """Binary cross entropy of each wanted head, summed over its known targets; a watch quantile is a soft target.

    Args:
        totals_H: known targets of each head over all workers, by which the sums are divided.
        weights: keys are the heads wanted.
    """
    known_QH = ~targets_QH.isnan()
    each_QH = F.binary_cross_entropy_with_logits(logits_QH, targets_QH.nan_to_num(0.0), reduction="none") * known_QH
    loss_H = each_QH.sum(0) / totals_H.clamp(min=1)
    return {name: loss_H[AUXILIARY_HEADS.index(name)] for name in weights}
