"""The price of each dial of the policy on a synthetic catalogue of arrays: what it gives, and the NDCG that it takes.

Run: PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/dials.py [folder for dials.png]. No Ray, no bundle; half a minute.

2,000 items of 20 kinds (unit vectors, D=64, popular and rare kinds), 100 users who like a mix of three kinds. A request
scores 200 candidates: the true affinity plus noise, less for new items, a fifth of all. Relevance for NDCG@10 is the
affinity, at least 0, in the candidates of the request; lists hold 10.
"""

import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from avrec_ray.catalogue import Catalogue
from avrec_ray.ranking.diversity import diversifier_of, dpp, mmr
from avrec_ray.ranking.exploration import day_of, place_probabilities, request_rng
from avrec_ray.ranking.exposure import item_groups, target_shares
from avrec_ray.ranking.places import PlaceRules, fill_places
from avrec_ray.ranking.policy import Policy, PolicyConfig
from avrec_ray.types import Query

NUM_ITEMS, NUM_KINDS, DIM, NUM_USERS, NUM_CANDIDATES, K = 2_000, 20, 64, 100, 200, 10
DIALS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class World:
    """Items, users, and the requests of users: the same for each variant."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        shares = rng.dirichlet(np.full(NUM_KINDS, 2.0))
        self.kinds = rng.choice(NUM_KINDS, NUM_ITEMS, p=shares)
        centres = unit(rng.normal(size=(NUM_KINDS, DIM)))
        self.embeddings = unit(centres[self.kinds] + 0.7 * unit(rng.normal(size=(NUM_ITEMS, DIM)))).astype(np.float32)
        tastes = np.stack([rng.dirichlet([3, 2, 1]) for _ in range(NUM_USERS)])
        liked = np.stack([rng.choice(NUM_KINDS, 3, replace=False) for _ in range(NUM_USERS)])
        self.users = unit(np.einsum("uk,ukd->ud", tastes, centres[liked]))
        self.quality = 0.15 * rng.normal(size=NUM_ITEMS)
        self.warm = rng.random(NUM_ITEMS) < 0.8
        self.items = Catalogue(
            item_ids=[f"i{row}" for row in range(NUM_ITEMS)],
            titles=[""] * NUM_ITEMS,
            categories=[f"k{kind:02d}" for kind in self.kinds],
            tags=[[]] * NUM_ITEMS,
            creator_ids=[None] * NUM_ITEMS,
            languages=[None] * NUM_ITEMS,
            durations=np.ones(NUM_ITEMS, np.float32),
            popularity=np.zeros(NUM_ITEMS, np.float32),
            recent_popularity=np.zeros(NUM_ITEMS, np.float32),
            choices_per_day=np.zeros(NUM_ITEMS, np.float32),
            warm=self.warm,
        )

    def request(self, number: int) -> tuple[str, Rows, npt.NDArray[np.float64], Scores]:
        """User, candidate rows [K], true affinities [K] and the model's scores [K], which think less of new items."""
        rng = np.random.default_rng([7, number])
        user = int(rng.integers(NUM_USERS))
        rows = rng.choice(NUM_ITEMS, NUM_CANDIDATES, replace=False)
        affinity = self.embeddings[rows] @ self.users[user] + self.quality[rows]
        scores = affinity + 0.1 * rng.normal(size=NUM_CANDIDATES) - 0.15 * ~self.warm[rows]
        return f"u{user}", rows, affinity, scores.astype(np.float32)


def unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ndcg(affinity: npt.NDArray[np.float64], order: Rows) -> float:
    gains, weights = np.maximum(affinity, 0), 1 / np.log2(np.arange(2, K + 2))
    return float((gains[order] * weights[: len(order)]).sum() / (np.sort(gains)[::-1][:K] * weights).sum())


def distance(vectors: npt.NDArray[np.float32]) -> float:
    """Mean 1 - cosine between the items of a list."""
    cosine = vectors @ vectors.T
    return float(1 - (cosine.sum() - np.trace(cosine)) / (len(vectors) * (len(vectors) - 1)))


