"""Scenarios that prove a deployment, by the APIs of Glance and Cinder alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from typing import Any

from tempest import config, test
from tempest.lib import decorators, exceptions
from tempest.lib.common.utils import data_utils
from tempest.lib.common.utils.test_utils import call_and_ignore_notfound_exc, call_until_true

from handlers import image_volume
from worker.core.cloud import GIB
from worker.core.target import TAG

CONF = config.CONF
OPTIONS = CONF.image_volume_worker
EVERY = 0.5
"""Seconds between two looks."""
DATA = 4 * 1024 * 1024
"""Bytes of an image."""
# Cinder writes this when it has downloaded an image (cinder/volume/flows/manager/create_volume.py)
DOWNLOADED = "signature_verified"


class DeploymentTest(test.BaseTestCase):
    """A user's images and volumes, another user's volumes, and what an administrator sees."""

    credentials = ("primary", "alt", "admin")

    @classmethod
    def skip_checks(cls) -> None:
        """Skip everything where there is no target to test."""
        super().skip_checks()
        if not (CONF.service_available.glance and CONF.service_available.cinder):
            raise cls.skipException("needs Glance and Cinder")
        if not OPTIONS.volume_type:
            raise cls.skipException("[image_volume_worker] volume_type is not set")

    @classmethod
    def setup_clients(cls) -> None:
        """The clients of the users."""
        super().setup_clients()
        cls.images = cls.os_primary.image_client_v2
        cls.volumes = cls.os_primary.volumes_client_latest
        cls.others = cls.os_alt.volumes_client_latest
        cls.operator = cls.os_admin.volumes_client_latest

    @decorators.idempotent_id("6b1f0f8e-6d0c-4d6a-9d0e-0f8f3c1f2a11")
    def test_another_project_clones_a_warm_image(self) -> None:
        """A new image becomes warm, and another project's volume of it is a clone."""
        image_id = self._image()
        self._warm(image_id)
        made, statuses = self._volume(self.others, imageRef=image_id)
        self.assertNotIn("downloading", statuses)
        self.assertNotIn(DOWNLOADED, made["volume_image_metadata"])

    @decorators.idempotent_id("2c7a4f5b-2c2f-4f67-8f06-7e0d8f5b6c22")
    def test_an_image_is_made_of_a_volume_that_its_property_names(self) -> None:
        """An image record that names a volume becomes active, with the size of the volume."""
        if not OPTIONS.uploads:
            raise self.skipException("[image_volume_worker] uploads is off")
        source, _ = self._volume(self.volumes)
        image_id = self._record()
        wish = {"add": f"/{OPTIONS.source_property}", "value": f"{source['id']}/{image_id}"}
        self.images.update_image(image_id, [wish])
        self._until(lambda: self.images.show_image(image_id)["status"] == "active", "not active")
        self.assertEqual(GIB, self.images.show_image(image_id)["size"])

    @decorators.idempotent_id("91d6f1a7-0e5c-4a3e-8b57-5a9f1e7d3b33")
    def test_the_image_volume_of_a_deleted_image_is_deleted(self) -> None:
        """With the image its Image-Volume is deleted."""
        image_id = self._image()
        self._warm(image_id)
        self.images.delete_image(image_id)
        self._until(lambda: not self._image_volumes(image_id), "its Image-Volume is still there")

    @decorators.idempotent_id("d3e8c2b4-77aa-4c58-a6d1-3f2b9c0e4d44")
    def test_an_image_volume_that_was_deleted_is_made_again(self) -> None:
        """An Image-Volume that an administrator deletes is made again, and volumes are clones."""
        image_id = self._image()
        lost = self._warm(image_id)
        self.operator.force_delete_volume(lost["id"])
        self.operator.wait_for_resource_deletion(lost["id"])
        self._warm(image_id, after=OPTIONS.rewarm_interval)
        made, _ = self._volume(self.volumes, imageRef=image_id)
        self.assertNotIn(DOWNLOADED, made["volume_image_metadata"])

    @decorators.idempotent_id("4f9a7d60-5b1e-4b7c-9c83-e1a6d2f85e55")
    def test_users_do_not_see_the_image_volume(self) -> None:
        """Neither the owner of the image nor another user can see the Image-Volume."""
        made = self._warm(self._image())
        for user in (self.volumes, self.others):
            names = {volume["name"] for volume in user.list_volumes()["volumes"]}
            self.assertNotIn(made["name"], names)
            self.assertRaises(exceptions.NotFound, user.show_volume, made["id"])

    def _record(self) -> str:
        """Make an image without data; it is deleted at the end."""
        made = self.images.create_image(
            name=data_utils.rand_name("image-volume-worker"),
            disk_format="raw",
            container_format="bare",
            visibility="community",
        )
        self.addCleanup(call_and_ignore_notfound_exc, self.images.delete_image, made["id"])
        return str(made["id"])

    def _image(self) -> str:
        image_id = self._record()
        self.images.store_image_file(image_id, BytesIO(os.urandom(DATA)))
        return image_id

    def _image_volumes(self, image_id: str) -> list[dict[str, Any]]:
        """The image's volumes of the target's type, as an administrator sees them."""
        name = image_volume.name_of(image_id)
        listed = self.operator.list_volumes(detail=True, params={"all_tenants": 1, "name": name})
        return [one for one in listed["volumes"] if one["volume_type"] == OPTIONS.volume_type]

    def _warm(self, image_id: str, *, after: int = 0) -> dict[str, Any]:
        """Wait until the worker has marked an available Image-Volume, which it does last; `after`:
        seconds in which it need not begin."""

        def marked() -> list[dict[str, Any]]:
            return [
                volume
                for volume in self._image_volumes(image_id)
                if volume["status"] == "available" and TAG in volume["metadata"]
            ]

        self._until(marked, "not warm", after=after)
        return marked()[0]

    def _volume(self, user: Any, **fields: str) -> tuple[dict[str, Any], set[str]]:
        """Make a volume, and return it with the statuses that it had on the way; it is deleted at
        the end."""
        made = user.create_volume(
            size=1,
            name=data_utils.rand_name("image-volume-worker"),
            volume_type=OPTIONS.volume_type,
            **fields,
        )["volume"]
        self.addCleanup(user.wait_for_resource_deletion, made["id"])
        self.addCleanup(call_and_ignore_notfound_exc, user.delete_volume, made["id"])
        statuses: set[str] = set()

        def ended() -> bool:
            status = str(user.show_volume(made["id"])["volume"]["status"])
            statuses.add(status)
            return status in {"available", "error"}

        self._until(ended, "still being made")
        self.assertIn("available", statuses)
        return user.show_volume(made["id"])["volume"], statuses

    def _until(self, condition: Callable[[], object], otherwise: str, *, after: int = 0) -> None:
        patience = after + OPTIONS.timeout
        if not call_until_true(condition, patience, EVERY):
            self.fail(f"{otherwise} after {patience} s")
