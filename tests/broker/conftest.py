"""What all tests with a RabbitMQ share."""

from __future__ import annotations

import pytest

from worker.broker import link


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect anew at once: there is one node, and no other that could take it to be there."""
    monkeypatch.setattr(link, "SETTLING", 0.0)
