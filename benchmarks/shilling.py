"""Can fake accounts buy exposure? Targets pushed by 5 % of fake users, learned with and without the defences.

Three unpopular items are pushed at once, each by fake accounts of its own, 5 % of the real ones, which is harder than
one attack. Behind what hides it every account likes its target (Lam & Riedl, "Shilling Recommender Systems for Fun and
Profit", WWW 2004; Mobasher et al., "Toward Trustworthy Recommender Systems", TOIT 2007):

- random: items drawn evenly
- average: items drawn as often as real users choose them
- bandwagon: the most popular items, and a few drawn evenly

Exposure is the share of real users' lists that hold the target, at several lengths: an attack may lift an item a long
way without reaching the top. The bound: with the defences no target gains more than --bound (of lists of ten) over the
same retraining without the attack.

    python benchmarks/shilling.py --storage /tmp/shilling
"""

import argparse
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from avrec_ray.config import JobConfig
from avrec_ray.datasets.synthetic.factors import DAY_SECONDS, START_SECONDS
from avrec_ray.feedback.labels import LabelConfig
from avrec_ray.feedback.suspicion import no_suspicion
from avrec_ray.pipelines import retrain
from avrec_ray.pipelines.full_loop import open_loop
from avrec_ray.pipelines.retrain_plan import Outcome
from avrec_ray.pipelines.session import session
from avrec_ray.types import POSITIVE_EVENTS, Event
from benchmarks import world as w

PAST_DAYS, NEW_DAYS = 30, 10
NUM_FILLERS = 15
DEPTHS = (10, 50, 100)
ATTACKS = ("random", "average", "bandwagon")


def main(storage: Path, seed: int, num_users: int, num_items: int, fake_share: float, bound: float) -> None:
    planted = w.plant(num_items, num_users, 20 * num_users, PAST_DAYS, seed)
    past = w.live(planted, 20 * num_users, PAST_DAYS, 0, "past", seed)
    new = w.live(planted, 8 * num_users, NEW_DAYS, PAST_DAYS, "new", seed + 1)
    targets = unpopular(past + new, planted.items.item_ids, len(ATTACKS))
    fakes = [
        event
        for kind, target in zip(ATTACKS, targets, strict=True)
        for event in attack(kind, target, past, planted.items.item_ids, round(fake_share * num_users), seed)
    ]
    first = w.job_for(storage / "first", seed)
    w.first_loop(planted, past, first)
    attacked = sorted(new + fakes, key=lambda event: event.at_seconds)
    found = {}
    for name, events, defended in (("clean", new, True), ("undefended", attacked, False), ("defended", attacked, True)):
        job = copied(first, storage / name, defended)
        w.post(job, events)
        with open_loop(job, "retrain") as loop:
            outcome = retrain.run(loop, job)
        assert outcome is not None
        found[name] = exposure(storage / name, outcome, targets, set(planted.users.user_ids))
        print(f"{name}: held back {outcome.held_back}", flush=True)
    held = wrongly_held(storage / "defended", set(planted.users.user_ids))
    print(f"{num_users} users, {num_items} items, {len(fakes)} fake events of {len(attacked)} new ones; "
          f"{held:.2%} of real events held back")  # fmt: skip
    for place, kind in enumerate(ATTACKS):
        for depth in DEPTHS:
            clean, open_, closed = (found[name][depth][place] for name in ("clean", "undefended", "defended"))
            line = (
                f"{kind:9} exposure at {depth:3} clean {clean:.3f} undefended {open_:.3f} (lift {open_ - clean:+.3f}) "
                f"defended {closed:.3f} (lift {closed - clean:+.3f})"
            )
            verdict = "within" if closed - clean <= bound else "ABOVE"
            print(line + (f"  {verdict} {bound}" if depth == 10 else ""))


def unpopular(events: list[Event], item_ids: list[str], count: int) -> list[str]:
    """Items of few choices, but of some: at the end of the list, as a pushed item is."""
    chosen = Counter(event.item_id for event in events if event.event in POSITIVE_EVENTS)
    return sorted((item for item in item_ids if chosen[item] >= 3), key=lambda item: (chosen[item], item))[:count]


def attack(kind: str, target: str, past: list[Event], item_ids: list[str], count: int, seed: int) -> list[Event]:
    """Events of `count` fresh accounts in two of the new days: fillers, then a like of the target."""
    rng = np.random.default_rng([seed, ATTACKS.index(kind)])
    chosen = Counter(event.item_id for event in past if event.event in POSITIVE_EVENTS)
    popular = [item for item, _ in chosen.most_common(NUM_FILLERS - 3)]
    share = np.array([chosen[item] for item in item_ids], float)
    events = []
    for number in range(count):
        user = f"{kind}{number:03d}"
        if kind == "bandwagon":
            fillers = [*rng.permutation(popular), *rng.choice(item_ids, 3, replace=False)]
        else:
            fillers = list(rng.choice(item_ids, NUM_FILLERS, False, share / share.sum() if kind == "average" else None))
        begin = START_SECONDS + (PAST_DAYS + rng.uniform(3, 5)) * DAY_SECONDS
        items = [*(str(item) for item in fillers if item != target), target]
        for place, (item, at) in enumerate(zip(items, begin + np.cumsum(rng.uniform(5, 60, len(items))), strict=True)):
            name = "like" if item == target else "view"
            watch = w.ITEM_SECONDS if name == "view" else None
            events.append(Event(user, item, name, float(at), watch, None, f"{user}-{place:03d}"))
    return events


def copied(job: JobConfig, storage: Path, defended: bool) -> JobConfig:
    """The storage of the first loop once more, with defences on or off."""
    shutil.copytree(job.storage_path, storage, symlinks=True)
    if defended:
        return replace(job, storage_path=str(storage))
    labels = LabelConfig(max_user_share=1.0, max_creator_share=1.0)
    settings = replace(job.retrain, suspicion=no_suspicion(), labels=labels)
    return replace(job, storage_path=str(storage), retrain=settings)


def exposure(storage: Path, outcome: Outcome, targets: list[str], real: set[str]) -> dict[int, list[float]]:
    """By depth: share of real users' lists so long that hold each target."""
    table = pq.read_table(storage / "retrain" / outcome.name / "evaluation" / "recommendations.parquet")
    rows = list(zip(*(table[n].to_pylist() for n in ("user_id", "item_id", "rank")), strict=True))
    num_users = len({user for user, _, _ in rows if user in real})
    found = {}
    for depth in DEPTHS:
        held = Counter(item for user, item, rank in rows if user in real and rank <= depth)
        found[depth] = [held[target] / num_users for target in targets]
    return found


def wrongly_held(storage: Path, real: set[str]) -> float:
    """Share of real users' events that were held back."""
    (folder,) = (storage / "retrain").glob("run-*")
    held = pq.read_table(folder / "held_back" / "events.parquet")["user_id"].to_pylist()
    kept = pq.read_table(folder / "tables" / "interactions.parquet")["user_id"].to_pylist()
    num_held = sum(user in real for user in held)
    return num_held / (num_held + sum(user in real for user in kept))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--fake-share", type=float, default=0.05)
    parser.add_argument("--bound", type=float, default=0.01)
    arguments = parser.parse_args()
    with session(w.job_for(arguments.storage, 0).cluster):
        main(arguments.storage, arguments.seed, arguments.users, arguments.items, arguments.fake_share, arguments.bound)
