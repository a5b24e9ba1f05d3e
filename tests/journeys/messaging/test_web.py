"""Two browser pages talk: contacts, messages both ways, delivery and read marks, and what came while one was away."""

import asyncio
import os
from pathlib import Path

import pytest
from tests.journeys.messaging.house import PASSWORD
from tests.journeys.messaging.web_house import web_house

playwright = pytest.importorskip("playwright.async_api")
CHROMIUM = Path("/usr/bin/chromium")
SHOTS = os.environ.get("FOURPLANE_SCREENSHOTS")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="Debian's chromium is not installed")


async def login(page, url, name):
    await page.goto(f"{url}/messaging/")
    await page.fill("#name", name)
    await page.fill("#password", PASSWORD)
    await page.click("#login button[type=submit]")
    await page.wait_for_selector("#chat-view:not([hidden])")


async def say(page, text):
    await page.fill("#text", text)
    await page.keyboard.press("Enter")


async def shoot(page, name):
    if SHOTS:
        await page.screenshot(path=f"{SHOTS}/messaging-{name}.png")


def test_two_browser_pages_talk(tmp_path):
    async def main():
        async with web_house(tmp_path, ("alice", "bob")) as (here, url), playwright.async_playwright() as browsers:
            chromium = await browsers.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
            errors = []
            wide = await chromium.new_context(viewport={"width": 1180, "height": 760})
            phone = await chromium.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
            alice, bob = await wide.new_page(), await phone.new_page()
            for page in (alice, bob):
                page.on("pageerror", lambda error: errors.append(str(error)))
                page.set_default_timeout(8_000)
            await alice.goto(f"{url}/messaging/")
            await shoot(alice, "login")
            await login(alice, url, "alice")
            await alice.fill("#add-name", "bob")
            await alice.keyboard.press("Enter")
            await say(alice, "Are you there? I have found the place we talked about.")
            await alice.wait_for_selector(".marks[title='kept by the server']")
            await shoot(alice, "offline-notice")

            await login(bob, url, "bob")
            await bob.click("text=Accept")
            await bob.click("#contacts button")
            await bob.wait_for_selector("text=sent while you were away")
            await shoot(bob, "phone-late")
            await alice.wait_for_selector(".marks.read")
            await say(bob, "Yes! Just came back online.")
            await say(bob, "Which one do you mean? <b>the old one</b> & co?")
            await alice.wait_for_selector(".bubble:has-text('Just came back online')")
            await alice.wait_for_selector("#with-state:text('online')")
            await bob.wait_for_selector(".marks.read")
            assert await alice.locator(".bubble b").count() == 0
            await say(alice, "The one by the river. Shall we meet there tomorrow at eight?")
            await bob.wait_for_selector(".bubble:has-text('by the river')")
            await shoot(alice, "chat")
            await shoot(bob, "phone-chat")
            await alice.emulate_media(color_scheme="dark")
            await shoot(alice, "chat-dark")
            await bob.click("#back")
            await shoot(bob, "phone-list")

            for stream in list(here.messaging.streams.open.values()):
                stream._abort()
            await say(alice, "Sent over a connection that breaks")
            await bob.wait_for_selector(".contacts .last:has-text('over a connection that breaks')")
            assert errors == []
            await chromium.close()

    asyncio.run(main())


def test_two_pages_share_a_group_and_a_picture_and_a_new_browser_finds_what_was_said(tmp_path):
    async def main():
        async with web_house(tmp_path, ("alice", "bob")) as (_here, url), playwright.async_playwright() as browsers:
            chromium = await browsers.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
            errors = []
            wide = await chromium.new_context(viewport={"width": 1180, "height": 760})
            phone = await chromium.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
            alice, bob = await wide.new_page(), await phone.new_page()
            for page, name in ((alice, "alice"), (bob, "bob")):
                page.on("pageerror", lambda error: errors.append(str(error)))
                page.set_default_timeout(12_000)
                await login(page, url, name)
                await page.fill("#add-name", "#harbour")
                await page.keyboard.press("Enter")
                await page.wait_for_selector(f"#with-state:has-text('{name}')")
            await alice.wait_for_selector("#with-state:text('alice, bob')")
            await say(alice, "The boat is here. Who comes along?")
            await bob.wait_for_selector(".bubble:has(.who:text('alice')):has-text('The boat is here')")
            await say(bob, "Me! Send a picture?")
            await alice.wait_for_selector(".bubble:has(.who:text('bob'))")
            picture = await alice.screenshot(clip={"x": 0, "y": 0, "width": 300, "height": 180})
            await alice.set_input_files("#file", {"name": "boat.png", "mimeType": "image/png", "buffer": picture})
            await bob.wait_for_selector(".bubble img[alt='boat.png']")
            await bob.wait_for_function("document.querySelector('.bubble img').naturalWidth === 300")
            await shoot(alice, "group")
            await shoot(bob, "phone-group")

            await alice.fill("#add-name", "bob")
            await alice.keyboard.press("Enter")
            await say(alice, "Only for you: bring a coat.")
            await alice.wait_for_selector(".marks[title='on their device']")
            fresh = await chromium.new_context(viewport={"width": 390, "height": 800})
            again = await fresh.new_page()
            again.on("pageerror", lambda error: errors.append(str(error)))
            again.set_default_timeout(12_000)
            await login(again, url, "bob")
            await again.wait_for_selector(".contacts .last:has-text('bring a coat')")
            await again.wait_for_selector(".contacts .title:has-text('# harbour')")
            await again.click(".contacts button:has-text('# harbour')")
            await again.wait_for_selector(".bubble:has-text('The boat is here')")
            assert errors == []
            await chromium.close()

    asyncio.run(main())


def test_a_wrong_password_is_told(tmp_path):
    async def main():
        async with web_house(tmp_path, ("alice",)) as (_here, url), playwright.async_playwright() as browsers:
            chromium = await browsers.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
            page = await chromium.new_page()
            await page.goto(f"{url}/messaging/")
            await page.fill("#name", "alice")
            await page.fill("#password", "not it")
            await page.click("#login button[type=submit]")
            await page.wait_for_selector("text=The name or the password is wrong")
            await chromium.close()

    asyncio.run(main())
