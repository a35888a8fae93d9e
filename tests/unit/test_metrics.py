"""The metrics as Prometheus reads them: every one of the catalogue, with its labels, and nothing else."""

from __future__ import annotations

import asyncio
import math
import re
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from circuitloom.metrics import AgentCounts, Reading, catalogue
from circuitloom.metrics.catalogue import METRICS
from circuitloom.metrics.exposition import text_slices
from circuitloom.metrics.server import MAX_CLIENTS, MAX_REQUEST_BYTES, MetricsServer
from circuitloom.policy import check_policy
from circuitloom.policy.rotation import Rotation
from circuitloom.policy.types import Eject, Isolation, Role, Slot
from circuitloom.rounds.types import Outcome, RoundCounts
from unit.pool_driver import Driver, balancing, closed, isolating, opened, policy_of, sent
from unit.test_pool_eject import eject

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- made from the catalogue of metrics -->\n", "<!-- end -->\n"


NO_ROUNDS = RoundCounts()


def with_table(readme: str) -> str:
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}{catalogue.table()}{END}{rest.partition(END)[2]}"


def text(
    driver: Driver,
    counts: AgentCounts | None = None,
    *,
    agent: str | None = None,
    rounds: RoundCounts = NO_ROUNDS,
) -> str:
    reading = Reading(
        driver.snapshot(),
        driver.pool.tally,
        counts or AgentCounts(),
        driver.pool.guards(),
        version="9.9",
        tor_version="0.4.9.11",
        rounds=rounds,
    )
    return b"".join(text_slices(reading, agent=agent)).decode()


def samples(driver: Driver, counts: AgentCounts | None = None) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(text(driver, counts)):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def values(driver: Driver, name: str, counts: AgentCounts | None = None) -> dict[str, float]:
    """The values of one metric, by what its labels say."""
    return {
        "/".join(sample.labels.values()): sample.value
        for sample in samples(driver, counts)[f"circuitloom_{name}"]
    }


def test_every_metric_of_the_catalogue_is_told_with_its_kind_help_and_labels_and_no_other() -> None:
    told = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(text(balancing()))
    }

    assert told.keys() == METRICS.keys()
    for name, metric in METRICS.items():
        assert (told[name].type, told[name].documentation) == (metric.kind, metric.help)
        for sample in told[name].samples:
            assert sample.labels.keys() - {"le"} == set(metric.labels)


def test_names_are_as_prometheus_wants_them() -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch(r"circuitloom(_[a-z]+)+", name)
        assert name.endswith("_total") == (metric.kind == "counter")
        assert (metric.kind != "histogram") or name.endswith("_seconds")


def test_the_table_in_the_readme_is_made_from_the_catalogue() -> None:
    readme = README.read_text()

    assert with_table(readme) == readme, "run: PYTHONPATH=tests python tests/unit/test_metrics.py"


def test_streams_are_told_by_circuit_and_outcome() -> None:
    driver = balancing()
    driver.tell(*opened(1))
    driver.now += 0.25
    driver.tell(sent(1, 30), "STREAM 1 SUCCEEDED 30 example.com:80")
    driver.tell(*opened(2), sent(2, 31), "STREAM 2 FAILED 31 example.com:80 REASON=END", closed(2))

    assert values(driver, "attachments_total") == {"primary": 1, "backup": 1}
    told = values(driver, "streams_total")
    assert {key: value for key, value in told.items() if value} == {
        "primary/connected": 1,
        "backup/failed": 1,
    }
    assert values(driver, "circuit_streams") == {"primary": 1, "backup": 0}
    assert values(driver, "streams")[""] == 1


def test_a_histogram_has_each_class_with_all_below_it() -> None:
    driver = balancing()
    for number, seconds in ((1, 0.004), (2, 0.25), (3, 0.25), (4, 70.0)):
        driver.tell(*opened(number))
        driver.now += seconds
        circuit = 30 + (number - 1) % 2
        driver.tell(sent(number, circuit), f"STREAM {number} SUCCEEDED {circuit} example.com:80")

    of = {
        (sample.labels["circuit"], float(sample.labels["le"])): sample.value
        for sample in samples(driver)["circuitloom_connect_seconds_bucket"]
    }
    assert [of["primary", bound] for bound in (0.005, 0.2, 0.3, math.inf)] == [1, 1, 2, 2]
    assert [of["backup", bound] for bound in (0.2, 0.3, 10.0, math.inf)] == [0, 1, 1, 2]
    assert values(driver, "connect_seconds_count") == {"primary": 2, "backup": 2}
    assert values(driver, "connect_seconds_sum") == pytest.approx({"primary": 0.254, "backup": 70.25})


