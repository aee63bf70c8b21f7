"""Glance: images, their locations and stores."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

from worker.core.cloud import LISTED, Image, ImageTask, Location, Store
from worker.core.errors import Blocked, NotFound, SpelledOtherwise, TooLarge
from worker.openstack import parse
from worker.openstack.keystone import Keystone
from worker.openstack.paging import PAGE, first
from worker.openstack.survey import LOCATION_API, Shown

PATCH_TYPE = "application/openstack-images-v2.1-json-patch"
T = TypeVar("T")


class Glance(Keystone):
    """Verbs of the image API."""

    async def get_image(self, image_id: str) -> Image:
        image = await self._read(
            "image",
            f"/v2/images/{image_id}",
            lambda answer: parse.asked_for(image_id, parse.image(answer)),
            certain=image_id,
        )
        if image.id != image_id:
            raise SpelledOtherwise(image.id)
        return image

    async def list_images(self) -> AsyncIterator[Image]:
        # Glance lists either hidden images or the others, never both
        for hidden in ("false", "true"):
            query = {"status": f"in:{','.join(LISTED)}", "visibility": "all", "os_hidden": hidden}
            async for image in self._images(query, parse.image):
                yield image

    async def find_images(self, name: str) -> tuple[Image, ...]:
        """The images of this name, of all projects and hidden ones too."""
        found: dict[str, Image] = {}
        for hidden in ("false", "true"):
            # Glance reads a name that begins with in: as a list of names, unless it is quoted
            asked = f'in:"{name}"' if name.startswith("in:") else name
            query = {"name": asked, "visibility": "all", "os_hidden": hidden}
            async for image in self._images(query, parse.image):
                found[image.id] = image
        return tuple(image for image in found.values() if image.name == name)

    async def find_witness(self) -> str:
        project_id = await self._own_project()
        async for image in self._images({"visibility": "private"}, parse.image, most=100):
            if image.owner and image.owner != project_id:
                return image.id
        return ""

    async def get_locations(self, image_id: str) -> tuple[Location, ...] | None:
        try:
            return await self.read_locations(image_id) or None
        except (NotFound, Blocked):
            # Glance before 2.17, or we lack the role service: the image itself shows them if the
            # operator lets it
            shown = await self._read(
                "image", f"/v2/images/{image_id}", parse.shown_locations, certain=image_id
            )
            return shown or None

    async def read_locations(self, image_id: str) -> tuple[Location, ...]:
        """Return an image's locations by the New Location API alone; Blocked without the role
        service."""
        return await self._read("image", f"/v2/images/{image_id}/locations", parse.locations)

    async def shows_locations(self) -> bool:
        """Whether Glance lets us read the locations of images; True while there is no image to
        ask about."""
        # An image that is too large to be read says nothing about Glance
        with contextlib.suppress(TooLarge):
            # One by one: most often the first settles it
            async for image in first(5, self._newest("active", most=1)):
                with contextlib.suppress(NotFound, TooLarge):
                    if await self.get_locations(image.id) is not None:
                        return True
                    # Empty while an image is being deleted: one that is still active settles it
                    if (await self.get_image(image.id)).status == "active":
                        return False
        return True

    async def copy_image(self, image_id: str, stores: Iterable[str]) -> None:
        body = {
            "method": {"name": "copy-image"},
            "stores": list(stores),
            "all_stores_must_succeed": False,
        }
        await self._write("image", "POST", f"/v2/images/{image_id}/import", body)

    async def add_location(self, image_id: str, url: str) -> None:
        patch = [{"op": "add", "path": "/locations/-", "value": {"url": url, "metadata": {}}}]
        await self._write(
            "image", "PATCH", f"/v2/images/{image_id}", patch, content_type=PATCH_TYPE
        )

    async def import_location(self, image_id: str, url: str) -> None:
        await self._write(
            "image", "POST", f"/v2/images/{image_id}/locations", {"url": url, "validation_data": {}}
        )

    async def imports_locations(self) -> bool:
        return await self.image_api_version() >= LOCATION_API

    async def list_tasks(self, image_id: str) -> tuple[ImageTask, ...]:
        def newest_first(answer: Any) -> tuple[ImageTask, ...]:
            rows = sorted(
                parse.rows(answer, "tasks"),
                key=lambda row: str(row.get("created_at")),
                reverse=True,
            )
            return tuple(parse.task(row) for row in rows)

        return await self._read("image", f"/v2/images/{image_id}/tasks", newest_first)

    async def list_members(self, image_id: str) -> Mapping[str, str]:
        return await self._read(
            "image",
            f"/v2/images/{image_id}/members",
            lambda answer: {
                str(row["member_id"]): str(row["status"]) for row in parse.rows(answer, "members")
            },
        )

    async def set_properties(self, image_id: str, properties: Mapping[str, str]) -> None:
        patch = [_change(name, value) for name, value in properties.items()]
        await self._write(
            "image", "PATCH", f"/v2/images/{image_id}", patch, content_type=PATCH_TYPE
        )

    async def remove_from_store(self, image_id: str, store: str) -> None:
        await self._write("image", "DELETE", f"/v2/stores/{store}/{image_id}")

    async def list_stores(self) -> tuple[Store, ...]:
        # Since Glance 2.15, for the role admin; before that there is a list of names only
        for path in ("/v2/info/stores/detail", "/v2/info/stores"):
            with contextlib.suppress(NotFound):
                return await self._read("image", path, parse.each("stores", parse.store))
        return ()

    async def import_methods(self) -> frozenset[str]:
        """Return the image import methods that Glance offers."""
        return await self._read(
            "image",
            "/v2/info/import",
            lambda answer: frozenset(
                str(method) for method in answer.get("import-methods", {}).get("value", ())
            ),
        )

    async def image_api_version(self) -> tuple[int, ...]:
        """Return the newest version of the image API, as (2, 17)."""
        return await self._read(
            "image",
            "/versions",
            lambda answer: max(parse.each("versions", parse.version)(answer), default=()),
        )

    async def newest_images(self, *, limit: int = 100, status: str = "") -> tuple[Shown, ...]:
        """Return some images of any project, the newest first; with `status` only those in it."""
        return tuple([image async for image in first(limit, self._newest(status, most=limit))])

    def _newest(self, status: str, *, most: int) -> AsyncIterator[Shown]:
        query = {"visibility": "all"} | ({"status": status} if status else {})
        return self._images(query, Shown.from_api, most=most)

    def _images(
        self,
        query: Mapping[str, str],
        as_image: Callable[[Mapping[str, Any]], T],
        *,
        most: int = PAGE,
    ) -> AsyncIterator[T]:
        url = f"/v2/images?{urlencode(query)}"
        return self._pages(
            "image", url, "images", as_image, lambda page: page.get("next"), most=most
        )


def _change(name: str, value: str) -> dict[str, str]:
    """Return an operation of JSON Patch that sets a property, or removes it."""
    path = "/" + name.replace("~", "~0").replace("/", "~1")
    return {"op": "add", "path": path, "value": value} if value else {"op": "remove", "path": path}
