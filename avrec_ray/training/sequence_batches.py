"""Batches for fine-tuning: windows of histories, the targets inside them, and the candidates of the step.

Everything is drawn from (seed, epoch, step), so each worker knows the whole global batch without talking, 2 workers
x b see what 1 worker x 2b sees, and a resumed run goes on where it was.

Dimension key: B batch, L history length, V candidates, N catalogue.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avrec_ray.towers.losses import mixed_log_q
from avrec_ray.towers.two_tower import HistoryBatch
from avrec_ray.training.auxiliary import auxiliary_targets
from avrec_ray.training.config import AUXILIARY_HEADS, FinetuneConfig
from avrec_ray.training.histories import EVENT_CODES, EventColumns, pad_histories
from avrec_ray.training.watch_quantiles import watch_quantiles


@dataclass(eq=False)
class SequenceBatch:
    """One worker's share of a step. Candidates and totals are those of the whole step, equal on every worker."""

    history: HistoryBatch
    target_idx: Tensor
    """int64 [B, L]: the item after each position."""
    weight: Tensor
    """float32 [B, L]: 0 where the position has no target."""
    candidate_idx: Tensor
    """int64 [V], distinct catalogue rows."""
    log_q: Tensor | None
    """float32 [V], or None where the candidates are the catalogue."""
    total_weight: float
    """Sum of weights over all workers."""
    is_negative: Tensor | None = None
    """bool [V]: which candidates are negatives of other queries than their own; None for all."""
    auxiliary: Tensor | None = None
    """float32 [B, L, H]: see `training.auxiliary`; NaN where nothing is to be learned. None without heads."""
    auxiliary_totals: Tensor | None = None
    """float32 [H]: known targets of each head over all workers."""


