"""Processes of the worker that cost no imports: a server that has its modules forks them.

A start imports for a second of processor time, and the tests on a devcloud start hundreds. Such a
process differs from a real one in nothing else that these tests look at; those of `tests/process`,
`tests/broker` and `tests/deploy` are started as users start them.
"""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import handlers
import worker

# Packages that need what only their extras install, or that no process of the worker imports
APART = ("worker.osc", "worker.tempest", "worker.testing", "worker.__main__")
# What a library imports when it is first needed
LATER = ("kombu.transport.pyamqp", "openstack.connection", "keystoneauth1.loading", "prettytable")


def _modules() -> list[str]:
    own = (
        module.name
        for package in (handlers, worker)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.startswith(APART)
    )
    return [__name__, *own, *LATER]


class Forked:
    """Such a process; the part of `subprocess.Popen` that the tests use."""

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], *, stdout: Path, stderr: Path
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_modules())
        self.args = list(words)
        self._process = context.Process(
            target=_run,
            args=(self.args, dict(environment), str(Path.cwd()), str(stdout), str(stderr)),
            daemon=True,
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """Of the process, also once it has ended."""
        assert self._process.pid
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status as of subprocess; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended; subprocess.TimeoutExpired if it does not in time."""
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it with -9."""
        self.send_signal(signal.SIGKILL)


def run(
    words: Sequence[str], environment: Mapping[str, str], *, timeout: float
) -> subprocess.CompletedProcess[str]:
    """One command, to its end."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        process = Forked(words, environment, stdout=stdout, stderr=stderr)
        try:
            status = process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return subprocess.CompletedProcess(
            process.args, status, stdout.read_text(), stderr.read_text()
        )


def _run(
    words: list[str], environment: dict[str, str], folder: str, stdout: str, stderr: str
) -> None:
    for path, number in ((stdout, 1), (stderr, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-m", *words]
    from worker.__main__ import main

    sys.exit(main(words))