def test_what_may_take_longer_than_a_connect_has_classes_as_far_as_it_may_last() -> None:
    driver = balancing()
    for told, longest in ((driver.pool.tally.waits, 100.0), (driver.pool.tally.builds, 60.0)):
        told.observe(25.0)
        told.observe(longest)

    for name, longest in (("wait_seconds", 100.0), ("build_seconds", 60.0)):
        of = {
            float(sample.labels["le"]): sample.value
            for sample in samples(driver)[f"circuitloom_{name}_bucket"]
            if sample.labels["le"] != "+Inf"
        }
        known = of[20.0]
        assert (of[30.0], of[longest]) == (known + 1, known + 2)


def test_circuits_are_told_by_state_with_weights_and_guards() -> None:
    slots = Slot("a", weight=3), Slot("b"), Slot("spare", role=Role.BACKUP)
    driver = balancing(policy_of(*slots, eject=Eject(consecutive_failures=2)))
    eject(driver)

    states = values(driver, "circuits")
    assert (states["built"], states["ejected"], states["backoff"], sum(states.values())) == (2, 1, 0, 3)
    assert values(driver, "ejections_total") == {"a": 1, "b": 0, "spare": 0}
    assert values(driver, "circuit_weight") == {"a": 3, "b": 1, "spare": 0}
    assert values(driver, "circuit_built") == {"a": 1, "b": 1, "spare": 1}
    assert (values(driver, "guards")[""], values(driver, "guard_circuits_max")[""]) == (1, 3)
    assert values(driver, "state") == {"disconnected": 0, "released": 0, "balancing": 1, "stopping": 0}


def test_what_happened_to_the_agent_is_told() -> None:
    counts = AgentCounts(connections=3, takeovers=4, give_backs=2, reloads_refused=1, is_policy_current=False)
    counts.decisions.observe(0.0004, 5)
    driver = balancing()

    def value(name: str) -> float:
        return values(driver, name, counts)[""]

    assert (value("tor_connections_total"), value("takeovers_total"), value("give_backs_total")) == (3, 4, 2)
    assert values(driver, "reloads_total", counts) == {"applied": 0, "refused": 1}
    assert value("policy_last_reload_successful") == 0
    assert value("decision_seconds_count") == 5
    assert value("resident_memory_bytes") > 1 << 20
    assert 3 <= value("open_fds") < value("max_fds")


def test_streams_that_tor_put_on_a_circuit_are_no_attachments_that_failed() -> None:
    driver = Driver(policy_of("a", "b", min_active=2))
    driver.connect()
    driver.build(30)
    driver.tell(opened(1)[0], sent(1, 30))
    driver.tell("STREAM 1 FAILED 30 example.com:80 REASON=END REMOTE_REASON=CONNECTREFUSED", closed(1))

    assert values(driver, "attachments_total") == {"a": 0, "b": 0}
    assert set(values(driver, "streams_total").values()) == {0}
    assert driver.snapshot().failed_total == 0


def test_what_drains_already_when_it_grows_old_is_no_rotation() -> None:
    rotation = Rotation(max_age_seconds=60.0, jitter=0.0)
    driver = balancing(policy_of("a", rotation=rotation))
    driver.tell(*opened(1))
    driver.wait(30.0)
    driver.reload(policy_of(Slot("a", path=("A" * 40, "B" * 40)), rotation=rotation))
    driver.build(31)
    assert [circuit.state for circuit in driver.snapshot().circuits] == ["built", "draining"]

    driver.wait(30.0)

    assert values(driver, "rotations_total") == {"a": 0}


def test_rotations_are_told_by_circuit() -> None:
    driver = balancing(policy_of("a", "b", rotation=Rotation(max_streams_total=2)))
    for number in (1, 2, 3):
        driver.tell(*opened(number))

    assert values(driver, "rotations_total") == {"a": 1, "b": 0}


