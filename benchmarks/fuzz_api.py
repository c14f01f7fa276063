"""The HTTP API against its own description for as long as wanted: schemathesis over a gateway in this process.

    python benchmarks/fuzz_api.py --minutes 10 --seed 7

Prints requests by phase and by status, and each kind of fault with a command that repeats it; exits with 1 if there
is any. The models are small Python ones: this looks for requests that the gateway mishandles, not for speed.
"""

import argparse
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

from avrec_ray.feedback.config import FeedbackConfig
from tests.serve_apps.fuzzing import Fuzzed, fuzz
from tests.serve_apps.test_auth import SECRETS, whole_api


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--examples", type=int, default=200, help="random cases an operation and phase")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each round has the next")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    until, seed, failures = time.monotonic() + 60 * arguments.minutes, arguments.seed, {}
    while (left := until - time.monotonic()) > 1:
        with tempfile.TemporaryDirectory() as folder:
            api = whole_api(Path(folder), FeedbackConfig(max_clock_skew_seconds=1e12))
            found = fuzz(api, SECRETS["admin"], arguments.examples, seed, left)
        report(seed, found)
        failures |= found.failures
        seed += 1
    for name, detail in failures.items():
        print(f"\n{name}\n{detail[:2000]}")
    sys.exit(bool(failures))


def report(seed: int, found: Fuzzed) -> None:
    print(
        f"seed {seed}: {found.num_requests.total():,} requests {dict(found.num_requests)}, "
        f"statuses {dict(sorted(found.statuses.items()))}, {len(found.failures)} kinds of fault"
    )


if __name__ == "__main__":
    main()
