"""What the owners of images do to them costs nobody else a copy, and the operator no copies
without end."""

from __future__ import annotations

from collections.abc import Callable

from scripts.cloud.operate import of_image
from scripts.cloud.people import Person
from tests.cloud.test_undone import one_target
from tests.cloud.test_upkeep import on, settings, soon, warmed_on
from tests.worker_process import WorkerProcess

Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]


def copies(process: WorkerProcess, image_id: str) -> int:
    """How many copies the worker has asked Glance for."""
    return sum(line["image_id"] == image_id for line in process.events("image_copy_began"))


def test_a_copy_that_was_removed_costs_its_interval_whatever_changes(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    """By an administrator here, or where a policy or show_multiple_locations lets owners do it."""
    with worker(one_target("store", rewarm_interval=3600)) as process:
        process.wait_ready()
        image_id = images(visibility="private")
        warmed_on(operator, image_id)
        removed = operator.connection.image.delete(f"/stores/cinder-1/{image_id}")
        assert removed.status_code == 204, removed.text
        alice.property(image_id, "changed", "yes")
        soon(lambda: process.metric("rewarms_held_back_total"), what="it is held back")
        assert copies(process, image_id) == 1
        # Whoever may give orders is not held back
        process.run("warm", image_id)
        warmed_on(operator, image_id)
        assert process.stop() == 0


def test_who_takes_a_wish_back_gets_no_second_copy(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(one_target("store", rewarm_interval=3600)) as process:
        process.wait_ready()
        image_id = images()
        warmed_on(operator, image_id)
        alice.property(image_id, "image_volume_prewarm", "no")
        soon(lambda: not of_image(operator, image_id), what="it is not wanted")
        alice.property(image_id, "image_volume_prewarm", f"yes/{image_id}")
        soon(lambda: process.metric("rewarms_held_back_total"), what="it is held back")
        assert copies(process, image_id) == 1
        shown = process.run("explain", image_id, "--target", "local-1", "-f", "value").stdout
        assert "was made not long ago" in shown
        assert process.stop() == 0


def test_deactivated_images_keep_nobody_else_from_room(
    worker: Worker,
    images: Images,
    others: Images,
    alice: Person,
    operator: Person,
) -> None:
    with worker(settings(targets=("local-1",), each={"max_count": 4})) as process:
        process.wait_ready()
        idle = [images() for _ in range(3)]
        for image_id in idle:
            warmed_on(operator, image_id)
            alice.activated(image_id, False)
        try:
            first = others()
            warmed_on(operator, first)
            # Three could not make room: the fourth one does, at once
            second = others()
            warmed_on(operator, second)
            soon(lambda: not of_image(operator, first), what="it has made room")
            assert all(on(operator, image_id) for image_id in idle)
        finally:
            for image_id in idle:
                alice.activated(image_id, True)
        assert process.stop() == 0
