"""A person opens the console: the diagrams live, a box stopped and started, one port busy, one folder held."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from tests.journeys.console.deployment import deployment, stopped, worker_of, workers_of

BOUND_S = 20
LOOK_S = 0.1


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with deployment(tmp_path_factory.mktemp("console") / "data", "commerce", "messaging") as facts:
        yield facts


@pytest.fixture
def page(chromium):
    context = chromium.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.set_default_timeout(BOUND_S * 1_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


def fetched(url):
    with urllib.request.urlopen(url, timeout=BOUND_S) as answer:
        return json.load(answer)


def test_every_system_has_a_card_and_every_diagram_its_boxes(page, shop):
    page.goto(shop["address"])
    page.wait_for_selector(".system")
    assert page.locator(".system h2").count() == 4
    opening = fetched(shop["address"] + "console/api/frame")
    for system, study in opening["studies"].items():
        for diagram in study["diagrams"]:
            page.goto(f"{shop['address']}#/{system}/{diagram['id']}")
            page.wait_for_selector(f".diagram svg[aria-label='{diagram['title']}']")
            assert page.locator(".node").count() == len(diagram["boxes"])
            assert page.locator("path.arrow").count() == len(diagram["arrows"])


def test_boxes_that_are_not_built_are_hollow_and_say_so(page, shop):
    opening = fetched(shop["address"] + "console/api/frame")
    hollow = next(node["id"] for node in opening["nodes"]["commerce"] if not node["built"])
    built = {node["id"] for node in opening["nodes"]["commerce"] if node["built"]}
    page.goto(shop["address"] + "#/commerce/complete-architecture")
    page.wait_for_selector(".node")
    drawn = page.eval_on_selector_all(".node:not(.hollow)", "all => all.map(one => one.dataset.node)")
    assert set(drawn) <= built
    assert hollow not in drawn
    assert "not built yet" in page.locator(".node.hollow").first.text_content()


def test_the_figures_of_a_box_follow_what_visitors_do(page, shop):
    page.goto(shop["address"] + "#/commerce")
    page.locator('.node[data-node="CATALOG"]').click()
    page.wait_for_selector("#figures dd")
    before = total(page)
    for _ in range(5):
        urllib.request.urlopen(shop["address"] + "commerce/", timeout=BOUND_S).close()
        urllib.request.urlopen(shop["address"] + "commerce/search?q=a", timeout=BOUND_S).close()
    page.wait_for_function(
        "before => Number([...document.querySelectorAll('#figures dt')].find(one => "
        "one.textContent === 'since start').nextSibling.textContent.replace(/\\D/g, '')) > before",
        arg=before,
    )


def total(page):
    shown = page.evaluate(  # in one step: the figures are drawn anew every second
        "[...document.querySelectorAll('#figures dt')].find(one => "
        "one.textContent === 'since start').nextSibling.textContent"
    )
    return int("".join(letter for letter in shown if letter.isdigit()))


def test_a_visitor_cannot_stop_a_box_and_an_operator_can(page, shop):
    page.goto(shop["address"] + "#/commerce")
    page.locator('.node[data-node="ORDER"]').click()
    page.locator("#switch").click()
    page.wait_for_selector("#toast:not([hidden])")
    assert "operator" in page.locator("#toast").text_content()
    page.goto(shop["link"])
    page.goto(shop["address"] + "#/commerce")
    page.locator('.node[data-node="ORDER"]').click()
    page.locator("#switch").click()
    page.wait_for_selector('.node.stopped[data-node="ORDER"]')
    page.locator("#switch", has_text="Start it again").click()
    page.wait_for_selector('.node:not(.stopped)[data-node="ORDER"]')
    assert "ORDER stopped by operator" in page.locator("#feed").text_content()


def test_the_switch_waits_for_the_first_figures(page, shop):
    def without_frames(socket):
        server = socket.connect_to_server()

        def passed(text):
            message = json.loads(text)
            if message["kind"] == "opening":
                socket.send(json.dumps({**message, "figures": {}}))

        server.on_message(passed)

    page.route_web_socket("**/console/live", without_frames)
    page.goto(shop["address"] + "#/commerce")
    page.locator('.node[data-node="ORDER"]').click()
    page.wait_for_selector("#switch")
    assert page.locator("#switch").is_disabled()


def test_what_was_promised_what_is_wrong_and_what_was_slow_have_pages(page, shop):
    traced = f"00-{'ab' * 16}-{'cd' * 8}-01"
    asked = urllib.request.Request(shop["address"] + "commerce/api/products?limit=2", headers={"traceparent": traced})
    urllib.request.urlopen(asked, timeout=BOUND_S).close()
    page.goto(shop["address"] + "control/objectives")
    page.wait_for_selector(".objective")
    assert page.locator(".objective").count() == len(fetched(shop["address"] + "control/api/objectives"))
    page.goto(shop["address"] + "control/alerts")
    page.wait_for_selector("#receivers .empty")
    page.goto(f"{shop['address']}control/traces#id={'ab' * 16}")
    page.wait_for_selector(".step")
    assert "GET /commerce/api/products" in page.locator(".step").first.text_content()


def test_a_killed_worker_comes_back_on_the_same_ports_and_somebody_is_paged(shop):
    before = worker_of(shop["pid"])
    os.kill(before, signal.SIGKILL)
    ends = time.monotonic() + BOUND_S
    while time.monotonic() < ends:
        try:
            assert fetched(shop["address"] + "readyz") == {"status": "ready"}
        except OSError:
            time.sleep(LOOK_S)
            continue
        if before not in workers_of(shop["pid"]):  # with several workers another one may answer first
            break
    assert before not in workers_of(shop["pid"])
    while not (active := fetched(shop["address"] + "control/api/alerts")["active"]):
        assert time.monotonic() < ends
        time.sleep(LOOK_S)  # one address may not ask as often as a loop can
    assert ("WorkerDown", "page") in [(one["alert"]["name"], one["alert"]["severity"]) for one in active]


def test_a_second_start_in_the_same_folder_is_refused_with_pid_and_address(shop, tmp_path):
    folder = os.readlink(f"/proc/{shop['pid']}/cwd") + "/data"
    answer = subprocess.run(
        [sys.executable, "-P", "-m", "fourplane", "up", "--port", "0", "--data", folder],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert f"process {shop['pid']}" in answer.stderr


def test_a_busy_port_is_one_line_with_port_setting_and_owner(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        process = subprocess.run(
            [sys.executable, "-P", "-m", "fourplane", "up", "commerce", "--port", str(port), "--data", str(tmp_path / "d")],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert process.returncode == 2
    [line] = process.stderr.splitlines()
    assert str(port) in line
    assert "http.listener.port" in line
    assert str(os.getpid()) in line


def test_an_unknown_system_and_an_unknown_setting_are_one_line_each(tmp_path):
    def said(*arguments, **environment):
        answer = subprocess.run(
            [sys.executable, "-P", "-m", "fourplane", "up", *arguments],
            capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env={**os.environ, **environment},
        )  # fmt: skip
        assert answer.returncode == 2
        [line] = answer.stderr.splitlines()
        return line

    assert "commerce" in said("comerce")
    assert "FOURPLANE_DATA" in said(FOURPLANE_DATTA="x")


def test_ctrl_c_ends_in_order_with_exit_code_0(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fourplane", "up", "commerce", "--port", "0", "--data", str(tmp_path / "d"), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert "address" in json.loads(process.stdout.readline())
    code, complaints = stopped(process)
    assert (code, complaints) == (0, "")
