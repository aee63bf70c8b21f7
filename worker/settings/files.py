"""The configuration's files: which to read, and their faults."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence

DEFAULT_FILE = "/etc/image-volume-worker/image-volume-worker.conf"


def config_files(given: Sequence[str]) -> list[str]:
    """Return the files to read: those given, else DEFAULT_FILE if it is there."""
    return list(given) or ([DEFAULT_FILE] if os.path.exists(DEFAULT_FILE) else [])


def config_dirs(given: Sequence[str], files: Sequence[str]) -> list[str]:
    """Return the folders to read: those given, else the ones beside the files, named like them with
    a `.d`."""
    return list(given) or [folder for file in files if os.path.isdir(folder := f"{file}.d")]


def unreadable(files: Sequence[str], folders: Sequence[str]) -> Iterator[str]:
    """Return faults that oslo.config would pass over or not name: missing folders, files that are
    no text."""
    for folder in folders:
        if not os.path.isdir(folder):
            yield f"--config-dir {folder}: there is no such folder"
    for path in (
        *files,
        *(
            path
            for folder in folders
            for path in sorted(glob.glob(f"{glob.escape(folder)}/*.conf"))
        ),
    ):
        try:
            with open(path, encoding="utf-8") as file:
                file.read()
        except UnicodeDecodeError as error:
            yield f"{path} is no text in UTF-8: {error}"
        except OSError:
            # oslo.config names it
            continue
