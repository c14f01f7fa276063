"""Fitting the reranker on the matcher's own candidates, with behaviour that the towers were not fitted on.

Dimension key: B queries, K candidates, T targets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avrec_ray.ranking.config import TARGETS, RerankerConfig
from avrec_ray.ranking.interaction import AttentionReranker
from avrec_ray.ranking.lists import Interests, ItemArrays, context_features, interests_of
from avrec_ray.ranking.position_bias import choice_weights
from avrec_ray.training.histories import LIKE_CODES, POSITIVE_CODES, SKIP_CODES, EventColumns

FINISHED_RATIO = 0.9
"""Watched share from which an item counts as finished."""
NOT_BIASED = np.ones(1)
"""Shares of places that are all looked at alike."""


@dataclass(frozen=True)
class RerankQuery:
    """A moment in a user's life: what came before is the history, what came after is the truth."""

    start: int
    stop: int
    """History rows [start, stop) of the event columns."""
    future_stop: int
    """Truth rows [stop, future_stop)."""


@dataclass(eq=False)
class RerankBatch:
    """Candidate lists with what the user did to each candidate afterwards."""

    interests: Interests
    candidate_idx: Tensor
    """int64 [B, K]."""
    context: Tensor
    """float32 [B, K, NUM_CONTEXT]."""
    labels: Tensor
    """float32 [B, K, T], NaN where not known."""
    choice_weight: Tensor
    """float32 [B, K]: what a choice of each candidate counts, see `position_bias`."""

    @property
    def choices(self) -> tuple[Tensor, Tensor]:
        """What `choose` should give, [B, K], summing to 1 where anything was, and how much each list counts, [B].

        The weighted mean of the lists' losses is the self-normalised estimate of what it would be if every place were
        looked at alike (Swaminathan and Joachims, 2015).
        """
        chosen_BK = self.labels[..., TARGETS.index("choose")]
        weighted_BK = chosen_BK * self.choice_weight
        total_B = weighted_BK.sum(1)
        return weighted_BK / total_B.clamp(min=1e-9)[:, None], total_B / chosen_BK.sum(1).clamp(min=1)


def held_out_queries(columns: EventColumns, num_fitted: npt.NDArray[np.int64], limit: int) -> list[RerankQuery]:
    """Queries at the events after each user's first `num_fitted` ([users]), at most `limit` a user, spread evenly.

    A user without any earlier event gives no query: there is no history to rank by.
    """
    queries = []
    for user in range(len(columns.user_ids)):
        rows = columns.rows(user)
        held_out = np.arange(rows.start + max(int(num_fitted[user]), 1), rows.stop)
        if len(held_out):
            picked = held_out[np.unique(np.linspace(0, len(held_out) - 1, limit).astype(int))]
            queries += [RerankQuery(rows.start, int(row), rows.stop) for row in picked]
    return queries


