"""The start of a command: what it imports before it asks anybody anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("openstack", "keystoneauth1", "oslo_messaging", "oslo_utils.strutils")
RUN = """
import atexit, sys
atexit.register(lambda: print(*sys.modules))
from worker.__main__ import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("--version", ("kombu", "worker.settings")),
        ("status --help", ("worker.diagnose.doctor",)),
        ("doctor --help", ("worker.capture",)),
        ("run --help", ("worker.capture", "worker.diagnose.doctor")),
        ("dead-letters list --help", ("worker.diagnose",)),
    ],
)
def test_a_command_imports_no_more_than_it_needs(words: str, more: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words.split()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    imported = set(done.stdout.splitlines()[-1].split())
    assert "worker.cli" in imported
    assert not imported & {*HEAVY, *more}
