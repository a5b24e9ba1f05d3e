"""The launcher on a bare checkout: sets up, starts at once afterwards, resumes, and says in one line what is wrong.

The checkout is a small one of its own: one locked package, whose wheel is made here and offered from a folder.
"""

import ast
import fcntl
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).resolve().parents[3] / "fourplane"


def load():
    loader = importlib.machinery.SourceFileLoader("launcher", str(LAUNCHER))
    spec = importlib.util.spec_from_loader("launcher", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def wheel(folder: Path) -> str:
    """A minimal wheel and its hash."""
    path = folder / "pebble-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("pebble.py", "WEIGHT = 7\n")
        made.writestr("pebble-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: pebble\nVersion: 1.0\n")
        made.writestr("pebble-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr("pebble-1.0.dist-info/RECORD", "pebble.py,,11\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def interrupts():
    """Heeded by programs started here: what a shell starts in the background ignores them, with all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Checkout:
    def __init__(self, root: Path):
        self.root = root
        self.wheels = root / "wheels"
        self.wheels.mkdir()
        shutil.copy(LAUNCHER, root / "fourplane")
        self.lock(wheel(self.wheels))
        package = root / "src" / "fourplane"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "__main__.py").write_text("import pebble, sys; print('verb', *sys.argv[1:], pebble.WEIGHT)")

    def lock(self, digest: str):
        (self.root / "requirements.lock").write_text(f"pebble==1.0 \\\n    --hash=sha256:{digest}\n")

    def command(self, *arguments):
        return [sys.executable, str(self.root / "fourplane"), *arguments]

    def environment(self, **more):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
        # No index but the folder, and no uv or npm.
        return kept | {"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)} | more

    def start(self, *arguments, **more):
        return subprocess.run(
            self.command(*arguments),
            env=self.environment(**more),
            cwd=self.root.parent,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    made = Checkout(tmp_path_factory.mktemp("checkout"))
    first = made.start("up", "--demo")
    assert (first.returncode, first.stdout) == (0, "verb up --demo 7\n"), first.stderr
    assert "making .venv" in first.stderr
    assert "installing 1 packages" in first.stderr
    return made


def test_a_second_start_works_at_once_and_says_nothing(checkout):
    again = checkout.start("up")
    assert (again.returncode, again.stdout, again.stderr) == (0, "verb up 7\n", "")


def test_an_interrupted_installation_goes_on_where_it_stopped(checkout):
    (checkout.root / ".venv" / "fourplane-setup.json").unlink()
    site = next((checkout.root / ".venv" / "lib").glob("python3.*")) / "site-packages"
    shutil.rmtree(site / "pebble-1.0.dist-info")
    (site / "pebble.py").unlink()
    (site / "fourplane-checkout.pth").unlink()
    again = checkout.start("up")
    assert again.stdout == "verb up 7\n"
    assert "installing 1 packages" in again.stderr
    assert "making .venv" not in again.stderr


def test_a_good_environment_without_a_stamp_is_accepted(checkout):
    (checkout.root / ".venv" / "fourplane-setup.json").unlink()
    again = checkout.start("up")
    assert again.stdout == "verb up 7\n"
    assert "installing" not in again.stderr


def test_a_changed_package_is_refused_in_one_line_and_nothing_starts(checkout):
    good = (checkout.root / "requirements.lock").read_text()
    site = next((checkout.root / ".venv" / "lib").glob("python3.*")) / "site-packages"
    shutil.rmtree(site / "pebble-1.0.dist-info")
    checkout.lock("0" * 64)
    refused = checkout.start("up")
    assert (refused.returncode, refused.stdout) == (4, "")
    assert refused.stderr.splitlines()[-1].startswith(
        "fourplane: a downloaded package is not the one the lock file names;"
    )
    (checkout.root / "requirements.lock").write_text(good)
    assert checkout.start("up").stdout == "verb up 7\n"


def test_an_unreachable_index_is_one_line(checkout):
    (checkout.root / "requirements.lock").write_text(f"stone==2.0 \\\n    --hash=sha256:{'1' * 64}\n")
    more = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_NO_INDEX": "0", "PIP_RETRIES": "1"}
    refused = checkout.start("up", **more)
    checkout.lock(hashlib.sha256(next(checkout.wheels.iterdir()).read_bytes()).hexdigest())
    assert refused.returncode == 4
    assert refused.stderr.splitlines()[-1].startswith("fourplane: the package index cannot be reached;")


@pytest.mark.usefixtures("interrupts")
def test_an_interrupted_download_is_one_line_and_leaves_no_program(checkout):
    (checkout.root / "requirements.lock").write_text(f"stone==2.0 \\\n    --hash=sha256:{'1' * 64}\n")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an index that takes the connection and says nothing
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        started = subprocess.Popen(
            checkout.command("up"),
            env=checkout.environment(PIP_INDEX_URL=index, PIP_NO_INDEX="0"),
            stderr=subprocess.PIPE,
            text=True,
        )
        asking, _ = silent.accept()
        started.send_signal(signal.SIGINT)
        _, told = started.communicate()
        left = asking.recv(1 << 16)
        while left:  # the request, then the end: pip is gone
            left = asking.recv(1 << 16)
        asking.close()
    assert started.returncode == 130
    assert told.splitlines()[-1] == "fourplane: set-up interrupted; the next start goes on where it stopped"
    checkout.lock(hashlib.sha256(next(checkout.wheels.iterdir()).read_bytes()).hexdigest())
    assert checkout.start("up").stdout == "verb up 7\n"


def test_two_at_once_wait_for_each_other(checkout):
    (checkout.root / ".venv" / "fourplane-setup.json").unlink()
    with open(checkout.root / ".tools" / "setup.lock", "a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            checkout.command("up"),
            env=checkout.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        told = waiting.stderr.readline()
        assert "another set-up is running" in told
        fcntl.flock(held, fcntl.LOCK_UN)
    out, _ = waiting.communicate()
    assert out == "verb up 7\n"


def test_a_moved_checkout_runs_its_own_source(checkout, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(checkout.root, moved, symlinks=True)
    (moved / "src" / "fourplane" / "__main__.py").write_text("print('moved')")
    started = subprocess.run(
        [sys.executable, str(moved / "fourplane")],
        env=checkout.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.stdout == "moved\n"


def test_an_old_python_is_told_what_is_needed(monkeypatch, capsys):
    launcher = load()
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert launcher.main(["up"]) == 3
    assert capsys.readouterr().err.startswith("fourplane: Python 3.11 or newer is needed, this is 3.9.2")


def test_an_old_python_can_read_the_launcher():
    ast.parse(LAUNCHER.read_text(), feature_version=(3, 6))


def test_the_launcher_needs_nothing_installed():
    tree = ast.parse(LAUNCHER.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names


def test_uv_gets_the_index_that_pip_is_configured_for(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://mirror.example/simple\nextra-index-url = https://b.example/s\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"https://a.example/s file://{tmp_path}/absent")
    given = load().uv_index()
    assert given[:2] == ["--default-index", "https://mirror.example/simple"]
    assert "https://a.example/s" in given
    assert "https://b.example/s" not in given
    assert not any("absent" in value for value in given)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://own.example/simple")
    assert load().uv_index() == []


@pytest.mark.parametrize(("text", "amount"), [("16.8 MB", 16.8), ("270 kB", 0.27), ("1.1GiB", 1100.0), ("?", 0.0)])
def test_sizes_are_understood_in_the_words_of_pip_and_uv(text, amount):
    assert load().megabytes(text) == pytest.approx(amount)


def test_the_stamp_holds_no_secret_and_reads_back(checkout):
    stamp = json.loads((checkout.root / ".venv" / "fourplane-setup.json").read_text())
    assert set(stamp) == {"packages", "source"}


@pytest.mark.slow
def test_the_launcher_costs_less_than_a_quarter_of_a_second(checkout):
    began = time.monotonic()
    checkout.start("up")
    assert time.monotonic() - began < 0.25
