"""Relays that the agent selects, on a real Tor: circuits are, by Tor's word, what the policy asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from circuitloom.directory import fetch_relays
from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.node import TorClient
from circuitloom.lab.socks import SocksProxy
from circuitloom.lab.traffic import EchoServer, Load, Outcome
from circuitloom.policy.types import TorControl, UnixAddress
from tor.agent import Agent, circuit_ids, policy_text, run_command
from tor.witness import Witness

LOOPBACK = "127.0.0.1"
COUNTRIES = {"relay4": ("127.0.0.4", "DE"), "relay5": ("127.0.0.5", "NL")}
WEB_ONLY = "relay6"
DISTINCT = "paths: {diversity: {exit: distinct}}"
REBUILDS = 12


def relay_options(nickname: str, or_port: int) -> Sequence[str]:
    """Two relays in countries of their own, and an exit for the web only."""
    if nickname == WEB_ONLY:
        return ["ExitPolicy accept *:80", "ExitPolicy accept *:443", "ExitPolicy reject *:*"]
    if nickname in COUNTRIES:
        address = COUNTRIES[nickname][0]
        return [f"Address {address}", f"ORPort {address}:{or_port} IPv4Only"]
    return []


NEXT_CONSENSUS_SECONDS = 150.0
"""The vote is every 20 s here, and Tor fetches when it likes."""


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNetwork]:
    """A network whose relays differ, and a client that knows two countries."""
    lines = [
        f"{int(IPv4Address(address))},{int(IPv4Address(address))},{cc}" for address, cc in COUNTRIES.values()
    ]
    geoip = tmp_path_factory.mktemp("geoip") / "geoip"
    geoip.write_text("\n".join(lines) + "\n")
    with PrivateNetwork(relay_options=relay_options, client_options=[f"GeoIPFile {geoip}"]) as network:
        yield network


def agent_for(
    client: TorClient, directory: Path, circuits: str, more: str = "", balance: str = "{isolation: none}"
) -> Agent:
    text = policy_text(client.control_socket, directory, circuits=circuits, balance=balance, more=more)
    return Agent(directory, text)


def paths_by_id(witness: Witness) -> dict[str, list[str]]:
    """The relays of each circuit that is BUILT, by Tor's own word: ``$FINGERPRINT~nickname``."""
    lines = (line.split(" ") for line in witness.get_info("circuit-status").splitlines())
    return {words[0]: words[2].split(",") for words in lines if words[1] == "BUILT"}


def nickname(hop: str) -> str:
    return hop.partition("~")[2]


def guards_of(witness: Witness) -> set[str]:
    lines = (line.split(" ") for line in witness.get_info("entry-guards").splitlines())
    return {words[0].partition("~")[0] for words in lines if words[1] in {"up", "never-connected"}}


def fingerprint_of(network: PrivateNetwork, name: str) -> str:
    return next(relay.fingerprint for relay in network.relays if relay.nickname == name)


def test_what_tor_says_of_its_relays_is_read_whole(network: PrivateNetwork, client: TorClient) -> None:
    tor = TorControl(UnixAddress(str(client.control_socket)))

    relays = asyncio.run(fetch_relays(tor, countries={}))

    known = {relay.fingerprint for relay in (*network.relays, *network.authorities)}
    assert set(relays.by_fingerprint) == known
    assert relays.missing == 0
    assert not relays.keeps_subnets_apart
    assert set(relays.guards) <= known
    exits = {relay.nickname for relay in relays.by_fingerprint.values() if relay.ports.accepts(1, 65535)}
    assert exits == {relay.nickname for relay in network.relays}
    with Witness(client) as witness:
        assert {f"${guard}" for guard in relays.guards} == guards_of(witness)


