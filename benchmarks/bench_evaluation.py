"""Full ranking and scoring of 100,000 items for growing numbers of users: time and peak memory, each in a process.

Run: python benchmarks/bench_evaluation.py. Bounded memory shows as a peak that hardly grows with the users; the last
column compares with the matrix of all scores, users x items x 4 bytes, that a plain implementation would hold.
"""

import resource
import subprocess
import sys
import time

import numpy as np

from avrec_ray.evaluation.baselines import rank_in_parts
from avrec_ray.evaluation.metrics import evaluate_rankings

NUM_ITEMS, DIM, K, HISTORY, TARGETS = 100_000, 64, 100, 50, 5


def main() -> None:
    """One line a number of users."""
    for num_users in (500, 2_000, 10_000):
        done = subprocess.run([sys.executable, __file__, str(num_users)], capture_output=True, text=True, check=True)
        seconds, peak_mb = map(float, done.stdout.split())
        whole_mb = num_users * NUM_ITEMS * 4 / 1e6
        print(
            f"{num_users:>6} users x {NUM_ITEMS} items  {seconds:6.1f} s  {num_users / seconds:6.0f} users/s  "
            f"peak {peak_mb:5.0f} MB  {peak_mb / whole_mb:5.2f}x of the matrix of all scores ({whole_mb:.0f} MB)"
        )


def evaluate(num_users: int) -> None:
    """Rank by random vectors, score, and print seconds and the peak of this process."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
    users = rng.normal(size=(num_users, DIM)).astype(np.float32)
    seen = [rng.integers(0, NUM_ITEMS, HISTORY) for _ in range(num_users)]
    targets = [rng.choice(NUM_ITEMS, TARGETS, replace=False) for _ in range(num_users)]
    began = time.perf_counter()
    ranked = rank_in_parts(lambda part: users[part] @ items.T, seen, K, NUM_ITEMS)
    evaluate_rankings(ranked, targets, NUM_ITEMS)
    print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


if __name__ == "__main__":
    evaluate(int(sys.argv[1])) if len(sys.argv) > 1 else main()
