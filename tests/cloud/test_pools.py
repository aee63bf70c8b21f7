"""A volume type over several pools, and images of other formats than raw, on real services."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from scripts.cloud.operate import TARGETS, groups, of_image, switched, until
from scripts.cloud.people import Person
from tests.worker_process import WorkerProcess

Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]
POOLS = 3


@pytest.fixture(scope="module", autouse=True)
def several_pools(devcloud_up: None) -> Iterator[None]:
    with switched(f"POOLS={POOLS}", "IMAGE_CACHE=1"):
        yield


def placing_types(admin: Person) -> list[str]:
    """The names of the private volume types that the worker has made."""
    answer: dict[str, Any] = admin.connection.block_storage.get("/types?is_public=None").json()
    return [
        row["name"]
        for row in answer["volume_types"]
        if row["name"].startswith("image-volume-worker:")
    ]


def pools_of(operator: Person, image_id: str) -> list[str]:
    """The pools where the image's Image-Volumes lie; none while a throw-away volume is there."""
    volumes = of_image(operator, image_id)
    if any(
        volume["name"].startswith("warm-") or volume["status"] != "available" for volume in volumes
    ):
        return []
    return sorted(
        volume["os-vol-host-attr:host"]
        for volume in volumes
        if "image_volume_worker" in volume["metadata"]
    )


def states(process: WorkerProcess, image_id: str) -> set[str]:
    """The states of the image on all targets, as `status` tells them."""
    done = process.run("status", image_id, "-f", "json")
    assert done.returncode == 0, done.stderr
    return {row["State"] for row in json.loads(done.stdout)}


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether cinder-volume is a cluster: pools have its name then, volumes that of a host, too."""
    with switched(f"CLUSTER={int(request.param)}"):
        yield request.param


@pytest.mark.parametrize(
    ("disk_format", "cluster"),
    [("raw", False), ("qcow2", True)],
    ids=["raw", "qcow2-active-active"],
    indirect=["cluster"],
)
@pytest.mark.usefixtures("cluster")
def test_every_first_create_is_a_clone(
    worker: Worker, images: Images, bob: Person, operator: Person, admin: Person, disk_format: str
) -> None:
    with worker() as process:
        process.wait_ready()
        image_id = images(disk_format=disk_format)
        wanted = POOLS * len(TARGETS)
        until(
            lambda: len(set(pools_of(operator, image_id))) == wanted,
            what=lambda: str(of_image(operator, image_id)),
        )
        until(lambda: states(process, image_id) == {"warm"}, what="told to be warm")
        with ThreadPoolExecutor(POOLS) as at_once:
            volumes = list(at_once.map(lambda _: bob.volume(image_id, "local-1"), range(2 * POOLS)))

        def hosts() -> set[str]:
            answers = (
                operator.connection.block_storage.get(f"/volumes/{one.id}") for one in volumes
            )
            return {answer.json()["volume"]["os-vol-host-attr:host"] for answer in answers}

        # Where they come to lie is for Cinder's scheduler to say, which may hear of a pool late
        while len(hosts()) < POOLS:
            assert len(volumes) < 10 * POOLS, hosts()
            volumes.append(bob.volume(image_id, "local-1"))
        for one in volumes:
            bob.delete_volume(one.id)
        assert all(one.cloned for one in volumes)
        # What is not wanted any more leaves neither entries nor, after a resync, types
        bob_sees = {
            row["name"] for row in bob.connection.block_storage.get("/types").json()["volume_types"]
        }
        assert not [name for name in bob_sees if name.startswith("image-volume-worker:")]
        assert len(placing_types(admin)) >= wanted - len(TARGETS)
    operator.connection.image.delete(f"/images/{image_id}")
    with worker(groups(resync={"interval": 10})) as process:
        until(lambda: not of_image(operator, image_id), what="gone")
        until(lambda: not placing_types(admin), what="no type is left")
