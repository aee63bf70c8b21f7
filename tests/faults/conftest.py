"""The fixtures of the devcloud, scenes on it, and the report: a table of what was broken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from scripts.cloud.operate import until
from scripts.cloud.people import Person
from tests.devcloud import (  # noqa: F401  fixtures
    LONG,
    admin,
    alice,
    bob,
    devcloud_up,
    hashed,
    hashing,
    operator,
    pytest_runtest_makereport,
    unhashed,
    worker,
)
from tests.faults.scene import ROWS, Scene


@pytest.fixture
def scene(
    alice: Person,  # noqa: F811
    operator: Person,  # noqa: F811
    admin: Person,  # noqa: F811
    request: pytest.FixtureRequest,
) -> Iterator[Scene]:
    """An empty scene with a source volume; nothing of it stays."""
    text = request.node.get_closest_marker("fault")
    made = Scene(
        alice=alice,
        operator=operator,
        admin=admin,
        fault=text.args[0] if text else request.node.name,
    )
    made.everywhere = LONG or "hashed" in request.fixturenames
    if "what" in request.fixturenames:
        made.fault = made.fault.format(request.getfixturevalue("what"))
    image = alice.image("faults-source", image_volume_prewarm="no")
    made.content = alice.sha256(image)
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
        "of cut-off imports",
    )
    terminalreporter.section("faults")
    for row in (titles, tuple("---" for _ in titles), *ROWS):
        terminalreporter.write_line("| " + " | ".join(row) + " |")
