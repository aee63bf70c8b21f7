"""Users of the devcloud: what alice and bob do there, timed, and what Cinder's log says of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openstack
from openstack.connection import Connection

HOME = Path(os.environ.get("DEVCLOUD_HOME", "/opt/devcloud"))
CINDER_LOG = HOME / "log" / "cinder-volume.log"
MIB = 1 << 20
# Seconds until what others have left is gone, and Cinder's count is right
COUNTED_WITHIN = 60.0
UNSETTLED = frozenset({"creating", "deleting", "detaching", "in-use"})
PATIENCE = 600.0
# For so long a deletion is asked for again, in seconds
BUSY = 120.0
CLONED_BY = 3.0
"""Seconds that no clone takes, on a machine with nothing else to do."""


@dataclass(frozen=True, slots=True)
class Made:
    """A volume that a user has made from an image: after how many seconds, and whether Cinder says
    that it cloned."""

    id: str
    seconds: float
    cloned: bool


def connect(name: str) -> Connection:
    """The devcloud as one of its users sees it."""
    os.environ["OS_CLIENT_CONFIG_FILE"] = str(HOME / "clouds.yaml")
    return openstack.connect(cloud=name)


def data(mebibytes: int, disk_format: str = "raw") -> Path:
    """A file of so much random data, made once; zeros would be copied in no time, and Glance checks
    the format."""
    path = HOME / f"random-{mebibytes}.{disk_format}"
    half = path.with_suffix(".part")
    if not path.exists() and disk_format != "raw":
        subprocess.run(
            ["qemu-img", "convert", "-O", disk_format, data(mebibytes), half], check=True
        )
        half.rename(path)
    elif not path.exists():
        with half.open("wb") as file:
            for _ in range(mebibytes):
                file.write(os.urandom(MIB))
        half.rename(path)
    return path


class Person:
    """One user with a project of the same name."""

    def __init__(self, name: str) -> None:
        self.connection = connect(name)

    @property
    def project_id(self) -> str:
        """The id of the user's project."""
        return str(self.connection.current_project_id)

    def image(
        self,
        name: str,
        *,
        mebibytes: int = 16,
        visibility: str = "community",
        store: str = "",
        **fields: Any,
    ) -> str:
        """The id of a new image, raw/bare unless said otherwise, active once this returns.

        `store` is where Glance is to put it, its default store if empty.
        """
        image_id = self.queued(name, visibility=visibility, **fields)
        self.fill(image_id, data(mebibytes, fields.get("disk_format", "raw")), store=store)
        return image_id

    def fill(self, image_id: str, file: Path, *, store: str = "") -> None:
        """Upload the data of an image record that has none."""
        headers = {"Content-Type": "application/octet-stream"} | (
            {"x-image-meta-store": store} if store else {}
        )
        with file.open("rb") as content:
            self._checked(
                self.connection.image.put(f"/images/{image_id}/file", data=content, headers=headers)
            )

    def queued(self, name: str, *, visibility: str = "community", **fields: Any) -> str:
        """The id of a new image record without data, raw/bare unless said otherwise."""
        body = {
            "name": name,
            "disk_format": "raw",
            "container_format": "bare",
            "visibility": visibility,
        } | fields
        return str(self._checked(self.connection.image.post("/images", json=body)).json()["id"])

    def property(self, image_id: str, name: str, value: object) -> None:
        """Set a property of an image; add to a list with the name `locations/-`."""
        headers = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
        patch = [{"op": "add", "path": f"/{name}", "value": value}]
        self._checked(
            self.connection.image.patch(f"/images/{image_id}", json=patch, headers=headers)
        )

    def show(self, image_id: str) -> dict[str, Any]:
        """The image as its API shows it."""
        answer: dict[str, Any] = self._checked(
            self.connection.image.get(f"/images/{image_id}")
        ).json()
        return answer

    def locations(self, image_id: str) -> list[dict[str, Any]]:
        """Where the data of an image lies; a Glance without the New Location API tells it with the
        image, if at all."""
        answer = self.connection.image.get(f"/images/{image_id}/locations")
        if answer.status_code == 404:
            found: list[dict[str, Any]] = self.show(image_id).get("locations", [])
        else:
            found = self._checked(answer).json()
        return found

    def images(self) -> list[dict[str, Any]]:
        """The images of the user's project."""
        answer = self._checked(
            self.connection.image.get(f"/images?owner={self.project_id}&limit=500")
        )
        images: list[dict[str, Any]] = answer.json()["images"]
        return images

    def delete_image(self, image_id: str, *, missing_ok: bool = False) -> None:
        """Delete an image; tried again while Glance or Cinder is busy with its data."""
        until, tries = time.monotonic() + BUSY, 0
        while True:
            answer = self.connection.image.delete(f"/images/{image_id}")
            tries += 1
            if answer.status_code == 404 and (missing_ok or tries > 1):
                return
            # Glance answers 500 while it reads a volume to hash it
            if answer.status_code not in (409, 500) or time.monotonic() > until:
                break
            time.sleep(0.5)
        self._checked(answer)

    def volume(self, image_id: str, volume_type: str, *, gibibytes: int = 1) -> Made:
        """Make a volume from an image and wait until it is available."""
        body = {
            "volume": {
                "size": gibibytes,
                "imageRef": image_id,
                "volume_type": volume_type,
                "name": "from-image",
            }
        }
        offset = CINDER_LOG.stat().st_size
        began = time.monotonic()
        answer = self._checked(self.connection.block_storage.post("/volumes", json=body))
        volume_id = answer.json()["volume"]["id"]
        status = self._settled(volume_id)
        seconds = time.monotonic() - began
        if status != "available":
            raise RuntimeError(f"volume {volume_id} of image {image_id} is {status}")
        return Made(
            volume_id,
            seconds,
            _says_clone(volume_id, answer.headers["x-openstack-request-id"], offset),
        )

    def blank(self, volume_type: str, *, gibibytes: int = 1, **fields: Any) -> str:
        """The id of a new empty volume, available once this returns."""
        body = {"volume": {"size": gibibytes, "volume_type": volume_type, "name": "blank"} | fields}
        volume_id = str(
            self._checked(self.connection.block_storage.post("/volumes", json=body)).json()[
                "volume"
            ]["id"]
        )
        if (status := self._settled(volume_id)) != "available":
            raise RuntimeError(f"volume {volume_id} is {status}")
        return volume_id

    def upload(self, volume_id: str, name: str) -> str:
        """Have Cinder itself make a raw image of a volume; the image's id, while Cinder is at
        work."""
        body = {
            "os-volume_upload_image": {
                "image_name": name,
                "disk_format": "raw",
                "container_format": "bare",
            }
        }
        answer = self._checked(
            self.connection.block_storage.post(f"/volumes/{volume_id}/action", json=body)
        )
        return str(answer.json()["os-volume_upload_image"]["image_id"])

    @contextmanager
    def attached(self, volume_id: str) -> Iterator[None]:
        """A volume that is in-use, as if a guest had it."""
        cinder, version = self.connection.block_storage, "3.54"
        connector = {"host": "guest", "ip": "127.0.0.1", "initiator": "iqn.x", "multipath": False}
        body = {"attachment": {"volume_uuid": volume_id, "connector": connector}}
        answer = self._checked(cinder.post("/attachments", json=body, microversion=version))
        url = f"/attachments/{answer.json()['attachment']['id']}"
        self._checked(cinder.post(f"{url}/action", json={"os-complete": {}}, microversion=version))
        try:
            yield
        finally:
            self._checked(cinder.delete(url, microversion=version))

    def act(self, volume_id: str, action: str, **arguments: Any) -> None:
        """Have Cinder do one of its actions with a volume."""
        body = {action: arguments}
        self._checked(self.connection.block_storage.post(f"/volumes/{volume_id}/action", json=body))

    def limit(self, project_id: str, left: int | None, name: str = "gigabytes") -> None:
        """Let a project have so much beside what it has, None for no limit; only for an admin."""
        cinder, url = self.connection.block_storage, f"/os-quota-sets/{project_id}"
        allowed, before, until = -1, -1, time.monotonic() + COUNTED_WITHIN
        while left is not None:
            row = self._checked(cinder.get(f"{url}?usage=True")).json()["quota_set"][name]
            allowed = int(row["in_use"]) + int(row["reserved"]) + left
            counted = self._is_counted(project_id, name, row["in_use"])
            # A service that was killed may have spoilt the count for good, or left a volume attached.
            # So it may be right for a moment by chance, while a volume goes
            if (counted and allowed == before) or time.monotonic() > until:
                break
            before = allowed if counted else -1
            time.sleep(0.3)
        self._checked(cinder.put(url, json={"quota_set": {name: allowed}}))

    def _is_counted(self, project_id: str, name: str, count: int) -> bool:
        """Whether a count of a project's quota is that of its volumes, and none is about to go:
        Cinder still counts a volume for a moment after its API answers 404."""
        kind, _, volume_type = name.partition("_")
        volumes = self._checked(
            self.connection.block_storage.get(
                f"/volumes/detail?all_tenants=1&project_id={project_id}"
            )
        ).json()["volumes"]
        if {volume["status"] for volume in volumes} & UNSETTLED:
            return False
        return count == sum(
            int(volume["size"]) if kind == "gigabytes" else 1
            for volume in volumes
            if not volume_type or volume["volume_type"] == volume_type
        )

    def sha256(self, image_id: str) -> str:
        """The hash of an image's data, downloaded."""
        answer = self.connection.image.get(f"/images/{image_id}/file", stream=True)
        digest = hashlib.sha256()
        for chunk in self._checked(answer).iter_content(MIB):
            digest.update(chunk)
        return digest.hexdigest()

    def delete_volume(self, volume_id: str) -> None:
        """Delete a volume and wait until it is gone."""
        self._checked(self.connection.block_storage.delete(f"/volumes/{volume_id}"))
        until = time.monotonic() + PATIENCE
        while self.connection.block_storage.get(f"/volumes/{volume_id}").status_code != 404:
            if time.monotonic() > until:
                raise TimeoutError(f"volume {volume_id} does not go")
            time.sleep(0.2)

    def volumes(self) -> list[dict[str, Any]]:
        """All volumes of the user's project, with details."""
        answer: list[dict[str, Any]] = self._checked(
            self.connection.block_storage.get("/volumes/detail")
        ).json()["volumes"]
        return answer

    @contextmanager
    def temporary_volume(
        self, image_id: str, volume_type: str, *, gibibytes: int = 1
    ) -> Iterator[Made]:
        """A volume made from an image, deleted at the end."""
        made = self.volume(image_id, volume_type, gibibytes=gibibytes)
        try:
            yield made
        finally:
            self.delete_volume(made.id)

    def begin_volume(self, image_id: str, volume_type: str) -> str:
        """The id of a new volume of an image, while Cinder is at work."""
        body = {
            "volume": {
                "size": 1,
                "imageRef": image_id,
                "volume_type": volume_type,
                "name": "from-image",
            }
        }
        return str(
            self._checked(self.connection.block_storage.post("/volumes", json=body)).json()[
                "volume"
            ]["id"]
        )

    def activated(self, image_id: str, active: bool) -> None:
        """Activate or deactivate an image."""
        action = "reactivate" if active else "deactivate"
        self._checked(self.connection.image.post(f"/images/{image_id}/actions/{action}"))

    def _settled(self, volume_id: str) -> str:
        began = time.monotonic()
        while (waited := time.monotonic() - began) < PATIENCE:
            answer = self._checked(self.connection.block_storage.get(f"/volumes/{volume_id}"))
            status = str(answer.json()["volume"]["status"])
            if status == "available" or status.startswith("error"):
                return status
            # A clone is measured in tenths of a second. What takes longer needs the processor itself
            time.sleep(0.1 if waited < CLONED_BY else 0.7)
        raise TimeoutError(
            f"volume {volume_id} is neither available nor in error after {PATIENCE:g} s"
        )

    @staticmethod
    def _checked(answer: Any) -> Any:
        if answer.status_code >= 400:
            raise RuntimeError(
                f"{answer.request.method} {answer.url}: {answer.status_code} {answer.text[:300]}"
            )
        return answer


def _says_clone(volume_id: str, request_id: str, offset: int) -> bool:
    """Whether Cinder's log says that the volume is a clone: of a location, of its cache, or by its
    driver."""
    with CINDER_LOG.open("rb") as log:
        log.seek(offset)
        lines = log.read().decode(errors="replace").splitlines()
    if any("Attempting download of" in line and volume_id in line for line in lines):
        return False
    located = any(
        "Will clone a volume from the image volume" in line and request_id in line for line in lines
    )
    # The cache works under a request id of its own
    cached = any("Creating from source image-volume" in line for line in lines)
    native = any(f" to volume-{volume_id}" in line and "cloning " in line for line in lines)
    if not (located or cached or native):
        raise RuntimeError(f"{CINDER_LOG} does not say how volume {volume_id} was made")
    return True
