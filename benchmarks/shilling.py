"""Can fake accounts buy exposure? Targets pushed by 5 % of fake users, learned with and without the defences.

Items are pushed at once, each by fake accounts of its own, 5 % of the real ones, which is harder than one attack. Every
account sees what hides it, then watches its target to the end and shares it, which counts most (Lam & Riedl,
"Shilling Recommender Systems for Fun and Profit", WWW 2004; Mobasher et al., "Toward Trustworthy Recommender Systems",
TOIT 2007):

- random: items drawn evenly
- average: items drawn as often as real users choose them
- bandwagon: the most popular items, and a few drawn evenly
- segment: items that who chose the target chose too, as GET /v1/items/{id}/similar tells everybody: the audience that a
  list of ten is most easily won with

Targets are `unpopular` (the fewest choices, so that an attack lifts them a long way without reaching the top), or
`middling`: of the items that some list of ten holds already, those nearest to the median of popularity, which a push
can lift into many more lists.

Exposure is the share of real users' lists that hold the target, at several lengths. A rise is over the same retraining
without the attack. The bound, on lists of ten: the defences take away more than 1 - --bound of the rise that the attack
has without them, and what is left is at most --most of the lists. Where the attack without defences does not rise by
more than what items that nobody pushed move by from training to training, it says so and nothing was tested.

    python benchmarks/shilling.py --storage /tmp/shilling                        # a quarter of an hour on two cores
    python benchmarks/shilling.py --storage /tmp/small --users 150 --items 100   # a rehearsal
"""

import argparse
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from avrec_ray.config import JobConfig
from avrec_ray.datasets.synthetic.factors import DAY_SECONDS, START_SECONDS
from avrec_ray.feedback.labels import LabelConfig
from avrec_ray.feedback.suspicion import no_suspicion
from avrec_ray.pipelines import retrain
from avrec_ray.pipelines.full_loop import open_loop
from avrec_ray.pipelines.session import session
from avrec_ray.types import POSITIVE_EVENTS, Event
from benchmarks import world as w

PAST_DAYS, NEW_DAYS = 30, 10
NUM_FILLERS = 15
NUM_OTHERS = 40
"""Items as popular as the targets: how far their exposure moves without anybody pushing them."""
NUM_NEAREST = 30
"""Items that a segment attack draws from."""
DEPTHS = (10, 20, 50)
Floats = npt.NDArray[np.float64]
ATTACKS = ("random", "average", "bandwagon", "segment")


@dataclass(frozen=True)
class Bound:
    """What the defences must keep, on lists of ten."""

    ratio: float
    """Of the rise without defences."""
    most: float
    """Of all lists."""

    def verdict(self, undefended: float, defended: float, noise: float) -> str:
        """Of rises in exposure."""
        if undefended <= 2 * noise:
            return f"UNTESTED: others of its popularity move by {noise:.3f}"
        is_within = defended < self.ratio * undefended and defended <= self.most
        return f"{'within' if is_within else 'ABOVE'} {self.ratio:.0%} of it and {self.most:.3f}"


def main(given: argparse.Namespace, bound: Bound) -> None:
    storage, seed, num_users, num_items, attacks = given.storage, given.seed, given.users, given.items, given.attacks
    planted = w.plant(num_items, num_users, 20 * num_users, PAST_DAYS, seed)
    past = w.live(planted, 20 * num_users, PAST_DAYS, 0, "past", seed)
    new = w.live(planted, 8 * num_users, NEW_DAYS, PAST_DAYS, "new", seed + 1)
    item_ids, real = planted.items.item_ids, set(planted.users.user_ids)
    first = w.job_for(storage / "first", seed)
    w.first_loop(planted, past, first)
    shown = exposure(storage / "first" / "evaluation", item_ids, real)[DEPTHS[0]]
    targets = TARGETS[given.target](past + new, item_ids, shown, len(attacks))
    fakes = [
        event
        for attack_kind, target in zip(attacks, targets, strict=True)
        for event in attack(attack_kind, target, past, item_ids, round(given.fake_share * num_users), seed)
    ]
    attacked = sorted(new + fakes, key=lambda event: event.at_seconds)
    found = {}
    for name, events, defended in (("clean", new, True), ("undefended", attacked, False), ("defended", attacked, True)):
        job = copied(first, storage / name, defended)
        w.post(job, events)
        with open_loop(job, "retrain") as loop:
            outcome = retrain.run(loop, job)
        assert outcome is not None
        found[name] = exposure(storage / name / "retrain" / outcome.name / "evaluation", item_ids, real)
        print(f"{name}: held back {outcome.held_back}", flush=True)
    held, caught = (held_share(storage / "defended", real, of_real) for of_real in (True, False))
    print(f"seed {seed}, {num_users} users, {num_items} items, {given.target} targets; {len(fakes)} fake events of "
          f"{len(attacked)} new ones; held back: {caught:.0%} of fake events, {held:.2%} of real ones")  # fmt: skip
    row_of = {item: row for row, item in enumerate(item_ids)}
    chosen = choices(past + new)
    alike = sorted(
        (item for item in item_ids if item not in targets), key=lambda item: abs(chosen[item] - chosen[targets[0]])
    )
    others = [row_of[item] for item in alike[:NUM_OTHERS]]
    for attack_kind, target in zip(attacks, targets, strict=True):
        for depth in DEPTHS:
            clean, open_, closed = (float(found[name][depth][row_of[target]]) for name in found)
            noise = float((found["defended"][depth] - found["clean"][depth])[others].std())
            line = (
                f"{attack_kind:9} {target} ({chosen[target]} choices) exposure at {depth}: clean {clean:.3f}  "
                f"undefended {open_:.3f} (rise {open_ - clean:+.3f})  "
                f"defended {closed:.3f} (rise {closed - clean:+.3f})"
            )
            verdict = bound.verdict(open_ - clean, closed - clean, noise)
            print(line + (f"  {verdict}" if depth == DEPTHS[0] else ""))


