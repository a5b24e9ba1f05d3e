"""What the owner of a data folder may ask a running deployment through its control socket, and imports wherever they come from.

Whoever can open `data/control.sock` owns the folder; so there are no further questions about who asks. The verbs of the
command line (`users`, `import`, `load`, `operator`, `status`, `chaos`) speak to this.
"""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from fourplane.commerce.app import Commerce
from fourplane.commerce.catalog_import import parse
from fourplane.commerce.catalog_seed import enriched
from fourplane.console.demonstration import Demonstration
from fourplane.control.colleagues import import_elsewhere
from fourplane.control.merged_nodes import added
from fourplane.control.neighbourhood import Neighbourhood
from fourplane.dispatch.app import Dispatch
from fourplane.foundation import ids
from fourplane.foundation.errors import Rejected
from fourplane.messaging.app import Messaging
from fourplane.service.accounts import Accounts, NewAccount
from fourplane.service.control_socket import Arguments, Progress
from fourplane.settings import Settings
from fourplane.simulator.crowds import Target
from fourplane.streaming.app import Streaming

IMPORT_S_MAX = 6 * 3_600.0
CROWD_MAX = 20_000
OWNERS = {"video": "streaming", "map": "dispatch", "catalog": "commerce"}  # of what a file may be

System = Streaming | Dispatch | Commerce | Messaging
Figures = dict[str, Any]


class Orders:
    """The verbs of one worker's control socket."""

    def __init__(
        self,
        settings: Settings,
        *,
        accounts: Accounts,
        demo: Demonstration,
        systems: Mapping[str, System],
        near: Neighbourhood,
        target: Callable[[], Target],
        statistics: Callable[[], dict[str, object]],
        others: Callable[[], Awaitable[Figures]],
        faults: Callable[[Arguments], Awaitable[Figures]],
        reshard: Callable[[dict[str, int]], dict[str, int]],
    ) -> None:
        """`others`: the figures of the systems in other workers; `reshard` moves systems to slots."""
        self._settings = settings
        self._accounts = accounts
        self._demo = demo
        self._systems = systems
        self._near = near
        self._target = target
        self._statistics = statistics
        self._others = others
        self._faults = faults
        self._reshard = reshard

    def verbs(self) -> dict[str, Callable[[Arguments, Progress], Awaitable[object]]]:
        """By name, for the control socket."""
        return {
            "target": self._tell_target,
            "operator": self._tell_operator,
            "status": self._tell_status,
            "import": self._import,
            "users": self._add_users,
            "demo": self._order_demo,
            "crowd": self._crowd_accounts,
            "faults": self._order_faults,
            "reshard": self._order_reshard,
        }

    async def operator_link(self) -> str:
        """The address that makes the browser which opens it first an operator's."""
        host, port = self._settings.http.listener.host, self._target().http_port
        token = await self._accounts.operator_link()
        return f"http://{'localhost' if host == '127.0.0.1' else host}:{port}/api/operator?token={token}"

    async def import_file(self, kind: str, file: Path, progress: Progress, *, dry_run: bool = False) -> object:
        """Bring a file into the system it belongs to; raises Rejected for an unknown kind or a stopped system."""
        if not (file.is_file() or (kind == "video" and file.is_dir())):  # noqa: ASYNC240 - a look at a local file
            raise Rejected(f"no such file: {file}", code="no_file")
        if kind not in OWNERS:
            raise Rejected(f"unknown kind {kind!r}; there are {', '.join(OWNERS)}", code="unknown_kind")
        owner, near = OWNERS[kind], self._near
        if owner in self._settings.systems and not near.owns(owner):
            desk, at_most_s = near.desk_of(owner), IMPORT_S_MAX
            return await import_elsewhere(desk, kind, str(file), progress, dry_run=dry_run, at_most_s=at_most_s)
        match self._systems.get(owner):
            case Streaming() as streaming:
                return await streaming.import_file(file, progress, dry_run=dry_run)
            case Dispatch() as dispatch:
                return {"map": await dispatch.import_map(file, _steps(progress))}
            case Commerce() as commerce:
                rows = [enriched(row) for row in parse(file.read_bytes(), file.suffix)]  # noqa: ASYNC240 - see above
                return await commerce.import_rows(rows, progress=_steps(progress), dry_run=dry_run)
        raise Rejected(f"{owner} is not part of this deployment", code="system_not_running")

    async def operator_token(self) -> str:
        """A new session of the operator."""
        account = await self._accounts.find("operator")
        if account is None:
            return await self._accounts.redeem(await self._accounts.operator_link())
        return await self._accounts.open_session(account)

    async def _tell_target(self, _: Arguments, __: Progress) -> Target:
        return msgspec.structs.replace(self._target(), operator_token=await self.operator_token())

    async def _tell_operator(self, _: Arguments, __: Progress) -> dict[str, str]:
        return {"link": await self.operator_link()}

    async def _tell_status(self, _: Arguments, __: Progress) -> dict[str, object]:
        own: dict[str, object] = msgspec.to_builtins(self._statistics())
        others = await self._others()
        return others | {name: added(found, others.get(name, {})) for name, found in own.items()}

    async def _import(self, arguments: Arguments, progress: Progress) -> object:
        kind, file = str(arguments.get("kind")), Path(str(arguments.get("file")))
        return await self.import_file(kind, file, progress, dry_run=bool(arguments.get("dry_run")))

    async def _add_users(self, arguments: Arguments, _: Progress) -> dict[str, str]:
        name, password = str(arguments.get("name", "")), str(arguments.get("password", ""))
        roles = tuple(str(role) for role in arguments.get("roles", ()))
        account = await self._accounts.create(name, password, roles=roles)
        return {"name": account.name, "roles": " ".join(sorted(account.roles))}

    async def _order_demo(self, arguments: Arguments, _: Progress) -> dict[str, bool]:
        await self._demo.order(running=bool(arguments.get("running", True)))
        return {"running": self._demo.running}

    async def _order_faults(self, arguments: Arguments, _: Progress) -> Figures:
        return await self._faults(arguments)

    async def _order_reshard(self, arguments: Arguments, _: Progress) -> dict[str, int]:
        """Where every system will be; the workers end and start again right after this answer."""
        try:
            wanted = msgspec.convert(arguments.get("slots", {}), dict[str, int])
        except msgspec.ValidationError as error:
            raise Rejected(f"slots: {error}", code="bad_slots") from None
        return self._reshard(wanted)

    async def _crowd_accounts(self, arguments: Arguments, _: Progress) -> list[tuple[str, str]]:
        """Names and passwords of `count` accounts for a crowd, made on first use; the password lies in data/secrets."""
        names = [f"crowd-{number}" for number in range(1, min(CROWD_MAX, int(arguments.get("count", 10))) + 1)]
        password = _crowd_password(self._settings.data / "secrets" / "crowd")
        missing = [name for name in names if await self._accounts.find(name) is None]
        if missing:
            keys = await self._accounts.derive_keys(password)
            await self._accounts.create_many([NewAccount(name, keys=keys) for name in missing])
        return [(name, password) for name in names]


def _crowd_password(path: Path) -> str:
    """The password all crowd accounts of this data folder share; random, made once, readable by the owner only."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(ids.capability(), encoding="ascii")
    return path.read_text(encoding="ascii")


def _steps(progress: Progress) -> Callable[[float, str], None]:
    """A share and a line of text as the control socket sends them."""
    return lambda share, text: progress({"share": share, "text": text})
