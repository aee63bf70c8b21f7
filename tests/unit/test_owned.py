"""Files with one writer: never two at a time, also in the moment in which one is replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worker.capture import owned


def test_a_file_is_for_its_owner_and_for_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    held = owned.acquire(path)
    assert path.stat().st_mode & 0o777 == 0o600
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            owned.acquire(path)
        held, before = owned.replace(path, b"content"), held
        os.close(before)
    assert path.read_bytes() == b"content"
    os.close(held)
    os.close(owned.acquire(path))


def test_nobody_holds_a_file_that_was_replaced(tmp_path: Path) -> None:
    path, rounds = tmp_path / "counter", 50
    path.write_text("0")

    def count(_worker: int) -> None:
        done = 0
        while done < rounds:
            try:
                held = owned.acquire(path)
            except BlockingIOError:
                continue
            following = owned.replace(path, str(int(path.read_text()) + 1).encode())
            os.close(held)
            os.close(following)
            done += 1

    with ThreadPoolExecutor() as threads:
        list(threads.map(count, range(4)))
    assert int(path.read_text()) == 4 * rounds


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    code = (
        "import os, sys, pathlib; from worker.capture import owned; "
        "owned.acquire(pathlib.Path(sys.argv[1])); print(1, flush=True); os.read(0, 1)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    holder.stdout.readline()
    with pytest.raises(BlockingIOError):
        owned.acquire(path)
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    os.close(owned.acquire(path))
