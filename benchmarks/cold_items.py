"""How well items that nobody chose are ranked from their content: the served lists beside the field's usual way.

Run: PYTHONPATH=. python -m benchmarks.cold_items STORAGE [--out FOLDER] [overrides of the job]

STORAGE is the folder of a finished full loop over items that were hidden whole, such as runs/ml_100k_cold; overrides
are those of that loop (experiment=ml_100k_cold). Printed: area under the curve, recall and NDCG at 10 among the hidden
items, means over users, of

    served        what the loop's evaluation left
    ials_ridge    iALS' item factors predicted from content by ridge (Gantner et al., Learning Attribute-to-Feature
                  Mappings for Cold-Start Recommendations, ICDM 2010), each kind of content with the same weight;
                  settings of iALS and the ridge are the best of valid for NDCG
    ials_weighed  the same, and the weights of the kinds of content too are the best of valid
    table         the table of neighbours foretold from all content, which `served` weighs, fitted anew
    table ...     by some kinds of content alone, or without one

All read the same vectors: tags, words, time of publication, and the encoders' of each modality. With --out each list is
left there as a recommendations table, for an evaluator of your own.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.config import JobConfig
from avrec_ray.evaluation.baselines import rank_in_parts
from avrec_ray.evaluation.choices import Rows, Scores
from avrec_ray.evaluation.factor_baselines import IALS
from avrec_ray.evaluation.hits import Ranked
from avrec_ray.evaluation.rank_metrics import ndcg_at_k
from avrec_ray.evaluation.recommendations import score_recommendations
from avrec_ray.evaluation.tuning import GRIDS, Question
from avrec_ray.pipelines.baselines import catalogue_ids, lists_table
from avrec_ray.pipelines.catalogue import item_durations, read_items
from avrec_ray.pipelines.item_to_item import content_views
from avrec_ray.pipelines.measured import truth_table
from avrec_ray.pipelines.question import ask
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.towers_of_job import with_widths
from avrec_ray.ranking.config import RerankerConfig
from avrec_ray.retrieval.cold_items import ContentView, choose_weights, known_rows, sampled_scores, with_cold_items
from avrec_ray.retrieval.neighbours import fit_neighbours
from benchmarks.ablations import job_of

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Strengths; each kind of content has vectors of mean square length 1."""
WEIGHTS = (0.0, 0.3, 1.0, 3.0)


@dataclasses.dataclass(frozen=True)
class Ridge:
    """What of content counts how much, and for which iALS."""

    ials: int
    """Place in the grid of iALS' settings."""
    strength: float
    weights: Mapping[str, float]


class ForetoldFactors:
    """A fitted iALS whose items without choices get the factors that ridge regression foretells from their content."""

    def __init__(self, ials: IALS, known: Bools, kernel: Floats, strength: float) -> None:
        """`kernel`: dot products [N, N] of the items' vectors; `known` [N] those with choices."""
        self.ials, self.factors = ials, ials.item_factors().astype(np.float64)
        mean = self.factors[known].mean(0)
        matrix = kernel[np.ix_(known, known)] + strength * np.eye(int(known.sum()))
        shares = np.linalg.solve(matrix, self.factors[known] - mean)
        self.factors[~known] = mean + kernel[np.ix_(~known, known)] @ shares

    def score(self, histories: Sequence[Rows]) -> Scores:
        return np.asarray(self.ials.user_factors(histories) @ self.factors.T, np.float32)


class RidgeSearch:
    """The ridges that valid likes best; each iALS is fitted once."""

    def __init__(self, kernels: Mapping[str, Floats], valid: Question, seed: int) -> None:
        """`kernels`: by kind of content, see `linear_kernel`."""
        self.kernels, self.valid, self.seed = kernels, valid, seed
        self.fitted = [valid.fit(IALS(**settings, seed=seed)) for settings in GRIDS["ials"]]

    def choose_strength(self) -> Ridge:
        """The settings of iALS and the strength that are best on valid, all kinds of content alike."""
        alike = dict.fromkeys(self.kernels, 1.0)
        return self._best([Ridge(place, s, alike) for place in range(len(self.fitted)) for s in RIDGES])

    def choose_weights(self, found: Ridge) -> Ridge:
        """From there a weight at a time, then the strength, as long as valid gains."""
        while True:
            before = found
            for name in self.kernels:
                weights = [{**found.weights, name: weight} for weight in WEIGHTS if weight != found.weights[name]]
                tries = [dataclasses.replace(found, weights=tried) for tried in weights if any(tried.values())]
                found = self._best([found, *tries])
            found = self._best([found, *(dataclasses.replace(found, strength=s) for s in RIDGES)])
            if found == before:
                return found

    def rank(self, question: Question, ials: IALS, ridge: Ridge, depth: int) -> Ranked:
        """Lists [U, depth] for a question that `ials` was fitted on."""
        known = np.bincount(question.item_idx, minlength=question.num_items) > 0
        kernel = np.sum([weight * self.kernels[name] for name, weight in ridge.weights.items()], axis=0)
        foretold = ForetoldFactors(ials, known, kernel, ridge.strength)
        return ranked_by(foretold.score, question, depth)

    def _best(self, tries: Sequence[Ridge]) -> Ridge:
        ranks = (self.rank(self.valid, self.fitted[ridge.ials], ridge, 10) for ridge in tries)
        return tries[int(np.argmax([ndcg_at_k(ranked, self.valid.targets, 10).mean() for ranked in ranks]))]