def label_candidates(
    columns: EventColumns, query: RerankQuery, candidates: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """float32 [K, T]: did the user later choose, like, finish, skip each candidate; NaN for the last three if unmet."""
    labels = np.full((len(candidates), len(TARGETS)), np.nan, np.float32)
    labels[:, 0] = 0.0
    future = slice(query.stop, query.future_stop)
    items, events = columns.item_idx[future], columns.event[future]
    for column, item in enumerate(candidates):
        met = items == item
        if met.any():
            met_events, watched = events[met], columns.watch_ratio[future][met]
            labels[column] = (
                np.isin(met_events, POSITIVE_CODES).any(),
                np.isin(met_events, LIKE_CODES).any(),
                (watched >= FINISHED_RATIO).any() if not np.isnan(watched).all() else np.nan,
                np.isin(met_events, SKIP_CODES).any(),
            )
    return labels


def weigh_choices(
    columns: EventColumns,
    query: RerankQuery,
    candidates: npt.NDArray[np.int64],
    examined: npt.NDArray[np.float64],
) -> npt.NDArray[np.float32]:
    """float32 [K]: what the first later choice of each candidate counts by the place it was shown at; 1 otherwise."""
    weight = np.ones(len(candidates), np.float32)
    if columns.position is None:
        return weight
    future = np.arange(query.stop, query.future_stop)
    chosen = future[np.isin(columns.event[future], POSITIVE_CODES)]
    items, first = np.unique(columns.item_idx[chosen], return_index=True)
    counts = choice_weights(columns.position[chosen[first]], examined)
    _, column, place = np.intersect1d(candidates, items, return_indices=True)
    weight[column] = counts[place]
    return weight


class RerankBatches:
    """Callable: epoch -> batches. `candidate_idx` int64 [Q, K] and `scores` float32 [Q, K] come from the matcher,
    `item_to_item` float32 [Q, K, 3] from `ItemToItem.scores`; `popularity` float32 [N, 2] as in ItemArrays;
    `examined` float64 [P] from `examined_shares`, by which choices from lists are weighed."""

    def __init__(
        self,
        columns: EventColumns,
        queries: Sequence[RerankQuery],
        candidate_idx: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float32],
        item_to_item: npt.NDArray[np.float32],
        popularity: npt.NDArray[np.float32],
        cfg: RerankerConfig,
        seed: int,
        examined: npt.NDArray[np.float64] = NOT_BIASED,
    ) -> None:
        self.columns, self.queries, self.cfg, self.seed = columns, queries, cfg, seed
        self.candidate_idx, self.scores, self.popularity = candidate_idx, scores, popularity
        self.item_to_item = item_to_item
        self.labels = np.stack([label_candidates(columns, q, c) for q, c in zip(queries, candidate_idx, strict=True)])
        lists = zip(queries, candidate_idx, strict=True)
        self.choice_weight = np.stack([weigh_choices(columns, q, c, examined) for q, c in lists])
        self.useful = np.flatnonzero(np.nan_to_num(self.labels).any((1, 2)))

    def hold_out(self, share: float) -> npt.NDArray[np.int64]:
        """Take the lists of a share of the users out of training; gives those of them in which something was chosen."""
        users = np.array([query.start for query in self.queries], np.int64)
        candidates = np.random.default_rng([self.seed, 3]).permutation(np.unique(users[self.useful]))
        is_held_out = np.isin(users, candidates[: round(share * len(candidates))])
        held_out = self.useful[is_held_out[self.useful]]
        self.useful = self.useful[~is_held_out[self.useful]]
        return held_out[self.labels[held_out, :, 0].any(1)]

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch; lists without any known outcome are left out."""
        return -(-len(self.useful) // self.cfg.optim.batch_size)

    def __call__(self, epoch: int) -> Iterator[RerankBatch]:
        rng = np.random.default_rng([self.seed, epoch, 2])
        order = rng.permutation(self.useful)
        size = self.cfg.optim.batch_size
        for step in range(self.steps_per_epoch):
            rows = order[step * size : (step + 1) * size]
            yield self.batch(rows, self._columns(rows, rng))

    def _columns(self, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Columns of the lists that a step looks at, [B, K']: what the user met, the rest drawn anew each epoch."""
        width = min(self.cfg.candidates_per_step, self.candidate_idx.shape[1])
        met = (self.labels[rows, :, 0] > 0) | ~np.isnan(self.labels[rows, :, -1])
        order = np.argsort(rng.random(met.shape) - 2.0 * met - 2.0 * (self.labels[rows, :, 0] > 0), axis=1)
        return order[:, :width]

    def batch(self, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64] | None = None) -> RerankBatch:
        """The lists at `rows`; `columns` int64 [B, K'] takes a part of each list."""
        spans = [(self.queries[row].start, self.queries[row].stop) for row in rows]
        if columns is None:
            columns = np.tile(np.arange(self.candidate_idx.shape[1]), (len(rows), 1))
        candidates = np.take_along_axis(self.candidate_idx[rows], columns, 1)
        scores = np.take_along_axis(self.scores[rows], columns, 1)
        labels = np.take_along_axis(self.labels[rows], columns[..., None], 1)
        popularity = torch.from_numpy(self.popularity[candidates])
        said = torch.from_numpy(np.take_along_axis(self.item_to_item[rows], columns[..., None], 1))
        return RerankBatch(
            interests=interests_of(self.columns, spans, self.cfg.num_interests),
            candidate_idx=torch.from_numpy(candidates),
            context=context_features(torch.from_numpy(scores), popularity, said),
            labels=torch.from_numpy(labels),
            choice_weight=torch.from_numpy(np.take_along_axis(self.choice_weight[rows], columns, 1)),
        )


class RerankStep(nn.Module):
    """Listwise softmax for `choose`, logistic losses for the other heads where the outcome is known."""

    def __init__(self, model: AttentionReranker, items: ItemArrays) -> None:
        super().__init__()
        self.model = model
        self.items = items

    def forward(self, batch: RerankBatch) -> dict[str, Tensor]:
        """`loss` to minimise and its parts."""
        logits_BKT = self.score(batch)
        listwise_B, weight_B = self.listwise(logits_BKT, batch)
        listwise = (listwise_B * weight_B).sum() / weight_B.sum().clamp(min=1e-9)
        known = ~batch.labels[..., 1:].isnan()
        pointwise = F.binary_cross_entropy_with_logits(
            logits_BKT[..., 1:], batch.labels[..., 1:].nan_to_num(0.0), reduction="none"
        )
        heads = (pointwise * known).sum() / known.sum().clamp(min=1)
        return {"loss": listwise + heads, "listwise": listwise, "heads": heads}

    @staticmethod
    def listwise(logits_BKT: Tensor, batch: RerankBatch) -> tuple[Tensor, Tensor]:
        """Cross entropy of each list [B], and how much it counts [B]."""
        target_BK, weight_B = batch.choices
        return F.cross_entropy(logits_BKT[..., 0], target_BK, reduction="none"), weight_B

    def score(self, batch: RerankBatch) -> Tensor:
        """Logits [B, K, T]."""
        logits, _ = self.model(
            self.items.embeddings[batch.interests.item_idx],
            batch.interests.event,
            batch.interests.watch_ratio,
            batch.interests.mask,
            self.items.moments[batch.candidate_idx],
            self.items.moment_mask[batch.candidate_idx],
            batch.context,
        )
        return logits
