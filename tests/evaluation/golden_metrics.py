"""Cases of metrics with the values that other libraries give them, in tests/golden/metrics_cases.json.

Tests read the first cases from that file. To write it again, and to print the largest difference from ours over all
cases, make an environment with other libraries and run there, in the root of the repository:

    python -m venv /tmp/golden && /tmp/golden/bin/pip install ranx rectools scikit-learn scipy statsmodels
    /tmp/golden/bin/python -m tests.evaluation.golden_metrics

Lists come from scores with ties; some are empty or short; some targets are items that the catalogue does not know.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avrec_ray.evaluation.list_metrics import (
    category_distance_at_k,
    intra_list_distance_at_k,
    miscalibration_at_k,
    popularity_at_k,
    serendipity_at_k,
)
from avrec_ray.evaluation.metrics import auc, average_precision_at_k, per_user_metrics
from avrec_ray.evaluation.significance import holm
from avrec_ray.evaluation.watch_metrics import mean_absolute_error, xauc

PATH = Path(__file__).parents[1] / "golden" / "metrics_cases.json"
LIBRARIES = ("ranx", "RecTools", "scikit-learn", "scipy", "statsmodels")
NUM_CASES, NUM_KEPT = 1000, 50
N, WIDTH, NUM_CANDIDATES = 40, 25, 50
"""Catalogue; longest list; catalogue and the items that it does not know, which are targets only."""
KS = (1, 5, 10, 20)

Values = dict[str, list[float]]
"""By metric and k one value a case; NaN where a library gives none."""


def load() -> dict[str, Any]:
    """The file: "libraries", "catalogue", "lists", their "values" by metric, "watch", "holm". Missing is None."""
    return json.loads(PATH.read_text())


def ranked_of(lists: list[dict[str, Any]]) -> npt.NDArray[np.int64]:
    """Lists as int64 [cases, WIDTH], -1 behind."""
    return np.array([case["ranked"] + [-1] * (WIDTH - len(case["ranked"])) for case in lists], np.int64)


def our_list_values(lists: list[dict[str, Any]], catalogue: dict[str, Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Ours for every value that a library gives, by the same keys, one value a case."""
    ranked, targets = ranked_of(lists), [case["targets"] for case in lists]
    popularity = np.array(catalogue["popularity"])
    embeddings, categories = np.array(catalogue["embeddings"]), np.array(catalogue["categories"], bool)
    histories = [np.array(case["history"], np.int64) for case in lists]
    ours = {"auc": auc(ranked, targets, NUM_CANDIDATES)} | per_user_metrics(ranked, targets, KS)
    for k in KS:
        ours[f"map_targets_at_{k}"] = average_precision_at_k(ranked, targets, k, "targets")
        ours[f"map_k_at_{k}"] = average_precision_at_k(ranked, targets, k, "k")
        ours[f"serendipity_at_{k}"] = serendipity_at_k(ranked, targets, popularity, k)
        ours[f"intra_list_distance_at_{k}"] = intra_list_distance_at_k(ranked, embeddings, k)
        ours[f"category_distance_at_{k}"] = category_distance_at_k(ranked, categories, k)
        ours[f"miscalibration_at_{k}"] = miscalibration_at_k(ranked, histories, categories, k)
        ours[f"popularity_at_{k}"] = popularity_at_k(ranked, popularity, k)
    return ours


def our_watch_values(case: dict[str, Any]) -> dict[str, float]:
    """Ours for a case of watch times."""
    predicted, actual = np.array(case["predicted"]), np.array(case["actual"])
    return {"xauc": xauc(predicted, actual), "mean_absolute_error": mean_absolute_error(predicted, actual)}


def make_catalogue(rng: np.random.Generator) -> dict[str, Any]:
    """Counts with ties and zeros, vectors with a row of zeros, and items in none to three of five categories."""
    embeddings = rng.normal(size=(N, 4)).round(3)
    embeddings[-1] = 0
    return {
        "popularity": np.maximum(rng.integers(-3, 12, N), 0).tolist(),
        "embeddings": embeddings.tolist(),
        "categories": (rng.random((N, 5)) < 0.3).astype(int).tolist(),
    }


def make_list(rng: np.random.Generator) -> dict[str, Any]:
    """A list by scores with ties, targets of which some are unknown, and a history with repeats."""
    length = int(rng.choice([0, 1, 2, *range(3, WIDTH + 1)]))
    best = np.argsort(-rng.integers(0, 6, N), kind="stable")
    return {
        "ranked": best[:length].tolist(),
        "targets": rng.choice(NUM_CANDIDATES, rng.integers(1, 16), replace=False).tolist(),
        "history": rng.integers(0, N, rng.integers(0, 12)).tolist(),
    }


