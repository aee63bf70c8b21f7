"""Captures: recorded notifications in files, folders or a pipe, one after the other, whatever their
number.

What is read: JSON lines, JSON arrays, objects one after the other over any number of lines, log
lines of oslo.messaging's driver `log`; plain, gzip or zstd. Each message may be an oslo envelope, a
bare notification, or wrapped as tools wrap it: `worker.capture.forms`.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import ijson

from worker.capture.forms import is_pair
from worker.core.errors import Misconfigured

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STDIN = "-"
MARK = b"\xef\xbb\xbf"
"""The byte order mark that some editors write in front of UTF-8."""
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# Longer ones are no notifications; a file without a line's end must not fill the memory. In bytes
LONGEST = 16 << 20
BUFFER = 1 << 20
# zlib's number for gzip
_GZIP = 31
# Deeper than any notification; what is nested more would cost memory without end
DEEPEST = 200
# Lines at the beginning by which JSON lines are told from one large document
HEAD_LINES = 20


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a capture: `number` is its line, or its place if it is not one on a line, from
    1 on.

    `fault` says why it is none; `unended` that it is a line without an end, as somebody may still
    be writing it; `last` that nothing after it can be read, though there may be more.
    """

    number: int
    body: bytes
    fault: str = ""
    unended: bool = False
    last: bool = False


class Source:
    """One file or the standard input."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.size = 0 if path == STDIN else Path(path).stat().st_size
        self._raw: BinaryIO | None = None

    @property
    def position(self) -> int:
        """How many bytes of the file, as it lies there, have been read."""
        try:
            return self._raw.tell() if self._raw and self.size else 0
        except (OSError, ValueError):
            return 0

    def head(self, length: int) -> tuple[int, str]:
        """How many of the first `length` bytes of a file there are, and their hash."""
        with open(self.path, "rb") as file:
            head = file.read(length)
        return len(head), hashlib.sha256(head).hexdigest()

    def messages(self) -> Iterator[Message]:
        """Its messages, good and bad; a file that ends too early gives one last bad one."""
        with self._opened() as stream:
            number = 0
            try:
                for message in _split(stream):
                    number = message.number
                    yield message
            except (EOFError, OSError, zlib.error, zstd.ZstdError) as error:
                # Cut short, or damaged in the middle
                yield Message(
                    number + 1,
                    b"",
                    f"the file can't be read any further: {error or type(error).__name__}",
                    last=True,
                )

    @contextmanager
    def _opened(self) -> Iterator[io.BufferedReader]:
        raw = sys.stdin.buffer if self.path == STDIN else open(self.path, "rb")  # noqa: SIM115  closed below
        self._raw = cast("BinaryIO", raw)
        try:
            buffered = (
                raw
                if isinstance(raw, io.BufferedReader)
                else io.BufferedReader(cast("Any", raw), BUFFER)
            )
            head = buffered.peek(4)[:4]
            stream: Any = buffered
            if head.startswith(GZIP):
                stream = _Gunzip(buffered)
            elif head.startswith(ZSTD):
                stream = zstd.ZstdFile(buffered)
            yield stream if stream is buffered else io.BufferedReader(stream, BUFFER)
        finally:
            if self.path != STDIN:
                raw.close()


class _Gunzip(io.RawIOBase):
    """The content of gzip, in as many parts as there are. Of a file that was cut short it gives all
    that can be had before the EOFError; Python's own reader keeps the last piece back."""

    def __init__(self, packed: io.BufferedReader) -> None:
        super().__init__()
        self._packed = packed
        self._unpacker = zlib.decompressobj(_GZIP)
        self._rest = b""
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer).cast("B")
        while True:
            if self._unpacker.eof:
                # Another part, or the zeros that some tools fill a tape's block with
                self._rest = self._unpacker.unused_data
                self._unpacker, self._begun = zlib.decompressobj(_GZIP), False
            self._rest = self._rest or self._packed.read1(BUFFER)
            if not self._begun and self._rest.startswith(b"\0"):
                self._rest = self._rest.lstrip(b"\0")
                continue
            if not self._rest and self._begun:
                raise EOFError("it ends in the middle: it was cut short")
            if not self._rest:
                return 0
            self._begun = True
            found = self._unpacker.decompress(self._rest, len(room))
            self._rest = self._unpacker.unconsumed_tail
            if found:
                room[: len(found)] = found
                return len(found)


