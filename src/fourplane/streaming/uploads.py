"""Uploads in pieces: open, put pieces in order, finish. A broken connection goes on where it ended (`offset`).

Bounds: so many open uploads, so many bytes each; one that nobody touched for a day is deleted.
"""

from pathlib import Path

import msgspec

from fourplane.foundation import clock, ids
from fourplane.foundation.blocking import Worker
from fourplane.foundation.errors import Conflict, NotFound, Overloaded, Rejected, TooLarge
from fourplane.streaming.captions import SIDECAR_MAX
from fourplane.streaming.settings import StreamingSettings

STALE_S = 86_400.0
NAME_MAX = 200


class Upload(msgspec.Struct):
    """One file on its way in."""

    id: str
    name: str
    size: int
    offset: int
    path: Path
    touched_s: float
    writing: bool = False


class Uploads:
    """Files that are being sent to the studio."""

    def __init__(self, settings: StreamingSettings) -> None:
        self._settings = settings
        self._folder = settings.folder / "uploads"
        self._open: dict[str, Upload] = {}
        self._worker = Worker("uploads", queue_max=256)
        self.received = 0

    def open(self, name: str, size: int) -> Upload:
        """Begin an upload of `size` bytes; raises TooLarge, Rejected or Overloaded."""
        now_s = clock.monotonic_s()
        for old in [one for one in self._open.values() if now_s - one.touched_s > STALE_S]:
            self.drop(old.id)
        if size <= 0:
            raise Rejected("the file is empty (0 bytes)", code="empty_file")
        if size > self._settings.upload_bytes_max:
            raise TooLarge(
                f"{size} bytes are more than the allowed {self._settings.upload_bytes_max}", code="too_large"
            )
        if len(self._open) >= self._settings.uploads_max:
            raise Overloaded("too many uploads are open", retry_after_s=30.0, code="uploads_full")
        upload_id = ids.capability()
        clean = "".join(letter for letter in Path(name).name if letter.isprintable())[-NAME_MAX:] or "film"
        path = self._folder / upload_id / clean
        upload = self._open[upload_id] = Upload(upload_id, clean, size, 0, path, now_s)
        return upload

    async def put(self, upload_id: str, offset: int, content: bytes) -> Upload:
        """Append one piece; raises Conflict (field `offset`) when it does not continue the file."""
        upload = self.get(upload_id)
        if upload.writing or offset != upload.offset:
            raise Conflict("this piece does not continue the file", code="wrong_offset", offset=upload.offset)
        if upload.offset + len(content) > upload.size:
            raise TooLarge("more bytes came than were announced", code="too_large")
        upload.writing = True
        try:
            await self._worker.submit(_append, upload.path, offset, content)
        finally:
            upload.writing = False
        upload.offset += len(content)
        upload.touched_s = clock.monotonic_s()
        self.received += len(content)
        return upload

    def finish(self, upload_id: str) -> Upload:
        """The file is complete and no longer an upload; raises Conflict while bytes are missing."""
        upload = self.get(upload_id)
        if upload.offset != upload.size:
            raise Conflict(f"{upload.size - upload.offset} bytes are missing", code="incomplete", offset=upload.offset)
        del self._open[upload_id]
        return upload

    async def put_beside(self, upload: Upload, language: str, kind: str, text: str) -> None:
        """Keep a text track beside a finished upload, named as `captions.sidecars` expects; raises Rejected."""
        known = kind in {"vtt", "srt"} and language.isascii() and language.isalpha() and 2 <= len(language) <= 3
        content = text.encode()
        if not known or len(content) > SIDECAR_MAX:
            raise Rejected(
                "a text track is WebVTT or SubRip in a language of two or three letters", code="bad_captions"
            )
        path = upload.path.with_name(f"{upload.path.stem}.{language.lower()}.{kind}")
        await self._worker.submit(_append, path, 0, content)

    def get(self, upload_id: str) -> Upload:
        """The open upload; raises NotFound."""
        upload = self._open.get(upload_id)
        if upload is None:
            raise NotFound("there is no such upload", code="no_such_upload")
        return upload

    def drop(self, upload_id: str) -> None:
        """Give an upload up and delete what came."""
        upload = self._open.pop(upload_id, None)
        if upload is not None:
            self._worker.submit(_remove, upload.path)

    def close(self) -> None:
        """End the writing thread."""
        self._worker.close()


def _append(path: Path, offset: int, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(offset)
        file.write(content)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