def make_watch(rng: np.random.Generator) -> dict[str, Any]:
    """Two to thirty watch times with ties in both."""
    size = int(rng.integers(2, 31))
    return {"predicted": rng.integers(0, 9, size).tolist(), "actual": (rng.integers(0, 12, size) / 2).tolist()}


def library_list_values(lists: list[dict[str, Any]], catalogue: dict[str, Any]) -> Values:
    """Every metric from the library that has it."""
    values = ranx_values(lists) | rectools_values(lists, catalogue) | scipy_values(lists, catalogue)
    return values | {"auc": sklearn_auc(lists)}


def ranx_values(lists: list[dict[str, Any]]) -> Values:
    """NDCG, recall, MRR, hit rate, precision and MAP over the number of targets."""
    from ranx import Qrels, Run, evaluate

    truth = Qrels({f"q{row:04}": {f"i{item}": 1 for item in case["targets"]} for row, case in enumerate(lists)})
    listed = {f"q{row:04}": case["ranked"] for row, case in enumerate(lists) if case["ranked"]}
    run = Run({q: {f"i{item}": 1 / (1 + rank) for rank, item in enumerate(items)} for q, items in listed.items()})
    run = run.make_comparable(truth)
    names = {"ndcg": "ndcg", "recall": "recall", "mrr": "mrr", "hit_rate": "hit_rate", "precision": "precision"}
    names["map_targets"] = "map"
    evaluate(truth, run, [f"{name}@{k}" for name in names.values() for k in KS])
    return {
        f"{ours}_at_{k}": [float(run.scores[f"{name}@{k}"][f"q{row:04}"]) for row in range(len(lists))]
        for ours, name in names.items()
        for k in KS
    }


def rectools_values(lists: list[dict[str, Any]], catalogue: dict[str, Any]) -> Values:
    """MAP over k, partial AUC, serendipity, intra-list distance and popularity."""
    import pandas as pd
    from rectools import metrics
    from rectools.metrics.distances import PairwiseDistanceCalculator
    from scipy.spatial.distance import cdist

    vectors = np.array(catalogue["embeddings"])
    distances_NN = np.nan_to_num(cdist(vectors, vectors, "cosine"), nan=1.0)  # NaN: an item without embedding

    class Cosine(PairwiseDistanceCalculator):
        def _get_distances_for_item_pairs(self, items_0: Any, items_1: Any) -> npt.NDArray[np.float64]:
            return distances_NN[items_0.astype(int), items_1.astype(int)]

    def table(name: str) -> pd.DataFrame:
        rows = [(u, item, rank) for u, case in enumerate(lists) for rank, item in enumerate(case[name], start=1)]
        return pd.DataFrame(rows, columns=["user_id", "item_id", "rank"])

    reco, truth = table("ranked"), table("targets")[["user_id", "item_id"]]
    choices = np.repeat(np.arange(N), catalogue["popularity"])
    train = pd.DataFrame({"user_id": np.arange(len(choices)), "item_id": choices})
    lengths = np.array([len(case["ranked"]) for case in lists])
    values: dict[str, Any] = {}
    for k in KS:
        values[f"map_k_at_{k}"] = metrics.MAP(k, divide_by_k=True).calc_per_user(reco, truth)
        values[f"partial_auc_at_{k}"] = metrics.PartialAUC(k).calc_per_user(reco, truth)
        shares = metrics.Serendipity(k).calc_per_user(reco, truth, train, range(N))
        # RecTools divides by the listed items; ours divides by k, as its formula says.
        values[f"serendipity_at_{k}"] = shares * np.minimum(lengths, k)[shares.index] / k
        distances = metrics.IntraListDiversity(k, Cosine()).calc_per_user(reco)
        values[f"intra_list_distance_at_{k}"] = distances[np.minimum(lengths, k)[distances.index] > 1]
        values[f"popularity_at_{k}"] = metrics.AvgRecPopularity(k).calc_per_user(reco, train)
    return {name: series.reindex(range(len(lists))).tolist() for name, series in values.items()}


