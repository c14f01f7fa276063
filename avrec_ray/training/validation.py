"""How well towers in training recommend what they are not trained on: a sample of users, ranked over the catalogue.

Dimension key: B users, L history length, D embedding, N catalogue.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from avrec_ray.evaluation.rank_metrics import ndcg_at_k, recall_at_k
from avrec_ray.towers.two_tower import HistoryBatch
from avrec_ray.training.fit import to_device
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


Scorer = Callable[[nn.Module], Callable[[HistoryBatch], Tensor]]
"""scorer(module) -> a function from histories to scores [B, N] of the whole catalogue after the newest event; what does
not depend on the histories, such as item embeddings, is computed once."""


class RankHeldOut:
    """Callable: module -> metrics of its lists for held-out users. The module is in evaluation mode, without gradient.

    `recall_at_k` is the share of a user's choices among the first k; `ndcg_at_k` the gain 1 / log2(1 + rank) of those
    among the first k, over that of an ideal list. Both are means over users, as evaluation.rank_metrics has them.
    """

    def __init__(self, users: HeldOutUsers, scorer: Scorer, length: int, recall_k: int = 20, ndcg_k: int = 10) -> None:
        self.users, self.scorer, self.length = users, scorer, length
        self.recall_k, self.ndcg_k = recall_k, ndcg_k

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> dict[str, float]:
        users, score = self.users, self.scorer(module)
        device = next(module.parameters()).device
        lists: list[npt.NDArray[np.int64]] = []
        for first in range(0, len(users.users), _USERS_AT_ONCE):
            batch = range(first, min(first + _USERS_AT_ONCE, len(users.users)))
            spans = [users.histories.rows(int(users.users[row])) for row in batch]
            history = pad_histories(users.histories, [(s.start, s.stop) for s in spans], self.length)
            scores_BN = score(to_device(history, device)).float()
            for position, row in enumerate(batch):
                scores_BN[position, torch.from_numpy(users.seen[row]).to(device)] = -torch.inf
            depth = min(max(self.recall_k, self.ndcg_k), scores_BN.shape[1])
            lists.append(scores_BN.topk(depth).indices.cpu().numpy())
        if not lists:
            return {f"recall_at_{self.recall_k}": 0.0, f"ndcg_at_{self.ndcg_k}": 0.0}
        ranked = np.concatenate(lists)
        return {
            f"recall_at_{self.recall_k}": float(recall_at_k(ranked, users.chosen, self.recall_k).mean()),
            f"ndcg_at_{self.ndcg_k}": float(ndcg_at_k(ranked, users.chosen, self.ndcg_k).mean()),
        }
