"""Files that one process at a time may write, and that are replaced as a whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
from io import FileIO
from pathlib import Path


def acquire(path: Path) -> int:
    """Return a descriptor of the file, made if it is not there, that we alone hold; BlockingIOError
    if others do.

    The lock goes by the file, not by its name: before we had it the file may have been replaced,
    and a lock on one that has no name any more keeps nobody out.
    """
    while True:
        # For nobody else: what is in it tells of every image and volume
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def replace(path: Path, content: bytes) -> int:
    """Put another file in the place of one that we hold, and return a descriptor of it that we
    hold.

    There is no moment at which nobody holds it, nor one at which a crash would lose both: content
    and name are on the disk when this returns. The caller closes the old descriptor afterwards.
    """
    coming = path.with_name(path.name + ".part")
    descriptor = os.open(coming, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # One that an older version left behind may be open to all
        os.fchmod(descriptor, 0o600)
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
        coming.replace(path)
        sync_folder(path.parent)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except BaseException:
        os.close(descriptor)
        # It takes room on a disk that may have none left
        coming.unlink(missing_ok=True)
        raise
    return descriptor


def append(file: FileIO, content: bytes) -> None:
    """Append all of it, or OSError and nothing: the next line would be glued to half a line."""
    before = os.fstat(file.fileno()).st_size
    left = memoryview(content)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError:
        # What can't be shortened, as a device can't, stays as it is
        with contextlib.suppress(OSError):
            file.truncate(before)
        raise


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Not every file system can
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
