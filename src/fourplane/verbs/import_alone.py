"""Import where nothing runs: hold the data folder, start one system on free ports, import, stop.

Loads every system, so only on demand.
"""

from pathlib import Path

import msgspec

from fourplane import __version__
from fourplane.compose import Deployment
from fourplane.service.control_socket import Arguments, Progress
from fourplane.settings import Settings
from fourplane.state import data_folder
from fourplane.state.format import ensure_format


async def import_alone(settings: Settings, system: str, arguments: Arguments, progress: Progress) -> object:
    """The result of the import; raises Unavailable when somebody holds the folder after all."""
    folder = data_folder.hold(settings.data)
    try:
        ensure_format(settings.data, program=f"fourplane {__version__}")
        deployment = await Deployment(_unexposed(settings, system)).build()
        await deployment.lifecycle.start()
        try:
            kind, file = str(arguments["kind"]), Path(str(arguments["file"]))
            result = await deployment.orders.import_file(kind, file, progress, dry_run=bool(arguments.get("dry_run")))
            return msgspec.to_builtins(result)
        finally:
            await deployment.lifecycle.drain()
            await deployment.lifecycle.stop()
    finally:
        folder.release()


def _unexposed(settings: Settings, system: str) -> Settings:
    """The same settings with one system and every port free to choose."""
    replace = msgspec.structs.replace
    listener = replace(settings.http.listener, port=0)
    cdn = tuple(replace(node, port=0) for node in settings.streaming.cdn)
    return replace(
        settings,
        systems=(system,),
        http=replace(settings.http, listener=listener),
        streaming=replace(settings.streaming, origin_port=0, cdn=cdn),
        dispatch=replace(settings.dispatch, feed=replace(settings.dispatch.feed, port=0)),
        messaging=replace(settings.messaging, port=0, tls_port=0),
    )
