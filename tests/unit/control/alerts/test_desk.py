"""Alerts in a deployment, in virtual time: pages that arrive signed, are tried again, and are remembered over a restart."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from fourplane.control.alerts.book import Condition
from fourplane.control.alerts.delivery import ReceiverSettings
from fourplane.control.alerts.desk import Alerts, AlertSettings, AlertStatistics, SilenceOrder, signing_key
from fourplane.edge import webhooks
from fourplane.edge.routes import Call, Identity
from fourplane.foundation import clock, network
from fourplane.foundation.errors import Misconfigured, NotFound, Rejected
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.simulator import loop as simulated
from fourplane.state.embedded.blobs import EmbeddedBlobs

DOWN = Condition("WorkerDown", "fleet", "page", "worker 1 died", {"worker": "1"}, keep_s=2.0)
NOISE = Condition("Noise", "fleet", "info", "nobody needs to know")


class Inbox(asyncio.Protocol):
    """A receiver; answers with the next of `answers`, then 200."""

    def __init__(self, got, answers):
        self.got, self.answers = got, answers
        self.text = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.text += data
        head, _, body = self.text.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(fields[b"content-length"]):
            return
        self.text = b""
        self.got.append((clock.now_us() / 1e6, fields, body))
        status = self.answers.pop(0) if self.answers else 200
        self.transport.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)


@asynccontextmanager
async def deployment(folder, *, answers=(), kind="alertmanager", now=None):
    """Alerts with one receiver; `now` holds the conditions."""
    got, holding = [], now if now is not None else []
    server = await network.listen(lambda: Inbox(got, list(answers)), "127.0.0.1", 0)
    receiver = ReceiverSettings("ops", kind, f"http://127.0.0.1:{network.port_of(server)}/hook", attempts_max=4)
    alerts = Alerts(
        AlertSettings(receivers=(receiver,)), registry=Registry(), blobs=await EmbeddedBlobs(folder / "blobs").open(),
        secrets=folder / "secrets", watchers=[lambda _: list(holding)],
    )  # fmt: skip
    lifecycle = Lifecycle(Registry())
    lifecycle.add("alerts", alerts)
    await lifecycle.start()
    try:
        yield alerts, holding, got
    finally:
        await lifecycle.drain()
        await lifecycle.stop()
        server.close()


def test_a_page_is_out_in_seconds_signed_and_so_is_its_end(tmp_path):
    async def main(_world):
        async with deployment(tmp_path) as (alerts, holding, got):
            heard = []
            alerts.on_change.append(lambda alert: heard.append(alert.state))
            began_s = clock.now_us() / 1e6
            holding += [DOWN, NOISE]
            await clock.sleep(5.0)
            holding.clear()
            await clock.sleep(10.0)
            return began_s, got, heard, signing_key(tmp_path / "secrets")

    began_s, got, heard, key = simulated.run(main, 1).result
    (page, end) = got
    assert page[0] - began_s < 3.0
    webhooks.verify(key, page[1][webhooks.SIGNATURE.encode()].decode(), page[2], int(page[0]))
    assert [json.loads(one[2])["status"] for one in (page, end)] == ["firing", "resolved"]
    assert len(json.loads(page[2])["alerts"]) == 1, "an info is not for this receiver"
    assert sorted(heard) == ["firing", "firing", "resolved", "resolved"]


def test_a_receiver_that_fails_is_asked_again_and_one_that_refuses_is_not(tmp_path):
    async def main(_world):
        async with deployment(tmp_path / "a", answers=[500, 429]) as (alerts, holding, got):
            holding.append(DOWN)
            await clock.sleep(12.0)
            first = len(got), alerts.view().receivers[0]
        async with deployment(tmp_path / "b", answers=[400]) as (alerts, holding, got):
            holding.append(DOWN)
            await clock.sleep(12.0)
            second = len(got), alerts.view().receivers[0]
        async with deployment(tmp_path / "c", answers=[503] * 9) as (alerts, holding, got):
            holding.append(DOWN)
            await clock.sleep(12.0)
            return first, second, (len(got), alerts.view().receivers[0])

    tried, refused, given_up = simulated.run(main, 1).result
    assert (tried[0], tried[1].delivered, tried[1].last_error) == (3, 1, "")
    assert (refused[0], refused[1].failed, refused[1].last_error) == (1, 1, "it answers 400")
    assert (given_up[0], given_up[1].failed) == (4, 1)


def test_a_restart_neither_pages_again_nor_forgets_the_end(tmp_path):
    async def main(_world):
        async with deployment(tmp_path, now=[DOWN]) as (_, _, first):
            await clock.sleep(5.0)
        async with deployment(tmp_path, now=[DOWN]) as (alerts, holding, second):
            await clock.sleep(5.0)
            again = len(second)
            holding.clear()
            await clock.sleep(5.0)
            return len(first), again, [json.loads(body)["status"] for _, _, body in second], alerts.view()

    first, again, later, view = simulated.run(main, 1).result
    assert (first, again, later) == (1, 0, ["resolved"])
    assert (view.active, view.history[0].alert.name) == ([], "WorkerDown")


def test_silences_and_acknowledgements_keep_alerts_from_being_told_not_from_being_seen(tmp_path):
    async def main(_world):
        async with deployment(tmp_path, kind="alertmanager") as (alerts, holding, got):
            silence = alerts.silence(SilenceOrder(['service="fleet"'], duration_s=20.0, comment="known"), "kim")
            holding.append(DOWN)
            await clock.sleep(5.0)
            silenced = len(got), alerts.view().active[0].silenced_by == silence.id
            alerts.expire(silence.id)
            await clock.sleep(3.0)
            after = len(got)
            door = next(one for one in alerts.doors() if "acknowledge" in one.path)
            key = alerts.active()[0].fingerprint
            call = Call(params={"fingerprint": key}, query={}, headers={}, body=None, identity=Identity(1, "kim"),
                        request_id="", peer="")  # fmt: skip
            await door.handler(call)
            with pytest.raises(NotFound):
                alerts.acknowledge("0" * 16, "kim")
            who = alerts.view().active[0].acknowledged_by
            return silenced, after, who, await alerts.order({"order": "list"}), alerts.statistics()

    silenced, after, who, listed, statistics = simulated.run(main, 1).result
    assert (silenced, after, who) == ((0, True), 1, "kim")
    assert listed.fired_total == 1
    assert statistics == AlertStatistics(firing=1, silences=0, fired_total=1, dropped_total=0, notified_total=1)


def test_pagerduty_is_told_with_its_key_and_nothing_starts_without_one(tmp_path):
    async def main(_world):
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets" / "pagerduty").write_text("R0UT1NG\n")
        async with deployment(tmp_path, kind="pagerduty", now=[DOWN]) as (alerts, holding, got):
            await clock.sleep(3.0)
            alerts.acknowledge(alerts.active()[0].fingerprint, "kim")
            await clock.sleep(1.0)
            holding.clear()
            await clock.sleep(5.0)
            return [json.loads(body) for _, _, body in got]

    events = simulated.run(main, 1).result
    assert [one["event_action"] for one in events] == ["trigger", "acknowledge", "resolve"]
    assert {one["routing_key"] for one in events} == {"R0UT1NG"}

    async def without(_world):
        async with deployment(tmp_path / "none", kind="pagerduty"):
            pass

    with pytest.raises(Misconfigured):
        simulated.run(without, 1)


def test_orders_that_make_no_sense_are_refused(tmp_path):
    async def main(_world):
        async with deployment(tmp_path) as (alerts, _, _):
            for order, error in (
                ({"order": "dance"}, NotFound), ({"order": "silence", "matchers": 5}, Rejected),
                ({"order": "silence", "matchers": ["x"]}, Rejected), ({"order": "expire", "id": "no"}, NotFound),
            ):  # fmt: skip
                with pytest.raises(error):
                    await alerts.order(order)

    simulated.run(main, 1)
    with pytest.raises(Misconfigured):
        ReceiverSettings("ops", url="ftp://x")
