"""What happens to a version that was replaced."""

import asyncio

import msgspec

from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.telemetry import Registry
from fourplane.state.schema import ensure
from fourplane.state.stores import Stores, StoresSettings
from fourplane.streaming.jobs import Jobs
from fourplane.streaming.packaging import MediaSegment, TitleIndex, Track, blob_key
from fourplane.streaming.schema import METADATA
from fourplane.streaming.settings import StreamingSettings
from fourplane.streaming.titles import Titles


def test_an_older_version_stays_until_its_addresses_have_lapsed(tmp_path):
    async def main():
        stores = Stores(StoresSettings(), data=tmp_path)
        sql, blobs, ids = await stores.sql("streaming"), await stores.blobs("streaming"), IdGenerator()
        await ensure(sql, "streaming", METADATA)
        titles = Titles(sql, ids)
        title = await titles.create("A film")
        track = Track("360p", "video", "avc1", 24, 0, (MediaSegment(0, 9, 48, 5),), 640, 360)
        for version in ("v_1", "v_2"):
            index = TitleIndex(title.id, version, 2.0, (track,))
            await blobs.put(blob_key(title.id, version, "360p.mp4"), b"film")
            await blobs.put(blob_key(title.id, version, "index.json"), msgspec.json.encode(index))
            replaced = await titles.publish(index, 4)
        assert replaced == "v_1"

        def jobs(token_s):
            settings = StreamingSettings(token_s=token_s, folder=tmp_path)
            return Jobs(settings, sql=sql, blobs=blobs, titles=titles, ids=ids, registry=Registry())

        patient, hasty = jobs(3_600.0), jobs(0.0)
        assert await patient.sweep() == 0
        assert len(await blobs.keys(f"titles/{title.id}/")) == 4
        assert await hasty.sweep() == 1
        assert {key.split("/")[2] for key in await blobs.keys(f"titles/{title.id}/")} == {"v_2"}
        patient.close()
        hasty.close()
        await stores.stop()

    asyncio.run(main())
