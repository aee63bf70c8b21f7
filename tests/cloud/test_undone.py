"""The worker does not fight over Image-Volumes: Cinder's cache limits, and workers that
disagree."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from scripts.cloud.operate import groups, of_image, switched, switches, until
from scripts.cloud.people import Person
from tests.worker_process import WorkerProcess

Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]
# Seconds between two tries to make an Image-Volume again; a fight would show within a few of them
INTERVAL = 4.0


def one_target(strategy: str, **prewarm: Any) -> dict[str, Any]:
    settings = dict(groups(strategy=strategy))
    del settings["target:local-2"]
    settings["prewarm"] = {**settings["prewarm"], "targets": "local-1", "settle": 1, **prewarm}
    return settings


def made(process: WorkerProcess) -> int:
    """Number of full downloads that the worker has begun."""
    return len(process.events("image_volume_creating")) + len(process.events("image_copy_began"))


def test_a_cache_with_a_limit_is_not_fought_over(
    worker: Worker, images: Images, operator: Person
) -> None:
    if "CACHE_MAX" not in switches():
        pytest.skip("this devcloud has no switch for the cache's limit")
    with (
        switched("IMAGE_CACHE=1", "CACHE_MAX=2"),
        worker(one_target("cache", rewarm_interval=INTERVAL)) as process,
    ):
        process.wait_ready()
        # One after the other: Cinder checks its limit before it makes an entry, so of several at
        # once all would stay
        wanted = []
        for _ in range(3):
            wanted.append(images())
            until(
                lambda: process.metric("images_warmed_total") == len(wanted),
                what="each is made",
            )
        until(lambda: process.events("cinder_cache_full"), what="it is found out")
        time.sleep(4 * INTERVAL)
        # Three that fit at first, and what was on its way when the first one was evicted
        assert made(process) <= 5, made(process)
        until(
            lambda: len([image_id for image_id in wanted if of_image(operator, image_id)]) == 2,
            what="two are kept",
        )
        (left_out,) = [image_id for image_id in wanted if not of_image(operator, image_id)]
        shown = process.run("status", left_out, "-f", "value", "-c", "State", "-c", "Why").stdout
        assert shown.startswith("full")
        assert "image_volume_cache_max_count" in shown
        assert process.stop() == 0


def test_workers_that_disagree_do_not_fight(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    wants = one_target("store", rewarm_interval=INTERVAL)
    refuses = one_target("store", exclude_projects=alice.project_id)
    # An Image-Volume that is being made is looked at again after 30 seconds, or by a comparison
    refuses["resync"] = {"interval": 10}
    refuses["notifications"] = {**refuses["notifications"], "queue": "image-volume-worker-other"}
    with worker(wants) as first, worker(refuses) as second:
        first.wait_ready()
        second.wait_ready()
        image_id = images()
        until(
            lambda: any(
                line["reason"].startswith("its Image-Volume was deleted")
                for line in first.events("job_skipped")
            ),
            what="it is held back",
        )
        before = made(first)
        time.sleep(4 * INTERVAL)
        assert made(first) == before <= 3
        assert alice.show(image_id)["stores"] == "file"
        assert first.stop() == second.stop() == 0
