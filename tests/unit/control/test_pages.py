"""The pages of control: one head, one navigation in which each finds itself, and everything they name exists."""

import re
from pathlib import Path

import pytest

from fourplane.console import app as console
from fourplane.control.pages import PAGES, STATIC, whole_page

FOLDERS = {"/control/static/": STATIC, "/console/": console.STATIC}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_its_inside_once_and_finds_itself_in_the_navigation(name):
    folder = console.STATIC if name == "plan" else STATIC
    whole = whole_page(name, (folder / f"{name}.html").read_text(encoding="utf-8"))
    assert whole.count("<main>") == whole.count("</main>") == whole.count("<!doctype html>") == 1
    assert re.findall(r'href="/control/(\w+)" aria-current=page', whole) == [name]
    assert re.findall(r'href="/control/(\w+)"', whole.partition("</nav>")[0]) == list(PAGES)
    assert len(re.findall(r'id="(\w[\w-]*)"', whole)) == len(set(re.findall(r'id="(\w[\w-]*)"', whole)))
    for address in re.findall(r'(?:href|src)="(/(?:control/static|console)/[^"]+)"', whole):
        start = next(start for start in FOLDERS if address.startswith(start))
        assert (Path(FOLDERS[start]) / address.removeprefix(start)).is_file(), address
