"""The clone path, as a table: how Cinder would make a new volume of an image in a pool."""

from __future__ import annotations

from dataclasses import replace

import pytest

from handlers.clone_path import (
    CacheClone,
    Download,
    Evidence,
    ImageVolumeClone,
    NativeClone,
    Path,
    Pool,
    Unknown,
    clone_path,
)
from handlers.reasons import WORDS, Reason
from worker.core.cloud import GIB, Image, Location, Volume

IMAGE_ID = "f8195267-dc43-443b-86bf-8a5200144f25"
RAW = Image(
    id=IMAGE_ID, status="active", owner="alice", disk_format="raw", container_format="bare", visibility="public",
    size=GIB, stores=frozenset({"file", "c1"}), updated_at="then",
)  # fmt: skip
QCOW2 = replace(RAW, disk_format="qcow2")
HERE, THERE = Pool(hosts=frozenset({"h@b#one"})), Pool(hosts=frozenset({"h@b#two"}))
ACROSS = Pool(hosts=frozenset({"h@b#one", "h@b#two"}))
BY_TYPE = Pool(types=frozenset({"ssd"}))
RBD = Pool(hosts=frozenset({"h@ceph#p"}), native=frozenset({frozenset({"rbd"})}))
VOLUME = Volume(
    id="v1", name=f"image-{IMAGE_ID}", status="available", volume_type="ssd", size=1, host="h@b#one", created_at="1",
    project_id="internal", metadata={"image_owner": "alice", "glance_image_id": IMAGE_ID, "readonly": "True"},
)  # fmt: skip
ENTRY = replace(
    VOLUME, id="e1", metadata={"readonly": "True", "image_volume_worker_updated_at": "then"}
)  # fmt: skip
NEWER = replace(VOLUME, id="v2", created_at="2")
LOCATED = (Location(url="cinder://c1/v1", store="c1", volume_id="v1"),)
BOTH = (*LOCATED, Location(url="cinder://c1/v2", store="c1", volume_id="v2"))
FILE = (Location(url="file:///x", store="file"),)


def read(
    *volumes: Volume, locations: tuple[Location, ...] | None = LOCATED, cache_off: bool = False
) -> Evidence:
    return Evidence(locations=locations, volumes=volumes, cache_off=cache_off)


@pytest.mark.parametrize(
    ("image", "pool", "evidence", "expected"),
    [
        # 1. The driver clones the image itself
        (replace(RAW, stores=frozenset({"rbd"})), RBD, read(locations=FILE), NativeClone()),
        (replace(RAW, stores=frozenset({"file"})), RBD, read(locations=FILE),
         Download((Reason.NO_LOCATION, Reason.ENTRY_MISSING))),
        (replace(QCOW2, stores=frozenset({"rbd"})), RBD, read(locations=FILE),
         Download((Reason.FORMAT, Reason.ENTRY_MISSING))),
        # 2. The Image-Volume that a location names, in the same pool, with the image's owner
        (RAW, HERE, read(VOLUME), ImageVolumeClone(VOLUME)),
        (RAW, BY_TYPE, read(VOLUME), ImageVolumeClone(VOLUME)),
        (RAW, THERE, read(VOLUME), Download((Reason.OTHER_POOL, Reason.ENTRY_MISSING))),
        (RAW, ACROSS, read(VOLUME), ImageVolumeClone(VOLUME)),
        (RAW, HERE, read(replace(VOLUME, metadata={})), Download((Reason.OWNER, Reason.ENTRY_MISSING))),
        (RAW, HERE, read(replace(VOLUME, status="error")), Download((Reason.NOT_AVAILABLE, Reason.ENTRY_MISSING))),
        (RAW, HERE, read(replace(VOLUME, encrypted=True)), Download((Reason.ENCRYPTED, Reason.ENTRY_MISSING))),
        # Of several volumes the newest counts alone
        (RAW, HERE, read(NEWER, VOLUME, locations=BOTH), ImageVolumeClone(NEWER)),
        (RAW, HERE, read(replace(VOLUME, status="error"), NEWER, locations=BOTH), ImageVolumeClone(NEWER)),
        (RAW, HERE, read(VOLUME, replace(NEWER, status="error"), locations=BOTH),
         Download((Reason.NOT_AVAILABLE, Reason.ENTRY_MISSING))),
        (RAW, HERE, read(VOLUME, replace(NEWER, metadata={}), locations=BOTH), ImageVolumeClone(VOLUME)),
        (RAW, HERE, read(VOLUME, locations=FILE), Download((Reason.NO_LOCATION, Reason.ENTRY_MISSING))),
        (RAW, HERE, read(VOLUME, locations=None), Unknown((Reason.LOCATIONS_HIDDEN, Reason.ENTRY_MISSING))),
        # 3. The cache's entry, of any format, if it is fresh
        (QCOW2, HERE, read(ENTRY, locations=FILE), CacheClone(ENTRY)),
        (RAW, HERE, read(ENTRY, locations=None), CacheClone(ENTRY)),
        (QCOW2, THERE, read(ENTRY, locations=FILE), Download((Reason.FORMAT, Reason.ENTRY_MISSING))),
        (replace(QCOW2, updated_at="now"), HERE, read(ENTRY, locations=FILE),
         Download((Reason.FORMAT, Reason.ENTRY_STALE))),
        (QCOW2, HERE, read(replace(ENTRY, encrypted=True)), Download((Reason.FORMAT, Reason.ENCRYPTED))),
        (QCOW2, HERE, read(replace(ENTRY, status="creating")), Download((Reason.FORMAT, Reason.ENTRY_MISSING))),
        (QCOW2, HERE, read(cache_off=True), Download((Reason.FORMAT, Reason.CACHE_OFF))),
        # No clone whatever is there
        (replace(RAW, status="deactivated"), HERE, read(VOLUME), Download((Reason.IMAGE_INACTIVE,))),
        (replace(RAW, properties={"cinder_encryption_key_id": "k"}), HERE, read(VOLUME),
         Download((Reason.ENCRYPTED,))),
    ],
)  # fmt: skip
def test_clone_path(image: Image, pool: Pool, evidence: Evidence, expected: Path) -> None:
    assert clone_path(image, pool, evidence) == expected


def test_the_owner_gets_a_clone_whatever_the_volume_says() -> None:
    unmarked = replace(VOLUME, metadata={})
    assert clone_path(RAW, HERE, read(unmarked), project_id="alice") == ImageVolumeClone(unmarked)
    assert clone_path(RAW, HERE, read(unmarked), project_id="bob") == Download(
        (Reason.OWNER, Reason.ENTRY_MISSING)
    )


def test_every_reason_has_words() -> None:
    assert set(WORDS) == set(Reason)
    assert str(Download((Reason.FORMAT, Reason.CACHE_OFF))).count("; ") == 1