def test_rounds_are_told_by_outcome() -> None:
    rounds = RoundCounts({Outcome.DONE: 7, Outcome.MISSED: 2}, running=1, waiting=3, is_stopped=True)

    told = text(balancing(), rounds=rounds)

    for line in (
        'rounds_total{outcome="done"} 7.0',
        'rounds_total{outcome="failed"} 0.0',
        'rounds_total{outcome="missed"} 2.0',
        "rounds_running 1.0",
        "rounds_waiting 3.0",
        "rounds_stopped 1.0",
    ):
        assert f"circuitloom_{line}\n" in told


def test_labels_hold_no_user_key_or_destination() -> None:
    driver = balancing(isolating("a"))
    for number, user in ((1, "alice"), (2, "bob")):
        driver.tell(*opened(number, "secret.example:443", user=user, password=f"pass-{user}"))
    driver.build(31)

    told = text(driver)
    assert values(driver, "keys")[""] == 2
    for word in ("alice", "bob", "secret", "pass-", "127.0.0.1"):
        assert word not in told


def test_the_label_agent_is_on_every_line_and_heads_stand_once() -> None:
    names = [Slot(f"swarm-{number}") for number in range(20)]
    lines = text(balancing(policy_of(*names, isolation=Isolation.NONE)), agent="second").splitlines()

    assert all('agent="second"' in line for line in lines if not line.startswith("#"))
    heads = [line for line in lines if line.startswith("#")]
    assert len(heads) == len(set(heads)) == 2 * len(METRICS)
    assert sum(line.startswith("circuitloom_attachments_total{") for line in lines) == 20


def test_many_circuits_come_in_many_pieces() -> None:
    driver = Driver(policy_of(*[Slot(f"swarm-{number}") for number in range(100)]))
    reading = Reading(driver.snapshot(), driver.pool.tally, AgentCounts(), (), version="", tor_version="")

    pieces = list(text_slices(reading, agent=None))

    assert max(piece.count(b"\n") for piece in pieces) < 200


def test_an_interval_without_a_file_is_warned_about() -> None:
    policy = b"version: 1\ncircuits: [{name: a}, {name: b}]\nmetrics: {listen: '[::1]:9955', interval: 30s}\n"

    parsed, (warning,) = check_policy(policy, name="p")
    assert parsed.metrics.is_asked_for
    assert str(warning).startswith("p:3:43: metrics.interval: this does nothing without `textfile`")


# --- the port ----------------------------------------------------------------------------------------------


async def nothing_but_one() -> bytes:
    return b"circuitloom_keys 1.0\n"


def serve(body: Callable[[int], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            port = free_port()
            serving = asyncio.create_task(MetricsServer(nothing_but_one).serve("127.0.0.1", port))
            await asyncio.sleep(0)
            await body(port)
            serving.cancel()
            await asyncio.wait([serving])

    asyncio.run(bounded())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /metrics HTTP/1.1", b"200 OK"),
        (b"GET /metrics?name[]=x HTTP/1.1", b"200 OK"),
        (b"GET / HTTP/1.1", b"404 Not Found"),
        (b"POST /metrics HTTP/1.1", b"405 Method Not Allowed"),
        (b"\x16\x03\x01", b"405 Method Not Allowed"),
    ],
)
def test_the_port_answers_a_get_of_the_metrics(request_line: bytes, status: bytes) -> None:
    async def body(port: int) -> None:
        answer = await ask(port, request_line + b"\r\nHost: x\r\n\r\n")
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status + b"\r\nContent-Type: text/plain; version=0.0.4")
        assert f"Content-Length: {len(rest)}".encode() in head
        if status == b"200 OK":
            assert rest == b"circuitloom_keys 1.0\n"

    serve(body)


def test_a_request_that_does_not_end_is_cut_off() -> None:
    async def body(port: int) -> None:
        assert await ask(port, b"x" * (2 * MAX_REQUEST_BYTES)) == b""
        assert b"200 OK" in await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")

    serve(body)


def test_silent_clients_are_bounded_and_do_not_keep_others_out_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("circuitloom.metrics.server.CLIENT_SECONDS", 0.5)

    async def body(port: int) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2 * MAX_CLIENTS)]
        assert await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        await asyncio.gather(*(reader.read() for reader, _ in silent), return_exceptions=True)
        assert b"200 OK" in await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
        for _, writer in silent:
            writer.close()

    serve(body)


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
