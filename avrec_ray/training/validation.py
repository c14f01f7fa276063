"""How well towers in training recommend what they are not trained on: a sample of users, ranked over the catalogue.

Dimension key: B users, L history length, D embedding, N catalogue.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from avrec_ray.towers.two_tower import HistoryBatch
from avrec_ray.training.histories import EventColumns, pad_histories

_USERS_AT_ONCE = 256


@dataclass(eq=False)
class HeldOutUsers:
    """Users with a history to ask about, and what they chose after it."""

    histories: EventColumns
    users: npt.NDArray[np.int64]
    """int64 [users]: rows of `histories.user_ids`."""
    chosen: list[npt.NDArray[np.int64]]
    """Catalogue rows that each chose later for the first time; at least one."""
    seen: list[npt.NDArray[np.int64]]
    """Catalogue rows that no list of theirs holds."""


def held_out_users(
    fitted: EventColumns, later: EventColumns, positive: npt.NDArray[np.int64], most_users: int, seed: int = 0
) -> HeldOutUsers:
    """A sample of the users of `fitted` who chose something new in `later`; `positive` are codes of choices."""
    row_of = {user_id: row for row, user_id in enumerate(fitted.user_ids)}
    users, chosen, seen = [], [], []
    for row, user_id in enumerate(later.user_ids):
        if user_id not in row_of:
            continue
        rows = later.rows(row)
        met = np.unique(fitted.item_idx[fitted.rows(row_of[user_id])])
        new = np.setdiff1d(later.item_idx[rows][np.isin(later.event[rows], positive)], met)
        if len(new):
            users.append(row_of[user_id])
            chosen.append(new)
            seen.append(met)
    kept = np.sort(np.random.default_rng([seed, 2]).permutation(len(users))[:most_users])
    return HeldOutUsers(
        fitted, np.array(users, np.int64)[kept], [chosen[row] for row in kept], [seen[row] for row in kept]
    )


Score = Callable[[nn.Module, HistoryBatch], Tensor]
"""score(module, histories) -> scores [B, N] of the whole catalogue at the newest position."""


class RankHeldOut:
    """Callable: module -> metrics of its lists for held-out users. The module is in evaluation mode, without gradient.

    `recall_at_k` is the share of a user's choices in the first k, at most k of which are asked for; `ndcg_at_k` the
    gain 1 / log2(1 + rank), over that of an ideal list.
    """

    def __init__(self, users: HeldOutUsers, score: Score, length: int, recall_k: int = 20, ndcg_k: int = 10) -> None:
        self.users, self.score, self.length = users, score, length
        self.recall_k, self.ndcg_k = recall_k, ndcg_k

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> dict[str, float]:
        recalls: list[float] = []
        gains: list[float] = []
        device = next(module.parameters()).device
        for first in range(0, len(self.users.users), _USERS_AT_ONCE):
            batch = range(first, min(first + _USERS_AT_ONCE, len(self.users.users)))
            spans = [self.users.histories.rows(int(self.users.users[row])) for row in batch]
            history = pad_histories(self.users.histories, [(s.start, s.stop) for s in spans], self.length)
            moved = HistoryBatch(**{name: value.to(device) for name, value in vars(history).items()})
            scores_BN = self.score(module, moved).float()
            for position, row in enumerate(batch):
                scores_BN[position, torch.from_numpy(self.users.seen[row]).to(device)] = -math.inf
            depth = min(max(self.recall_k, self.ndcg_k), scores_BN.shape[1])
            lists = scores_BN.topk(depth).indices.cpu().numpy()
            for position, row in enumerate(batch):
                hits = np.isin(lists[position], self.users.chosen[row])
                recalls.append(_recall(hits, len(self.users.chosen[row]), self.recall_k))
                gains.append(_ndcg(hits, len(self.users.chosen[row]), self.ndcg_k))
        return {f"recall_at_{self.recall_k}": _mean(recalls), f"ndcg_at_{self.ndcg_k}": _mean(gains)}


def _recall(hits: npt.NDArray[np.bool_], num_chosen: int, k: int) -> float:
    return float(hits[:k].sum()) / min(num_chosen, k)


def _ndcg(hits: npt.NDArray[np.bool_], num_chosen: int, k: int) -> float:
    discounts = 1 / np.log2(np.arange(2, k + 2))
    return float(discounts[: len(hits[:k])][hits[:k]].sum() / discounts[: min(num_chosen, k)].sum())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
