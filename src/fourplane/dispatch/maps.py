"""Which road network is in use: imported once, kept as a blob, found again at the next start."""

from pathlib import Path

from fourplane.dispatch.city import make_city
from fourplane.dispatch.osm_import import Progress, import_map
from fourplane.dispatch.roads import Roads
from fourplane.foundation.blocking import Worker
from fourplane.foundation.errors import NotFound
from fourplane.state.contracts import Blobs

FOLDER = "dispatch/maps/v3"
ACTIVE = f"{FOLDER}/active"
CITY = f"{FOLDER}/city.npz"


class Maps:
    """Loads and imports; heavy work runs in a child process or on a thread of its own."""

    def __init__(self, blobs: Blobs, work: Path) -> None:
        self._blobs, self._work = blobs, work

    async def load(self, wanted: str) -> Roads:
        """The network of this extract (imported when it is new), else the active one, else a generated city."""
        worker = Worker("dispatch-roads")
        try:
            key = await self._key(wanted)
            if await self._blobs.info(key) is None:
                made = await worker.submit(lambda: make_city().to_bytes())
                await self._blobs.put(key, made)
            content = await self._blobs.get(key)
            return await worker.submit(Roads.from_bytes, content)
        finally:
            worker.close()

    async def import_file(self, source: Path, progress: Progress) -> str:
        """Import an extract and make it the active map; its blob key. Raises NotFound, Rejected, Unavailable."""
        key = _key_of(source)
        self._work.mkdir(parents=True, exist_ok=True)
        target = self._work / f"{source.name}.npz"
        try:
            await import_map(source, target, progress)
            await self._blobs.put_file(key, target)
        finally:
            target.unlink(missing_ok=True)
        await self._blobs.put(ACTIVE, key.encode())
        return key

    async def _key(self, wanted: str) -> str:
        if wanted:
            key = _key_of(Path(wanted))
            if await self._blobs.info(key) is None:
                await self.import_file(Path(wanted), lambda _share, _text: None)
            return key
        try:
            return (await self._blobs.get(ACTIVE)).decode()
        except NotFound:
            return CITY


def _key_of(source: Path) -> str:
    try:
        facts = source.stat()
    except OSError:
        raise NotFound(f"no map at {source}", code="no_map") from None
    name = "".join(letter if letter.isalnum() else "-" for letter in source.name.split(".")[0])[:60]
    return f"{FOLDER}/{name}-{facts.st_size:x}-{facts.st_mtime_ns:x}.npz"