def test_two_circuits_never_share_an_exit_over_repeated_rebuilds(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    """Rotated, and closed under the streams on them; the first hop is Tor's guard each time."""
    seen: set[str] = set()
    with agent_for(client, tmp_path, "[{name: a}, {name: b}]", DISTINCT) as agent, Witness(client) as witness:
        status = agent.wait_balancing(2)
        for number in range(REBUILDS):
            ids = circuit_ids(status)
            paths = paths_by_id(witness)
            hops = {name: paths[circuit] for name, circuit in ids.items()}
            assert hops["a"][-1] != hops["b"][-1]
            assert {path[0].partition("~")[0] for path in hops.values()} <= guards_of(witness)
            assert all(len(set(path)) == 3 for path in hops.values())
            seen |= {path[-1] for path in hops.values()}
            name = "ab"[number % 2]
            agent.command("rotate" if number % 4 < 2 else "close", name, "--socket", str(agent.socket_path))
            status = agent.wait_until(
                lambda status, name=name, old=ids[name]: (
                    circuit_ids(status).get(name, old) != old  # type: ignore[misc]
                    and len(circuit_ids(status)) == 2
                ),
                f"{name} is another circuit",
            )
        load = Load([SocksProxy(client.socks_port)], (LOOPBACK, echo.port), streams_per_second=50)
        report = asyncio.run(load.run(1.0))
        assert [result for result in report.results if result.outcome is not Outcome.SUCCEEDED] == []
        assert agent.stop() == 0
    # Chosen by weight, not always the same.
    assert len(seen) > 2


def test_exits_are_those_that_the_policy_names(
    network: PrivateNetwork, client: TorClient, tmp_path: Path
) -> None:
    fingerprint = network.relays[1].fingerprint
    circuits = (
        f"[{{name: a, path: {{exit: {{fingerprint: [{fingerprint}]}}}}}}, "
        "{name: b, path: {exit: {nickname: [Relay4]}, middle: {nickname: [relay5]}}}, "
        "{name: c, path: {exit: {nickname: [relay2, relay3]}, avoid: {same_exit_as: [a]}}}]"
    )
    with agent_for(client, tmp_path, circuits) as agent, Witness(client) as witness:
        ids = circuit_ids(agent.wait_balancing(3))
        paths = {name: paths_by_id(witness)[circuit] for name, circuit in ids.items()}
        assert paths["a"][-1] == f"${fingerprint}~relay2"
        assert list(map(nickname, paths["b"][1:])) == ["relay5", "relay4"]
        assert nickname(paths["c"][-1]) == "relay3"
        assert {path[0].partition("~")[0] for path in paths.values()} <= guards_of(witness)
        assert agent.stop() == 0


def test_a_circuit_that_no_relay_fits_holds_nobody_up(client: TorClient, tmp_path: Path) -> None:
    circuits = "[{name: a, path: {}}, {name: b}, {name: none, path: {exit: {nickname: [nobody]}}}]"
    with agent_for(client, tmp_path, circuits) as agent:
        status = agent.wait_balancing(2)
        assert {c["name"] for c in status["circuits"] if c["state"] == "built"} == {"a", "b"}
        assert (
            "circuit none cannot be built: no relay fits as exit: exit.nickname leaves none of" in agent.log()
        )
        assert agent.stop() == 0


def test_the_next_agent_takes_over_the_circuits_that_this_one_selected(
    client: TorClient, tmp_path: Path
) -> None:
    circuits = "[{name: a, path: {exit: {nickname: [relay3]}}}, {name: b, path: {}}]"
    balance = "{isolation: none, purpose: controller}"
    text = policy_text(client.control_socket, tmp_path, circuits=circuits, balance=balance)
    with Agent(tmp_path, text, environment={"STATE_DIRECTORY": str(tmp_path)}) as agent:
        ids = circuit_ids(agent.wait_balancing(2))
        assert agent.stop() == 0
        agent.start()
        assert circuit_ids(agent.wait_balancing(2)) == ids
        # The relays are known again by now, and nothing is against these circuits.
        agent.wait_until(lambda _: agent.log().count("selecting relays:") == 2, "relays are known again")
        assert circuit_ids(agent.status()) == ids
        assert agent.stop() == 0


# --- a network whose relays differ -------------------------------------------------------------------------


def test_streams_go_only_where_the_exit_accepts_their_port(
    varied: PrivateNetwork, echo: EchoServer, tmp_path: Path
) -> None:
    web, other = (f"{{exit: {{nickname: [{name}]}}}}" for name in (WEB_ONLY, "relay2"))
    circuits = f"[{{name: web, path: {web}}}, {{name: any, path: {other}}}]"
    client = varied.client
    with agent_for(client, tmp_path, circuits) as agent, Witness(client) as witness:
        ids = circuit_ids(agent.wait_balancing(2))
        load = Load([SocksProxy(client.socks_port)], (LOOPBACK, echo.port), streams_per_second=50)
        report = asyncio.run(load.run(1.0))
        assert [result for result in report.results if result.outcome is not Outcome.SUCCEEDED] == []
        assert set(witness.first_circuits()) == {ids["any"]}
        assert not witness.detached
        assert agent.stop() == 0


def test_exits_accept_the_ports_that_rules_name(
    varied: PrivateNetwork, echo: EchoServer, tmp_path: Path
) -> None:
    circuits = f"[{{name: a, path: {{exit: {{nickname: [{WEB_ONLY}, relay2]}}}}}}, {{name: b}}]"
    more = f"rules: [{{match: {{port: [{echo.port}]}}, circuits: [a]}}]"
    with agent_for(varied.client, tmp_path, circuits, more) as agent, Witness(varied.client) as witness:
        ids = circuit_ids(agent.wait_balancing(2))
        assert nickname(paths_by_id(witness)[ids["a"]][-1]) == "relay2"
        assert agent.stop() == 0


def test_exits_are_in_the_countries_that_the_policy_names(varied: PrivateNetwork, tmp_path: Path) -> None:
    circuits = (
        "[{name: german, path: {exit: {country: [de]}}}, {name: other, path: {exit: {country: [NL, fr]}}}, "
        "{name: swiss, path: {exit: {country: [ch]}}}, {name: abroad, path: {avoid: {country: [de, nl]}}}]"
    )
    with agent_for(varied.client, tmp_path, circuits) as agent, Witness(varied.client) as witness:
        ids = circuit_ids(agent.wait_balancing(3))
        paths = {name: paths_by_id(witness)[circuit] for name, circuit in ids.items()}
        assert nickname(paths["german"][-1]) == "relay4"
        assert nickname(paths["other"][-1]) == "relay5"
        assert {"relay4", "relay5"}.isdisjoint(map(nickname, paths["abroad"]))
        assert (
            "circuit swiss cannot be built: no relay fits as exit: exit.country ch leaves none" in agent.log()
        )
        assert agent.stop() == 0


def test_when_its_guard_dies_the_next_of_tors_guards_is_used(varied: PrivateNetwork, tmp_path: Path) -> None:
    balance = "{isolation: none, purpose: controller}"
    client = varied.client
    with (
        agent_for(client, tmp_path, "[{name: a, path: {}}, {name: b, path: {}}]", balance=balance) as agent,
        Witness(client) as witness,
    ):
        ids = circuit_ids(agent.wait_balancing(2))
        paths = paths_by_id(witness)
        guards = {paths[circuit][0] for circuit in ids.values()}
        dead = [
            relay for relay in (*varied.relays, *varied.authorities) if f"${relay.fingerprint}" in str(guards)
        ]
        for relay in dead:
            relay.kill()
        try:
            agent.wait_until(
                lambda status: (
                    len(circuit_ids(status)) == 2
                    and set(circuit_ids(status).values()).isdisjoint(ids.values())
                ),
                "both circuits are built over another guard",
                seconds=60.0,
            )
            paths = paths_by_id(witness)
            after = {paths[circuit][0] for circuit in circuit_ids(agent.status()).values()}
            assert after.isdisjoint(guards)
            listed = witness.get_info("entry-guards")
            assert all(first.partition("~")[0] in listed for first in after)
        finally:
            for relay in dead:
                relay.start()
        assert agent.stop() == 0


# --- check --online ----------------------------------------------------------------------------------------


def test_check_online_names_each_fault_with_its_place(varied: PrivateNetwork, tmp_path: Path) -> None:
    web = fingerprint_of(varied, WEB_ONLY)
    authority = varied.authorities[0].fingerprint
    relay = fingerprint_of(varied, "relay2")
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        f"version: 1\n"
        f"tor: {{control: 'unix:{varied.client.control_socket}'}}\n"
        f"circuits:\n"
        f"- name: unknown\n"
        f"  path: [{'0' * 40}, {relay}, {web}]\n"
        f"- name: blocked\n"
        f"  path: [{relay}, {web}, {authority}]\n"
        f"- name: swiss\n"
        f"  path: {{exit: {{country: [ch]}}}}\n"
        f"- name: mail\n"
        f"  path: [{relay}, {authority}, {web}]\n"
        f"- name: fine\n"
        f"  path: {{exit: {{country: [de, nl], ports: [443]}}}}\n"
        f"rules:\n"
        f"- match: {{port: [443, 25]}}\n"
        f"  circuits: [mail]\n"
    )

    ran = run_command("check", "--online", str(policy))

    assert ran.returncode == 78
    faults = [line.removeprefix(f"{policy}:") for line in ran.stderr.splitlines()]
    assert [fault.split(": ")[0] for fault in faults] == ["5:10", "7:94", "9:9", "15:23"]
    assert "no relay that Tor can use now has this fingerprint" in faults[0]
    assert "accepts nothing: no stream gets out" in faults[1] or "lacks the flag Exit" in faults[1]
    assert "circuit swiss cannot be built: no relay fits as exit: exit.country ch leaves none" in faults[2]
    assert f"{WEB_ONLY}, an exit of mail, refuses this port" in faults[3]


