"""Runs slixmpp's own integration tests, not one of them touched, against the messaging system: one JSON line per test.

    python tests/journeys/messaging/slixmpp_suite.py FOLDER_OF_THE_SOURCE DATA_FOLDER [MODULE ...]

The suite wants a server on the standard ports of localhost; where these are taken, or SLIXMPP_PORTS=free, its clients are led to
other ones and the three tests that name the ports fail. Certificates are checked, against the one the house made.
"""

import asyncio
import json
import os
import sys
import threading
import unittest
from pathlib import Path

import slixmpp
from tests.journeys.messaging.house import PASSWORD, house

TEST_S = 15
USERS = ("test1", "test2")
FREE = ((0, 0),)


class Running:
    """The house on a loop of its own; the tests have theirs."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.ready = threading.Event()
        self.stop: asyncio.Event | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.ports = (0, 0)
        self.certificate = ""
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self.stop, self.loop = asyncio.Event(), asyncio.get_running_loop()
        for ports in FREE if os.environ.get("SLIXMPP_PORTS") == "free" else ((5222, 5223), *FREE):
            try:
                async with house(self.data, USERS, port=ports[0], tls_port=ports[1]) as here:
                    self.ports = (here.messaging.port, here.messaging.tls_port)
                    self.certificate = str(here.certificate_path)
                    self.ready.set()
                    await self.stop.wait()
                    return
            except OSError:
                continue


def prepare(running: Running) -> None:
    """Lead the clients to the house, without touching a test."""
    connect, context = slixmpp.ClientXMPP.connect, slixmpp.ClientXMPP.get_ssl_context

    def connect_here(self, host="", port=0):
        direct = self.enable_direct_tls and not self.enable_starttls
        return connect(self, host or "127.0.0.1", port or running.ports[direct])

    def trusting(self):
        made = context(self)
        made.load_verify_locations(running.certificate)
        return made

    slixmpp.ClientXMPP.connect, slixmpp.ClientXMPP.get_ssl_context = connect_here, trusting
    for number, user in enumerate(USERS, 1):
        os.environ[f"CI_ACCOUNT{number}"] = f"{user}@localhost"
        os.environ[f"CI_ACCOUNT{number}_PASSWORD"] = PASSWORD
    os.environ["CI_MUC_SERVER"] = "groups.localhost"


class Told(unittest.TestResult):
    def tell(self, test, outcome, why=""):
        line = {"test": test.id().removeprefix("itests."), "outcome": outcome, "why": str(why)[-300:]}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    def addSuccess(self, test):  # noqa: N802 - unittest's name
        self.tell(test, "passed")

    def addFailure(self, test, err):  # noqa: N802 - unittest's name
        self.tell(test, "failed", repr(err[1]))

    def addError(self, test, err):  # noqa: N802 - unittest's name
        self.tell(test, "failed", repr(err[1]))

    def addSkip(self, test, reason):  # noqa: N802 - unittest's name
        self.tell(test, "skipped", reason)


def bound(case: type[unittest.IsolatedAsyncioTestCase]) -> None:
    """No test, and no preparation of one, may hang."""
    original = case._callMaybeAsync, case._callSetUp

    def bounded(self, method, /, *args, **kwargs):
        async def run():
            async with asyncio.timeout(TEST_S):
                found = method(*args, **kwargs)
                return await found if asyncio.iscoroutine(found) else found

        return original[0](self, run)

    case._callTestMethod = lambda self, method: bounded(self, method) and None
    case._callSetUp = lambda self: (self._asyncioTestContext.run(self.setUp), bounded(self, self.asyncSetUp))[0]


def main() -> None:
    source, data = Path(sys.argv[1]), Path(sys.argv[2])
    sys.path.append(str(source))
    running = Running(data)
    running.thread.start()
    if not running.ready.wait(20):
        raise SystemExit("the house does not stand")
    prepare(running)
    bound(unittest.IsolatedAsyncioTestCase)
    names = sys.argv[3:] or sorted(path.stem for path in (source / "itests").glob("test_*.py"))
    result = Told()
    for name in names:
        unittest.defaultTestLoader.loadTestsFromName(f"itests.{name}").run(result)
    os._exit(0)


if __name__ == "__main__":
    main()
