"""A PostgreSQL of one's own: Debian's binaries, a temporary folder, loopback, fsync on; the same for us and for peers."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


class CannotRun(Exception):
    """Why a peer has no figures."""


class Running(NamedTuple):
    """A server, its first process, and where its programs lie."""

    url: str
    pid: int
    port: int
    binaries: Path


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def running():
    """A server that lives as long as the block; raises FileNotFoundError where none is installed."""
    if not FOLDERS:
        raise FileNotFoundError("PostgreSQL is not installed (Debian: apt install postgresql)")
    binaries, port = FOLDERS[0], free_port()
    folder = Path(tempfile.mkdtemp(prefix="fourplane-bench-postgres-"))
    nobody = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        shutil.chown(folder, "nobody", "nogroup")
    environment = {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
    make = [*nobody, str(binaries / "initdb"), "-D", str(folder / "data"), "-A", "trust", "-U", "shop", "-E", "UTF8"]
    subprocess.run(make, check=True, capture_output=True, cwd="/", env=environment)
    settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "max_connections": 60}
    argv = [*nobody, str(binaries / "postgres"), "-D", str(folder / "data")]
    argv += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    server = subprocess.Popen(argv, cwd="/", env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        ready = [str(binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"]
        while subprocess.run(ready, check=False, cwd="/").returncode:
            time.sleep(0.1)
        yield Running(f"postgresql://shop@127.0.0.1:{port}/postgres", server.pid, port, binaries)
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def dump(database, path):
    """Everything in it as SQL."""
    argv = [str(database.binaries / "pg_dump"), "--no-owner", "-f", str(path), database.url]
    subprocess.run(argv, check=True, capture_output=True)


def restore(database, path):
    """What `dump` wrote, into an empty one."""
    argv = [str(database.binaries / "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-f", str(path), database.url]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CannotRun(f"the database cannot be restored: {done.stderr.strip()[-300:]}")


def wait_for(port):
    """Until something listens there, at most half a minute."""
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
