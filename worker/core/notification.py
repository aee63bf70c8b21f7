"""A notification as a frozen value: what its sender claims, reduced to what routing needs. No IO,
no secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from worker.core.compression import plain
from worker.core.creation import NOTE
from worker.core.errors import Malformed
from worker.core.target import TAG

# Glance keeps an id that its user gives as that user spells it: with capital letters, too
IMAGE_ID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
IMAGE_VOLUME_NAME = re.compile(rf"(?:image|warm)-({IMAGE_ID.pattern})")

FIELDS = ("message_id", "publisher_id", "event_type", "priority", "timestamp", "payload")
"""What a notification is made of; its context, which can hold a live token, is none of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One notification of Glance or Cinder. Text that is missing is "", times are epoch seconds.

    `image_id` is the image it is about: of an image event the image itself, of a volume event the
    image whose Image-Volume the volume claims to be; `source_image_id` is the image that a volume's
    metadata names as its source: a volume made from a snapshot (`snapshot_id`) or from another
    volume, which no payload names, has inherited that. `host` is the pool of a volume, or of a
    cache entry that was used; `downloaded` tells that Cinder has noted a download of the image on
    the volume, or on the one that it was cloned from. `project` is whose doing it is: an image's
    owner, who asked for a volume. `visibility` is an image's own. `target` is the value of our own
    tag in the volume's metadata, `claimed` whether the metadata names the image (else the volume's
    name alone does), `properties` are the names of the image's own properties, `importing` the
    stores that an import under way has still to fill. The message's context (which can hold a live
    token) is dropped here.
    """

    message_id: str
    event_type: str
    priority: str
    publisher_id: str
    timestamp: float | None
    status: str = ""
    image_id: str = ""
    source_image_id: str = ""
    volume_id: str = ""
    snapshot_id: str = ""
    volume_type_id: str = ""
    host: str = ""
    downloaded: bool = False
    project: str = ""
    visibility: str = ""
    target: str = ""
    claimed: bool = False
    properties: frozenset[str] = frozenset()
    importing: frozenset[str] = frozenset()

    @property
    def is_use(self) -> bool:
        """Whether a user may have made a volume of an image: `source_image_id`, on the type
        `volume_type_id`.

        A clone of another volume looks the same here: only Cinder's API tells.
        """
        made = (
            self.event_type == "volume.create.end" and self.source_image_id and not self.snapshot_id
        )
        return bool(made and not self.image_id and not self.target)

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Notification:
        """The notification of a decoded message."""
        event_type, payload = message["event_type"], message.get("payload")
        return cls(
            message_id=_text(message, "message_id"),
            event_type=event_type,
            priority=_text(message, "priority").lower(),
            publisher_id=_text(message, "publisher_id"),
            timestamp=_time(message.get("timestamp")),
            **(_subject(event_type, payload) if isinstance(payload, dict) else {}),
        )


def decode(body: bytes, compression: str = "") -> dict[str, Any]:
    """Return the fields of a message, whose `event_type` is text: envelope 2.0 or bare; Malformed
    if it is neither.

    `compression` is the message's header of that name, "" if it has none.
    Source: oslo_messaging/notify/messaging.py, oslo_messaging/_drivers/common.py (serialize_msg).
    """
    text = plain(body, compression)
    try:
        message = _loads(text)
        if isinstance(message, dict) and "oslo.message" in message:
            inner = message["oslo.message"]
            # As text, or unpacked by a tool that had it in its hands
            message = inner if isinstance(inner, dict) else _loads(inner)
    except json.JSONDecodeError as error:
        raise Malformed(f"not a notification: not JSON: {error}"[:200]) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise Malformed(f"not a notification: {error}"[:200]) from error
    if not isinstance(message, dict):
        raise Malformed(f"a notification is an object, not {type(message).__name__}")
    if "event_type" not in message:
        raise Malformed("not a notification: it has no event_type")
    event_type = message["event_type"]
    if not isinstance(event_type, str) or not event_type:
        raise Malformed("event_type is not text")
    return message


def _loads(text: bytes | str) -> Any:
    """Parse JSON. Python's own parser is slow, but takes NaN and lone surrogates, as oslo may write
    them."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


def _subject(event_type: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the subject of the payload, as fields of `Notification`."""
    if event_type.startswith("volume."):
        metadata = _pairs(payload.get("metadata"))
        named = IMAGE_VOLUME_NAME.fullmatch(_text(payload, "display_name"))
        of_image = _pairs(payload.get("glance_metadata"))
        return {
            "status": _text(payload, "status"),
            "volume_id": _uuid(payload.get("volume_id")),
            "snapshot_id": _text(payload, "snapshot_id"),
            "volume_type_id": _text(payload, "volume_type"),
            "project": _text(payload, "tenant_id"),
            "image_id": _uuid(metadata.get("glance_image_id")) or (named.group(1) if named else ""),
            "claimed": "glance_image_id" in metadata,
            "source_image_id": _uuid(of_image.get("image_id")),
            "host": _text(payload, "host"),
            "downloaded": NOTE in of_image,
            "target": metadata.get(TAG, ""),
        }
    if event_type == "scheduler.create_volume":
        spec = payload.get("request_spec")
        properties = spec.get("volume_properties") if isinstance(spec, dict) else None
        properties = properties if isinstance(properties, dict) else {}
        metadata = _pairs(properties.get("metadata"))
        named = IMAGE_VOLUME_NAME.fullmatch(_text(properties, "display_name"))
        return {
            "status": _text(payload, "state"),
            "volume_id": _uuid(payload.get("volume_id")),
            "image_id": _uuid(metadata.get("glance_image_id")) or (named.group(1) if named else ""),
            "target": metadata.get(TAG, ""),
        }
    properties = _pairs(payload.get("properties"))
    # One that has failed leaves its list behind, but not its task
    coming = (
        properties.get("os_glance_importing_to_stores", "")
        if properties.get("os_glance_import_task")
        else ""
    )
    return {
        "status": _text(payload, "status"),
        "image_id": _uuid(payload.get("image_id") or payload.get("id")),
        "host": _text(payload, "host"),
        "project": _text(payload, "owner"),
        "visibility": _text(payload, "visibility"),
        "properties": frozenset(properties),
        "importing": frozenset(coming.split(",")) - {""},
    }


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _uuid(value: object) -> str:
    """The value if it is a UUID, else "": ids end up in URLs."""
    return value if isinstance(value, str) and IMAGE_ID.fullmatch(value) else ""


def _pairs(rows: object) -> dict[str, str]:
    """Metadata as Cinder spells it in payloads, a list of key and value rows or an object, as a
    dict of text."""
    if isinstance(rows, list):
        rows = {
            row.get("key"): row.get("value")
            for row in rows
            if isinstance(row, dict) and isinstance(row.get("key"), str)
        }
    if not isinstance(rows, dict):
        return {}
    return {
        key: value for key, value in rows.items() if isinstance(key, str) and isinstance(value, str)
    }


def _time(value: object) -> float | None:
    """Epoch seconds of a timestamp as oslo.messaging writes it: UTC, without a zone."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (OverflowError, ValueError):
        return None
