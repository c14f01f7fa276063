"""Questions that wait together are asked together; nobody waits for company, nobody gets another's answer."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_apps.coalescing import Coalescer


class Doubler:
    """Answers twice the number, when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.most_at_once = 0
        self._at_once = 0
        self.open = asyncio.Event()

    async def __call__(self, numbers: list[int]) -> Sequence[int]:
        self.batches.append(numbers)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await self.open.wait()
        finally:
            self._at_once -= 1
        if -1 in numbers:
            raise ValueError("minus one")
        return [2 * number for number in numbers]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_question_alone_leaves_at_once() -> None:
    async def run() -> None:
        doubler = Doubler()
        asked = asyncio.create_task(Coalescer(doubler, 16, 2, 5.0)(7))
        await turns()
        assert doubler.batches == [[7]]
        doubler.open.set()
        assert await asked == 14

    asyncio.run(run())


def test_questions_gather_while_calls_are_out() -> None:
    async def run() -> None:
        doubler = Doubler()
        ask = Coalescer(doubler, 16, 1, 5.0)
        first = asyncio.create_task(ask(0))
        await turns()
        rest = [asyncio.create_task(ask(number)) for number in range(1, 6)]
        await turns()
        assert doubler.batches == [[0]]
        doubler.open.set()
        assert await asyncio.gather(first, *rest) == [0, 2, 4, 6, 8, 10]
        assert doubler.batches == [[0], [1, 2, 3, 4, 5]]

    asyncio.run(run())


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 3))
def test_everybody_gets_the_own_answer_within_the_bounds(questions: int, max_batch: int, max_in_flight: int) -> None:
    async def run() -> None:
        doubler = Doubler()
        doubler.open.set()
        ask = Coalescer(doubler, max_batch, max_in_flight, 5.0)
        assert await asyncio.gather(*(ask(n) for n in range(questions))) == [2 * n for n in range(questions)]
        assert sorted(n for batch in doubler.batches for n in batch) == list(range(questions))
        assert max(map(len, doubler.batches)) <= max_batch
        assert doubler.most_at_once <= max_in_flight

    asyncio.run(run())


def test_who_gave_up_is_not_asked_for() -> None:
    async def run() -> None:
        doubler = Doubler()
        ask = Coalescer(doubler, 16, 1, 5.0)
        first = asyncio.create_task(ask(1))
        await turns()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(2), 0.01)
        third = asyncio.create_task(ask(3))
        await turns()
        doubler.open.set()
        assert await asyncio.gather(first, third) == [2, 6]
        assert doubler.batches == [[1], [3]]

    asyncio.run(run())


def test_a_call_that_fails_fails_those_it_carried_and_no_others() -> None:
    async def run() -> None:
        doubler = Doubler()
        doubler.open.set()
        ask = Coalescer(doubler, 2, 1, 5.0)
        told = await asyncio.gather(ask(1), ask(-1), ask(3), return_exceptions=True)
        assert [type(answer) for answer in told] == [ValueError, ValueError, int]

    asyncio.run(run())


def test_a_call_that_hangs_frees_its_place() -> None:
    async def run() -> None:
        doubler = Doubler()
        ask = Coalescer(doubler, 1, 1, 0.02)
        hung, after = asyncio.create_task(ask(1)), asyncio.create_task(ask(2))
        with pytest.raises(TimeoutError):
            await hung
        doubler.open.set()
        assert await after == 4

    asyncio.run(run())


def test_an_answer_too_few_is_an_error_not_a_shift() -> None:
    async def run() -> None:
        async def lose(numbers: list[int]) -> Sequence[int]:
            return numbers[1:]

        with pytest.raises(RuntimeError, match="1 questions got 0 answers"):
            await Coalescer(lose, 4, 1, 5.0)(1)

    asyncio.run(run())
