"""What is committed is ours, portable and true: locks without addresses, no machine's paths, links that lead somewhere."""

import json
import re
from pathlib import Path

import pytest

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work/(?:main|shared)|root/|home/\w+/|Users/\w+/)")
PACKAGE_HOST = re.compile(r"\b(?:pypi\.org|pythonhosted\.org|registry\.npmjs\.org|deb\.debian\.org)\b")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
QUOTED_PATH = re.compile(r"`((?:src|tests|docs|benchmarks)/[\w./-]+\.\w+)(?::\d+)?`")
LARGEST = 1 << 20


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+\s+(.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def pages(texts):
    return [(name, text) for name, text in texts if name.endswith(".md")]


@pytest.mark.parametrize("lock", ["requirements.lock", "package-lock.json"])
def test_a_lock_names_no_address(root, lock):
    text = (root / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


def test_every_locked_package_has_a_version_and_hashes(root):
    entries = re.split(r"\n(?=\S)", (root / "requirements.lock").read_text(encoding="utf-8").strip())
    for entry in entries:
        if not entry.startswith("#"):
            assert re.match(r"[\w.-]+==[\w.]+ \\\n(?: +--hash=sha256:[0-9a-f]{64}(?: \\\n|$))+", entry + "\n"), entry[
                :80
            ]


def test_browser_libraries_are_exact_and_hashed(root):
    wanted = json.loads((root / "package.json").read_text(encoding="utf-8"))
    for group in ("dependencies", "devDependencies"):
        for name, version in wanted[group].items():
            assert re.fullmatch(r"\d+\.\d+\.\d+", version), f"{name} must be exact"
    packages = json.loads((root / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert all("integrity" in package for path, package in packages.items() if path)


def test_no_path_of_one_machine_is_committed(texts):
    this = "tests/tidy/test_repository.py"
    assert [name for name, text in texts if name != this and MACHINE_PATH.search(text)] == []


def test_no_package_host_is_committed(texts):
    this = "tests/tidy/test_repository.py"
    assert [name for name, text in texts if name != this and PACKAGE_HOST.search(text)] == []


def test_every_link_of_a_page_leads_somewhere(root, texts):
    broken = []
    for name, text in pages(texts):
        for groups in LINK.findall(FENCE.sub("", text)):
            target = groups[0] or groups[1]
            if "://" in target or target.startswith("mailto:"):
                continue
            path, _, anchor = target.partition("#")
            file = (root / name).parent / path if path else root / name
            if not file.exists():
                broken.append(f"{name}: {target}")
            elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
                broken.append(f"{name}: no heading for {target}")
    assert broken == []


def test_every_source_file_a_page_names_exists(root, texts):
    missing = [
        f"{name}: {path}"
        for name, text in pages(texts)
        for path in QUOTED_PATH.findall(text)
        if not (root / path).exists() and not path.startswith("benchmarks/results/")
    ]
    assert missing == []


def test_nothing_large_is_committed(root, files):
    large = {str(path.relative_to(root)): path.stat().st_size for path in files if path.stat().st_size > LARGEST}
    assert large == {}


def test_what_is_run_directly_is_executable(root):
    for name in ("fourplane", ".ci/run"):
        assert Path(root / name).stat().st_mode & 0o111, f"{name} must be executable"
