"""Messages as no client library makes them, but RabbitMQ passes on."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import amqp


class Raw(amqp.Message):
    """A message whose properties are these bytes."""

    def __init__(self, body: bytes, flags: int, properties: bytes) -> None:
        super().__init__(body)
        self._raw = struct.pack(">H", flags) + properties

    def _serialize_properties(self) -> bytes:
        return self._raw


def _text(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def _sized(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def _deep(levels: int) -> bytes:
    made = b""
    for _ in range(levels):
        made = _text(b"a") + b"F" + _sized(made)
    return _sized(made)


PROPERTIES: Mapping[str, tuple[int, bytes]] = {
    "a message id that is no UTF-8": (0x0080, _text(b"\xff\xfe")),
    "a content type that is no UTF-8": (0x8000, _text(b"\xff\xfe")),
    "a header with a time that no calendar has": (
        0x2000,
        _sized(_text(b"t") + b"T" + struct.pack(">Q", 2**62)),
    ),
    "headers that are too deep": (0x2000, _deep(3000)),
    "a header's name that is no UTF-8": (0x2000, _sized(_text(b"\xff") + b"t\x01")),
}
"""Flags and bytes of properties, by what is odd about them."""
