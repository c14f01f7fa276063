"""Decoding as it goes: a line now and then, the same numbers over time for MLflow, and at the end what is set aside."""

import json
import time
from collections.abc import Callable, Mapping

Report = Callable[[Mapping[str, float], int], None]
"""Takes metrics and the step they belong to, here the number of items done."""

PROGRESS_SECONDS = 5.0
_DETAIL_CHARS = 90


class DecodeProgress:
    """Counts blocks as they are finished, on top of the items and the items set aside that an earlier run left."""

    def __init__(
        self, num_items: int, done: int, set_aside: int, log: Callable[[str], None], report: Report | None
    ) -> None:
        self._num_items, self._done, self._set_aside = num_items, done, set_aside
        self._log, self._report = log, report
        self._since = (time.monotonic(), done)
        self._printed = 0.0

    def add(self, items: int, reasons: str) -> None:
        """A block of `items` is on disk; `reasons` is a JSON object of how many were set aside for what."""
        self._done += items
        self._set_aside += sum(json.loads(reasons).values())
        now = time.monotonic()
        if not self._printed:  # the rate counts from the first block: what comes before is start-up
            self._printed = now
            if self._done < self._num_items:
                self._since = (now, self._done)
                return
        if now - self._printed < PROGRESS_SECONDS and self._done < self._num_items:
            return
        self._printed = now
        rate = (self._done - self._since[1]) / max(now - self._since[0], 1e-9)
        left = (self._num_items - self._done) / rate
        line = f"{self._done}/{self._num_items} items  {rate:.1f}/s  {left:.0f} s left  {self._set_aside} set aside"
        self._log(line)
        if self._report is not None:
            metrics = {"items_done": self._done, "items_per_second": rate, "items_set_aside": self._set_aside}
            self._report({f"decode/{name}": float(value) for name, value in metrics.items()}, self._done)


def reasons_table(counts: Mapping[str, float], examples: Mapping[str, str]) -> list[str]:
    """Lines of a small table: reason, number of items, one of them and why; the most frequent first.

    >>> reasons_table({"quarantined_missing": 2.0}, {"missing": "/a.mp4: no such file"})
    ['set aside      items  for example', 'missing            2  /a.mp4: no such file']
    """
    reasons = reasons_in(counts)
    if not reasons:
        return []
    rows = [f"{reason:<12}  {count:>6}  {_shortened(examples.get(reason, ''))}" for reason, count in reasons.items()]
    return [f"{'set aside':<12}  {'items':>6}  for example", *rows]


def reasons_in(counts: Mapping[str, float]) -> dict[str, int]:
    """Items set aside by reason, the most frequent first."""
    prefix = "quarantined_"
    found = {name.removeprefix(prefix): int(value) for name, value in counts.items() if name.startswith(prefix)}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _shortened(text: str) -> str:
    """One line; of a long one the end of the path and the beginning of the reason matter, so the middle stays."""
    line = " ".join(text.split())
    uri, colon, detail = line.rpartition(": ") if len(line) > _DETAIL_CHARS else ("", "", line)
    if colon:
        uri = uri if len(uri) <= _DETAIL_CHARS // 2 else "..." + uri[3 - _DETAIL_CHARS // 2 :]
    return f"{uri}{colon}{detail}"[:_DETAIL_CHARS]
