"""Asks Tor for its relays, for policies that select some, and again when Tor has others.

Rules of this file:

* Nothing is asked while no policy selects relays.
* The documents come over a connection of their own, for a few seconds: megabytes in front of a stream's reply
  would hold that stream up. They are read a few relays a turn of the loop, for the same reason.
* A consensus is several megabytes and comes once an hour; guards change sooner, and are asked for alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from circuitloom import wire
from circuitloom.errors import ControlError, ControlRefused, ControlUnreachable
from circuitloom.paths import (
    Relay,
    Relays,
    join_relay,
    read_consensus,
    read_exclusion,
    read_guards,
    read_microdescriptors,
    read_weights,
)
from circuitloom.policy.types import Policy, TorControl
from circuitloom.session import Session, connect_once, get_info
from circuitloom.wire import DirectoryNews, Reply

CONSENSUS = "dir/status-vote/current/consensus-microdesc"
MICRODESCRIPTORS = "md/all"
GUARDS = "entry-guards"
OPTIONS = ("EnforceDistinctSubnets", "ExcludeNodes", "ExcludeExitNodes")
"""Of torrc; what they change there is read with the next consensus."""
COUNTRY = "ip-to-country/"

FETCH_SECONDS = 30.0
"""For all of it; a public consensus takes a second."""

RELAYS_PER_TURN = 64
"""Reading so many takes about a millisecond."""

ADDRESSES_PER_COMMAND = 128

RETRY_INITIAL_SECONDS, RETRY_MAX_SECONDS = 1.0, 30.0

SETTLE_SECONDS = 2.0
"""From a new consensus to the question: Tor is busy with it, and fetches what is new in it."""

INCOMPLETE_SECONDS = 15.0
"""Until the next look, while microdescriptors are missing: Tor fetches them after the consensus."""

MANY_MISSING = 0.05
"""The part of all relays; some relays never have a microdescriptor."""

_log = logging.getLogger(__name__)


async def fetch_relays(tor: TorControl, *, countries: Mapping[str, str] | None) -> Relays:
    """Ask Tor for all that a path depends on.

    Args:
        tor: Where Tor is.
        countries: Of addresses, as far as they are known; None: nobody needs countries.

    Raises:
        ControlError: Tor cannot be asked, or knows no relays yet.
    """
    session = await connect_once(tor)
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            return await _read_relays(session, countries)
    except TimeoutError:
        raise ControlUnreachable(f"Tor at {tor.control} does not tell its relays in time") from None
    finally:
        session.close()


def parse_countries(values: Mapping[str, str]) -> dict[str, str]:
    """Countries in lower case by address, from the answers to ``GETINFO ip-to-country/ADDRESS ...``."""
    return {key.removeprefix(COUNTRY): value.lower() for key, value in values.items()}


async def _read_relays(session: Session, countries: Mapping[str, str] | None) -> Relays:
    try:
        consensus = (await get_info(session, CONSENSUS)).get(CONSENSUS, "")
    except ControlRefused:
        what = "Tor has no consensus yet: wait until it has bootstrapped"
        raise ControlUnreachable(f"{what}, and leave UseMicrodescriptors on") from None
    microdescriptors = {}
    text = (await get_info(session, MICRODESCRIPTORS)).get(MICRODESCRIPTORS, "")
    for number, (digest, microdescriptor) in enumerate(read_microdescriptors(text)):
        microdescriptors[digest] = microdescriptor
        await _pause(number)
    relays: dict[str, Relay] = {}
    missing = 0
    for number, status in enumerate(read_consensus(consensus)):
        described = microdescriptors.get(status.digest)
        if described is None:
            missing += 1
        else:
            relays[status.fingerprint] = join_relay(status, described)
        await _pause(number)
    values = await get_info(session, GUARDS)
    options = (await session.request(wire.command("GETCONF", *OPTIONS))).values()
    excluded, excluded_exits = (read_exclusion(options.get(option, "")) for option in OPTIONS[1:])
    if countries is None and (excluded.rule.countries or excluded_exits.rule.countries):
        countries = {}
    found, has_countries = await _ask_countries(session, relays.values(), countries)
    return Relays(
        relays,
        weights=read_weights(consensus),
        guards=read_guards(values.get(GUARDS, "")),
        countries=found,
        has_countries=has_countries,
        keeps_subnets_apart=options.get(OPTIONS[0]) != "0",
        excluded=excluded,
        excluded_exits=excluded_exits,
        missing=missing,
    )


async def _ask_countries(
    session: Session, relays: Iterable[Relay], known: Mapping[str, str] | None
) -> tuple[Mapping[str, str], bool]:
    """The countries of all relays, and whether Tor knows any."""
    if known is None:
        return {}, True
    is_loaded = COUNTRY + "ipv4-available"
    if (await get_info(session, is_loaded)).get(is_loaded) == "0":
        return {}, False
    addresses = {relay.address for relay in relays}
    found = {address: known[address] for address in addresses if address in known}
    unknown = sorted(addresses - found.keys())
    for start in range(0, len(unknown), ADDRESSES_PER_COMMAND):
        keys = (COUNTRY + address for address in unknown[start : start + ADDRESSES_PER_COMMAND])
        found.update(parse_countries(await get_info(session, *keys)))
    return found, True


async def _pause(number: int) -> None:
    """Let others have a turn after so many relays."""
    if number % RELAYS_PER_TURN == RELAYS_PER_TURN - 1:
        await asyncio.sleep(0)


class Directory:
    """Keeps a snapshot of Tor's relays current while a policy needs one.

    Args:
        tor: Where Tor is.
        ask: Sends a command over the agent's own connection, if there is one.
        take: Takes each snapshot.
    """

    def __init__(
        self,
        tor: TorControl,
        *,
        ask: Callable[[bytes, Callable[[Reply], None]], None],
        take: Callable[[Relays], None],
    ) -> None:
        self._tor = tor
        self._ask = ask
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._due = asyncio.Event()
        self._is_connected = False
        self._is_needed = False
        self._needs_countries = False
        self._relays: Relays | None = None
        self._is_asking_guards = False
        self._told = ""

    def apply(self, policy: Policy) -> None:
        """A policy is in force."""
        is_blind = policy.uses_countries and not self._needs_countries
        is_new = bool(policy.path_rules) and (not self._is_needed or is_blind)
        self._is_needed, self._needs_countries = bool(policy.path_rules), policy.uses_countries
        if is_new:
            self._due.set()
        if is_blind or not self._is_needed:
            # What was fetched before does not say where relays are, with whatever guards.
            self._relays = None

    def handle_connected(self) -> None:
        """Tor can be asked."""
        self._is_connected = True
        self._due.set()

    def handle_disconnected(self) -> None:
        """Tor cannot be asked, and the next one may have other guards."""
        self._is_connected = False
        self._is_asking_guards = False
        self._relays = None

    def handle_news(self, news: DirectoryNews) -> None:
        """Tor has other relays, or thinks otherwise of its guards."""
        if news is DirectoryNews.CONSENSUS:
            self._loop.call_later(SETTLE_SECONDS, self._due.set)
        else:
            self.ask_guards()

    def ask_guards(self) -> None:
        """Ask which guards are up now; also after a circuit failed, which may be for its guard."""
        if self._relays is None or self._is_asking_guards:
            return
        self._is_asking_guards = True
        self._ask(wire.command("GETINFO", GUARDS), self._read_guards)

    async def keep_current(self) -> None:
        """Ask whenever there is reason to; never returns."""
        delay_seconds = RETRY_INITIAL_SECONDS
        while True:
            await self._due.wait()
            self._due.clear()
            if not self._is_wanted():
                continue
            known = {} if self._relays is None else self._relays.countries
            has_countries = self._needs_countries
            try:
                relays = await fetch_relays(self._tor, countries=known if has_countries else None)
            except ControlError as error:
                self._tell(
                    logging.WARNING, f"no relays to select from ({error}); trying again until there are"
                )
                self._loop.call_later(delay_seconds, self._due.set)
                delay_seconds = min(RETRY_MAX_SECONDS, delay_seconds * 2)
                continue
            delay_seconds = RETRY_INITIAL_SECONDS
            if self._is_wanted() and (has_countries or not self._needs_countries):
                self._receive(relays)

    def _is_wanted(self) -> bool:
        return self._is_connected and self._is_needed

    def _receive(self, relays: Relays) -> None:
        count = len(relays.by_fingerprint)
        if relays.missing > MANY_MISSING * (count + relays.missing):
            self._loop.call_later(INCOMPLETE_SECONDS, self._due.set)
        if not relays.has_countries:
            self._tell(
                logging.WARNING, "Tor has no GeoIP data, so no relay is in any country: install tor-geoipdb"
            )
        elif self._relays is None:
            self._tell(
                logging.INFO, f"selecting relays: {count} are known, {relays.missing} not yet described"
            )
        self._relays = relays
        self._take(relays)

    def _read_guards(self, reply: Reply) -> None:
        self._is_asking_guards = False
        if self._relays is None or not reply.is_ok:
            return
        guards = read_guards(reply.values().get(GUARDS, ""))
        if guards != self._relays.guards:
            self._relays = self._relays.with_guards(guards)
            self._take(self._relays)

    def _tell(self, level: int, message: str) -> None:
        """Say something once; the same again is not news."""
        if message != self._told:
            self._told = message
            _log.log(level, "%s", message)
