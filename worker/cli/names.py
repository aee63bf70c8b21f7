"""Images and volumes by id or name, as people give them to commands."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from worker.core.cloud import Volume
from worker.core.errors import Misconfigured, NotFound, SpelledOtherwise
from worker.core.notification import IMAGE_ID

if TYPE_CHECKING:
    from worker.openstack.cloud import OpenStackCloud
    from worker.settings import Settings

BEGINNING = re.compile(r"[0-9a-f]{8}[0-9a-f-]{0,27}")
SHOWN = 20
"""Ids that an error lists at most."""


async def image_id(cloud: OpenStackCloud, text: str) -> str:
    """The id of the image with this id, beginning of an id (8 digits at least) or name.

    An id is taken whether Glance has the image or not, in the letters in which Glance has it.
    NotFound if no image has the name, Misconfigured if several have.
    """
    if is_id(text):
        text = text.strip()
        if text != text.lower():
            try:
                await cloud.get_image(text)
            except SpelledOtherwise as error:
                return error.image_id
            except NotFound:
                pass
        return text
    found = [one.id for one in await cloud.find_images(text)]
    if not found and BEGINNING.fullmatch(beginning := text.strip().lower()):
        found = [
            one.id async for one in cloud.list_images() if one.id.lower().startswith(beginning)
        ]
    return _only("image", text, found)


async def volume(cloud: OpenStackCloud, text: str) -> Volume:
    """The volume of any project with this id or name; NotFound, or Misconfigured if several have
    the name."""
    if is_id(text):
        return await cloud.get_volume(text.strip().lower())
    found = {one.id: one for one in await cloud.find_all_volumes(text)}
    return found[_only("volume", text, found)]


def check_target(settings: Settings, name: str) -> None:
    """Misconfigured if a target is named that the configuration does not have."""
    configured = [target.name for target in settings.targets]
    if name and name not in configured:
        raise Misconfigured(f"no target {name!r} is configured, only {', '.join(configured)}")


def is_id(text: str) -> bool:
    """Whether the text is an id as Glance and Cinder write them."""
    return IMAGE_ID.fullmatch(text.strip()) is not None


def _only(kind: str, text: str, ids: Iterable[str]) -> str:
    ids = sorted(set(ids))
    if not ids:
        raise NotFound(f"no {kind} has the id or the name {text!r}")
    if len(ids) > 1:
        more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
        raise Misconfigured(
            f"{len(ids)} {kind}s fit {text!r}, give an id: {', '.join(ids[:SHOWN])}{more}"
        )
    return ids[0]