def test_what_torrc_excludes_is_excluded_here(varied: PrivateNetwork, tmp_path: Path) -> None:
    client, relay = varied.client, fingerprint_of(varied, "relay2")
    policy = tmp_path / "policy.yaml"
    named = f"[{{name: a, path: {{exit: {{fingerprint: [{relay}]}}}}}}, {{name: b}}]"
    policy.write_text(policy_text(client.control_socket, tmp_path, circuits=named))
    with Witness(client) as witness:
        try:
            assert witness.tell(f"SETCONF ExcludeExitNodes={relay},{{ch}}").startswith("OK")
            excluded = run_command("check", "--online", str(policy))
        finally:
            witness.tell("RESETCONF ExcludeExitNodes")

    assert excluded.returncode == 78
    assert "no relay fits as exit: ExcludeExitNodes in torrc leaves none of 1 relay" in excluded.stderr
    assert run_command("check", "--online", str(policy)).returncode == 0


def test_check_online_has_nothing_against_a_policy_that_works(client: TorClient, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        policy_text(
            client.control_socket, tmp_path, circuits="[{name: a, path: {}}, {name: b}]", more=DISTINCT
        )
    )

    ran = run_command("check", "--online", str(policy))

    assert ran.returncode == 0, ran.stderr
    assert "note: circuits: all circuits begin with one guard" in ran.stdout


