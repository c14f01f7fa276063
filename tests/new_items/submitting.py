"""A process that submits items and says which were acknowledged, until it is killed: python -m ... URL START."""

import sys
from itertools import count

from avrec_ray.new_items.store import NewItemStore
from avrec_ray.new_items.submission import Submission

if __name__ == "__main__":
    store = NewItemStore(sys.argv[1])
    for number in count(int(sys.argv[2])):
        assert store.submit(Submission(f"n{number}", "x")) is not None
        print(number, flush=True)
