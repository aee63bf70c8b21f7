"""What is broken while workers work, and what has to be true afterwards; the report is a table."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from scripts.cloud.people import Person
from tests.cloud.conftest import (  # noqa: F401  fixtures
    PASSWORD,
    admin,
    alice,
    bob,
    devcloud_up,
    is_warm,
    of_image,
    operator,
    pytest_runtest_makereport,
    until,
    worker,
)
from tests.worker_process import WorkerProcess

LANES = {"url": f"amqp://openstack:{PASSWORD}@127.0.0.1:5672/worker"}
ROWS: list[tuple[str, ...]] = []


@dataclass
class Scene:
    """Images and uploads of alice's, made while something is broken."""

    alice: Person
    operator: Person
    admin: Person
    fault: str
    source: str = ""
    images: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    before: frozenset[str] = frozenset()
    took: float = 0.0

    def image(self, **fields: Any) -> None:
        """A new image with data."""
        self.images.append(self.alice.image("faults", **fields))

    def upload(self) -> None:
        """A volume that is to become an image."""
        self.uploads.append(self.alice.queued("faults", image_volume_source=self.source))

    def load(self, images: int = 3, uploads: int = 2) -> None:
        """So many of both."""
        for number in range(max(images, uploads)):
            if number < uploads:
                self.upload()
            if number < images:
                self.image()

    def converged(self, *, swallowed: bool = False) -> None:
        """Return when everything is as if nothing had been broken; else fail with what is not.

        `swallowed`: RabbitMQ may have lost what Cinder's API has told its scheduler; such a volume is never made, and
        an administrator's to remove.
        """
        but_for = ["creating"] if swallowed else []
        began = time.monotonic()
        for one in self.uploads:
            until(lambda image=one: self.alice.show(image)["status"] == "active", what=f"{self.fault}: {one} active")
        for one in (*self.images, *self.uploads):
            until(
                lambda image=one: is_warm(self.operator, self.alice, image, but_for=but_for),
                what=f"{self.fault}: {one} warm: {of_image(self.operator, one)}",
            )
        took = time.monotonic() - began
        if swallowed:
            for volume in (v for one in (*self.images, *self.uploads) for v in of_image(self.operator, one)):
                if volume["status"] == "creating":
                    self.admin.act(volume["id"], "os-reset_status", status="error")
                    self.operator.delete_volume(volume["id"])
        wanted = {volume["id"] for one in (*self.images, *self.uploads) for volume in of_image(self.operator, one)}
        assert len(wanted) == 2 * len(self.images + self.uploads)
        until(
            lambda: {volume["id"] for volume in self.operator.volumes()} - self.before == wanted,
            what=f"{self.fault}: nothing is left over: {[v['name'] for v in self.operator.volumes()]}",
        )
        theirs = {volume["id"]: volume["status"] for volume in self.alice.volumes()}
        assert theirs[self.source] == "available"
        assert not [status for status in theirs.values() if status.startswith("error")]
        self.took = took

    def reported(self, *workers: WorkerProcess) -> None:
        """A row of the table: nothing has become a dead letter."""
        letters = max((process.metric("dead_letters") for process in workers), default=0.0)
        parked = [line for process in workers for line in process.events("job_parked")]
        assert not parked, parked
        assert letters == 0
        ROWS.append((self.fault, f"{len(self.images)} + {len(self.uploads)}", f"{self.took:.0f} s", "0", "0", "0"))


@pytest.fixture
def scene(alice: Person, operator: Person, admin: Person, request: pytest.FixtureRequest) -> Iterator[Scene]:  # noqa: F811
    """An empty scene with a source volume; nothing of it stays."""
    text = request.node.get_closest_marker("fault")
    made = Scene(alice=alice, operator=operator, admin=admin, fault=text.args[0] if text else request.node.name)
    if "what" in request.fixturenames:
        made.fault = made.fault.format(request.getfixturevalue("what"))
    image = alice.image("faults-source", image_volume_prewarm="no")
    made.source = alice.volume(image, "local-1").id
    alice.delete_image(image)
    made.before = frozenset(volume["id"] for volume in operator.volumes())
    yield made
    for one in (*made.images, *made.uploads):
        gone(alice, one)
    alice.delete_volume(made.source)


def gone(alice: Person, image_id: str) -> None:  # noqa: F811
    """Delete an image that Glance or Cinder may be busy with."""

    def deleted() -> bool:
        try:
            alice.delete_image(image_id)
        except RuntimeError as error:
            return " 404 " in str(error)
        return True

    with contextlib.suppress(TimeoutError):
        until(deleted, seconds=120)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of what was broken."""
    if not ROWS:
        return
    titles = (
        "broken",
        "images + uploads",
        "converged after",
        "twice or left over",
        "users' volumes in error",
        "dead letters",
    )
    terminalreporter.section("faults")
    for row in (titles, tuple("---" for _ in titles), *ROWS):
        terminalreporter.write_line("| " + " | ".join(row) + " |")
