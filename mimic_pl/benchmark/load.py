"""Load on a server from processes of its own, so that it is not the client that is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from mimic_pl.benchmark.fresh import fresh_processes

_TRIES = 100


class Load(NamedTuple):
    """What became of requests.

    Attributes:
        seconds: From the first request to the last answer.
        waits: Seconds that each answer took, ascending.
        failed: Number of requests without an answer, or with another status than 200.
    """

    seconds: float
    waits: list[float]
    failed: int

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.waits) / self.seconds

    def percentile(self, percent: float) -> float:
        """Seconds within which this share of the answers came."""
        return self.waits[min(len(self.waits) - 1, int(percent / 100 * len(self.waits)))]


def load(port: int, path: str, bodies: Sequence[bytes], concurrent: int, processes: int) -> Load:
    """Send requests to a server of this machine, each connection the next one as soon as it has its answer.

    Args:
        port: The server's port.
        path: Path of the requests.
        bodies: Their JSON bodies.
        concurrent: Connections.
        processes: Client processes that share the connections.
    """
    processes = min(processes, concurrent)
    with ProcessPoolExecutor(processes, mp_context=fresh_processes()) as pool:
        list(pool.map(time.sleep, [0.1] * processes))  # all have started
        shares = [
            (port, path, bodies[n::processes], concurrent // processes + (n < concurrent % processes))
            for n in range(processes)
        ]
        found = list(pool.map(_client, *zip(*shares, strict=True)))
    begin, end = min(start for start, _, _, _ in found), max(end for _, end, _, _ in found)
    waits = sorted(wait for _, _, own, _ in found for wait in own)
    return Load(end - begin, waits, sum(failed for _, _, _, failed in found))


def _client(port: int, path: str, bodies: Sequence[bytes], concurrent: int) -> tuple[float, float, list[float], int]:
    waits: list[float] = []
    failed = 0
    remaining = iter(bodies)

    async def connection() -> None:
        nonlocal failed
        reader, writer = await _connected(port)
        for body in remaining:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            start = time.perf_counter()
            try:
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                status = await _answer(reader)
            except (OSError, asyncio.IncompleteReadError):
                failed += 1
                reader, writer = await _connected(port)
                continue
            if status == 200:
                waits.append(time.perf_counter() - start)
            else:
                failed += 1
        writer.close()

    async def all_connections() -> None:
        await asyncio.gather(*(connection() for _ in range(concurrent)))

    begin = time.time()
    asyncio.run(all_connections())
    return begin, time.time(), waits, failed


async def _connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    for _ in range(_TRIES):
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError:  # more at once than the server's backlog
            await asyncio.sleep(0.05)
    return await asyncio.open_connection("127.0.0.1", port)


async def _answer(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r")[0]))
    return int(head.split()[1])
