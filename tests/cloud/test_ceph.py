"""Ceph on both sides: Glance keeps images in an rbd store, and Cinder's driver clones raw ones from
there."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from scripts.cloud.operate import TARGETS, groups, of_image, switched, switches, until
from scripts.cloud.people import Person
from tests.worker_process import WorkerProcess

Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]


@pytest.fixture
def one_cluster(devcloud_up: None) -> None:
    if (switches()["CEPH"], switches()["RBD_STORE"]) != ("1", "1"):
        pytest.skip("the devcloud was not made with CEPH=1 RBD_STORE=1: scripts/test-releases rbd")


@pytest.fixture
def two_clusters(devcloud_up: None) -> None:
    if (switches()["CEPH"], switches()["RBD_STORE"]) != ("2", "1"):
        pytest.skip(
            "the devcloud was not made with CEPH=2 RBD_STORE=1: scripts/test-releases sites"
        )


def made(process: WorkerProcess) -> list[str]:
    """The names of the types that the worker has made volumes of."""
    return [line["volume_type"] for line in process.events("image_volume_creating")]


def states(process: WorkerProcess, image_id: str) -> dict[str, tuple[str, str]]:
    """The state of the image on each target, and the strategy, as `status` tells; it asks the
    running worker."""
    rows = json.loads(process.run("status", image_id, "-f", "json").stdout)
    return {row["Target"]: (row["State"], row["Strategy"]) for row in rows}


def until_warm(process: WorkerProcess, image_id: str, strategy: str) -> None:
    """Wait until the image is warm on all targets by this strategy."""
    wanted = dict.fromkeys(TARGETS, ("warm", strategy))
    until(lambda: states(process, image_id) == wanted, what=lambda: str(states(process, image_id)))


@pytest.mark.usefixtures("one_cluster")
def test_nothing_is_made_of_raw_images(
    worker: Worker, images: Images, bob: Person, operator: Person
) -> None:
    with worker() as process:
        process.wait_ready()
        made_images = [images() for _ in range(4)]
        for image_id in made_images:
            until_warm(process, image_id, "native")
        # Two volumes each show what Cinder does there, and go
        assert sorted(made(process)) == sorted(TARGETS * 2)
        assert not [volume for image_id in made_images for volume in of_image(operator, image_id)]
        for volume_type in TARGETS:
            with bob.temporary_volume(made_images[0], volume_type) as volume:
                assert volume.cloned


@pytest.mark.usefixtures("one_cluster")
def test_not_even_that_where_the_store_is_named(
    worker: Worker, images: Images, operator: Person
) -> None:
    named = {f"target:{name}": {"volume_type": name, "native_stores": "rbd"} for name in TARGETS}
    with worker(groups(**named)) as process:
        process.wait_ready()
        image_id = images()
        until_warm(process, image_id, "native")
        assert made(process) == []
        assert of_image(operator, image_id) == []


@pytest.mark.usefixtures("two_clusters")
def test_each_site_clones_from_its_own_cluster(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person
) -> None:
    stores = {"local-1": "rbd", "local-2": "rbd-2"}
    named = {
        f"target:{name}": {"volume_type": name, "native_stores": store}
        for name, store in stores.items()
    }
    with worker(groups(**named)) as process:
        process.wait_ready()
        image_id = images()
        until_warm(process, image_id, "native")
        assert set(alice.show(image_id)["stores"].split(",")) == set(stores.values())
        assert made(process) == []
        assert of_image(operator, image_id) == []
        for volume_type in TARGETS:
            with bob.temporary_volume(image_id, volume_type) as volume:
                assert volume.cloned
                until(
                    lambda target=volume_type: process.metric(
                        "volume_creates_total", target=target, path="native"
                    ),
                    what=lambda: str(process.events("volume_downloaded")),
                )


@pytest.mark.usefixtures("two_clusters")
def test_the_second_site_is_found_out_to_download_from_the_first(
    worker: Worker, images: Images, bob: Person
) -> None:
    """Nobody has named a store: the cache serves where Cinder's driver cannot clone."""
    with switched("IMAGE_CACHE=1"), worker() as process:
        process.wait_ready()
        image_id = images()
        wanted = {"local-1": ("warm", "native"), "local-2": ("warm", "cache")}
        until(
            lambda: states(process, image_id) == wanted,
            what=lambda: str(states(process, image_id)),
        )
        for volume_type in TARGETS:
            with bob.temporary_volume(image_id, volume_type) as volume:
                assert volume.cloned


@pytest.mark.usefixtures("one_cluster")
def test_other_formats_go_by_the_cache(
    worker: Worker, images: Images, bob: Person, operator: Person
) -> None:
    with switched("IMAGE_CACHE=1"), worker() as process:
        process.wait_ready()
        image_id = images(disk_format="qcow2")
        until_warm(process, image_id, "cache")
        assert len(of_image(operator, image_id)) == len(TARGETS)
        for volume_type in TARGETS:
            with bob.temporary_volume(image_id, volume_type) as volume:
                assert volume.cloned
