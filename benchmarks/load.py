"""A cheap HTTP load generator on raw sockets: closed loops, and open loops without coordinated omission.

In a closed loop each of `c` clients asks again once it has its answer, so that a slow server is asked less. An open
loop asks at a fixed rate, whatever comes back, and a request's latency counts from when it should have been sent: what
waits for a free connection, or because this process is late, waits in the figures, too.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MAX_CONNECTIONS = 1000
ANSWER_SECONDS = 30.0
"""A request that gets no answer in this time counts as status 0."""


@dataclass
class Outcome:
    """What a load got."""

    seconds: float = 0.0
    latencies_seconds: list[float] = field(default_factory=list)
    """Of answers with status 200."""
    statuses: dict[int, int] = field(default_factory=dict)
    """How many answers of each status; 0: none came."""
    num_whole: int = 0
    """Answers that say `"degraded":[]`, of those whose shape says it at all."""
    num_told_to_wait: int = 0
    """429 with Retry-After."""
    num_late: int = 0
    """Answers with status 200 after the end of the arrivals: what was queued then is no rate."""
    ends_seconds: float = float("inf")
    """When that is, of the monotonic clock."""

    @property
    def num_good(self) -> int:
        return self.statuses.get(200, 0)

    @property
    def good_per_second(self) -> float:
        return (self.num_good - self.num_late) / self.seconds

    def quantile_ms(self, share: float) -> float:
        return float(np.quantile(self.latencies_seconds, share)) * 1e3 if self.latencies_seconds else float("nan")

    def note(self, status: int, latency_seconds: float, head: bytes, body: bytes) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            self.latencies_seconds.append(latency_seconds)
            self.num_whole += b'"degraded":[]' in body
            self.num_late += time.perf_counter() > self.ends_seconds
        elif status == 429:
            self.num_told_to_wait += b"retry-after:" in head.lower()


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiter: asyncio.Future[tuple[int, bytes, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def ask(self, request: bytes) -> "asyncio.Future[tuple[int, bytes, bytes]]":
        """Status, head and body of the answer; ConnectionError if the connection ends first."""
        assert self.transport is not None
        self._waiter = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._waiter

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end])
        lowered = head.lower()
        place = lowered.find(b"content-length:")
        if place >= 0:
            length = int(lowered[place + 15 :].split(b"\r\n", 1)[0])
            if len(self._buffer) < end + 4 + length:
                return
            rest = end + 4 + length
        else:  # chunked
            rest = self._buffer.find(b"0\r\n\r\n", end + 4) + 5
            if rest < 5:
                return
        body = bytes(self._buffer[end + 4 : rest])
        del self._buffer[:rest]
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result((int(head[9:12]), head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionError("the server closed the connection"))


class Pool:
    """Connections to one server, opened as they are needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[Connection] = []
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)

    async def ask(self, request: bytes, due_seconds: float, outcome: Outcome) -> None:
        """One request, its latency counted from `due_seconds` of the monotonic clock."""
        async with self._slots:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    connection = await self._connection()
                    status, head, body = await connection.ask(request)
                if connection.is_open:
                    self._free.append(connection)
            except (OSError, TimeoutError):
                status, head, body = 0, b"", b""
        outcome.note(status, time.perf_counter() - due_seconds, head, body)

    async def _connection(self) -> Connection:
        while self._free:
            if (kept := self._free.pop()).is_open:
                return kept
        _, made = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self._port)
        return made

    def close(self) -> None:
        for connection in self._free:
            if connection.transport is not None:
                connection.transport.abort()


async def closed_loop(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Outcome:
    """`clients` that ask one after the other until the time is over."""
    outcome, pool = Outcome(), Pool(port)
    began = time.perf_counter()

    async def client(number: int) -> None:
        place = number * 7919
        while (now := time.perf_counter()) < began + seconds:
            await pool.ask(requests[place % len(requests)], now, outcome)
            place += clients

    await asyncio.gather(*(client(number) for number in range(clients)))
    outcome.seconds = time.perf_counter() - began
    pool.close()
    return outcome


async def open_loop(port: int, requests: Sequence[bytes], per_second: float, seconds: float) -> Outcome:
    """Requests at a fixed rate for `seconds`; answers that come later have their latency, and are late."""
    began = time.perf_counter()
    outcome, pool = Outcome(seconds=seconds, ends_seconds=began + seconds), Pool(port)
    running: set[asyncio.Task[None]] = set()
    for number in range(int(per_second * seconds)):
        due = began + number / per_second
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        elif number % 16 == 0:
            await asyncio.sleep(0)  # late: let answers in all the same
        task = asyncio.create_task(pool.ask(requests[number % len(requests)], due, outcome))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    pool.close()
    return outcome
