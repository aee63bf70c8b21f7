"""A node that does not answer is left, ever more rarely where none does."""

from __future__ import annotations

from typing import Any

import pytest

from worker.broker import pulse
from worker.broker.connection import IO_TIMEOUT
from worker.broker.pulse import EVERY, LONGEST_PAUSE, PATIENCE, Pulse


class Node:
    """A connection, its socket and a channel of a node that answers or not; and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.cut_off = False
        self.messages: list[str] = []
        self.timeouts: list[float] = []
        self.asked = 0

    @property
    def sock(self) -> Node:
        return self

    def settimeout(self, seconds: float) -> None:
        self.timeouts.append(seconds)

    def basic_get(self, queue: str, *, no_ack: bool) -> str | None:
        assert queue == "q.pulse"
        self.asked += 1
        if self.cut_off:
            raise TimeoutError("timed out")
        return self.messages.pop(0) if self.messages else None

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    made = Node()
    monkeypatch.setattr(pulse, "time", made)
    return made


@pytest.fixture
def received() -> list[Any]:
    return []


@pytest.fixture
def asking(node: Node, received: list[Any]) -> Pulse:
    made = Pulse(queue="q.pulse", receive=received.append)
    made.opened(node, node)
    return made


def test_it_asks_when_that_is_due(node: Node, asking: Pulse, received: list[Any]) -> None:
    assert asking.turn() == EVERY
    node.now += EVERY - 1.0
    assert asking.turn() == 1.0
    assert node.asked == 0
    node.now += 1.0
    assert asking.turn() == EVERY
    assert (node.asked, received) == (1, [])
    # An answer may take as long as others do, once this one has come
    assert node.timeouts == [PATIENCE, IO_TIMEOUT]


def test_a_message_that_comes_as_the_answer_is_received(
    node: Node, asking: Pulse, received: list[Any]
) -> None:
    node.messages.append("a notification")
    node.now += EVERY
    asking.turn()
    assert received == ["a notification"]


def test_a_node_that_does_not_answer_is_an_error_that_says_so(node: Node, asking: Pulse) -> None:
    node.cut_off = True
    node.now += EVERY
    with pytest.raises(OSError, match=r"q\.pulse.*cut off from the others"):
        asking.turn()


def test_where_no_node_answers_the_pauses_grow_until_one_does(node: Node, asking: Pulse) -> None:
    node.cut_off = True
    pauses = []
    for _ in range(10):
        pauses.append(asking.turn())
        node.now += pauses[-1]
        with pytest.raises(OSError, match="no answer"):
            asking.turn()
        asking.lost()
        asking.opened(node, node)
    assert pauses[:4] == [EVERY, 2 * EVERY, 4 * EVERY, 8 * EVERY]
    assert pauses[-1] == LONGEST_PAUSE
    node.cut_off = False
    node.now += asking.turn()
    assert asking.turn() == EVERY
    # A connection that is lost for another reason says nothing about its node
    asking.lost()
    asking.opened(node, node)
    assert asking.turn() == EVERY