def choices(events: list[Event]) -> Counter[str]:
    """Positive events of each item."""
    return Counter(event.item_id for event in events if event.event in POSITIVE_EVENTS)


def unpopular(events: list[Event], item_ids: list[str], shown: Floats, count: int) -> list[str]:
    """Items of few choices, but of some: at the end of the list, as a pushed item is."""
    chosen = choices(events)
    return sorted((item for item in item_ids if chosen[item] >= 3), key=lambda item: (chosen[item], item))[:count]


def middling(events: list[Event], item_ids: list[str], shown: Floats, count: int) -> list[str]:
    """Of the items in some list of ten, by `shown` [N], those whose popularity is nearest to the median of all."""
    chosen = choices(events)
    median = float(np.median([chosen[item] for item in item_ids]))
    in_lists = [item for item, share in zip(item_ids, shown, strict=True) if share > 0]
    return sorted(in_lists, key=lambda item: (abs(chosen[item] - median), item))[:count]


TARGETS = {"unpopular": unpopular, "middling": middling}


def attack(kind: str, target: str, past: list[Event], item_ids: list[str], count: int, seed: int) -> list[Event]:
    """Events of `count` fresh accounts in two of the new days: fillers, then the target."""
    rng = np.random.default_rng([seed, ATTACKS.index(kind)])
    chosen = choices(past)
    popular = [item for item, _ in chosen.most_common(NUM_FILLERS - 3)]
    share = np.array([chosen[item] for item in item_ids], float)
    nearest = chosen_with(target, past)[:NUM_NEAREST]
    events = []
    for number in range(count):
        user = f"{kind}{number:03d}"
        if kind == "bandwagon":
            fillers = [*rng.permutation(popular), *rng.choice(item_ids, 3, replace=False)]
        elif kind == "segment":
            fillers = list(rng.choice(nearest, NUM_FILLERS, replace=False))
        else:
            fillers = list(rng.choice(item_ids, NUM_FILLERS, False, share / share.sum() if kind == "average" else None))
        begin = START_SECONDS + (PAST_DAYS + rng.uniform(3, 5)) * DAY_SECONDS
        acts = [(str(item), "view") for item in fillers if item != target] + [(target, "view"), (target, "share")]
        times = begin + np.cumsum(rng.uniform(5, 60, len(acts)))
        for place, ((item, name), at) in enumerate(zip(acts, times, strict=True)):
            watch = w.ITEM_SECONDS if name == "view" else None
            events.append(Event(user, item, name, float(at), watch, None, f"{user}-{place:03d}"))
    return events


def chosen_with(target: str, past: list[Event]) -> list[str]:
    """Items by how much more often who chose the target chose them too (cosine), the nearest first."""
    users: dict[str, set[str]] = {}
    for event in past:
        if event.event in POSITIVE_EVENTS:
            users.setdefault(event.item_id, set()).add(event.user_id)
    mine = users.pop(target, set())
    return sorted(users, key=lambda item: (-len(users[item] & mine) / len(users[item]) ** 0.5, item))


def copied(job: JobConfig, storage: Path, defended: bool) -> JobConfig:
    """The storage of the first loop once more, with defences on or off."""
    shutil.copytree(job.storage_path, storage, symlinks=True)
    if defended:
        return replace(job, storage_path=str(storage))
    labels = LabelConfig(max_user_share=1.0, max_creator_share=1.0)
    settings = replace(job.retrain, suspicion=no_suspicion(), labels=labels)
    return replace(job, storage_path=str(storage), retrain=settings)


def exposure(evaluation: Path, item_ids: list[str], real: set[str]) -> dict[int, Floats]:
    """By depth: share of real users' lists so long that hold each item, [N]."""
    table = pq.read_table(evaluation / "recommendations.parquet")
    rows = list(zip(*(table[n].to_pylist() for n in ("user_id", "item_id", "rank")), strict=True))
    num_users = len({user for user, _, _ in rows if user in real})
    found = {}
    for depth in DEPTHS:
        held = Counter(item for user, item, rank in rows if user in real and rank <= depth)
        found[depth] = np.array([held[item] / num_users for item in item_ids])
    return found


def held_share(storage: Path, real: set[str], of_real: bool) -> float:
    """Share of real users' events, or of those of fake ones, that were held back."""
    (folder,) = (storage / "retrain").glob("run-*")
    held = pq.read_table(folder / "held_back" / "events.parquet")["user_id"].to_pylist()
    kept = pq.read_table(folder / "tables" / "interactions.parquet")["user_id"].to_pylist()
    num_held = sum((user in real) == of_real for user in held)
    return num_held / (num_held + sum((user in real) == of_real for user in kept))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--fake-share", type=float, default=0.05, help="of the real users, for each target")
    parser.add_argument("--attacks", choices=ATTACKS, nargs="+", default=ATTACKS)
    parser.add_argument("--target", choices=TARGETS, default="middling")
    parser.add_argument("--bound", type=float, default=0.5, help="largest share of the undefended rise")
    parser.add_argument("--most", type=float, help="largest rise; default: half of --fake-share")
    given = parser.parse_args()
    wanted = Bound(given.bound, given.fake_share / 2 if given.most is None else given.most)
    with session(w.job_for(given.storage, 0).cluster):
        main(given, wanted)
