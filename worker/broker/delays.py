"""Queues that delay messages by whole seconds: one for each bit of the delay, each with its TTL.

A routing key begins with the delay in bits, the highest first. At each level a 1 leads into the
level's queue, from where the message goes on to the next level when its time is over; a 0 leads
there at once. Names and arguments are those of kombu 5.7 (`native_delayed_delivery`), whose queues
older workers have made; the versions of kombu that OpenStack's releases have know no prefix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

BITS = 28
LONGEST = 2**BITS - 1
"""Seconds; eight years."""


def queues(prefix: str) -> Iterator[str]:
    """Yield the names of the queues, and of the exchanges before them: the longest delay first."""
    return (_level(prefix, bit) for bit in reversed(range(BITS)))


def entrance(prefix: str) -> str:
    """Return the exchange that delayed messages are published to."""
    return _level(prefix, BITS - 1)


def exit_of(prefix: str) -> str:
    """Return the exchange that messages reach when their time is over."""
    return f"{prefix}_celery_delayed_delivery"


def routing_key(seconds: int, queue: str) -> str:
    """Return the key of a message for a queue, between 1 and LONGEST seconds from now."""
    return ".".join(f"{seconds:0{BITS}b}") + f".{queue}"


def binding_key(queue: str) -> str:
    """Return the key that binds a queue to what leaves the delays: it has a word for each bit."""
    return "*." * BITS + queue


def declare(channel: Any, prefix: str) -> None:
    """Declare the queues, and the exchanges before and behind them."""
    after = exit_of(prefix)
    channel.exchange_declare(after, "topic", durable=True, auto_delete=False)
    for bit in range(BITS):
        level, earlier = _level(prefix, bit), "*." * (BITS - 1 - bit)
        channel.exchange_declare(level, "topic", durable=True, auto_delete=False)
        arguments = {
            "x-queue-type": "quorum",
            "x-overflow": "reject-publish",
            "x-message-ttl": 2**bit * 1000,
            "x-dead-letter-exchange": after,
            "x-dead-letter-strategy": "at-least-once",
        }
        channel.queue_declare(level, durable=True, auto_delete=False, arguments=arguments)
        channel.queue_bind(level, level, f"{earlier}1.#")
        channel.exchange_bind(after, level, f"{earlier}0.#")
        after = level


def _level(prefix: str, bit: int) -> str:
    return f"{prefix}_celery_delayed_{bit}"