class SequenceBatches:
    """Callable: epoch -> batches of this worker. One window of `length` + 1 events a user and epoch."""

    def __init__(
        self,
        columns: EventColumns,
        num_items: int,
        cfg: FinetuneConfig,
        length: int,
        seed: int,
        rank: int = 0,
        num_workers: int = 1,
        learn_first: bool = False,
        durations: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """`learn_first`: a user's first event is a target too, of the query of no history; for towers with profiles.

        `durations` [N], seconds, NaN where unknown: for `finetune.watch_weight` and auxiliary heads alone.
        """
        self.columns, self.num_items, self.cfg, self.length = columns, num_items, cfg, length
        self.seed, self.rank, self.num_workers, self.learn_first = seed, rank, num_workers, learn_first
        self.beginnings = frozenset(columns.starts[:-1].tolist()) if learn_first else frozenset()
        self.weight = target_weights(columns, cfg.event_weights)
        if columns.label_weight is not None:
            self.weight = self.weight * columns.label_weight
        if cfg.watch_weight:
            self.weight = self.weight * watch_weights(columns, durations, cfg.watch_weight)
        self.auxiliary = None
        if cfg.auxiliary_weights:
            self.auxiliary = auxiliary_targets(columns, _needed(durations, "auxiliary_weights"))
        self.ordered = (columns, self.weight, self.auxiliary)
        self.frequency = np.bincount(columns.item_idx, self.weight, num_items) / max(self.weight.sum(), 1e-9)
        counts = np.diff(columns.starts)
        self.users = np.flatnonzero((counts >= 2) & self._has_target())
        # An item that nobody chose yet is no negative: it would be pushed away from everybody for being new.
        self.choosable = np.flatnonzero(self.frequency > 0)
        self.full = cfg.negatives == "full" or (cfg.negatives == "auto" and num_items <= cfg.full_max_items)

    def _has_target(self) -> npt.NDArray[np.bool_]:
        """Bool [users]: whether any event behind a user's first is a target."""
        weight = self.weight.copy()
        weight[self.columns.starts[:-1][np.diff(self.columns.starts) > 0]] = 0.0
        totals = np.concatenate([[0.0], np.cumsum(weight, dtype=np.float64)])
        return np.asarray(np.diff(totals[self.columns.starts]) > 0)

    @property
    def global_batch(self) -> int:
        """Users a step over all workers; never more than there are."""
        wanted = self.cfg.batch_size * self.num_workers
        return max(self.num_workers, min(wanted, len(self.users) // self.num_workers * self.num_workers))

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch; the last incomplete one is dropped, other users are dropped each epoch."""
        return len(self.users) // self.global_batch

    def __call__(self, epoch: int) -> Iterator[SequenceBatch]:
        rng = np.random.default_rng([self.seed, epoch, 1])
        if self.cfg.unordered:
            self.columns, self.weight, self.auxiliary = shuffled(*self.ordered, rng)
        users = rng.permutation(self.users)
        for step in range(self.steps_per_epoch):
            chosen = users[step * self.global_batch : (step + 1) * self.global_batch]
            yield self._batch(chosen, rng)

    def _batch(self, users: npt.NDArray[np.int64], rng: np.random.Generator) -> SequenceBatch:
        spans = [self._window(int(user), rng) for user in users]
        target_rows = np.concatenate([np.arange(self._first_target(span), span[1]) for span in spans])
        candidates, log_q, is_negative = self._candidates(target_rows, rng)
        mine = spans[self.rank :: self.num_workers]
        target_idx, weight, auxiliary = self._targets(mine)
        return SequenceBatch(
            history=pad_histories(self.columns, [(start, stop - 1) for start, stop in mine], self.length),
            target_idx=target_idx,
            weight=weight,
            candidate_idx=candidates,
            log_q=log_q,
            total_weight=float(self.weight[target_rows].sum()),
            is_negative=is_negative,
            auxiliary=auxiliary,
            auxiliary_totals=None if self.auxiliary is None else _num_known(self.auxiliary[target_rows]),
        )

    def _window(self, user: int, rng: np.random.Generator) -> tuple[int, int]:
        """A span of at most length + 1 events; a long history gives another one each epoch, or often the newest."""
        rows = self.columns.rows(user)
        spare = rows.stop - rows.start - (self.length + 1)
        if spare <= 0:
            return rows.start, rows.stop
        if self.cfg.newest_share and rng.random() < self.cfg.newest_share:
            return rows.start + spare, rows.stop
        start = rows.start + int(rng.integers(0, spare + 1))
        return start, start + self.length + 1

    def _first_target(self, span: tuple[int, int]) -> int:
        """Row of the first target: the second event, or the user's first of all where a padded position asks for it."""
        start, stop = span
        return start if start in self.beginnings and stop - start <= self.length else start + 1

    def _targets(self, spans: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor | None]:
        target_idx = np.zeros((len(spans), self.length), np.int64)
        weight = np.zeros((len(spans), self.length), np.float32)
        auxiliary = np.full((len(spans), self.length, len(AUXILIARY_HEADS)), np.nan, np.float32)
        for row, (start, stop) in enumerate(spans):
            first = self._first_target((start, stop))
            count = stop - first
            target_idx[row, -count:] = self.columns.item_idx[first:stop]
            weight[row, -count:] = self.weight[first:stop]
            if self.auxiliary is not None:
                auxiliary[row, -count:] = self.auxiliary[first:stop]
        told = None if self.auxiliary is None else torch.from_numpy(auxiliary)
        return torch.from_numpy(target_idx), torch.from_numpy(weight), told

    def _candidates(
        self, target_rows: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The step's candidates [V], the log chance [V] that each was proposed, and which may be anybody's negative."""
        if self.full:
            return torch.from_numpy(self.choosable), None, None
        targets = self.columns.item_idx[target_rows][self.weight[target_rows] > 0]
        num_uniform = 0 if self.cfg.negatives == "in_batch" else self.cfg.num_uniform
        num_in_batch = 0 if self.cfg.negatives == "uniform" else len(targets)
        uniform = rng.choice(self.choosable, num_uniform)
        candidates = np.union1d(targets, uniform)
        # A target has to be scored, but with negatives=uniform nobody else's query may learn from it.
        is_negative = None if num_in_batch else torch.from_numpy(np.isin(candidates, uniform))
        if not self.cfg.logq:
            return torch.from_numpy(candidates), None, is_negative
        frequency = torch.from_numpy(self.frequency[candidates]).float()
        log_q = mixed_log_q(frequency, num_in_batch, num_uniform, len(self.choosable))
        return torch.from_numpy(candidates), log_q, is_negative


def target_weights(columns: EventColumns, event_weights: dict[str, float]) -> npt.NDArray[np.float32]:
    """Weight of each event as a target, [E]: its event's weight, 0 if the user met the item before.

    Lists leave out what the user has seen, so a repeat is never a target.
    """
    by_code = np.zeros(max(EVENT_CODES.values()) + 1, np.float32)
    for event, weight in event_weights.items():
        by_code[EVENT_CODES[event]] = weight
    weights = by_code[columns.event]
    for user in range(len(columns.user_ids)):
        rows = columns.rows(user)
        _, first = np.unique(columns.item_idx[rows], return_index=True)
        repeat = np.ones(rows.stop - rows.start, bool)
        repeat[first] = False
        weights[rows][repeat] = 0.0
    return weights


def watch_weights(
    columns: EventColumns, durations: npt.NDArray[np.float32] | None, watch_weight: float
) -> npt.NDArray[np.float32]:
    """float32 [E], from 1 - watch_weight to 1 + watch_weight by the quantile of watch time; 1 where that is unknown.

    Raises:
        ValueError: no durations were given.
    """
    quantile = watch_quantiles(columns.watch_ratio, _needed(durations, "watch_weight")[columns.item_idx])
    return np.nan_to_num(1 + watch_weight * (2 * quantile - 1), nan=1.0).astype(np.float32)


def _needed(durations: npt.NDArray[np.float32] | None, setting: str) -> npt.NDArray[np.float32]:
    if durations is None:
        raise ValueError(f"finetune.{setting} needs the durations of the catalogue; pass durations")
    return durations


def _num_known(auxiliary: npt.NDArray[np.float32]) -> Tensor:
    """float32 [H]: targets of each head that are known."""
    return torch.from_numpy((~np.isnan(auxiliary)).sum(0).astype(np.float32))


def shuffled(
    columns: EventColumns,
    weight: npt.NDArray[np.float32],
    auxiliary: npt.NDArray[np.float32] | None,
    rng: np.random.Generator,
) -> tuple[EventColumns, npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    """The same events, those of each user in a random order, at the times that stood there; targets follow events."""
    user = np.repeat(np.arange(len(columns.user_ids)), np.diff(columns.starts))
    order = np.lexsort((rng.random(len(user)), user))
    moved = {name: getattr(columns, name)[order] for name in ("item_idx", "event", "watch_ratio")}
    return dataclasses.replace(columns, **moved), weight[order], None if auxiliary is None else auxiliary[order]
