"""A handler that notes when it works on which key, for workers that are processes of their own.

`plug_in` makes it known to them as any handler of an operator's own is: by an entry point.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.core.cloud import Image, Volume
from worker.core.errors import Temporary
from worker.core.handler import Missing, Parts, Watch
from worker.core.job import Key
from worker.core.notification import Notification
from worker.core.outcome import Again, Done, Outcome

EVENT = "image.counted"
LANES = ("east", "west")
NOTES, GATE = "COUNTING_NOTES", "COUNTING_GATE"
"""The environment: the file with the notes; and the file that ends the jobs that wait for it, once
it is there."""
WIDTH = 8


def image_id(number: int) -> str:
    """The image of a number. Its job is done at once, or at the second or third try; every 20th
    takes 3 s."""
    return f"{number:08x}-0000-4000-8000-000000000000"


def endless(number: int) -> str:
    """An image whose job lasts until the gate opens."""
    return f"{number:08x}-0000-4000-8000-00000000ffff"


@dataclass(frozen=True, slots=True)
class Run:
    """One try of a key: by which process, from when to when in monotonic seconds, and how it
    ended."""

    key: tuple[str, str]
    pid: int
    began: float
    ended: float
    outcome: str


class Counting:
    """The handler."""

    name = "counting"
    event_types = frozenset({EVENT})

    def __init__(self, _parts: Parts) -> None:
        self._notes = os.open(os.environ[NOTES], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._gate = Path(os.environ[GATE])
        self._tried: set[Key] = set()

    def keys(self, notification: Notification) -> Iterable[Key]:
        return [Key(self.name, notification.image_id, lane) for lane in LANES]

    def lanes(self) -> Mapping[str, int]:
        return {f"{self.name}.{lane}": WIDTH for lane in LANES}

    async def prepare(self, volumes: Mapping[str, tuple[Volume, ...]]) -> None:
        return

    def incomplete(
        self, image_id: str, image: Image | None, volumes: tuple[Volume, ...]
    ) -> Iterable[Missing]:
        return ()

    async def reconcile(self, key: Key, watch: Watch) -> Outcome:
        began, outcome = time.monotonic(), "ended early"
        self._note(key, began)
        try:
            made = await self._work(key, watch)
            outcome = type(made).__name__.lower()
            return made
        except Temporary:
            outcome = "failed"
            raise
        finally:
            self._note(key, began, outcome)

    async def _work(self, key: Key, watch: Watch) -> Outcome:
        number = int(key.image_id[:8], 16)
        if key.image_id == endless(number):
            while not self._gate.exists():
                # As real handlers do before each step: it ends the try if the key may be another
                # worker's by now
                watch.tell("waits for the gate")
                await asyncio.sleep(0.05)
            return Done(changed=True)
        for _ in range(60 if number % 20 == 0 else 1):
            watch.tell("works")
            await asyncio.sleep(0.05)
        if key not in self._tried:
            self._tried.add(key)
            if number % 3 == 1:
                return Again("the first look", after=1.0, counted=False)
            if number % 3 == 2:
                raise Temporary("the first look fails")
        self._tried.discard(key)
        return Done(changed=True)

    def _note(self, key: Key, began: float, outcome: str = "") -> None:
        note = [
            key.image_id,
            key.target,
            os.getpid(),
            began,
            time.monotonic() if outcome else 0.0,
            outcome,
        ]
        # In one write, as several workers share the file
        os.write(self._notes, json.dumps(note).encode() + b"\n")


def plug_in(folder: Path) -> Mapping[str, str]:
    """Make the handler known to processes that are started with this environment."""
    made = folder / "counting-1.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1\n")
    (made / "entry_points.txt").write_text(
        f"[image_volume_worker.handlers]\ncounting = {__name__}:{Counting.__name__}\n"
    )
    root = Path(__file__).parents[2]
    return {
        "PYTHONPATH": f"{folder}{os.pathsep}{root}",
        NOTES: str(folder / "notes"),
        GATE: str(folder / "gate"),
    }


def read(notes: Path) -> list[Run]:
    """The tries so far, those under way too, in the order in which they began; those have no
    outcome."""
    runs: dict[tuple[str, str, int, float], Run] = {}
    for line in notes.read_text().splitlines() if notes.exists() else ():
        image, lane, pid, began, ended, outcome = json.loads(line)
        runs[image, lane, pid, began] = Run(
            (image, lane), pid, began, ended or float("inf"), outcome
        )
    return sorted(runs.values(), key=lambda run: run.began)
