"""The agent killed at every single command it sends: balanced, or fully given back, every time.

A proxy on the control socket counts the commands and kills. Where the guard lives, it gives back; where it is
killed together with its agent, ``circuitloom release`` does, as systemd runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from circuitloom.errors import AdminError, LabError
from circuitloom.lab.node import TorClient
from circuitloom.lab.socks import SocksProxy
from circuitloom.lab.traffic import EchoServer, Load, Outcome
from circuitloom.model import DOUBT_SECONDS
from tor.agent import Agent, policy_text
from tor.control_proxy import ControlProxy
from tor.witness import Witness

NEW_STREAMS_SECONDS = 2.0
"""Within which new streams work after a fault of the agent."""

LOAD_STREAMS_PER_SECOND = 8

MORE_OF_THE_SAME = ["ATTACHSTREAM"] * 5
"""What follows is one stream of the load after the other."""

MANY = 60
"""More commands than any of the scenes takes."""


class Scene:
    """One Tor, one proxy, and agents that are killed one after the other."""

    def __init__(
        self, client: TorClient, echo: EchoServer, directory: Path, *, has_guard: bool, witness: Witness
    ) -> None:
        self.client = client
        self.echo = echo
        self.witness = witness
        self.has_guard = has_guard
        self.proxy = ControlProxy(client.control_socket, directory / "proxy")
        self.agent = Agent(
            directory, policy_text(self.proxy.path, directory, circuits="[{name: a}, {name: b}]")
        )

    def kill(self) -> None:
        """SIGKILL, in the middle of a command."""
        pid = self.agent.process.pid
        if not self.has_guard:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
            for child in children:
                os.kill(int(child), signal.SIGKILL)
        self.agent.process.kill()

    def arm(self, number: int) -> None:
        # With the command, or without it: what the next number finds as well, from the other side.
        self.proxy.arm(number, self.kill, is_before=not self.has_guard)

    @contextlib.asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Streams all the time; none may be lost."""
        load = Load(
            [SocksProxy(self.client.socks_port)],
            self.echo.address,
            streams_per_second=LOAD_STREAMS_PER_SECOND,
        )
        running = asyncio.create_task(load.run(60))
        yield
        load.stop()
        report = await running
        failures = [result for result in report.results if result.outcome is not Outcome.SUCCEEDED]
        assert failures == [], self.agent.log()[-3000:]

    async def wait_ended(self, is_done: Callable[[], bool]) -> bool:
        """Until the kill or the regular end; whether it was the kill."""
        async with asyncio.timeout(20):
            while not self.proxy.has_fired.is_set():
                if await asyncio.to_thread(is_done):
                    self.proxy.disarm()
                    return self.proxy.has_fired.is_set()
                await asyncio.sleep(0.02)
        return True

    async def assert_given_back(self) -> None:
        """New streams work, none waits, and the option is not set."""
        await asyncio.to_thread(self.agent.process.wait, 5)
        if not self.has_guard:
            released = await asyncio.to_thread(self.agent.release)
            assert released.returncode == 0, released.stderr
        proxy = SocksProxy(self.client.socks_port, timeout_seconds=NEW_STREAMS_SECONDS)
        try:
            connection = await proxy.connect(*self.echo.address)
        except LabError as error:
            state = f"option {self.witness.option()}, {self.witness.stream_status()}"
            raise AssertionError(f"{error} after {self.proxy.passed}; {state}") from error
        await connection.echo(b"works")
        await connection.close()
        await asyncio.to_thread(self._wait_given_back)

    def _wait_given_back(self) -> None:
        what = f"after {self.proxy.passed}"
        self.witness.wait_until(
            lambda: self.witness.option() == "0", f"the option is reset {what}", NEW_STREAMS_SECONDS
        )
        self.witness.wait_until(
            # One that was there before may be Tor's own for so long, once the option is reset.
            lambda: not self.witness.waiting(),
            f"no stream waits {what}",
            DOUBT_SECONDS + NEW_STREAMS_SECONDS,
        )

    def is_balancing(self) -> bool:
        try:
            status = self.agent.status()
        except AdminError:
            return False
        states = [circuit["state"] for circuit in status["circuits"] if circuit["state"] != "draining"]
        return status["state"] == "balancing" and states == ["built", "built"]

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """Whatever happened, no agent is left, and its takeover neither."""
        try:
            yield
        finally:
            self.agent.end()
            self.witness.tell("RESETCONF __LeaveStreamsUnattached")

    async def start(self) -> None:
        """As after every kill: a new agent balances again."""
        self.agent.start()
        await asyncio.to_thread(self.agent.wait_balancing, 2)
        self.witness.wait_until(lambda: self.witness.option() == "1", "the option is set")


