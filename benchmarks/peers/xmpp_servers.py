"""The servers compared: ours, and Debian's ejabberd and Prosody where they are installed, each alone on core 0 of loopback.

All have the same features on (roster, disco, ping, offline, carbons, stream management, blocking, private storage, cards,
groups without history) and no TLS or limits; an archive only where a row asks for it. Accounts hold SCRAM-SHA-1 keys, so that
no login costs a server a PBKDF2; where only memory counts the peers hold plain passwords, which are made 15 times
as fast. Peers run as their own users on a temporary folder. ejabberd's traps: its control script sets the soft limit of
descriptors to 1,024 unless it is started as its user, epmd must be started by hand to listen on loopback only, and its queue
of new connections holds 5 unless it is told otherwise.
"""

import hashlib
import hmac
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PASSWORD = "bench"
ITERATIONS = 4_096
DESCRIPTORS = 20_000
COOKIE = "benchmark"
QUIET = subprocess.DEVNULL

PROSODY = """
modules_enabled = {{
  "roster"; "saslauth"; "disco"; "ping"; "offline"; "carbons"; "smacks"; "blocklist"; "private"; "vcard_legacy"; "pep"; "posix";
  {archive}
}}
modules_disabled = {{ "s2s"; "tls" }}
daemonize = false
use_libevent = false
network_backend = "epoll"
data_path = "{folder}/data"
pidfile = "{folder}/prosody.pid"
authentication = "{storage}"
allow_unencrypted_plain_auth = true
default_archive_policy = true
c2s_require_encryption = false
c2s_ports = {{ {port} }}
c2s_interfaces = {{ "127.0.0.1" }}
s2s_ports = {{}}
http_ports = {{}}
https_ports = {{}}
log = {{ {{ levels = {{ min = "error" }}, to = "file", filename = "{folder}/prosody.log" }} }}
VirtualHost "localhost"
Component "groups.localhost" "muc"
  muc_room_default_history_length = 0
  muc_room_locking = false
"""

EJABBERD = """
hosts: ["localhost"]
loglevel: error
auth_method: internal
auth_password_format: {storage}
auth_scram_hash: sha
disable_sasl_mechanisms: []
listen:
  - {{ port: {port}, ip: "127.0.0.1", module: ejabberd_c2s, max_stanza_size: 262144, shaper: none, access: all, backlog: 1000 }}
modules:
  mod_roster: {{}}
  mod_disco: {{}}
  mod_ping: {{}}
  mod_offline: {{ access_max_user_messages: offline }}
  mod_carboncopy: {{}}
  mod_stream_mgmt: {{ max_ack_queue: 5000 }}
  mod_blocking: {{}}
  mod_privacy: {{}}
  mod_private: {{}}
  mod_vcard: {{ search: false }}
  mod_muc: {{ host: "groups.localhost", history_size: 0, max_users: 1000, min_message_interval: 0, default_room_options: {{}} }}
  {archive}
shaper_rules:
  offline: infinity
"""


class Server:
    """A started server: its port, its process, its CPU time and memory."""

    name = ""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self.port = port
        self.pid = process.pid

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)


