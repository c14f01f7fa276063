"""Probes ask about the newest choice that a list could hold; a candidate that finds as many is not worse."""

import pytest

from avrec_ray.rollout.replay import probes_of, replayed, sign_test
from avrec_ray.types import Event


def history(*rows: str) -> list[Event]:
    return [Event("u", row.split(":")[0], row.split(":")[1], float(n)) for n, row in enumerate(rows)]


def test_probe_is_the_history_before_the_newest_choice_that_can_be_found() -> None:
    known = {"a", "b", "c"}
    probes = probes_of(
        {
            "u1": history("a:like", "b:like", "c:skip"),
            "u2": history("a:like", "gone:like"),
            "u3": history("a:like", "b:like", "a:like"),
            "u4": history("a:skip"),
        },
        known,
    )
    assert [(len(p.history), p.chosen) for p in probes] == [(0, None), (1, "b"), (0, "a"), (1, "b"), (1, None)]


def test_replay_counts_choices_and_agreement() -> None:
    probes = probes_of({f"u{n}": history("a:like", "b:like") for n in range(9)}, {"a", "b"})
    found = replayed(probes, [["b", "x"]] * 10, [["y", "z"]] * 10)
    assert (found.num_choices, found.champion_hits, found.candidate_hits) == (9, 9, 0)
    assert found.agreement == 0
    assert found.p_worse == pytest.approx(1 / 512)
    equal = replayed(probes, [["b", "x"]] * 10, [["b", "z"]] * 10)
    assert (equal.agreement, equal.p_worse) == (0.5, 1.0)


def test_sign_test_by_hand() -> None:
    assert sign_test(0, 0) == 1
    assert sign_test(3, 0) == 1 / 8
    assert sign_test(2, 1) == 4 / 8
