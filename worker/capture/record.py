"""Recorder: what the intake sees as JSON lines that `replay` reads, without tokens and
passwords."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

import structlog

from worker.capture import owned
from worker.core.errors import Malformed
from worker.core.intake import Routed
from worker.core.masking import masked
from worker.core.notification import FIELDS, decode

log = structlog.get_logger(__name__)

STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Recorded(Routed):
    """One notification as a line."""

    line: bytes = b""

    def __bool__(self) -> bool:
        return True


class Recorder:
    """`worker.core.intake.Sink` that writes, `count` lines at the most; 0 for any number.

    `wrote` is told how many lines were, `failed` why they could not be.
    """

    def __init__(
        self,
        output: Output,
        *,
        wrote: Callable[[int], None],
        failed: Callable[[OSError], None],
        count: int = 0,
    ) -> None:
        self._output = output
        self._left = count or None
        self._wrote = wrote
        self._failed = failed

    def route(self, body: bytes, compression: str = "") -> Routed:
        """The notification as a line; nothing of what nobody can read, since it could hold
        anything."""
        try:
            return Recorded(line=line_of(decode(body, compression)))
        except (Malformed, RecursionError) as error:
            # What is deeper than Python can follow was never a notification of Glance's or Cinder's
            log.warning("message_not_recorded", reason=str(error))
            return Routed()

    async def accept(self, routed: Sequence[Routed]) -> None:
        lines = [one.line for one in routed if isinstance(one, Recorded)][: self._left]
        if self._left is not None:
            self._left -= len(lines)
        try:
            self._output.write(lines)
        except OSError as error:
            self._failed(error)
            # Until the intake is told to stop: what was not written is acked by nobody, and no
            # fault of the broker
            await asyncio.get_running_loop().create_future()
        self._wrote(len(lines))

    def gap(self, reason: str) -> None:
        log.info("recording", why=reason)


def line_of(message: dict[str, Any]) -> bytes:
    """A decoded notification as one line of JSON, secrets masked."""
    kept = {name: message[name] for name in FIELDS if name in message}
    return json.dumps(masked(kept), separators=(",", ":")).encode() + b"\n"


class Output:
    """A file `NAME.jsonl` in a folder, set aside as `NAME-<time>.jsonl.gz` once it is large or old
    enough; or a pipe.

    `size` in bytes and `age` in seconds, 0 for no limit; `keep` is how many of those set aside
    stay, 0 for all.
    """

    def __init__(self, path: str, *, size: int = 0, age: float = 0.0, keep: int = 0) -> None:
        self._path = None if path == STDOUT else Path(path)
        self._size, self._age, self._keep = size, age, keep
        self._began = 0.0
        # Without a buffer: what was not written must not come along with a later line
        self._file: FileIO | None = None

    def open(self) -> None:
        """Begin, or go on with a file that is there."""
        if self._path is None:
            return
        try:
            descriptor = owned.acquire(self._path)
        except BlockingIOError as error:
            raise OSError(error.errno, "another recording writes it") from error
        self._file = FileIO(descriptor, "ab")
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            # One was killed, or its disk was full, in the middle of a line: the next one must not
            # be glued to it
            owned.append(self._file, b"\n")
        self._began = time.time()

    def write(self, lines: Sequence[bytes]) -> None:
        """Write lines; once it returns they are the operating system's. OSError if not all are:
        none is kept."""
        if self._path is None:
            sys.stdout.buffer.writelines(lines)
            sys.stdout.buffer.flush()
            return
        if self._file is None:
            self.open()
        assert self._file is not None
        owned.append(self._file, b"".join(lines))
        large = self._size and os.fstat(self._file.fileno()).st_size >= self._size
        if large or (self._age and time.time() - self._began >= self._age):
            self.rotate()

    def rotate(self) -> None:
        """Set aside what was written, compressed. The file stays ours all the while: a second
        recording that began meanwhile would write lines that are deleted with it."""
        if self._path is None or self._file is None:
            return
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        done = self._path.with_name(f"{self._path.stem}-{stamp}{self._path.suffix}.gz")
        half = done.with_suffix(".part")
        try:
            self._pack(self._path, half)
        except OSError:
            # It takes room on a disk that has none left
            half.unlink(missing_ok=True)
            raise
        os.replace(half, done)
        owned.sync_folder(done.parent)
        full, self._file = self._file, FileIO(owned.replace(self._path, b""), "ab")
        full.close()
        self._began = time.time()
        # Its own alone: beside capture.jsonl there may be those of a capture-cinder.jsonl
        mine = re.compile(
            rf"{re.escape(self._path.stem)}-\d{{8}}T\d{{6}}\.\d{{6}}Z{re.escape(self._path.suffix)}\.gz"
        )
        old = sorted(file for file in self._path.parent.iterdir() if mine.fullmatch(file.name))
        for file in old[: -self._keep] if self._keep else ():
            file.unlink()
        log.info("capture_rotated", file=str(done))

    @staticmethod
    def _pack(path: Path, half: Path) -> None:
        with (
            open(path, "rb") as source,
            os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as raw,
        ):
            with gzip.GzipFile(fileobj=raw, mode="wb", filename="") as packed:
                shutil.copyfileobj(source, packed)
            raw.flush()
            os.fsync(raw.fileno())

    def close(self) -> None:
        """Let go of the file."""
        if self._file:
            self._file.close()
        self._file = None