def lists(world: World, cfg: PolicyConfig, num: int) -> dict[str, float]:
    """Mean NDCG@10, distance within a list and kinds in a list over `num` requests."""
    policy, found = Policy(world.items, world.embeddings, cfg), []
    for number in range(num):
        user, rows, affinity, scores = world.request(number)
        order = policy(scores, rows, Query(user, k=K), at_seconds=0.0).order
        shown = rows[order]
        found.append((ndcg(affinity, order), distance(world.embeddings[shown]), len(set(world.kinds[shown]))))
    return dict(zip(("ndcg", "distance", "kinds"), np.mean(found, 0).tolist(), strict=True))


def diversity_curves(world: World, num: int = 200) -> dict[str, list[dict[str, float]]]:
    variants = {"mmr": ("mmr", 0), "dpp": ("dpp", 0), "dpp, window 3": ("dpp", 3)}
    curves = {}
    for name, (diversifier, window) in variants.items():
        print(f"\ndiversity by {name:<14} NDCG@10   distance   kinds in a list")
        curves[name] = []
        for dial in DIALS:
            cfg = PolicyConfig(diversity=dial, diversifier=diversifier, dpp_window=window)
            curves[name].append(lists(world, cfg, num))
            row = curves[name][-1]
            print(
                f"  {dial:.1f}                        {row['ndcg']:.4f}    {row['distance']:.4f}    {row['kinds']:.2f}"
            )
    return curves


def fairness(world: World, num: int = 1_000) -> list[tuple[str, float, float]]:
    """(what, largest deviation of a group's exposure from its target, NDCG) after `num` requests."""
    cases = {
        "cold 0.20 (their share of the catalogue)": ("warm", {"cold": 0.2}, 2.0),
        "cold 0.30": ("warm", {"cold": 0.3}, 2.0),
        "category by merit, strength 1": ("category", {}, 1.0),
        "category by merit": ("category", {}, 2.0),
        "category by merit, strength 3": ("category", {}, 3.0),
        "category equal": ("category", {"*": "equal"}, 2.0),
        "category equal, strength 4": ("category", {"*": "equal"}, 4.0),
    }
    results = []
    print(f"\nexposure after {num} requests                    off: error  NDCG@10    on: error  NDCG@10   price")
    for name, (groups, targets, strength) in cases.items():
        errors, values = [], []
        for used in (0.0, strength):
            cfg = PolicyConfig(exposure_groups=groups, exposure_targets=targets, exposure_strength=used)
            error, value = steered(world, cfg, num)
            errors.append(error)
            values.append(value)
        price = 1 - values[1] / values[0]
        print(f"  {name:<42} {errors[0]:9.1%}   {values[0]:.4f}   {errors[1]:9.1%}   {values[1]:.4f}   {price:6.2%}")
        results.append((name, errors[1], values[1]))
    return results


def steered(world: World, cfg: PolicyConfig, num: int) -> tuple[float, float]:
    """Largest relative deviation of a group's exposure from its target, and mean NDCG."""
    policy, values = Policy(world.items, world.embeddings, cfg), []
    ledger = policy.ledger()
    assert ledger is not None
    for number in range(num):
        user, rows, affinity, scores = world.request(number)
        placement = policy(scores, rows, Query(user, k=K), state=ledger.state)
        assert placement.exposure is not None
        ledger.state = placement.exposure
        values.append(ndcg(affinity, placement.order))
    state = ledger.state
    wanted = target_shares(item_groups(world.items, cfg.exposure_groups).names, cfg.exposure_targets, state)
    given = state.exposure / state.exposure.sum()
    return float(np.abs(given / wanted - 1).max()), float(np.mean(values))


def exploration(world: World, num: int = 400) -> None:
    """What a temperature costs, and how far it goes: items of the best ten that stay."""
    print("\nexploration     NDCG@10   of the best 10 stay   median propensity")
    policies = {t: Policy(world.items, world.embeddings, PolicyConfig(exploration=t)) for t in (0, 0.05, 0.1, 0.2, 0.5)}
    for temperature, policy in policies.items():
        values, kept, told = [], [], []
        for number in range(num):
            user, rows, affinity, scores = world.request(number)
            best = set(policies[0](scores, rows, Query(user, k=K), 0.0).order.tolist())
            placement = policy(scores, rows, Query(user, k=K), 86_400.0 * number)
            values.append(ndcg(affinity, placement.order))
            kept.append(len(best & set(placement.order.tolist())))
            told.extend(placement.propensities.tolist())
        stay, propensity = np.mean(kept), np.median(told)
        print(f"  {temperature:<10}    {np.mean(values):.4f}    {stay:.2f}                  {propensity:.3f}")