def test_check_online_ends_with_69_where_no_tor_answers(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(policy_text(tmp_path / "nobody", tmp_path, circuits="[{name: a}, {name: b}]"))

    ran = run_command("check", "--online", str(policy))

    assert ran.returncode == 69
    assert ran.stderr.count("\n") == 1


# --- last, since the network of these tests is another one for a while afterwards ------------------------


@pytest.mark.timeout(300)
def test_a_relay_that_fits_from_the_next_consensus_on_is_used(
    varied: PrivateNetwork, echo: EchoServer, tmp_path: Path
) -> None:
    """The exit for the web takes all ports from now on."""
    web = next(relay for relay in varied.relays if relay.nickname == WEB_ONLY)
    late = f"{{exit: {{nickname: [{WEB_ONLY}], ports: [{echo.port}]}}}}"
    more = "failover: {rebuild: {initial: 1s, max: 2s}}"
    circuits = f"[{{name: early, path: {{}}}}, {{name: late, path: {late}, role: backup}}]"
    with agent_for(varied.client, tmp_path, circuits, more) as agent:
        agent.wait_balancing(1)
        assert f"no relay fits as exit: port {echo.port} leaves none of 1 relay" in agent.log()
        options, web.options = web.options, []
        try:
            web.reload()
            agent.wait_balancing(2, seconds=NEXT_CONSENSUS_SECONDS)
        finally:
            web.options = options
            web.reload()
        assert agent.stop() == 0
