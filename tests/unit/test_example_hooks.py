"""The example hooks, run as the agent runs them; the paying one against a node that keeps what it paid."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from circuitloom.hook import HookRun, Job
from circuitloom.rounds.types import Outcome, Result
from unit.fake_control_port import FakeControlPort

HOOKS = Path(__file__).parents[2] / "schemas" / "examples" / "hooks"
FINGERPRINTS = ["A" * 40, "B" * 40, "C" * 40]

NODE = """#!{python} -I
# lightning-cli of a node that pays everybody but "broken", and keeps what it paid.
import json, pathlib, sys
file = pathlib.Path("{folder}/payments")
pays = json.loads(file.read_text()) if file.exists() else []
arguments = [word for word in sys.argv[1:] if not word.startswith("-")]
if arguments[0] == "listpays":
    print(json.dumps({{"pays": pays}}))
else:
    wanted = dict(word.split("=", 1) for word in arguments[1:])
    if wanted["destination"] == "broken":
        sys.exit("no route")
    pay = {{"label": wanted["label"], "status": "complete", "payment_preimage": "p" * 8, **wanted}}
    file.write_text(json.dumps([*pays, pay]))
    print(json.dumps(pay))
"""


def document(key: str = "k") -> dict[str, Any]:
    path = [{"fingerprint": name, "nickname": name[0].lower()} for name in FINGERPRINTS]
    circuit = {"name": "primary", "id": "30", "built": True, "path": path}
    return {"version": 1, "round": 1, "key": key, "attempt": 1, "retried": False, "circuit": circuit}


def run(name: str, folder: Path, *env: str, key: str = "k") -> Result:
    async def to_end() -> Result:
        results: list[Result] = []
        job = Job([str(HOOKS / name)], env, 20.0, document(key), folder / "locks" / "k")
        running = HookRun(job, on_end=results.append)
        async with asyncio.timeout(25):
            await running.ended.wait()
            await asyncio.sleep(0)
        return results[0]

    return asyncio.run(to_end())


@pytest.fixture
def node(tmp_path: Path) -> tuple[str, ...]:
    """A node that pays two of the three relays; the third wants nothing."""
    program = tmp_path / "lightning-cli"
    program.write_text(NODE.format(python=sys.executable, folder=tmp_path))
    program.chmod(0o755)
    relays = {FINGERPRINTS[0]: {"node": "02aa", "msat": 1000}, FINGERPRINTS[2]: {"node": "02cc", "msat": 500}}
    (tmp_path / "relays.json").write_text(json.dumps(relays))
    return (f"LIGHTNING_CLI={program}", f"RELAYS={tmp_path}/relays.json")


def payments(folder: Path) -> list[dict[str, Any]]:
    path = folder / "payments"
    return list(json.loads(path.read_text())) if path.exists() else []


def test_paying_pays_each_relay_once_for_a_key(tmp_path: Path, node: tuple[str, ...]) -> None:
    results = [run("pay-lightning", tmp_path, *node) for _ in range(3)]

    assert [result.outcome for result in results] == [Outcome.DONE] * 3
    assert [(pay["destination"], pay["amount_msat"]) for pay in payments(tmp_path)] == [
        ("02aa", "1000"),
        ("02cc", "500"),
    ]
    assert results[0].answer == results[2].answer
    assert results[0].answer is not None
    assert results[0].answer["msat"] == 1500
    assert run("pay-lightning", tmp_path, *node, key="other").outcome is Outcome.DONE
    assert len(payments(tmp_path)) == 4


@pytest.mark.parametrize(
    ("broken", "outcome"), [((0, 2), Outcome.FAILED), ((0,), Outcome.UNKNOWN), ((2,), Outcome.UNKNOWN)]
)
def test_a_payment_that_fails_moves_the_round_only_if_none_succeeded(
    tmp_path: Path, node: tuple[str, ...], broken: tuple[int, ...], outcome: Outcome
) -> None:
    relays = json.loads((tmp_path / "relays.json").read_text())
    for number in broken:
        relays[FINGERPRINTS[number]]["node"] = "broken"
    (tmp_path / "relays.json").write_text(json.dumps(relays))

    assert run("pay-lightning", tmp_path, *node).outcome is outcome
    assert len(payments(tmp_path)) == 2 - len(broken)


def test_a_node_that_does_not_answer_leaves_the_end_unknown(tmp_path: Path, node: tuple[str, ...]) -> None:
    (tmp_path / "lightning-cli").unlink()

    assert run("pay-lightning", tmp_path, *node).outcome is Outcome.UNKNOWN


def test_logging_only_logs(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    assert run("log-only", tmp_path) == Result(Outcome.DONE)
    assert 'would serve now: {"version": 1' in log.text


def test_throughput_is_the_circuits_own(tmp_path: Path, fake: FakeControlPort) -> None:
    bandwidth = "650 CIRC_BW ID={} READ=1000 WRITTEN=400 TIME=x\r\n"
    fake.answers["SETEVENTS"] = "250 OK\r\n"

    def later(_command: str) -> str:
        return "250 OK\r\n" + bandwidth.format(30) + bandwidth.format(31) + bandwidth.format(30)

    fake.answers["SETEVENTS STREAM CIRC_BW"] = later
    control = str(fake.address).removeprefix("unix:")
    result = run("measure-throughput", tmp_path, f"CONTROL={control}", "SECONDS=0.5")

    assert result.answer == {"seconds": 0.5, "read_per_second": 4000.0, "written_per_second": 1600.0}


def test_without_tor_nothing_is_measured(tmp_path: Path) -> None:
    assert run("measure-throughput", tmp_path, f"CONTROL={tmp_path}/none").outcome is Outcome.FAILED
