"""A part that keeps failing is left alone, tried now and then, and used again when it is back."""

from serve_apps.breaker import Breaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def broken(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for _ in range(20):
        assert breaker.lets_through()
        breaker.note(failed=True)
    assert breaker.is_open
    return breaker


def test_open_breaker_lets_one_through_every_two_seconds() -> None:
    clock = Clock()
    breaker = broken(clock)
    assert not breaker.lets_through()
    clock.now = 2.0
    assert [breaker.lets_through() for _ in range(5)] == [True, False, False, False, False]
    breaker.note(failed=True)
    assert not breaker.lets_through()
    clock.now = 4.0
    assert breaker.lets_through()
    breaker.note(failed=False)
    assert not breaker.is_open
    assert all(breaker.lets_through() for _ in range(5))


def test_half_of_the_calls_may_fail() -> None:
    breaker = Breaker(Clock())
    for n in range(100):
        breaker.note(failed=n % 2 == 0)
    assert not breaker.is_open


def test_few_failures_of_long_ago_count_no_more() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for n in range(40):
        clock.now = 10.0 * n
        breaker.note(failed=True)
    assert not breaker.is_open