async def interrupt_takeover(scene: Scene, number: int) -> bool:
    """From the start of the agent; without a guard one was killed before, and streams wait already."""
    async with scene.load():
        if not scene.has_guard:
            scene.witness.tell("SETCONF __LeaveStreamsUnattached=1")
            await asyncio.sleep(0.2)
        scene.arm(number)
        scene.agent.start()
        if not await scene.wait_ended(scene.is_balancing):
            assert scene.agent.stop() == 0
            return False
        await scene.assert_given_back()
        if scene.has_guard:
            await scene.start()
            scene.agent.stop()
    return True


async def interrupt_stop(scene: Scene, number: int) -> bool:
    await scene.start()
    async with scene.load():
        scene.arm(number)
        scene.agent.signal(signal.SIGTERM)
        is_killed = await scene.wait_ended(lambda: scene.agent.process.poll() is not None)
        await scene.assert_given_back()
    return is_killed


async def interrupt_reload(scene: Scene, number: int) -> bool:
    """One circuit goes and another comes."""
    await scene.start()
    old, new = ("{name: b}", "{name: c}")
    text = scene.agent.policy_path.read_text()
    async with scene.load():
        scene.agent.policy_path.write_text(text.replace(old, new) if old in text else text.replace(new, old))
        scene.arm(number)
        scene.agent.signal(signal.SIGHUP)
        count = scene.agent.log().count("reloaded")
        if not await scene.wait_ended(
            lambda: scene.agent.log().count("reloaded") > count and scene.is_balancing()
        ):
            assert scene.agent.stop() == 0
            return False
        await scene.assert_given_back()
    return True


async def interrupt_resync(scene: Scene, number: int) -> bool:
    """The connection is cut, streams come meanwhile, and the agent connects again."""
    await scene.start()
    async with scene.load():
        count = scene.agent.log().count("connected to Tor")
        scene.arm(number)
        scene.proxy.cut()
        if not await scene.wait_ended(
            lambda: scene.agent.log().count("connected to Tor") > count and scene.is_balancing()
        ):
            assert scene.agent.stop() == 0
            return False
        await scene.assert_given_back()
    return True


@pytest.mark.timeout(240)
@pytest.mark.parametrize("has_guard", [True, False], ids=["guard", "release"])
@pytest.mark.parametrize(
    ("interrupt", "least"),
    [(interrupt_takeover, 10), (interrupt_stop, 3), (interrupt_reload, 2), (interrupt_resync, 8)],
    ids=["takeover", "stop", "reload", "resync"],
)
def test_killed_at_every_command(
    client: TorClient,
    echo: EchoServer,
    tmp_path: Path,
    *,
    interrupt: Callable[[Scene, int], Awaitable[bool]],
    least: int,
    has_guard: bool,
) -> None:
    """Guarded, the command reaches Tor before the kill; else the kill is first: both sides of each step."""

    async def run() -> int:
        for number in range(1, MANY):
            if not await interrupt(scene, number):
                return number - 1
            if scene.proxy.passed[-len(MORE_OF_THE_SAME) :] == MORE_OF_THE_SAME:
                return number
        raise AssertionError(f"more than {MANY} commands: {scene.proxy.passed}")

    with Witness(client) as witness:
        scene = Scene(client, echo, tmp_path, has_guard=has_guard, witness=witness)
        with scene.proxy, scene.ended():
            assert asyncio.run(run()) >= least, scene.proxy.passed
