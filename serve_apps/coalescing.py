"""Requests that wait at the same time as one call: a hop of Ray Serve costs milliseconds of CPU, however little it
carries.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Coalescer(Generic[Q, A]):
    """Collects questions while calls are under way, and asks them together.

    Nobody waits for company: a question leaves at once, with those of the same turn of the event loop, as long as fewer
    than `max_in_flight` calls are out. Only when all are out do questions gather, so that calls grow with the load. Who
    has given up before the call leaves is not asked for. Belongs to one event loop.
    """

    def __init__(
        self,
        ask: Callable[[list[Q]], Awaitable[Sequence[A]]],
        max_batch: int,
        max_in_flight: int,
        timeout_seconds: float,
    ) -> None:
        """`timeout_seconds`: after it a call is given up, so that a replica that hangs does not hold its place."""
        self._ask = ask
        self._max_batch, self._max_in_flight = max_batch, max_in_flight
        self._timeout_seconds = timeout_seconds
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._is_due = False

    async def __call__(self, question: Q) -> A:
        """The answer to one question.

        Raises:
            TimeoutError: the call that carried it took too long.
            Exception: what the call raised, for all that it carried.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, future))
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._send)
        return await future

    def _send(self) -> None:
        self._is_due = False
        while len(self._calls) < self._max_in_flight and (batch := self._next()):
            call = asyncio.create_task(self._carry(batch))
            self._calls.add(call)
            call.add_done_callback(self._ended)

    def _next(self) -> list[tuple[Q, "asyncio.Future[A]"]]:
        batch: list[tuple[Q, asyncio.Future[A]]] = []
        while self._waiting and len(batch) < self._max_batch:
            question, future = self._waiting.popleft()
            if not future.done():
                batch.append((question, future))
        return batch

    async def _carry(self, batch: Sequence[tuple[Q, "asyncio.Future[A]"]]) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answers = await self._ask([question for question, _ in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(batch)} questions got {len(answers)} answers")
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)

    def _ended(self, call: "asyncio.Task[None]") -> None:
        self._calls.discard(call)
        self._send()
