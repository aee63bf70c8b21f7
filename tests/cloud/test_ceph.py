"""Ceph on both sides: Glance keeps images in an rbd store, and Cinder's driver clones raw ones from there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scripts.cloud.people import Person
from tests.cloud.conftest import TARGETS, groups, of_image, switched, switches, until
from tests.worker_process import WorkerProcess

Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]


@pytest.fixture(autouse=True)
def rbd_store(devcloud_up: None) -> None:
    if switches()["RBD_STORE"] != "1":
        pytest.skip("the devcloud was not made with CEPH=1 RBD_STORE=1: scripts/test-releases rbd")


def made(process: WorkerProcess) -> list[str]:
    """The names of the types that the worker has made volumes of."""
    return [line["volume_type"] for line in process.events("image_volume_creating")]


def warm_on(process: WorkerProcess, image_id: str) -> set[str]:
    """The targets that the worker has told the image to be warm on."""
    return {line["target"] for line in process.events("job_done") if line["image_id"] == image_id}


def test_nothing_is_made_of_raw_images(worker: Worker, images: Images, bob: Person, operator: Person) -> None:
    with worker() as process:
        process.wait_ready()
        made_images = [images() for _ in range(4)]
        for image_id in made_images:
            until(lambda image_id=image_id: warm_on(process, image_id) == set(TARGETS), what="warm")  # type: ignore[misc]
        # One volume each shows what Cinder does there, and goes
        assert sorted(made(process)) == sorted(TARGETS)
        assert not [volume for image_id in made_images for volume in of_image(operator, image_id)]
        for volume_type in TARGETS:
            with bob.temporary_volume(made_images[0], volume_type) as volume:
                assert volume.cloned


def test_not_even_that_where_the_store_is_named(worker: Worker, images: Images, operator: Person) -> None:
    named = {f"target:{name}": {"volume_type": name, "native_stores": "rbd"} for name in TARGETS}
    with worker(groups(**named)) as process:
        process.wait_ready()
        image_id = images()
        until(lambda: warm_on(process, image_id) == set(TARGETS), what="warm")
        assert made(process) == []
        assert of_image(operator, image_id) == []


def test_other_formats_go_by_the_cache(worker: Worker, images: Images, bob: Person, operator: Person) -> None:
    with switched("IMAGE_CACHE=1"), worker() as process:
        process.wait_ready()
        image_id = images(disk_format="qcow2")
        until(lambda: warm_on(process, image_id) == set(TARGETS), what="warm")
        assert len(of_image(operator, image_id)) == len(TARGETS)
        for volume_type in TARGETS:
            with bob.temporary_volume(image_id, volume_type) as volume:
                assert volume.cloned
