"""Imports as jobs: queued in the sql store, run one after the other, resumed after a restart, cancellable.

    queued -> running -> done | failed | cancelled          running -> queued when the process ends in between

A job's work folder keeps finished chunks (`encoding`), so a job that runs again only does what is left. The publish step is
last: files to blobs, index, then the title's pointer. A failure keeps its name (`error`) and what was said.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from fourplane.control.nodes import Switch
from fourplane.foundation import clock
from fourplane.foundation.blocking import Worker
from fourplane.foundation.errors import Conflict, FourplaneError, NotFound, Overloaded
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.telemetry import Histogram, Registry
from fourplane.state.contracts import Blobs, Row, Sql, Statement
from fourplane.streaming import ffmpeg, packaging
from fourplane.streaming.encoding import Encode, Progress
from fourplane.streaming.probe import check_file
from fourplane.streaming.settings import StreamingSettings
from fourplane.streaming.titles import Title, Titles

_SELECT = "SELECT id, title, file, owned, state, error, said, created_us, changed_us FROM jobs"
_INSERT = "INSERT INTO jobs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
_FIELDS = ("id", "title", "file", "owned", "state", "error", "said", "created_us", "changed_us")
SWEEP_S = 3_600.0
ENDED = frozenset({"done", "failed", "cancelled"})
LISTED_MAX = 100
ENCODED = 0.98  # of an import; what is left is packaging


class Job(msgspec.Struct, frozen=True):
    """One import as it stands in the store; `progress` only while it runs."""

    id: str
    title: str
    file: str
    owned: int
    state: str
    error: str
    said: str
    created_us: int
    changed_us: int
    progress: Progress | None = None


class JobStatistics(msgspec.Struct, frozen=True):
    """What the encoder did since it started."""

    waiting: int
    running: str
    done: int
    failed: int
    film_s: float
    speed: float


class Jobs:
    """The queue of imports and the one encoder of this process."""

    def __init__(
        self,
        settings: StreamingSettings,
        *,
        sql: Sql,
        blobs: Blobs,
        titles: Titles,
        ids: IdGenerator,
        registry: Registry,
        published: Callable[[Title], Awaitable[None]] | None = None,
    ) -> None:
        self._published = published
        self._settings = settings
        self._sql = sql
        self._blobs = blobs
        self._titles = titles
        self._ids = ids
        self._registry = registry
        self._wake = asyncio.Event()
        self._running: tuple[Job, asyncio.Task[None]] | None = None
        self._cancelled: set[str] = set()
        self._changed: dict[str, asyncio.Event] = {}
        self._worker = Worker("packaging")
        self._waiting = 0
        self.progress: Progress | None = None
        self.switch = Switch("encoding")
        self.seconds = Histogram()
        self.done = 0
        self.failed = 0
        self.film_s = 0.0

    async def submit(self, file: Path, title: Title, *, owned: bool = False) -> Job:
        """Queue the import of `file` as the next version of `title`; raises what is wrong with the file at once."""
        check_file(file, bytes_max=self._settings.encoding.source_bytes_max)
        if self._waiting >= self._settings.encoding.jobs_max:
            raise Overloaded("too many imports are waiting", retry_after_s=60.0, code="jobs_full")
        encoder = await ffmpeg.find(self._settings.ffmpeg)
        await encoder.probe(file)
        now_us = clock.now_us()
        job = Job(self._ids.text("job"), title.id, str(file), int(owned), "queued", "", "", now_us, now_us)
        values = msgspec.structs.astuple(job)[:9]
        await self._sql.commit([Statement(_INSERT, values)])
        self._waiting += 1
        self._wake.set()
        return job

    async def get(self, job_id: str) -> Job:
        """One job with its progress; raises NotFound."""
        rows = await self._sql.read(_SELECT + " WHERE id = ?1", job_id)
        if not rows:
            raise NotFound("there is no such job", code="no_such_job")
        return self._with_progress(_job(rows[0]))

    async def recent(self) -> list[Job]:
        """The latest jobs, the newest first."""
        rows = await self._sql.read(_SELECT + f" ORDER BY created_us DESC LIMIT {LISTED_MAX}")
        return [self._with_progress(_job(row)) for row in rows]

    async def cancel(self, job_id: str) -> None:
        """Stop a job wherever it is; raises Conflict when it has ended."""
        job = await self.get(job_id)
        if job.state in ENDED:
            raise Conflict(f"the job is {job.state}", code="job_ended")
        self._cancelled.add(job_id)
        if self._running is not None and self._running[0].id == job_id:
            self._running[1].cancel()
        else:
            await self._set(job, "cancelled")

    async def wait_ended(self, job_id: str) -> Job:
        """Wait until a job has ended; returns it."""
        while True:
            job = await self.get(job_id)
            if job.state in ENDED:
                return job
            event = self._changed.setdefault(job_id, asyncio.Event())
            await event.wait()

    def statistics(self) -> JobStatistics:
        now = self.progress
        return JobStatistics(
            self._waiting,
            "" if self._running is None else self._running[0].id,
            self.done,
            self.failed,
            self.film_s,
            now.speed if now is not None else 0.0,
        )

    async def run(self) -> None:
        """Take jobs one after the other until cancelled; what a killed process left running is queued again."""
        await self._sql.commit([Statement("UPDATE jobs SET state = 'queued' WHERE state = 'running'")])
        swept_s = -SWEEP_S
        while True:
            self._wake.clear()
            if clock.monotonic_s() - swept_s >= SWEEP_S:  # between jobs, so no version is half published now
                swept_s = clock.monotonic_s()
                await self.sweep()
            rows = await self._sql.read(_SELECT + f" WHERE state = 'queued' ORDER BY created_us LIMIT {LISTED_MAX}")
            self._waiting = len(rows)
            if not rows or not self.switch.on:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0 if rows else 60.0):
                        await self._wake.wait()
                continue
            await self._run_one(_job(rows[0]))

    async def sweep(self) -> int:
        """Delete versions that no title points to, once every address signed for them has lapsed; how many went."""
        gone = 0
        for title in await self._titles.all():
            if not title.version or clock.now_us() - title.published_us < self._settings.token_s * 1e6:
                continue
            keys = await self._blobs.keys(f"titles/{title.id}/")
            for version in sorted({key.split("/")[2] for key in keys} - {title.version}):
                await packaging.remove_version(self._blobs, title.id, version)
                gone += 1
        return gone

    def close(self) -> None:
        """End the packaging thread."""
        self._worker.close()

    async def _run_one(self, job: Job) -> None:
        began_s = clock.monotonic_s()
        await self._set(job, "running")
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._guarded(job))
            self._running = (job, task)
            try:
                await asyncio.wait([task])
            finally:
                self._running, self.progress = None, None
        self.seconds.record(clock.monotonic_s() - began_s)

    async def _guarded(self, job: Job) -> None:
        try:
            await self._import(job)
        except asyncio.CancelledError:
            if job.id not in self._cancelled:
                raise  # the process stops: the job stays `running` and is queued again
            self._cancelled.discard(job.id)
            await self._clean(job)
            await self._set(job, "cancelled")
        except FourplaneError as error:
            self.failed += 1
            await self._set(job, "failed", error.reason, error.message)
            self._registry.event("warning", "streaming", f"An import failed: {error.message}")
        except OSError as error:
            self.failed += 1
            await self._set(job, "failed", "disk", str(error))
            self._registry.event("error", "streaming", f"An import failed: {error}")

    async def _import(self, job: Job) -> None:
        title = await self._titles.get(job.title)
        encoder = await ffmpeg.find(self._settings.ffmpeg)
        folder = self._settings.folder / "work" / job.id

        def report(progress: Progress) -> None:
            self.progress = msgspec.structs.replace(progress, share=ENCODED * progress.share)
            self._tell(job)

        encode = Encode(encoder, Path(job.file), folder, self._settings.encoding, report=report)
        encoded = await encode.run()
        version = self._ids.text("v")
        report(Progress(1.0, "packaging"))
        index = await self._worker.submit(packaging.index_title, title.id, version, encoded)
        stored = await packaging.publish(self._blobs, index, encoded)
        replaced = await self._titles.publish(index, stored)
        if self._published is not None:
            await self._published(await self._titles.get(title.id))
        await self._clean(job)
        self.done += 1
        self.film_s += index.duration_s
        await self._set(job, "done")
        again = " anew" if replaced else ""
        self._registry.event(
            "info",
            "streaming",
            f"“{title.name}” was encoded{again}: {len(index.video)} rungs, {index.duration_s:.0f} s of film",
        )

    async def _clean(self, job: Job) -> None:
        folder = self._settings.folder / "work" / job.id
        await self._worker.submit(shutil.rmtree, folder, True)
        if job.owned:  # an upload of ours lies in a folder of its own, beside its captions
            await self._worker.submit(shutil.rmtree, Path(job.file).parent, True)

    async def _set(self, job: Job, state: str, error: str = "", said: str = "") -> None:
        statement = "UPDATE jobs SET state = ?2, error = ?3, said = ?4, changed_us = ?5 WHERE id = ?1"
        await self._sql.commit([Statement(statement, (job.id, state, error, said[:1_000], clock.now_us()))])
        self._tell(job)
        if state in ENDED:
            self._changed.pop(job.id, None)

    def _tell(self, job: Job) -> None:
        event = self._changed.pop(job.id, None)
        if event is not None:
            event.set()

    def _with_progress(self, job: Job) -> Job:
        if self._running is not None and self._running[0].id == job.id and self.progress is not None:
            return msgspec.structs.replace(job, progress=self.progress)
        return job


def _job(row: Row) -> Job:
    return msgspec.convert(dict(zip(_FIELDS, row, strict=True)), Job)
