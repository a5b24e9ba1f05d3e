"""Encodes that are stopped, resumed, fed with garbage, or run out of disk: real ffmpeg, small pictures."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from tests.journeys.streaming.rig import QUICK, house

from fourplane.foundation import clock
from fourplane.foundation.errors import Misconfigured, Rejected
from fourplane.streaming import ffmpeg
from fourplane.streaming.encode_plan import make_plan
from fourplane.streaming.encoding import Encode
from fourplane.streaming.ffmpeg import EncodeFailed

LONG_S = 17.0  # five chunks
PICTURE = ("-f", "lavfi", "-i", "testsrc2=size=160x90:rate=24")
SOUND = ("-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000")
FAST = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", "24", "-c:a", "aac")
TINY = msgspec.structs.replace(QUICK, rungs_max=1, duration_s_max=0.0, nice=0)


def run(main):
    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.fixture(scope="module")
def encoder():
    try:
        return asyncio.run(ffmpeg.find())
    except Misconfigured:
        pytest.skip("no ffmpeg on this machine")


@pytest.fixture(scope="module")
def film(encoder, tmp_path_factory):
    file = tmp_path_factory.mktemp("source") / "film.mp4"
    asyncio.run(encoder.run([*PICTURE, *SOUND, "-t", f"{LONG_S:g}", *FAST, str(file)]))
    return file


def test_a_cancelled_encode_goes_on_where_it_ended(encoder, film, tmp_path):
    async def main():
        encode = asyncio.create_task(Encode(encoder, film, tmp_path, TINY).run())
        while not (done := list(tmp_path.glob("chunk*.done"))) and not encode.done():
            await clock.sleep(0.01)
        encode.cancel()
        with pytest.raises(asyncio.CancelledError):
            await encode
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.done")}
        assert done
        assert len(kept) < 7  # pictures, sound and five chunks
        told = []
        encoded = await Encode(encoder, film, tmp_path, TINY, report=told.append).run()
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert encoded.plan.chunks == 5
        assert told[0].share > 0
        assert [progress.share for progress in told] == sorted(progress.share for progress in told)

    run(main)


def test_another_source_in_the_same_folder_starts_anew(encoder, film, tmp_path):
    async def main():
        (tmp_path / "chunk 1 of 3.done").touch()
        (tmp_path / "plan.json").write_text("{}")
        await Encode(encoder, film, tmp_path, msgspec.structs.replace(TINY, duration_s_max=2.0)).run()
        assert not (tmp_path / "chunk 1 of 3.done").exists()

    run(main)


def test_a_cancelled_import_leaves_no_work_behind(encoder, film, tmp_path):
    async def main():
        async with house(tmp_path, encoding=TINY) as here:
            job = await here.rooms.submit(film, "A film")
            work = here.rooms.settings.folder / "work" / job.id
            while not list(work.glob("*")):
                await clock.sleep(0.01)
            await here.rooms.jobs.cancel(job.id)
            ended = await here.rooms.jobs.wait_ended(job.id)
            assert ended.state == "cancelled"
            assert not work.exists()
            assert film.exists()
            with pytest.raises(Exception, match="cancelled"):
                await here.rooms.jobs.cancel(job.id)
            after = await here.rooms.submit(film, "Another")
            await here.rooms.jobs.cancel(after.id)
            assert (await here.rooms.jobs.wait_ended(after.id)).state == "cancelled"

    run(main)


def test_a_source_cut_in_the_middle_is_a_named_fault(encoder, film, tmp_path):
    broken = tmp_path / "cut.mp4"
    broken.write_bytes(film.read_bytes()[: film.stat().st_size // 2])

    async def main():
        async with house(tmp_path / "data", encoding=TINY) as here:
            with pytest.raises(Rejected) as refused:
                await here.rooms.submit(broken, "A film")
            assert refused.value.reason == "truncated"
            assert await here.rooms.titles.all() == []

    run(main)


def test_a_source_whose_pictures_are_missing_fails_by_name_and_publishes_nothing(encoder, film, tmp_path):
    whole, broken = tmp_path / "whole.mp4", tmp_path / "index_only.mp4"

    async def main():
        await encoder.run(["-i", str(film), "-c", "copy", "-movflags", "+faststart", str(whole)])
        content = whole.read_bytes()
        broken.write_bytes(content[: content.index(b"mdat") + 200])
        async with house(tmp_path / "data", encoding=TINY) as here:
            job = await here.rooms.submit(broken, "A film")
            ended = await here.rooms.jobs.wait_ended(job.id)
            assert (ended.state, ended.error) == ("failed", "broken_source")
            assert (await here.rooms.titles.get(job.title)).version == ""
            assert await here.rooms.jobs.sweep() == 0

    run(main)


def test_a_full_disk_is_a_named_fault_and_what_was_finished_is_kept(encoder, film, tmp_path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this machine")

    async def main():
        plan = make_plan(film, await encoder.probe(film), TINY, judged=True)
        (tmp_path / "plan.json").write_bytes(msgspec.json.encode(plan))
        last = tmp_path / f"{plan.rungs[0].name}_{plan.chunks - 1:05d}.mp4.part"
        last.symlink_to(full)
        with pytest.raises(EncodeFailed) as failed:
            await Encode(encoder, film, tmp_path, TINY).run()
        assert failed.value.reason == "disk_full"
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.done")}
        assert kept
        last.unlink()
        encoded = await Encode(encoder, film, tmp_path, TINY).run()
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert all(file.exists() for _, file in encoded.video)

    run(main)


def test_one_broken_film_keeps_no_other_of_its_folder_out(encoder, film, tmp_path, monkeypatch):
    folder = tmp_path / "Dark" / "Season 1"
    folder.mkdir(parents=True)
    settings = msgspec.structs.replace(TINY, duration_s_max=1.0)
    for name in ("01 Secrets.mp4", "02 Lies.mp4"):
        (folder / name).symlink_to(film)
    (folder / "03 Past and Present.mp4").write_bytes(b"no film at all" * 100)

    async def main():
        async with house(tmp_path / "data", encoding=settings) as here:
            told, steps, jobs = [], {}, here.rooms.jobs
            tell = jobs._tell

            def heard(job):
                if jobs.progress is not None:
                    steps.setdefault(job.id, []).append(jobs.progress.share)
                tell(job)

            monkeypatch.setattr(jobs, "_tell", heard)
            made = await here.streaming.import_file(tmp_path / "Dark", told.append)
            assert len(steps) == 2
            assert all(shares == sorted(shares) and shares[-1] < 1.0 for shares in steps.values()), steps
            assert (made.imported, len(made.failed)) == (2, 1)
            assert made.failed[0].startswith("Season 1/03 Past and Present.mp4: ")
            shares = [facts["share"] for facts in told]
            assert shares == sorted(shares)
            again = await here.streaming.import_file(tmp_path / "Dark", lambda _: None)
            assert again.imported == 2
            titles = await here.rooms.titles.all()
            found = {(one.name, one.about.series, one.about.season, one.about.episode) for one in titles}
            assert found == {("Secrets", "Dark", 1, 1), ("Lies", "Dark", 1, 2)}
            assert len(titles) == 2  # the second time replaced them

    run(main)
