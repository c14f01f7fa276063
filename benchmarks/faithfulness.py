"""Whether explanations are faithful: does the score fall most without what is named as the reason?

Run: PYTHONPATH=. python -m benchmarks.faithfulness BUNDLE DATA [--users 100] [--items 5] [--seed 0]

DATA is a parquet file of interactions, or the storage folder of a full loop: then train and valid of its splits. Every
fall is of scores from scratch: the matcher and the reranker of the bundle on the history without an item, or on a
catalogue in which an item lacks some of its moments; the explainer's own arithmetic takes no part in it. A random other
item is one of the newest 100 of the history.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from avrec_ray.bundle import load_bundle
from avrec_ray.ranking.leave_one_out import shares
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.training.histories import columns_from_events
from avrec_ray.types import POSITIVE_EVENTS, Candidate, Event, Query, RankedItem

Falls = npt.NDArray[np.float64]
MAX_REMOVED = 100
"""Newest distinct items of a history that are removed from scratch."""
ERROR = "largest error of a contribution, by user"


class Tally:
    """Figures by name, each a mean over cases."""

    def __init__(self) -> None:
        self.cases: dict[str, list[float]] = defaultdict(list)

    def ranks(self, name: str, weights: Falls, falls: Falls, rng: np.random.Generator) -> None:
        """How well `weights` of several things tell the falls of the score without each of them."""
        named = int(weights.argmax())
        other = int(rng.choice(np.delete(np.arange(len(falls)), named)))
        self.cases[f"{name}: falls more than by a random other"].append(float(falls[named] > falls[other]))
        self.cases[f"{name}: falls most of all"].append(float(falls[named] >= falls.max() - 1e-4))
        self.cases[f"{name}: ROC AUC, the one that falls most"].append(auc(weights, falls >= falls.max()))
        self.cases[f"{name}: ROC AUC, falls above the median"].append(auc(weights, falls > np.median(falls)))

    def print(self) -> None:
        for name, values in self.cases.items():
            known = [value for value in values if not np.isnan(value)]
            print(f"{name:72} {np.mean(known) if known else np.nan:7.4f}  ({len(known)} cases)")


def auc(weights: Falls, wanted: npt.NDArray[np.bool_]) -> float:
    """Share of pairs of a wanted and another thing in which the wanted one weighs more; ties count half."""
    mine, others = weights[wanted][:, None], weights[~wanted][None]
    return float(((mine > others) + 0.5 * (mine == others)).mean()) if mine.size and others.size else float("nan")


class Trial:
    """The public request path of a bundle, beside what it says of itself."""

    def __init__(self, bundle: Path, seed: int) -> None:
        opened = load_bundle(bundle)
        self.matcher, self.reranker = Matcher(opened, MatcherConfig()), Reranker(opened)
        self.masked = Reranker(opened)
        self.masked.items.moment_mask = self.masked.items.moment_mask.clone()
        self.items, self.rng, self.tally = opened.items, np.random.default_rng(seed), Tally()
        self.explain_ms: list[float] = []
        self.plain_ms: list[float] = []

    def user(self, query: Query, num_items: int) -> list[RankedItem]:
        """Add the first items of a user's list to the tally."""
        (found,) = self.matcher.match([query])
        began = time.perf_counter()
        self.reranker.rerank(replace(query, explain=False), found)
        explained = time.perf_counter()
        ranking = self.reranker.rerank(query, found)
        self.plain_ms.append(1e3 * (explained - began))
        self.explain_ms.append(1e3 * (time.perf_counter() - explained))
        removed = distinct_newest(query, self.items.index_of)[:MAX_REMOVED]
        shown = ranking[:num_items]
        falls = np.stack([self.falls_without_item(query, shown, item_id) for item_id in removed])
        self.histories(query, shown, removed, falls)
        for row in shown:
            self.tally.cases["items shown: a reason is named"].append(float(bool(row.because)))
            candidate = next(c for c in found if c.item_id == row.item_id)
            if row.because and row.because[0].modality:
                self.moments(query, row, candidate)
        return ranking

    def falls_without_item(self, query: Query, shown: Sequence[RankedItem], item_id: str) -> Falls:
        """How much lower the score of each item shown is without a watched item, [S]."""
        rest = replace(query, history=tuple(e for e in query.history if e.item_id != item_id), explain=False)
        candidates = self.matcher.score(rest, [row.item_id for row in shown])
        scores = {row.item_id: row.score for row in self.reranker.rerank(rest, candidates)}
        return np.array([row.score - scores[row.item_id] for row in shown])

    def histories(self, query: Query, shown: Sequence[RankedItem], removed: Sequence[str], falls: Falls) -> None:
        """Reasons as listed, shares of all that was measured, and attention alone, against the falls [removed, S]."""
        if len(removed) < 3:
            return
        rows = np.array([self.items.index_of[row.item_id] for row in shown])
        measure = self.reranker.explainer.leave_one_out
        histories = measure.histories(query)
        contributions = measure.contributions(histories, rows)
        order = [removed.index(self.items.item_ids[row]) for row in histories.watched]
        self.tally.cases[ERROR].append(np.abs(contributions - falls[order]).max())
        attention = self.attention(query, shown)
        for column, row in enumerate(shown):
            if row.because:
                listed = {reason.item_id: reason.weight for reason in row.because}
                weights = np.array([listed.get(item_id, 0.0) for item_id in removed])
                self.tally.ranks("watched item, as listed", weights, falls[:, column], self.rng)
                every = np.zeros(len(removed))
                every[order] = shares(contributions[:, column : column + 1])[:, 0]
                self.tally.ranks("watched item, all shares", every, falls[:, column], self.rng)
            self.tally.cases["items shown: attention alone names a reason"].append(float(bool(attention[column])))
            if attention[column]:
                weights = np.array([attention[column].get(item_id, 0.0) for item_id in removed])
                self.tally.ranks("watched item, attention alone", weights, falls[:, column], self.rng)

    def attention(self, query: Query, shown: Sequence[RankedItem]) -> list[dict[str, float]]:
        """Largest attention of each watched item, for each item shown; empty where it has no moments."""
        columns = columns_from_events([query.history], self.items.index_of, self.items.durations)
        rows = np.array([self.items.index_of[row.item_id] for row in shown])
        span = (0, len(columns.item_idx))
        scored = self.reranker.scorer(columns, [span], np.zeros((1, len(rows)), np.float32), rows)
        watched, exists = scored.interests.item_idx[0].tolist(), scored.interests.mask[0].tolist()
        best = scored.attention[0].amax(2).tolist()
        return [
            {self.items.item_ids[row]: w for row, w, has in zip(watched, weights, exists, strict=True) if has and w > 0}
            for weights in best
        ]

    def moments(self, query: Query, row: RankedItem, candidate: Candidate) -> None:
        """The modality and the moment named, against the falls without each that the item has."""
        number, layout = self.items.index_of[row.item_id], self.reranker.layout
        exists = np.flatnonzero(self.reranker.items.moment_mask[number].numpy())
        names = sorted({layout[m][0] for m in exists})
        falls = np.array(
            [self.fall_without(query, row, candidate, [m for m in exists if layout[m][0] == n]) for n in names]
        )
        counted = "counted most" in row.sentence
        self.tally.cases["items with reasons: a moment counted"].append(float(counted))
        if not counted:
            return
        reason = row.because[0]
        if len(names) > 1:
            named = np.array([float(name == reason.modality) for name in names])
            self.tally.ranks("modality", named, falls, self.rng)
        if len(exists) > 1:
            spans = self.reranker.bundle.moment_spans[number]
            here = (reason.modality, reason.start_seconds, reason.end_seconds)
            named = np.array([float((layout[m][0], *spans[m].tolist()) == here) for m in exists])
            falls = np.array([self.fall_without(query, row, candidate, [m]) for m in exists])
            self.tally.ranks("moment", named, falls, self.rng)

    def fall_without(self, query: Query, row: RankedItem, candidate: Candidate, moments: Sequence[int]) -> float:
        """How much lower the score is in a catalogue in which the item lacks some moments."""
        mask = self.masked.items.moment_mask
        number = self.items.index_of[row.item_id]
        kept = mask[number].clone()
        mask[number, torch.tensor(moments)] = False
        (left,) = self.masked.rerank(replace(query, explain=False), [candidate])
        mask[number] = kept
        return row.score - left.score