class Fourplane(Server):
    name = "fourplane"

    def __init__(
        self,
        folder: Path,
        users: int,
        *,
        profile: str = "",
        archive: bool = False,
        first: int = 0,
        changed: Sequence[str] = (),
    ) -> None:
        wrap = [sys.executable, *(["-m", "cProfile", "-o", profile] if profile else [])]
        command = [*wrap, "benchmarks/messaging.py", "--serve", str(folder), "--users", str(users)]
        command += ["--first", str(first), *(["--archive"] if archive else [])]
        command += [word for one in changed for word in ("--set", one)]
        environment = {**os.environ, "PYTHONPATH": "src:."}
        process = subprocess.Popen(["taskset", "-c", "0", *command], stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        super().__init__(process, told["port"])
        self.tls_port = told["tls_port"]


class Forwarder(Server):
    """No server at all: what hands messages on and does nothing else."""

    name = "floor"

    def __init__(self) -> None:
        command = ["taskset", "-c", "0", sys.executable, "-m", "benchmarks.peers.forwarder"]
        environment = {**os.environ, "PYTHONPATH": "src:."}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        super().__init__(process, json.loads(process.stdout.readline())["port"])


class Prosody(Server):
    name = "prosody"

    def __init__(self, folder: Path, users: int, *, archive: bool = False, plain: bool = False) -> None:
        port = free_port()
        accounts = folder / "data" / "localhost" / "accounts"
        accounts.mkdir(parents=True)
        stored, server = scram_keys(b"salt-of-all")
        fields = {"iteration_count": ITERATIONS, "salt": '"salt-of-all"'}
        fields |= {"stored_key": f'"{stored.hex()}"', "server_key": f'"{server.hex()}"'}
        fields = {"password": f'"{PASSWORD}"'} if plain else fields
        text = "return { " + " ".join(f'["{key}"] = {value};' for key, value in fields.items()) + " };\n"
        for number in range(users):
            (accounts / f"u{number}.dat").write_text(text)
        parts = {"archive": '"mam"' if archive else "", "storage": "internal_plain" if plain else "internal_hashed"}
        (folder / "prosody.cfg.lua").write_text(PROSODY.format(folder=folder, port=port, **parts))
        own(folder, "prosody")
        command = ["prosody", "-F", "--config", str(folder / "prosody.cfg.lua")]
        process = subprocess.Popen(
            as_user("prosody", command), cwd=folder, start_new_session=True, stdout=QUIET, stderr=QUIET
        )
        wait_port(port)
        super().__init__(process, port)


class Ejabberd(Server):
    name = "ejabberd"

    def __init__(self, folder: Path, users: int, *, archive: bool = False, plain: bool = False) -> None:
        port = free_port()
        self._epmd_port = free_port()
        (folder / "spool").mkdir()
        parts = {"archive": "mod_mam: {default: always}" if archive else "", "storage": "plain" if plain else "scram"}
        (folder / "ejabberd.yml").write_text(EJABBERD.format(port=port, **parts))
        (folder / "inetrc").write_text("")
        options = f"-setcookie {COOKIE} +S 1:1 +sbwt none -env ERL_CRASH_DUMP_BYTES 0 -start_epmd false"
        settings = {
            "ERL_OPTIONS": f'"{options}"',
            "INET_DIST_INTERFACE": "127.0.0.1",
            "ERLANG_NODE": "ejabberd@localhost",
        }
        settings |= {"EJABBERD_PID_PATH": str(folder / "ejabberd.pid")}
        (folder / "ejabberdctl.cfg").write_text("\n".join(f"{key}={value}" for key, value in settings.items()) + "\n")
        own(folder, "ejabberd")
        self._environment = {**os.environ, "ERL_EPMD_PORT": str(self._epmd_port), "HOME": str(folder)}
        self._epmd = subprocess.Popen(["epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port)])
        places = ["--config-dir", str(folder), "--logs", str(folder), "--spool", str(folder / "spool")]
        command = ["ejabberdctl", "--ctl-config", str(folder / "ejabberdctl.cfg"), *places, "foreground-quiet"]
        process = subprocess.Popen(
            as_user("ejabberd", command),
            env=self._environment,
            cwd=folder,
            start_new_session=True,
            stdout=QUIET,
            stderr=QUIET,
        )
        wait_port(port, 60)
        super().__init__(process, port)
        self.pid = descendant(process.pid, "beam.smp")
        self._register(users)

    def _register(self, users: int) -> None:
        """One Erlang session that adds all accounts: 100/s with SCRAM keys, where a command each costs a second."""
        target = '[iolist_to_binary([<<"u">>, integer_to_list(I)]), <<"localhost">>,'
        call = f"rpc:call('ejabberd@localhost', ejabberd_auth, try_register, {target} <<\"{PASSWORD}\">>])"
        each = f"lists:foreach(fun(I) -> case {call} of ok -> ok; {{error, exists}} -> ok end end, lists:seq(0, {users - 1}))"
        node = ["erl", "-noshell", "-sname", "register@localhost", "-setcookie", COOKIE, "-start_epmd", "false"]
        command = [*node, "-eval", f"{each}, halt(0)."]
        for _ in range(10):  # it listens a moment before it takes accounts
            done = subprocess.run(
                command, env=self._environment, timeout=300, capture_output=True, stdin=QUIET, check=False
            )
            if done.returncode == 0:
                return
            time.sleep(1)
        raise RuntimeError(f"ejabberd takes no accounts: {done.stderr[-500:]!r} {done.stdout[-500:]!r}")

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        super().stop()
        self._epmd.terminate()
        self._epmd.wait(10)


def installed() -> list[type[Server]]:
    """The peers that can be started here: they need their package, and root to become their users."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return []
    found: list[type[Server]] = [Prosody] if shutil.which("prosody") else []
    return [*found, Ejabberd] if shutil.which("ejabberdctl") and shutil.which("epmd") else found


def scram_keys(salt: bytes) -> tuple[bytes, bytes]:
    salted = hashlib.pbkdf2_hmac("sha1", PASSWORD.encode(), salt, ITERATIONS)
    stored = hashlib.sha1(hmac.digest(salted, b"Client Key", "sha1")).digest()
    return stored, hmac.digest(salted, b"Server Key", "sha1")


def as_user(user: str, command: list[str]) -> list[str]:
    limited = ["bash", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "bash", *command]
    return ["taskset", "-c", "0", "setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *limited]


def own(folder: Path, user: str) -> None:
    entry = pwd.getpwnam(user)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, entry.pw_uid, entry.pw_gid)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_port(port: int, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on {port}")


def descendant(root: int, name: str) -> int:
    """The process called `name` below `root`."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = stat.read_text().rpartition(")")
        except OSError:
            continue
        number, _, called = head.partition(" (")
        parents[int(number)] = (int(tail.split()[1]), called)
    for number, (_, called) in parents.items():
        above = number
        while above in parents and above != root:
            above = parents[above][0]
        if above == root and called == name:
            return number
    raise ProcessLookupError(name)
