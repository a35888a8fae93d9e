"""Fuzzes the admin socket: a real server, hostile clients, and one that behaves and must be answered.

A case is some clients at once. What each does is one letter and its bytes: it sends them whole, in drips,
without an end, reads nothing, hangs up at once, or keeps its connection idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from circuitloom.admin import MAX_CLIENTS, MAX_REQUEST_BYTES, AdminServer
from fuzz.campaign import Case, main
from fuzz.mutate import mutate

DEFAULT_COUNT = 20_000

ANSWER_SECONDS = 5.0
"""How soon a well-behaved client is answered; it takes a millisecond."""

COLLECT_EVERY = 500
"""An exception that nobody took is told only when its task is collected."""

WHOLE, DRIPS, ENDLESS, DEAF, GONE, IDLE = b"W", b"D", b"E", b"R", b"G", b"I"

REQUESTS = (
    b'{"command": "status"}\n',
    b'{"command": "none"}\n',
    b'{"command": 1}\n',
    b'{"command": "status", "command": {}}\n',
    b"[]\n",
    b"null\n",
    b"\n",
    b'"status"\n',
    b'{"command": "\\ud800"}\n',
    b'{"command": "st\\u0061tus"}\n',
)

WORDS = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b":",
        b",",
        b"\n",
        b"\r\n",
        b"\0",
        b"\\",
        b"\\u0000",
        b"\xff",
        b"\xed\xa0\x80",
    ),
    *(b"NaN", b"Infinity", b"1e999", b"-", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"true", b"null"),
    *(
        b'"command"',
        b'"status"',
        b"x" * MAX_REQUEST_BYTES,
        b"x" * (MAX_REQUEST_BYTES - 1) + b"\n",
        b"\xef\xbb\xbf",
    ),
)


class AdminFuzzer:
    """Draws the clients of one moment; a context manager that serves on a socket of its own."""

    unit = "clients"

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="admin-"))
        self._path = str(self._directory / "admin.sock")
        self._server = AdminServer(self._path, {"status": self._status})
        self._faults: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, context: self._faults.append(str(context)))
        self._loop.run_until_complete(self._server.start())
        self._cases = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._server.close())
        # What the server still has to say to its clients takes a turn.
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def draw(self, rng: random.Random) -> Case:
        """Up to as many clients as are admitted, now and then more."""
        most = rng.choice((2, 4, 8, MAX_CLIENTS + 8))
        return tuple(self._draw_client(rng) for _ in range(rng.randrange(1, most)))

    def judge(self, case: Case) -> int:
        """Let all clients loose at once; afterwards one that behaves is answered, and nothing has leaked."""
        self._loop.run_until_complete(self._run(case))
        self._cases += 1
        if self._cases % COLLECT_EVERY == 0:
            gc.collect()
        assert not self._faults, self._faults.pop()
        return len(case)

    @staticmethod
    def _draw_client(rng: random.Random) -> bytes:
        how = rng.choice((WHOLE, WHOLE, WHOLE, DRIPS, ENDLESS, DEAF, GONE, IDLE))
        requests = b"".join(rng.choice(REQUESTS) for _ in range(rng.randrange(1, 6)))
        if rng.random() < 0.7:
            requests = mutate(rng, requests, WORDS, edits=rng.randrange(1, 4))
        return how + requests

    @staticmethod
    def _status(request: Mapping[str, Any]) -> Mapping[str, Any]:
        """As large as the status of a pool of many circuits."""
        return {"state": "balancing", "circuits": [{"name": "a" * 64}] * 32, "keys": len(request)}

    async def _run(self, case: Case) -> None:
        # Gone before the well-behaved one comes: who keeps every place takes it from the others by design.
        async with asyncio.timeout(ANSWER_SECONDS):
            await asyncio.gather(*(self._be_hostile(client[:1], client[1:]) for client in case))
        async with asyncio.timeout(ANSWER_SECONDS):
            # Beyond the limit a client is turned away, until the server has noticed that others are gone.
            while not await self._is_answered():
                pass

    async def _be_hostile(self, how: bytes, data: bytes) -> None:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=1 << 22)
        # The server may hang up at any time: that is its right.
        with contextlib.suppress(ConnectionError):
            match how:
                case b"D":
                    for at in range(0, min(len(data), 40), 3):
                        writer.write(data[at : at + 3])
                        await writer.drain()
                        await asyncio.sleep(0)
                case b"I" | b"G":
                    pass
                case _:
                    writer.write(data)
                    await writer.drain()
            if how in {WHOLE, DRIPS}:
                writer.write_eof()
                for line in (await reader.read()).splitlines():
                    assert isinstance(json.loads(line), dict), "an answer is not an object"
            elif how == IDLE:
                await asyncio.sleep(0.002)
        writer.transport.abort()

    async def _is_answered(self) -> bool:
        """Whether a client that behaves gets its answer; False when it is turned away."""
        reader, writer = await asyncio.open_unix_connection(self._path, limit=1 << 22)
        try:
            writer.write(REQUESTS[0])
            line = await reader.readline()
        except ConnectionError:
            return False
        finally:
            writer.transport.abort()
        assert not line or json.loads(line)["state"] == "balancing"
        return bool(line)


if __name__ == "__main__":
    with AdminFuzzer() as fuzzer:
        sys.exit(main(fuzzer, default_count=DEFAULT_COUNT))
