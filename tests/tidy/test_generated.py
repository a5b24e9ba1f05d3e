"""Generated pages say what the code says; `./fourplane docs` writes them."""

import re

import pytest

from fourplane.verbs import docs, third_party


@pytest.mark.parametrize("page", ["config", "metrics", "errors"])
def test_a_reference_page_is_as_new_as_the_code(root, page):
    for name, text in docs.pages(root, (page,)):
        assert (root / name).is_file(), f"{name} is missing: run ./fourplane docs"
        assert (root / name).read_text(encoding="utf-8") == text, f"{name} is older than the code: run ./fourplane docs"


def test_third_party_lists_exactly_what_the_locks_name(root):
    listed = (root / third_party.FILE).read_text(encoding="utf-8").partition("## Browser libraries")
    python = re.findall(r"^\| ([\w.-]+) \| ([\w.]+) \|", listed[0], re.MULTILINE)
    assert [row for row in python if row[0] != "package"] == third_party.locked(root)
    browser = [(name, version) for name, version, _, _ in third_party._browser(root)]
    rows = re.findall(r"^\| (\S+) \| (\S+) \|", listed[2], re.MULTILINE)
    assert [row for row in rows if row[0] not in {"package", "---"}] == browser


def test_no_licence_is_unknown_for_what_is_needed_to_run(root):
    unknown = [
        line
        for line in third_party.page(root).splitlines()
        if "needed to run" in line and ("see its files" in line or "not installed" in line)
    ]
    assert unknown == []