def scipy_values(lists: list[dict[str, Any]], catalogue: dict[str, Any]) -> Values:
    """Jaccard distance of categories, and the KL divergence of Steck's calibration."""
    from scipy.spatial.distance import pdist
    from scipy.stats import entropy

    categories = np.array(catalogue["categories"], bool)
    values: Values = {}
    for k in KS:
        listed = [case["ranked"][:k] for case in lists]
        values[f"category_distance_at_{k}"] = [
            float(pdist(categories[items], "jaccard").mean()) if len(items) > 1 else np.nan for items in listed
        ]
        pairs = [(shares_of(case["history"], categories), shares_of(case["ranked"][:k], categories)) for case in lists]
        values[f"miscalibration_at_{k}"] = [
            np.nan if p is None or q is None else float(entropy(p, 0.99 * q + 0.01 * p)) for p, q in pairs
        ]
    return values


def shares_of(items: list[int], categories: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64] | None:
    """Mean share of each category over the items that have one; None where no item has."""
    rows = [categories[item] / categories[item].sum() for item in items if categories[item].any()]
    return np.mean(rows, axis=0) if rows else None


def sklearn_auc(lists: list[dict[str, Any]]) -> list[float]:
    """Area under the curve with all unlisted candidates tied behind the list."""
    from sklearn.metrics import roc_auc_score

    values = []
    for case in lists:
        scores, wanted = np.zeros(NUM_CANDIDATES), np.zeros(NUM_CANDIDATES, bool)
        scores[case["ranked"]] = np.arange(len(case["ranked"]), 0, -1)
        wanted[case["targets"]] = True
        values.append(float(roc_auc_score(wanted, scores)))
    return values


def library_watch_values(case: dict[str, Any]) -> dict[str, float]:
    """XAUC from Somers' D, which leaves out pairs tied in the first argument: concordant less discordant pairs."""
    from scipy.stats import somersd
    from sklearn.metrics import mean_absolute_error

    has_pair = len(set(case["actual"])) > 1 and len(set(case["predicted"])) > 1  # a constant has no D, and 0.5 here
    return {
        "xauc": (float(somersd(case["actual"], case["predicted"]).statistic) + 1) / 2 if has_pair else np.nan,
        "mean_absolute_error": float(mean_absolute_error(case["actual"], case["predicted"])),
    }


def library_holm(p_values: list[float]) -> list[float]:
    """P values after Holm's correction by statsmodels."""
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(p_values, method="holm")[1]]


def main() -> None:
    rng = np.random.default_rng(20_260_101)
    catalogue = make_catalogue(rng)
    lists = [make_list(rng) for _ in range(NUM_CASES)]
    watch = [make_watch(rng) for _ in range(NUM_CASES)]
    families = [(rng.integers(0, 40, rng.integers(1, 8)) / 200).tolist() for _ in range(NUM_CASES)]
    theirs, ours = library_list_values(lists, catalogue), our_list_values(lists, catalogue)
    watch_values = [library_watch_values(case) for case in watch]
    holm_values = [library_holm(family) for family in families]
    for name, values in theirs.items():
        report(name, ours[name], values)
    for name in watch_values[0]:
        report(name, [our_watch_values(case)[name] for case in watch], [values[name] for values in watch_values])
    report("holm", np.concatenate([holm(family) for family in families]), np.concatenate(holm_values))
    kept = range(NUM_KEPT)
    golden = {
        "libraries": {name: version(name) for name in LIBRARIES},
        "catalogue": catalogue,
        "lists": lists[:NUM_KEPT],
        "values": {name: [known(values[row]) for row in kept] for name, values in theirs.items()},
        "watch": [watch[row] | {name: known(value) for name, value in watch_values[row].items()} for row in kept],
        "holm": [
            {"p_values": families[row], "corrected": [round(value, 12) for value in holm_values[row]]} for row in kept
        ],
    }
    PATH.write_text(as_text(golden))


def report(name: str, ours: Any, theirs: Any) -> None:
    """Print the largest difference, and how many values the library lacks; one that ours alone lacks is an error."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    lacking = np.isnan(theirs)
    print(
        f"{name:28} {np.abs(ours - theirs)[~lacking].max(initial=0):.1e}  {len(ours)} values, {lacking.sum()} without"
    )
    if np.isnan(ours[~lacking]).any():
        raise SystemExit(f"{name}: ours is NaN where the library has a value")


def known(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 12)


def as_text(golden: dict[str, Any]) -> str:
    """JSON with a line for every case, or every metric."""
    parts = []
    for name, value in golden.items():
        if isinstance(value, list):
            rows, (first, last) = [json.dumps(row) for row in value], "[]"
        else:
            rows, (first, last) = [f"{json.dumps(key)}: {json.dumps(row)}" for key, row in value.items()], "{}"
        parts.append(f"{json.dumps(name)}: {first}\n" + ",\n".join(rows) + f"\n{last}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
