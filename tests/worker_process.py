"""A real `image-volume-worker run` in a process of its own, with a configuration of its own."""

from __future__ import annotations

import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests import forked
from tests.forked import Forked


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def configuration(groups: Mapping[str, Mapping[str, object]]) -> str:
    """A configuration file."""
    return "\n".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in options.items())
        for group, options in groups.items()
    )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has: bytes of memory, seconds of processor since it began, threads, open file
    descriptors."""

    memory: int
    seconds: float
    threads: int
    descriptors: int


class WorkerProcess:
    """One worker; `start` and `kill` as often as one likes."""

    def __init__(
        self,
        folder: Path,
        groups: Mapping[str, Mapping[str, object]],
        *,
        clouds: Path | None = None,
        environment: Mapping[str, str] | None = None,
        forked: bool = False,
    ) -> None:
        """`forked`: its processes are forked by a server that has its modules (`tests.forked`),
        unless an `environment` is given, which may be for Python itself."""
        self.port = free_port()
        self.log = folder / f"worker-{self.port}.log"
        self.config_path = folder / f"worker-{self.port}.conf"
        self.config_path.write_text(
            configuration({**groups, "probes": {"bind": f"127.0.0.1:{self.port}"}})
        )
        self._environment = {
            key: value for key, value in os.environ.items() if not key.startswith("OS_")
        }
        if clouds:
            self._environment["OS_CLIENT_CONFIG_FILE"] = str(clouds)
        self._environment |= environment or {}
        self._forked = forked and not environment
        self._process: subprocess.Popen[bytes] | Forked | None = None

    def __enter__(self) -> WorkerProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def run(self, *words: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """One command with this configuration, to its end."""
        words = ("--config-file", str(self.config_path), *words)
        if self._forked:
            return forked.run(words, self._environment, timeout=timeout)
        return subprocess.run(
            [sys.executable, "-m", "worker", *words],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self) -> None:
        """Start the daemon; it need not be ready when this returns."""
        words = ("--config-file", str(self.config_path), "run")
        if self._forked:
            self._process = Forked(words, self._environment, stdout=self.log, stderr=self.log)
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker", *words],
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """Kill it with -9 if it runs."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self, *, within: float = 60.0) -> int:
        """Ask it to stop and give its exit status."""
        assert self._process
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(timeout=within)
        self._process = None
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process
        return self._process.pid

    def usage(self) -> Usage:
        """What it uses, by /proc."""
        assert self._process
        folder = Path("/proc", str(self._process.pid))
        fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return Usage(
            memory=int(fields[21]) * resource.getpagesize(),
            seconds=ticks / os.sysconf("SC_CLK_TCK"),
            threads=int(fields[17]),
            descriptors=len(list((folder / "fd").iterdir())),
        )

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def probe(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a probe; 0 when nobody answers."""
        try:
            try:
                answer = urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                return answer.status, json.load(answer)
        except (OSError, http.client.HTTPException, ValueError):
            # The last two: it was killed in the middle of its answer
            return 0, {}

    def states(self, image_id: str) -> dict[str, str]:
        """The state of an image on each target as the worker knows it; empty if it does not know
        the image. Asks no service, as the command `status` does."""
        shown = self.probe(f"/image.json?id={image_id}")[1]
        return {one["target"]: one["state"] for one in shown.get("targets", ())}

    def wait_ready(self, *, within: float = 120.0) -> None:
        """Return when /readyz says 200."""
        until = time.monotonic() + within
        answer: tuple[int, dict[str, Any]] = (0, {})
        while time.monotonic() < until:
            answer = self.probe("/readyz")
            if answer[0] == 200:
                return
            assert self.running, self.log.read_text()[-3000:]
            time.sleep(0.1)
        raise TimeoutError(f"not ready: {answer}; {self.log.read_text()[-3000:]}")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"image_volume_worker_{name}"
            and all(sample.labels.get(key) == value for key, value in labels.items())
        )

    def events(self, word: str) -> list[dict[str, Any]]:
        """The log lines with this word."""
        return [line for line in self.lines() if line.get("event") == word]

    def lines(self) -> list[dict[str, Any]]:
        """The log, of all its lives; one that is killed may leave half a line."""
        text = self.log.read_text() if self.log.exists() else ""
        return [
            json.loads(line)
            for line in text.splitlines()
            if line.startswith("{") and line.endswith("}")
        ]