def sources(paths: Iterable[str]) -> list[Source]:
    """The sources that are named, folders as all of their files in the order of their names;
    Misconfigured if none."""
    found: list[str] = []
    faults: list[str] = []
    for path in paths:
        place = Path(path)
        if path == STDIN:
            found.append(path)
        elif place.is_dir():
            files = sorted(str(file) for file in place.rglob("*") if file.is_file())
            found += files
            faults += [] if files else [f"{path} is an empty folder"]
        elif place.exists():
            found.append(path)
        else:
            faults.append(f"{path}: no such file or folder")
    made: list[Source] = []
    for path in found:
        try:
            if path != STDIN:
                with open(path, "rb"):
                    pass
            made.append(Source(path))
        except OSError as error:
            faults.append(f"{path}: {error.strerror}")
    if faults:
        raise Misconfigured(*faults)
    return made


def _split(stream: io.BufferedReader) -> Iterator[Message]:
    """The messages of a stream, by what it begins with."""
    if stream.peek(len(MARK)).startswith(MARK):
        stream.read(len(MARK))
    head = stream.peek(BUFFER)[:BUFFER].lstrip()
    if _is_lines(head.split(b"\n", HEAD_LINES)[:HEAD_LINES]):
        return _lines(stream)
    return _items(
        "array" if head.startswith(b"[") else "file", stream, within=int(head.startswith(b"["))
    )


def _is_lines(head: list[bytes]) -> bool:
    """Whether these first lines are of JSON lines, not of a document that goes on over several."""
    first = head[0].strip()
    if not first.startswith((b"[", b"{")) or _is_json(first) or is_pair(first):
        return True
    if first.startswith(b"{") and len(head) == 1:
        return True
    # The first line may just be broken: then a whole object stands on one of the next. In a
    # document one is indented
    if first == b"[" or (first.startswith(b"[") and first.endswith(b",")):
        return False
    return any(line.startswith(b"{") and _is_json(line) for line in head[1:])


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _lines(stream: io.BufferedReader) -> Iterator[Message]:
    number = 0
    while line := stream.readline(LONGEST):
        number += 1
        if len(line) == LONGEST and not line.endswith(b"\n"):
            while (rest := stream.readline(LONGEST)) and not rest.endswith(b"\n"):
                pass
            yield Message(number, line[:1000], f"longer than {LONGEST >> 20} MiB")
        elif body := line.strip():
            yield Message(number, body, unended=not line.endswith(b"\n"))


def _items(what: str, stream: io.BufferedReader, *, within: int) -> Iterator[Message]:
    """The items of an array, or objects one after the other. What follows a broken one can't be
    told apart."""
    number = 0
    try:
        for item in _values(stream, within=within):
            number += 1
            yield Message(number, json.dumps(item).encode())
    except (ijson.JSONError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        yield Message(
            number + 1,
            b"",
            f"not JSON, and what follows in the {what} can't be read: {reason}",
            last=True,
        )


def _values(stream: io.BufferedReader, *, within: int) -> Iterator[object]:
    """The values that lie `within` so many brackets, one at a time; JSONError for one too deep or
    too large."""
    depth = size = 0
    builder = None
    # Not ijson.items, which limits neither: 100 kB of brackets would take all memory there is
    for event, value in ijson.basic_parse(stream, use_float=True, multiple_values=True):
        closes = event in ("end_map", "end_array")
        depth -= closes
        opens = event in ("start_map", "start_array")
        if depth < within:
            # The array around them
            depth += opens
            continue
        builder = builder or ijson.ObjectBuilder()
        builder.event(event, value)
        depth += opens
        size += len(value) if isinstance(value, str) else 1
        if depth > DEEPEST:
            raise ijson.JSONError(f"nested deeper than {DEEPEST}")
        if size > LONGEST:
            raise ijson.JSONError(f"longer than {LONGEST >> 20} MiB")
        if depth == within and event != "map_key":
            yield builder.value
            builder, size = None, 0
