"""What `./fourplane alerts` asks of a running deployment, and what it says."""

import asyncio
import json
import threading

import msgspec
import pytest

from fourplane.__main__ import main
from fourplane.control.alerts.book import Condition
from fourplane.control.alerts.desk import Alerts, AlertSettings
from fourplane.foundation.errors import Rejected
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.control_socket import ControlServer
from fourplane.state.embedded.blobs import EmbeddedBlobs
from fourplane.verbs.alerts import seconds

BOUND_S = 20
DOWN = Condition("WorkerDown", "fleet", "page", "worker 1 died", {"worker": "1"})


async def serve(folder, up, over):
    """A control socket with a firing alert behind it."""
    alerts = Alerts(
        AlertSettings(), registry=Registry(), blobs=await EmbeddedBlobs(folder / "blobs").open(),
        secrets=folder / "secrets", watchers=[lambda _: [DOWN]],
    )  # fmt: skip

    async def order(arguments, _):
        return msgspec.to_builtins(await alerts.order(arguments))

    lifecycle = Lifecycle(Registry())
    lifecycle.add("alerts", alerts)
    lifecycle.add("control", ControlServer(folder / "control.sock", {"alerts": order}))
    await lifecycle.start()
    while not alerts.active():
        await asyncio.sleep(0.001)
    asyncio.get_running_loop().call_soon(up.set)
    await asyncio.to_thread(over.wait, BOUND_S)
    await lifecycle.stop()


@pytest.fixture
def asked(tmp_path, capsys):
    """A person who asks the deployment: exit code and everything that was printed."""
    up, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve(tmp_path, up, over)))
    thread.start()
    assert up.wait(BOUND_S)

    def ask(*arguments):
        code = main(["alerts", "--data", str(tmp_path), *arguments])
        said = capsys.readouterr()
        return code, said.out + said.err

    yield ask
    over.set()
    thread.join()


def test_a_person_sees_silences_and_looks_after_alerts(asked):
    code, said = asked()
    assert code == 1, "something pages"
    assert "worker 1 died" in said
    code, said = asked("--json")
    key = json.loads(said)["active"][0]["fingerprint"]
    assert asked("--ack", key) == (0, "you look after it: worker 1 died\n")
    code, said = asked("--silence", "service=fleet", "severity=page", "--for", "15m", "--comment", "known")
    assert (code, "silenced until 15m from now" in said) == (0, True)
    _, said = asked("--history")
    assert "looked after by the owner" in said
    assert 'service="fleet", severity="page"' in said
    assert "no alert has ended yet" in said
    silence = json.loads(asked("--json")[1])["silences"][0]["id"]
    assert asked("--expire", silence) == (0, "the silence has ended\n")
    assert asked("--silence", 'service=~".*"') == (2, "fourplane: this would silence every alert\n")


def test_times_are_written_with_their_unit():
    assert [seconds(text) for text in ("30s", "15m", "1.5h", "2d")] == [30.0, 900.0, 5_400.0, 172_800.0]
    for text in ("15", "m", "1w", "-5m"):
        with pytest.raises(Rejected):
            seconds(text)
