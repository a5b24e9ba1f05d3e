"""What journeys share: a real Chromium, or a skip that says why there is none."""

import shutil

import pytest

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-features=LocalNetworkAccessChecks",
)


@pytest.fixture(scope="module")
def chromium():
    """A running headless Chromium; pages are the test's to close.

    Playwright's synchronous driver keeps a running event loop in this thread, where no `asyncio.run` works then: it goes
    away with the module, and a module that uses it does its own asyncio elsewhere.
    """
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()
