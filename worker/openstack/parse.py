"""Answers of Glance and Cinder to values. Pure; nonsense raises, and is asked for again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from worker.core.age import epoch
from worker.core.cloud import Image, ImageTask, Location, Store, Volume, own
from worker.core.creation import NOTE
from worker.core.errors import Temporary

# Fields of every image that are no properties of its own; a hash and two links a listed image would
# be a third of it
BASE = frozenset({
    "id", "name", "status", "owner", "disk_format", "container_format", "visibility", "created_at", "updated_at",
    "checksum", "os_hash_algo", "os_hash_value", "self", "file", "schema", "stores", "direct_url",
})  # fmt: skip
LONGEST = 4096
"""Characters that are kept of a property. None that we read is longer, and users may write 64 KiB
into each of 128."""
MOST_IMAGE_METADATA = 1 << 20
"""Characters of a volume's image metadata that are kept. Cinder limits neither their number nor their
size together; Glance takes 128 properties of an image."""
T = TypeVar("T")
One = TypeVar("One", Image, Volume)


def rows(page: Any, name: str) -> list[Any]:
    """Return the rows that an answer has under `name`; Temporary if it has none."""
    rows = page.get(name) if isinstance(page, dict) else None
    if not isinstance(rows, list):
        # An empty list would read as "nothing there", and things get deleted for not being there
        raise Temporary(f"an answer without {name}")
    return rows


def parsed(service: str, parse: Callable[[Any], T], answer: Any) -> T:
    """Return the answer as `parse` reads it; Temporary if it makes no sense."""
    try:
        return parse(answer)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # Most likely it is not the service's own: a proxy's, or cut short where it is still JSON
        raise Temporary(f"{service}: an answer that makes no sense: {error!r}"[:300]) from error


def asked_for(wanted: str, one: One) -> One:
    """Return an image or a volume that has the id that was asked for, whatever its letters' case;
    ValueError if it is another one: a proxy may answer with what it was asked before."""
    if one.id.lower() != wanted.lower():
        raise ValueError(f"{wanted} was asked for, and the answer is about {one.id}")
    return one


def each(name: str, parse: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """Return a function that parses an answer with its rows under `name`."""
    return lambda answer: tuple(parse(row) for row in rows(answer, name))


def link(url: object) -> str | None:
    """Return the link to the next page, None on the last one."""
    if not isinstance(url, str | None):
        raise TypeError(f"no link: {url!r}")
    return url or None


def _text(fields: Mapping[str, Any], name: str) -> str:
    """Return a text that may be missing or null, but nothing else."""
    value = fields.get(name)
    if not isinstance(value, str | None):
        raise TypeError(f"{name} is no text: {value!r}")
    return value or ""


def _word(fields: Mapping[str, Any], name: str) -> str:
    """Return a text that must be there."""
    if not (value := _text(fields, name)):
        raise ValueError(f"no {name}")
    return value


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split(",")) - {""}


def locations(rows: Any) -> tuple[Location, ...]:
    """Return the locations of Glance's list of them."""
    # No list would read as "no locations", and things are made and deleted for there being none
    if not isinstance(rows, list):
        raise TypeError(f"no list: {rows!r}")
    return tuple(location(row) for row in rows)


def shown_locations(image: Any) -> tuple[Location, ...]:
    """Return the locations in an image's own fields; none where Glance does not show them."""
    return locations(image.get("locations") or []) if _word(image, "id") else ()


def image(fields: Mapping[str, Any]) -> Image:
    """Return the image of an entry of GET /v2/images."""
    updated_at = _text(fields, "updated_at")
    return Image(
        id=_word(fields, "id"),
        status=_word(fields, "status"),
        owner=_text(fields, "owner"),
        disk_format=_text(fields, "disk_format"),
        container_format=_text(fields, "container_format"),
        visibility=_text(fields, "visibility"),
        name=_text(fields, "name"),
        size=int(fields.get("size") or 0),
        virtual_size=int(fields.get("virtual_size") or 0),
        min_disk=int(fields.get("min_disk") or 0),
        created_epoch=epoch(_text(fields, "created_at")),
        updated_at=updated_at,
        updated_epoch=epoch(updated_at),
        stores=_names(_text(fields, "stores")) if "stores" in fields else None,
        importing=_names(_text(fields, "os_glance_importing_to_stores")),
        failed=_names(_text(fields, "os_glance_failed_import")),
        import_locked="os_glance_import_task" in fields,
        properties={
            key: value[:LONGEST]
            for key, value in fields.items()
            if isinstance(value, str) and key not in BASE
        },
    )


