"""Frames: properties that py-amqp can't decode are left out of a message, so that they do not break
the connection.

Whoever may publish chooses the properties, headers and routing key of a message, and RabbitMQ
passes them on unchecked: text that is not UTF-8, a time that no calendar has, tables a thousand
deep. py-amqp raises on them in the middle of reading. We would lose the connection, the broker
would deliver the message again, and so on for ever.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from amqp import Message, spec
from amqp.method_framing import frame_handler
from amqp.serialization import loads

METHOD, HEADER = 1, 2
"""Kinds of frames."""

_LAYOUTS = {spec.Basic.Deliver: "sLbss", spec.Basic.GetOk: "Lbssl", spec.Basic.Return: "Bsss"}
"""Arguments of the methods that a message comes with, as py-amqp's `loads` names their types."""
_SIZES = {"b": 1, "B": 2, "l": 4, "L": 8}
_ARGUMENTS = 4
"""Where they begin: behind the numbers of class and method."""
_PROPERTIES = 12
"""Where a message's properties begin: behind class, weight and size of the body."""
_NONE = b"\0\0"
"""The flags of no property at all."""
_READABLE = bytes(byte if byte < 0x80 else ord("?") for byte in range(256))

Frame = tuple[int, int, bytes]


def tolerant(connection: Any, callback: Callable[..., object]) -> Callable[[Frame], bool]:
    """Return a reader of frames like py-amqp's own that also takes messages py-amqp can't
    decode."""
    read: Callable[[Frame], bool] = frame_handler(connection, callback)

    def on_frame(frame: Frame) -> bool:
        kind, channel, content = frame
        if kind == METHOD:
            return read((kind, channel, readable_arguments(content)))
        if kind != HEADER:
            return read(frame)
        try:
            return read(frame)
        except Exception:
            # py-amqp may raise anything on properties. If these are readable, the error comes from
            # whoever got the message
            if has_readable_properties(content):
                raise
            return read((kind, channel, content[:_PROPERTIES] + _NONE))

    return on_frame


def has_readable_properties(header: bytes) -> bool:
    """Whether py-amqp can decode the properties in a header frame."""
    try:
        Message().inbound_header(header)
    except Exception:
        return False
    return True


def readable_arguments(method: bytes) -> bytes:
    """Return a method frame; in one that belongs to a message, text that is not UTF-8 has ? for
    all that is not ASCII."""
    layout = _LAYOUTS.get(struct.unpack_from(">HH", method))
    if layout is None or method[_ARGUMENTS:].isascii():
        return method
    try:
        loads(layout, method, _ARGUMENTS)
    except UnicodeDecodeError:
        return _with_readable_texts(method, layout)
    return method


def _with_readable_texts(method: bytes, layout: str) -> bytes:
    made, offset = bytearray(method), _ARGUMENTS
    for kind in layout:
        if kind == "s":
            end = offset + 1 + made[offset]
            made[offset + 1 : end] = made[offset + 1 : end].translate(_READABLE)
            offset = end
        else:
            offset += _SIZES[kind]
    return bytes(made)
