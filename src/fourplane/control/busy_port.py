"""Who holds a TCP port: read from /proc, so that a busy port is one clear line."""

from pathlib import Path

LISTEN = "0A"


def owner_of_port(port: int) -> str:
    """`pid 123 (nginx)`, or an empty string when it cannot be known (another user's process, no /proc)."""
    inodes = _listening_inodes(port)
    if not inodes:
        return ""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            for descriptor in (process / "fd").iterdir():
                if str(descriptor.readlink()) in wanted:
                    return f"pid {process.name} ({_program(process)})"
        except OSError:
            continue  # gone meanwhile, or not ours to look at
    return ""


def _listening_inodes(port: int) -> set[str]:
    found: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            if columns[3] == LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                found.add(columns[9])
    return found


def _program(process: Path) -> str:
    arguments = (process / "cmdline").read_bytes().split(b"\0")
    return b" ".join(arguments[:3]).decode(errors="replace").strip()[:80] or "unknown"
