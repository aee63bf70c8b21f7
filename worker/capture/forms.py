"""Forms: what tools wrap a notification in when they capture it. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any

from worker.core.errors import Malformed
from worker.core.notification import decode

# oslo.messaging's driver `log`: the notification as JSON behind a log line's head
_LOGGED = re.compile(rb"\boslo\.messaging\.notification\.\S+ .*?(\{.*\})\s*\Z", re.DOTALL)
_NAMES = ("raw", "body", "message", "request", "payload")
"""Fields that hold the message: of `record`, of others that record, of AMQP 1.0 (Smart Gateway), of
kcat -J and RabbitMQ's tracing."""
_FIELDS = 6
"""Fields of an unknown form that its error names."""


def decoded(body: bytes) -> dict[str, Any]:
    """Return the fields of the notification in a message, taken out of what it is wrapped in;
    Malformed with what it looks like if there is none."""
    outer = _parsed(body)
    if isinstance(outer, dict) and "traits" in outer and "payload" not in outer:
        # It has the notification's event_type too
        if not outer.get("raw"):
            raise Malformed("an event of Ceilometer without its notification: its `raw` is empty")
        return decode(json.dumps(outer["raw"]).encode())
    try:
        return decode(body)
    except Malformed as error:
        inner = _unwrapped(body, outer)
        if inner is None:
            raise Malformed(_looks_like(outer) or str(error)) from error
    return decode(*inner)


def is_pair(line: bytes) -> bool:
    """Whether the line is a routing key and its message, as StackTach records them."""
    found = _parsed(line)
    return (
        isinstance(found, list)
        and len(found) == 2
        and isinstance(found[0], str)
        and isinstance(found[1], dict | str)
    )


def _parsed(body: bytes) -> object:
    try:
        found: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found


def _unwrapped(body: bytes, outer: object) -> tuple[bytes, str] | None:
    """Return the message that a tool has wrapped, and its compression; None for no form that we
    know."""
    if logged := _LOGGED.search(body):
        return logged[1], ""
    if isinstance(outer, list) and is_pair(body):
        return _message(outer[1])
    if not isinstance(outer, dict):
        return None
    # rabbitmqadmin get -f raw_json, and the management API
    if "payload_encoding" in outer:
        payload = outer.get("payload")
        if not isinstance(payload, str):
            return None
        if outer["payload_encoding"] != "base64":
            return payload.encode(), ""
        decoded = _base64(payload)
        return None if decoded is None else (decoded, _compression(outer))
    for name in _NAMES:
        if message := _message(outer.get(name)):
            return message
    return None


def _message(inner: object) -> tuple[bytes, str] | None:
    """Return a message as text, as base64 of it, or as an object."""
    if isinstance(inner, dict):
        return json.dumps(inner).encode(), ""
    if not isinstance(inner, str):
        return None
    # RabbitMQ's tracing does not tell that it is base64
    if not inner.lstrip().startswith("{") and (decoded := _base64(inner)):
        return decoded, ""
    return inner.encode(), ""


def _base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _compression(outer: Mapping[str, Any]) -> str:
    """Return the header by which kombu says how it compressed the payload; "" if there is none."""
    properties = outer.get("properties")
    headers = properties.get("headers") if isinstance(properties, dict) else None
    compression = headers.get("compression") if isinstance(headers, dict) else None
    return compression if isinstance(compression, str) else ""


def _looks_like(outer: object) -> str:
    """Return what an object is that holds no notification in a form that we know; "" for no
    object."""
    if not isinstance(outer, dict):
        return ""
    if "_source" in outer:
        return "a document of Elasticsearch: pass its _source"
    if "hits" in outer:
        return "an answer of Elasticsearch: pass the _source of each of its hits"
    if "event_type" in outer:
        return ""
    names = ", ".join(str(name)[:40] for name in list(outer)[:_FIELDS]) or "no field"
    return f"an object with {names}, in which no notification is found"