def location(fields: Mapping[str, Any]) -> Location:
    """Return the location of an image, with the store that its URL or its metadata names."""
    location = Location.from_url(_word(fields, "url"))
    store = location.store or str((fields.get("metadata") or {}).get("store", ""))
    return replace(location, store=store)


def store(fields: Mapping[str, Any]) -> Store:
    """Return the store of an entry of GET /v2/info/stores."""
    properties = fields.get("properties") or {}
    return Store(
        id=_word(fields, "id"),
        type=_text(fields, "type"),
        volume_type=_text(properties, "volume_type"),
    )


def task(fields: Mapping[str, Any]) -> ImageTask:
    """Return the task of an entry of GET /v2/images/{id}/tasks."""
    given = fields.get("input") or {}
    given = given if isinstance(given, dict) else {}
    stores = given.get("backend")
    return ImageTask(
        id=_word(fields, "id"),
        type=_word(fields, "type"),
        status=_word(fields, "status"),
        message=_text(fields, "message"),
        url=_text(given, "loc_url"),
        # [None] where Glance has no enabled_backends
        stores=frozenset(map(str, filter(None, stores if isinstance(stores, list) else ()))),
        created_epoch=epoch(_text(fields, "created_at")),
        updated_epoch=epoch(_text(fields, "updated_at")),
    )


def volume(fields: Mapping[str, Any]) -> Volume:
    """Return the volume of an entry of GET /volumes/detail."""
    metadata = fields.get("metadata") or {}
    shown = Volume(
        id=_word(fields, "id"),
        name=_text(fields, "name"),
        status=_word(fields, "status"),
        volume_type=_text(fields, "volume_type"),
        size=int(fields["size"]),
        created_at=_text(fields, "created_at"),
        created_epoch=epoch(_text(fields, "created_at")),
        updated_epoch=epoch(_text(fields, "updated_at")),
        # As the scheduler names its pools: active-active services share one name, their cluster's
        host=_text(fields, "cluster_name") or _text(fields, "os-vol-host-attr:host"),
        project_id=_text(fields, "os-vol-tenant-attr:tenant_id"),
        source_volid=_text(fields, "source_volid"),
        snapshot_id=_text(fields, "snapshot_id"),
        # The field is missing for a login that may not see it; null means that there is no place
        scheduled=fields.get("os-vol-host-attr:host", "") is not None,
        encrypted=bool(fields.get("encrypted")),
        # Written when the image's data has come (_create_from_image_cache_or_download), not when it
        # was cloned
        downloaded=NOTE in (fields.get("volume_image_metadata") or {}),
        metadata={name: _text(metadata, name) for name in metadata},
    )
    return own(shown)


def whole_volume(fields: Mapping[str, Any]) -> Volume:
    """Return a volume with Cinder's copy of its image's properties, which few readers need and
    which may be large."""
    given = fields.get("volume_image_metadata") or {}
    kept = {name: _text(given, name) for name in given}
    too_much = sum(len(name) + len(value) for name, value in kept.items()) > MOST_IMAGE_METADATA
    if too_much:
        kept = {name: kept[name][:LONGEST] for name in ("image_id",) if name in kept}
    return replace(volume(fields), image_properties=kept, oversized=too_much)


def zones(answer: Any) -> dict[str, str]:
    """Return the availability zones of the backends, by host@backend."""
    return {str(row["host"]): str(row.get("zone") or "") for row in rows(answer, "services")}


def version(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Return (2, 17) of an entry `v2.17`; empty if it is no version."""
    numbers = str(fields.get("id", "")).removeprefix("v").split(".")
    return (
        tuple(int(number) for number in numbers)
        if all(number.isdecimal() for number in numbers)
        else ()
    )