def distinct_newest(query: Query, known: dict[str, int]) -> list[str]:
    """Items of the catalogue that the user chose, newest first."""
    events = (e for e in reversed(query.history) if e.event in POSITIVE_EVENTS and e.item_id in known)
    return list(dict.fromkeys(e.item_id for e in events))


def read_histories(data: Path) -> dict[str, list[Event]]:
    """Each user's events, oldest first."""
    parts = [data / "splits" / f"{name}.parquet" for name in ("context", "train", "valid")] if data.is_dir() else [data]
    columns = ["user_id", "item_id", "event", "at", "watch_seconds"]
    table = pa.concat_tables(pq.read_table(path, columns=columns) for path in parts if path.exists())
    histories: dict[str, list[Event]] = defaultdict(list)
    for row in table.sort_by("at").to_pylist():
        event = Event(row["user_id"], row["item_id"], row["event"], row["at"].timestamp(), row["watch_seconds"])
        histories[row["user_id"]].append(event)
    return histories


def main(bundle: Path, data: Path, num_users: int, num_items: int, seed: int) -> None:
    torch.set_num_threads(1)
    histories, trial = read_histories(data), Trial(bundle, seed)
    users = np.random.default_rng(seed).permutation(sorted(histories))[:num_users]
    for number, user in enumerate(users.tolist()):
        ranking = trial.user(Query(user, tuple(histories[user]), k=10, explain=True), num_items)
        if number < 5 and ranking:
            print(f"{user}: {trial.items.titles[trial.items.index_of[ranking[0].item_id]]!r}: {ranking[0].sentence}")
    trial.tally.print()
    print(f"{'largest error of a contribution, of all':72} {max(trial.tally.cases[ERROR]):7.1g}")
    for name, values in (("plain", trial.plain_ms), ("with reasons", trial.explain_ms)):
        print(f"rerank {name:13} median {np.median(values):7.1f} ms, p90 {np.percentile(values, 90):7.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--items", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    main(given.bundle, given.data, given.users, given.items, given.seed)