def main(storage: Path, out: Path | None, overrides: Sequence[str]) -> None:
    job = job_of([*overrides, f"storage_path={storage}"])
    job = with_widths(Storage.at(job.storage_path), job)
    item_ids = catalogue_ids(storage / "clips")
    index = {item_id: row for row, item_id in enumerate(item_ids)}
    durations = item_durations(read_items(storage / "tables" / "items.parquet", item_ids))
    valid, test = (ask(storage, index, durations, part) for part in ("valid", "test"))
    if test.candidates is None:
        raise SystemExit(f"{storage} hides no items: run a loop with evaluation.split.kind=cold_items")
    _, views = content_views(storage, job, item_ids)
    truth, candidates = truth_table(test, item_ids), pa.table({"item_id": np.array(item_ids)[test.candidates]})
    print(f"{len(test.users)} users, {candidates.num_rows} hidden items of {len(item_ids)}")
    print(f"{'':28}{'AUC':>8}{'recall':>8}{'NDCG':>8}", flush=True)
    for name, lists in every_list(storage, job, valid, test, views, item_ids):
        found = score_recommendations(lists, truth, candidates=candidates)
        figures = (found[key] for key in ("auc", "recall_at_10", "ndcg_at_10"))
        print(f"{name:28}" + "".join(f"{value:8.4f}" for value in figures), flush=True)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            pq.write_table(lists, out / f"{name.replace(' ', '_')}.parquet")


def every_list(
    storage: Path, job: JobConfig, valid: Question, test: Question, views: list[ContentView], item_ids: list[str]
) -> Iterator[tuple[str, pa.Table]]:
    """Name and recommendations table of each way to rank the hidden items."""
    depth = int(test.candidates.sum())
    yield "served", pq.read_table(storage / "evaluation" / "recommendations.parquet")
    search = RidgeSearch({view.name: linear_kernel(view) for view in views}, valid, job.seed)
    plain = search.choose_strength()
    for name, chosen in (("ials_ridge", plain), ("ials_weighed", search.choose_weights(plain))):
        ials = test.fit(IALS(**GRIDS["ials"][chosen.ials], seed=job.seed))
        yield name, lists_table(search.rank(test, ials, chosen, depth), test.users, item_ids)
    encoded = [view for view in views if view.name in job.towers.modalities]
    shown = {"table": views, "table of encoders alone": encoded}
    for view in encoded:
        shown[f"table without {view.name}"] = [other for other in views if other is not view]
    for view in encoded if len(encoded) > 1 else ():
        shown[f"table of {view.name} alone"] = [view]
    for name, used in shown.items():
        yield name, lists_table(by_table(test, used, job.reranker, job.seed, depth), test.users, item_ids)


def linear_kernel(view: ContentView) -> Floats:
    """Dot products [N, N] of what each item's vector differs from the mean, divided by their mean square length."""
    told = np.isfinite(view.vectors).all(1) & np.any(view.vectors, axis=1)
    vectors = np.where(told[:, None], view.vectors, 0.0).astype(np.float64)
    vectors[told] -= vectors[told].mean(0)
    return np.asarray(vectors @ vectors.T / (vectors[told] ** 2).sum(1).mean())


def by_table(test: Question, views: list[ContentView], cfg: RerankerConfig, seed: int, depth: int) -> Ranked:
    """Lists by the table of neighbours, its hidden items by what `views` tell of them."""
    counts = np.bincount(test.item_idx, minlength=test.num_items)
    histories = np.split(test.item_idx, np.flatnonzero(np.diff(test.user_idx)) + 1)
    table = fit_neighbours(test.user_idx, test.item_idx, test.num_fitted_users, test.num_items, cfg.taste)
    known = known_rows(counts)
    weights = choose_weights(views, known, sampled_scores(table, histories, known, seed), seed)
    table = with_cold_items(table, views, weights, counts, cfg.cold_neighbours)
    return ranked_by(lambda histories: np.stack([table.scores(chosen) for chosen in histories]), test, depth)


def ranked_by(score: Callable[[Sequence[Rows]], Scores], question: Question, depth: int) -> Ranked:
    """Lists [U, depth] of the hidden items by scores of histories."""
    liked, seen = question.liked, question.seen
    return rank_in_parts(lambda part: score(liked[part]), seen, depth, question.num_items, question.candidates)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", type=Path, metavar="STORAGE")
    parser.add_argument("--out", type=Path)
    given, overrides = parser.parse_known_args()
    main(given.storage.resolve(), given.out, overrides)
