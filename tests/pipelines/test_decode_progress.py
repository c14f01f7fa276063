import json

import pytest

from avrec_ray.pipelines import decode_progress
from avrec_ray.pipelines.decode_progress import DecodeProgress, reasons_table


def test_progress_goes_on_from_an_earlier_run_and_rates_from_the_first_block(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(decode_progress.time, "monotonic", lambda: now[0])
    lines: list[str] = []
    metrics: list[tuple[dict[str, float], int]] = []
    progress = DecodeProgress(100, 40, 3, lines.append, lambda values, step: metrics.append((dict(values), step)))
    for seconds, items, reasons in [
        (30.0, 10, {}),
        (2.0, 10, {"missing": 2}),
        (4.0, 20, {}),
        (1.0, 20, {"timeout": 1}),
    ]:
        now[0] += seconds
        progress.add(items, json.dumps(reasons))
    assert lines == [
        "80/100 items  5.0/s  4 s left  5 set aside",
        "100/100 items  7.1/s  0 s left  6 set aside",
    ]
    assert metrics[0] == (
        {"decode/items_done": 80.0, "decode/items_per_second": 5.0, "decode/items_set_aside": 5.0},
        80,
    )
    assert metrics[1][1] == 100


def test_progress_of_one_block_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(decode_progress.time, "monotonic", lambda: now[0])
    lines: list[str] = []
    progress = DecodeProgress(8, 0, 0, lines.append, None)
    now[0] += 4.0
    progress.add(8, "{}")
    assert lines == ["8/8 items  2.0/s  0 s left  0 set aside"]


def test_reasons_table_is_short_and_most_frequent_first() -> None:
    counts = {"items": 9.0, "quarantined": 7.0, "quarantined_missing": 2.0, "quarantined_not_media": 5.0}
    examples = {"missing": "/a.mp4: no such file", "not_media": "/" + "long/" * 40 + "b.mp4: starts with\nb'text'"}
    lines = reasons_table(counts, examples)
    assert [line.split()[:2] for line in lines] == [["set", "aside"], ["not_media", "5"], ["missing", "2"]]
    assert all(len(line) <= 120 for line in lines)
    assert lines[1].endswith("long/b.mp4: starts with b'text'")
    assert reasons_table({"items": 3.0}, {}) == []
