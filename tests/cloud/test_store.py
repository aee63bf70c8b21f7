"""The main job on real services: Glance copies new images into its cinder stores, and volumes of
them are clones."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable

from scripts.cloud.operate import (
    PASSWORD,
    TARGETS,
    devcloud,
    groups,
    is_warm,
    of_image,
    rabbitmqctl,
    switches,
    until,
)
from scripts.cloud.people import HOME, Person
from tests.worker_process import WorkerProcess

Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]
LANES = {"url": f"amqp://openstack:{PASSWORD}@127.0.0.1:5672/worker"}
KILLS = 8 if os.environ.get("LONG") else 4


def test_doctor_finds_nothing_wrong(worker: Worker) -> None:
    done = worker(groups(work=LANES)).run("doctor", "-f", "csv")
    assert done.returncode == 0, done.stdout
    assert '"fail"' not in done.stdout
    assert "cinder-1" in done.stdout


def test_doctor_says_what_is_wrong(worker: Worker) -> None:
    wrong = {
        **groups(),
        "notifications": {"transport_urls": "rabbit://nobody:wrong@127.0.0.1:5672/"},
    }
    wrong["target:local-1"] = {"volume_type": "local-1", "glance_store": "nowhere"}
    done = worker(wrong).run("doctor", "-f", "value", "-c", "Check", "-c", "Result")
    assert done.returncode == 3, done.stdout
    assert "notifications 0 fail" in done.stdout
    assert "target local-1 fail" in done.stdout
    assert "target local-2 ok" in done.stdout


def test_no_volume_type_that_is_there_ends_the_start(worker: Worker) -> None:
    wrong = dict(groups())
    wrong |= {f"target:{name}": {"volume_type": f"no-such-type-{name}"} for name in TARGETS}
    done = worker(wrong).run("run")
    assert done.returncode == 2
    assert "no-such-type-local-1" in done.stderr
    assert "no-such-type-local-2" in done.stderr
    assert "Traceback" not in done.stderr


def test_new_images_become_warm_and_volumes_of_another_project_clones(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person
) -> None:
    with worker() as process:
        process.wait_ready()
        image_id = images()
        until(lambda: is_warm(operator, alice, image_id), what="warm")
        with contextlib.ExitStack() as volumes:
            for volume_type in TARGETS:
                assert volumes.enter_context(bob.temporary_volume(image_id, volume_type)).cloned
            # Of a volume that is gone nobody could tell
            until(lambda: process.metric("volume_create_seconds_count", warm="true") == 2)
        assert process.metric("volume_create_seconds_count", warm="false") == 0
        assert process.metric("time_to_warm_seconds_count") >= 1
        alice.delete_image(image_id)
        until(lambda: not of_image(operator, image_id), what="everything of a deleted image goes")
        assert process.stop() == 0


def test_without_a_worker_volumes_are_downloaded(images: Images, bob: Person) -> None:
    with bob.temporary_volume(images(), "local-1") as made:
        assert not made.cloned


def test_what_is_not_wanted_is_left_alone(
    worker: Worker, images: Images, others: Images, operator: Person, bob: Person
) -> None:
    settings = dict(groups())
    settings["prewarm"] = {**settings["prewarm"], "exclude_projects": bob.project_id}
    for name in TARGETS:
        settings[f"target:{name}"] = {**settings[f"target:{name}"], "disk_formats": "raw"}
    with worker(settings) as process:
        process.wait_ready()
        refused = others("excluded", visibility="private")
        qcow2 = images(disk_format="qcow2")
        declined = images(image_volume_prewarm="no")
        wanted = images()
        until(lambda: of_image(operator, wanted), what="the wanted one")
        until(lambda: process.metric("jobs_total", outcome="skip") >= 6)
        assert [image for image in (refused, qcow2, declined) if of_image(operator, image)] == []
        reasons = " ".join(line["reason"] for line in process.events("job_skipped"))
        assert "exclude_projects" in reasons
        assert "qcow2" in reasons
        assert "says no" in reasons


def test_resync_finds_what_nobody_heard_of(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    image_id = images()
    process = worker()
    shown = process.run("resync", "--dry-run", "-f", "value", "-c", "Image", "-c", "Target")
    assert f"{image_id} local-1" in shown.stdout
    assert f"{image_id} local-2" in shown.stdout
    assert not of_image(operator, image_id)
    done = process.run("resync", "-f", "value", timeout=300)
    assert done.returncode == 0, done.stderr
    assert is_warm(operator, alice, image_id)
    assert image_id not in process.run("resync", "--dry-run", "-f", "value").stdout


def test_killed_at_any_moment_it_ends_in_the_same_state(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    seed = random.randrange(1 << 30)
    moments = random.Random(seed)
    process = worker()
    made: list[str] = []
    for _ in range(KILLS):
        process.start()
        process.wait_ready()
        made.append(images())
        time.sleep(moments.uniform(0.0, 3.0))
        process.kill()
    process.start()
    until(
        lambda: all(is_warm(operator, alice, image_id) for image_id in made),
        what=f"warm, seed {seed}",
    )
    # All may be warm before the process handles signals
    process.wait_ready()
    assert process.stop() == 0


def test_told_to_stop_in_the_middle_it_drains(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    process = worker(groups(work=LANES))
    process.start()
    process.wait_ready()
    image_id = images(mebibytes=256)
    until(lambda: process.events("image_copy_began"), what="the copy began")
    assert process.stop() == 0
    process.start()
    until(lambda: is_warm(operator, alice, image_id), what="warm")
    assert process.stop() == 0


def test_an_image_deleted_while_it_is_copied_leaves_nothing(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker() as process:
        process.wait_ready()
        image_id = images(mebibytes=256)
        until(lambda: of_image(operator, image_id), what="the first volume")
        alice.delete_image(image_id)
        until(lambda: not of_image(operator, image_id), what="nothing stays")


def test_a_glance_that_is_away_is_waited_for_and_said(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    # Not in the middle of an import: a Glance that is stopped then keeps the image locked for an
    # hour
    image_id = images()
    devcloud("stop", "glance-api")
    try:
        process = worker()
        process.start()
        until(lambda: "cloud" in process.probe("/readyz")[1].get("problems", {}), what="it says so")
        assert process.probe("/healthz")[0] == 200
        time.sleep(5)
        assert process.running
    finally:
        devcloud("start", "glance-api")
    until(lambda: is_warm(operator, alice, image_id), what="warm")
    process.wait_ready()
    assert len(process.events("cloud_away")) == 1
    assert len(process.events("cloud_back")) == 1
    assert process.stop() == 0


def test_the_broker_restarted_under_load_loses_nothing(
    worker: Worker, images: Images, alice: Person, operator: Person, admin: Person
) -> None:
    with worker() as process:
        process.wait_ready()
        made = [images()]
        restart = threading.Thread(target=devcloud, args=("restart", "rabbitmq"))
        restart.start()
        made += [images() for _ in range(4)]
        restart.join()
        # The restart can swallow what Cinder's API has told its scheduler: such a volume is never
        # made, and an admin's
        until(
            lambda: all(is_warm(operator, alice, one, unmarked=True) for one in made), what="warm"
        )
        process.wait_ready()
    delete_swallowed(operator, admin, made)


def delete_swallowed(operator: Person, admin: Person, image_ids: Iterable[str]) -> None:
    """Delete the volumes that stay in creating, as what told cinder-scheduler of them was lost with
    the broker."""
    for volume in (volume for one in image_ids for volume in of_image(operator, one)):
        if volume["status"] == "creating":
            admin.act(volume["id"], "os-reset_status", status="error")
            operator.delete_volume(volume["id"])


def test_a_broker_that_is_down_at_start_is_waited_for_and_said_once(
    worker: Worker, images: Images, alice: Person, operator: Person, admin: Person
) -> None:
    devcloud("stop", "rabbitmq")
    try:
        process = worker(groups(work=LANES))
        process.start()
        until(lambda: process.probe("/readyz")[0] == 503, what="503")
        until(
            lambda: "intake-0" in process.probe("/readyz")[1].get("problems", {}), what="it says so"
        )
        assert process.probe("/healthz")[0] == 200
    finally:
        devcloud("start", "rabbitmq")
    process.wait_ready()
    image_id = images()
    until(lambda: is_warm(operator, alice, image_id, unmarked=True), what="warm")
    lost = [line for line in process.events("broker_lost") if "intake" in str(line["link"])]
    assert len(lost) == 1
    assert process.stop() == 0
    delete_swallowed(operator, admin, [image_id])


def test_a_dead_backend_does_not_hold_up_the_other(
    worker: Worker, images: Images, bob: Person, operator: Person
) -> None:
    # What the backend keeps its volumes in is gone: the driver raises at everything
    rename_backend("local-2", "away")
    away = True
    try:
        with worker() as process:
            process.wait_ready()
            made = [images() for _ in range(3)]
            for image_id in made:
                until(
                    lambda image=image_id: process_done(process, image, "local-1"),
                    what="warm on local-1",
                )
                with bob.temporary_volume(image_id, "local-1") as volume:
                    assert volume.cloned
            assert not any(process_done(process, image_id, "local-2") for image_id in made)
            rename_backend("away", "local-2")
            away = False
            for image_id in made:
                until(
                    lambda image=image_id: process_done(process, image, "local-2"),
                    what="warm on local-2",
                )
    finally:
        if away:
            rename_backend("away", "local-2")


def rename_backend(old: str, new: str) -> None:
    """Rename what a backend keeps its volumes in: a directory, or a pool of Ceph."""
    if switches().get("CEPH") == "1":
        ceph = ["ceph", "-c", str(HOME / "etc" / "ceph" / "ceph.conf")]
        subprocess.run(
            [*ceph, "osd", "pool", "rename", old, new], check=True, capture_output=True, timeout=60
        )
    else:
        (HOME / "pool" / old).rename(HOME / "pool" / new)


def process_done(process: WorkerProcess, image_id: str, target: str) -> bool:
    """Whether the worker has said that an image is warm on a target."""
    return any(
        line["image_id"] == image_id and line["target"] == target
        for line in process.events("job_done")
    )


def test_a_reload_takes_the_new_configuration_and_refuses_a_wrong_one(worker: Worker) -> None:
    with worker() as process:
        process.wait_ready()
        config = process.config_path
        good = config.read_text()
        config.write_text(good.replace("volume_type = local-2", ""))
        process.signal(signal.SIGHUP)
        until(lambda: process.events("reload_refused"), what="refused")
        config.write_text(
            good.replace("targets = local-1,local-2", "targets = local-1").split(
                "[target:local-2]"
            )[0]
        )
        process.signal(signal.SIGHUP)
        until(lambda: len(process.events("started")) == 2, what="started again")
        assert process.events("started")[-1]["targets"] == ["local-1"]
        config.write_text(good.replace("format = json", "format = text"))
        process.signal(signal.SIGHUP)
        # Logs are of the configuration too
        until(
            lambda: re.search(r"^[^{].*\bstarted\b", process.log.read_text(), re.MULTILINE),
            what="started, as text",
        )
        assert process.stop() == 0


def test_a_cache_that_is_not_there_is_named(
    worker: Worker, images: Images, operator: Person
) -> None:
    with worker(groups(strategy="cache")) as process:
        process.wait_ready()
        image_id = images()
        until(
            lambda: any(
                "image_volume_cache_enabled" in line["reason"]
                for line in process.events("job_again")
            ),
            what="the reason",
        )
        process.kill()
        until(
            lambda: all(v["status"] != "creating" for v in of_image(operator, image_id)),
            what="settled",
        )


def test_two_workers_share_the_work_and_one_takes_over(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(groups(work=LANES)) as first, worker(groups(work=LANES)) as second:
        first.wait_ready()
        second.wait_ready()
        made = [images() for _ in range(3)]
        until(
            lambda: first.events("image_copy_began") or second.events("image_copy_began"),
            what="one began",
        )
        active, other = (first, second) if first.events("image_copy_began") else (second, first)
        active.kill()
        made += [images() for _ in range(3)]
        until(lambda: all(is_warm(operator, alice, image_id) for image_id in made), what="warm")
        assert other.events("image_copy_began")
        assert other.stop() == 0


def test_a_worker_that_was_paused_makes_nothing_twice(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    with worker(groups(work=LANES)) as first, worker(groups(work=LANES)) as second:
        first.wait_ready()
        second.wait_ready()
        made = [images(mebibytes=64) for _ in range(3)]
        until(
            lambda: first.events("image_copy_began") or second.events("image_copy_began"),
            what="one began",
        )
        active, other = (first, second) if first.events("image_copy_began") else (second, first)
        active.signal(signal.SIGSTOP)
        time.sleep(3)
        # Its lanes stay with it until the broker misses its heartbeats, so either of the two may
        # end it
        active.signal(signal.SIGCONT)
        until(lambda: all(is_warm(operator, alice, image_id) for image_id in made), what="warm")
        assert other.stop() == 0
        assert active.stop() == 0


def test_by_the_listener_of_oslo_messaging(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    settings = dict(groups())
    settings["notifications"] = {
        **settings["notifications"],
        "driver": "oslo",
        "queue": "image-volume-worker-oslo",
    }
    settings["resync"] = {"on_start": "false"}
    with worker(settings) as process:
        process.wait_ready()
        # It can't say when its bindings are there
        until(
            lambda: any(
                line.split() == ["glance", "image-volume-worker-oslo"]
                for line in rabbitmqctl(
                    "list_bindings", "source_name", "destination_name"
                ).splitlines()
            ),
            what="its queue is bound",
        )
        image_id = images()
        until(lambda: is_warm(operator, alice, image_id), what="warm")
        assert process.stop() == 0


def test_a_full_quota_is_said_and_waited_for(
    worker: Worker, images: Images, alice: Person, operator: Person, admin: Person
) -> None:
    admin.limit(operator.project_id, 0)
    try:
        with worker() as process:
            process.wait_ready()
            image_id = images()
            until(
                lambda: any("quota" in str(line["reason"]) for line in process.events("job_again")),
                what="it says so",
            )
            assert not of_image(operator, image_id)
            admin.limit(operator.project_id, None)
            until(lambda: is_warm(operator, alice, image_id), what="warm")
    finally:
        admin.limit(operator.project_id, None)