def propensities_of_noise_before_diversity(num: int = 20_000) -> None:
    """What would be logged wrongly if an order were drawn first and then diversified by MMR: the way not taken."""
    vectors = unit(np.random.default_rng(5).normal(size=(6, 4))).astype(np.float32)
    scores, dial, temperature = np.array([2.0, 1.5, 1.2, 0.9, 0.4, 0.0]), 0.5, 0.5
    exact = probabilities_at_first_places(scores, vectors, dial, temperature, num)
    rng = np.random.default_rng(0)
    noisy = scores + temperature * rng.gumbel(size=(num, 6))
    shown = np.array([mmr(row, vectors, dial, 2)[1] for row in noisy])
    frequency = np.bincount(shown, minlength=6) / num
    drawn = np.argsort(-noisy, axis=1)[:, 1]
    told = np.bincount(drawn, minlength=6) / num
    print(
        "\npropensity of each of six items at rank 2 under MMR 0.5: largest difference from how often it is shown there"
    )
    print(f"  an order drawn before diversity: {np.abs(told - frequency).max():.3f}    place by place: {exact:.3f}")


def probabilities_at_first_places(
    scores: npt.NDArray[np.float64], vectors: npt.NDArray[np.float32], dial: float, temperature: float, num: int
) -> float:
    """Largest difference at rank 2 between frequencies and the mean of the logged conditional probabilities."""
    rules, rng = PlaceRules(fresh=np.zeros(6, bool)), np.random.default_rng(1)
    shown, told = np.zeros(6), np.zeros(6)
    for _ in range(num):
        order, _ = fill_places(diversifier_of("mmr", scores, vectors, dial), 2, rules, temperature, rng)
        shown[order[1]] += 1
        after = diversifier_of("mmr", scores, vectors, dial)
        after.place(int(order[0]))
        told += place_probabilities(after.utility, np.arange(6) != order[0], temperature)
    return float(np.abs(shown - told).max() / num)


def timings(num: int = 400) -> None:
    """Milliseconds of 20 of 200 candidates, D=64."""
    rng = np.random.default_rng(0)
    vectors, scores = unit(rng.normal(size=(200, DIM))).astype(np.float32), rng.normal(size=200).astype(np.float32)
    calls = {
        "mmr": lambda: mmr(scores, vectors, 0.5, 20),
        "dpp": lambda: dpp(scores, vectors, 0.5, 20),
        "dpp, window 5": lambda: dpp(scores, vectors, 0.5, 20, 5),
        "rng of a request": lambda: request_rng(0, "u1", day_of(1.8e9)),
    }
    print("\n20 of 200, D=64        median ms   median CPU ms   best ms")
    for name, call in calls.items():
        wall, cpu = [], []
        for _ in range(num):
            began, began_cpu = time.perf_counter(), time.process_time()
            call()
            wall.append(time.perf_counter() - began)
            cpu.append(time.process_time() - began_cpu)
        print(f"  {name:<20} {np.median(wall) * 1e3:9.2f}   {np.median(cpu) * 1e3:13.2f}   {min(wall) * 1e3:7.2f}")


def save_plot(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """NDCG against distance, a point a notch of the dial."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        axes.plot([p["distance"] for p in points], [p["ndcg"] for p in points], marker="o", label=name)
    axes.set(
        xlabel="mean distance between the items of a list", ylabel="NDCG@10", title="The dial of diversity, 0 to 1"
    )
    axes.legend()
    figure.savefig(path, dpi=120)
    print(f"\nwritten: {path}")


def main(folder: Path) -> None:
    world = World()
    timings()
    curves = diversity_curves(world)
    fairness(world)
    exploration(world)
    propensities_of_noise_before_diversity()
    try:
        save_plot(curves, folder / "dials.png")
    except ImportError:
        print("\nno picture: matplotlib is not installed")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
