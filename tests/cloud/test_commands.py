"""What an operator asks, on real services: status, explain and its probe, resync; with a worker and
without one."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.cloud.operate import (
    PASSWORD,
    TARGETS,
    URL,
    devcloud,
    groups,
    is_warm,
    of_image,
    switched,
    until,
)
from scripts.cloud.people import Person
from tests.worker_process import WorkerProcess
from worker.diagnose.explain.probe import NAME

Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]
LANES = {"url": f"amqp://openstack:{PASSWORD}@127.0.0.1:5672/worker"}
NOWHERE = "00000009-0000-4000-8000-000000000000"


def rows(process: WorkerProcess, *words: str) -> list[dict[str, Any]]:
    """What a command shows, as a program gets it."""
    done = process.run(*words, "-f", "json", timeout=300)
    # 3: a condition is not met
    assert done.returncode in (0, 3) if words[0] == "explain" else done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The error of a command that failed with this exit status: one line."""
    assert done.returncode == code, done.stdout + done.stderr
    (line,) = [
        line for line in done.stderr.splitlines() if line.startswith("image-volume-worker: ")
    ][-1:]
    assert "Traceback" not in done.stderr
    assert PASSWORD not in line.replace("devcloud.", "").split("/")
    return line


def depths(process: WorkerProcess) -> dict[str, int]:
    return {row["Lane"]: row["On broker"] for row in rows(process, "status", "--lanes")}


def of(found: list[dict[str, Any]], image_id: str, **fields: str) -> list[dict[str, Any]]:
    wanted = {"Image": image_id} | fields
    return [row for row in found if all(row[name] == value for name, value in wanted.items())]


def test_status_without_a_worker_and_with_one(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person
) -> None:
    process = worker(groups(work=LANES))
    image_id = images()
    assert {row["State"] for row in of(rows(process, "status"), image_id)} == {"cold"}
    # The jobs wait for a worker
    before = depths(process)
    assert {row["Target"] for row in rows(process, "resync", "--image-id", image_id)} == set(
        TARGETS
    )
    lanes = {row["Lane"]: row for row in rows(process, "status", "--lanes")}
    for name in (f"prewarm.{target}" for target in TARGETS):
        assert (lanes[name]["On broker"], lanes[name]["Workers"]) == (before[name] + 1, 0)
        assert lanes[name]["Oldest"].endswith("Z")
    with process:
        process.wait_ready()
        until(lambda: is_warm(operator, alice, image_id), what="warm")
        with bob.temporary_volume(image_id, "local-1"):
            until(
                lambda: any(row["Last use"] for row in rows(process, "status", image_id)),
                what="its use is shown",
            )
        shown = {row["Target"]: row for row in rows(process, "status", image_id)}
        volumes = {volume["volume_type"]: volume["id"] for volume in of_image(operator, image_id)}
        assert {target: row["Image-Volume"] for target, row in shown.items()} == volumes
        assert {
            (row["State"], row["Strategy"], row["GiB"], row["Why"]) for row in shown.values()
        } == {("warm", "store", 1, "")}
        lanes = {row["Lane"]: row for row in rows(process, "status", "--lanes")}
        assert (lanes["prewarm.local-1"]["Workers"], lanes["prewarm.local-1"]["In progress"]) == (
            1,
            0,
        )
    summary = {row["Target"]: row for row in rows(process, "status", "--summary")}
    assert set(summary) == set(TARGETS)
    assert summary["local-1"]["Warm"] >= 1
    table = process.run("status").stdout
    assert all(word in table for word in (image_id, "Making", "prewarm.local-2"))


def test_what_fails_is_shown_with_its_next_try(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    """The internal project has no room: the worker waits long, and says so."""
    process = worker(groups(work=LANES))
    operator_limit = Person("admin")
    try:
        operator_limit.limit(operator.project_id, 0, "volumes")
        with process:
            process.wait_ready()
            image_id = images()
            found: list[dict[str, Any]] = []

            def failing() -> bool:
                found[:] = of(rows(process, "status"), image_id, State="failed")
                return len(found) == len(TARGETS)

            until(failing, what="failed on both")
            assert all(
                row["Next try"].endswith("Z") and "quota" in row["Why"].lower() for row in found
            )

            def told() -> dict[str, Any]:
                checks = {row["Condition"]: row for row in rows(process, "explain", image_id)}
                return checks["job prewarm.local-1"]

            # At the moment of a try it says so
            until(
                lambda: told()["Result"] == "warn" and "next try in" in told()["Detail"],
                what=lambda: str(told()),
            )
            refused = {
                row["Condition"]: row for row in rows(process, "explain", image_id, "--probe")
            }
            assert refused["probe local-1"]["Result"] == "fail"
            assert "quota" in refused["probe local-1"]["What to do"]
    finally:
        operator_limit.limit(operator.project_id, None, "volumes")


@pytest.fixture
def nothing_left(operator: Person) -> Iterator[None]:
    yield
    assert [volume["id"] for volume in operator.volumes() if volume["name"] == NAME] == []


@pytest.mark.usefixtures("nothing_left")
def test_a_probe_tells_a_clone_from_a_download(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person
) -> None:
    process = worker()
    image_id = images()

    def probed(*words: str) -> dict[str, dict[str, Any]]:
        return {
            row["Condition"]: row for row in rows(process, "explain", image_id, "--probe", *words)
        }

    cold = probed("--target", "local-1")
    assert cold["probe local-1"]["Result"] == "fail"
    assert "Glance has sent" in cold["probe local-1"]["Detail"]
    assert "no Image-Volume here yet" in cold["probe local-1"]["What to do"]
    assert "cinder.conf" not in cold, "the probe has told"
    with process:
        process.wait_ready()
        until(lambda: is_warm(operator, alice, image_id), what="warm")
        warm = probed("--project", bob.project_id)
        assert {name: row["Result"] for name, row in warm.items() if row["Result"] != "ok"} == {}
        assert "nothing was downloaded" in warm["probe local-2"]["Detail"]
        assert rows(process, "status", image_id)[0]["Last use"] == "", "a probe is no use"
    (volume,) = [one for one in of_image(operator, image_id) if one["volume_type"] == "local-1"]
    url = f"/volumes/{volume['id']}/metadata"
    operator.connection.block_storage.post(url, json={"metadata": {"image_owner": bob.project_id}})
    wrong = probed("--target", "local-1")
    assert wrong["local-1 owner"]["Result"] == "fail"
    assert wrong["probe local-1"]["Result"] == "fail"


@pytest.mark.usefixtures("nothing_left")
def test_a_probe_finds_what_no_api_tells(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    process = worker()
    image_id = images()
    with process:
        process.wait_ready()
        until(lambda: is_warm(operator, alice, image_id), what="warm")
    devcloud("set", "DIRECT_URL=0")
    try:
        found = rows(process, "explain", image_id, "--probe", "--target", "local-1")
    finally:
        devcloud("set", "DIRECT_URL=1")
    checks = {row["Condition"]: row for row in found}
    assert checks["target local-1"]["Result"] == "ok"
    assert checks["probe local-1"]["Result"] == "fail"
    assert "allowed_direct_url_schemes" in checks["probe local-1"]["What to do"]


def test_resync_of_one_image(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    process = worker()
    first, second = images(), images()
    found = rows(process, "resync", "--dry-run", "--image-id", first, "--target", "local-2")
    assert [(row["Image"], row["Target"]) for row in found] == [(first, "local-2")]
    assert of_image(operator, first) == []
    assert len(rows(process, "resync", "--image-id", first, "--image-id", first)) == len(TARGETS)
    assert is_warm(operator, alice, first), "with memory:// the command does the work itself"
    assert of_image(operator, second) == []
    assert rows(process, "resync", "--image-id", first) == []
    assert "nothing is missing" in process.run("resync", "--image-id", first).stderr
    assert rows(process, "resync", "--image-id", NOWHERE) == []


def test_projects_by_name(worker: Worker, images: Images) -> None:
    process = worker()
    image_id = images(visibility="private")
    checks = {
        row["Condition"]: row for row in rows(process, "explain", image_id, "--project", "bob")
    }
    assert checks["project"]["Result"] == "fail"
    checks = {
        row["Condition"]: row for row in rows(process, "explain", image_id, "--project", "alice")
    }
    assert checks["project"]["Detail"] == "owns the image"
    assert "no project nobody" in one_line(
        process.run("explain", image_id, "--project", "nobody"), 1
    )


@pytest.mark.parametrize("command", ["status", "explain", "resync"])
def test_bad_input(worker: Worker, command: str) -> None:
    process = worker()
    flag = ("--image-id",) if command == "resync" else ()
    assert "no image has the id or the name 'no-id'" in one_line(
        process.run(command, *flag, "no-id"), 1
    )
    named = (*flag, NOWHERE)
    assert "no target 'tape'" in one_line(process.run(command, *named, "--target", "tape"), 2)
    if command != "resync":
        told = {"explain": f"Glance finds no image {NOWHERE}"}.get(command, "404")
        assert told in one_line(process.run(command, *named), 1)
    process.config_path.write_text("[prewarm]\ntargets = fast\n")
    assert process.run(command, *named).returncode == 2


@pytest.mark.parametrize("command", ["status", "explain", "resync"])
def test_a_cloud_that_is_away_or_refuses(worker: Worker, command: str, alice: Person) -> None:
    named = ("--image-id", NOWHERE) if command == "resync" else (NOWHERE,)
    process = worker(groups(cloud={"name": "alice"}))
    assert "no role admin" in process.run(command, *named).stderr
    process = worker(groups(cloud={"name": "nobody"}))
    assert process.run(command, *named).returncode in (1, 2)
    devcloud("stop", "glance-api")
    try:
        line = one_line(worker().run(command, *named, timeout=300), 1)
    finally:
        devcloud("start", "glance-api")
    assert line.startswith("image-volume-worker: image: ")


@pytest.mark.parametrize("command", ["status", "explain", "resync"])
def test_an_image_by_its_name(worker: Worker, images: Images, command: str) -> None:
    process = worker(groups(prewarm={"targets": "local-1", "visibilities": "public"}))
    flag = ("--image-id",) if command == "resync" else ()
    more = ("--dry-run",) if command == "resync" else ()
    made = [images("in:one,two"), images("in:one,two"), images("one")]
    twice = one_line(process.run(command, *flag, "in:one,two"), 2)
    assert all(image_id in twice for image_id in made[:2])
    assert made[2] not in twice
    assert process.run(command, *flag, "one", *more).returncode in (0, 3)


@pytest.mark.parametrize(
    "shape",
    [
        (),
        ("CINDER_STORES=0", "IMAGE_CACHE=1"),
        pytest.param(("IMAGE_CACHE=1", "POOLS=3"), marks=pytest.mark.long),
        pytest.param(("TWIN_STORE=1",), marks=pytest.mark.long),
    ],
)
def test_doctor_finds_ok_what_init_has_written(
    worker: Worker, images: Images, tmp_path: Path, shape: tuple[str, ...]
) -> None:
    with switched(*shape) if shape else contextlib.nullcontext():
        process = worker()
        # What only an image shows
        images()
        file = tmp_path / "new.conf"
        words = ("--cloud", "operator", "--transport-url", URL, "--work-url", LANES["url"])
        done = process.run("init", "--output", str(file), *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert file.stat().st_mode & 0o777 == 0o600
        assert "is there already" in one_line(process.run("init", "--output", str(file), *words), 2)
        process.config_path.write_text(file.read_text())
        done = process.run("doctor", "-f", "csv")
        assert done.returncode == 0, done.stdout
        # No API tells whether Cinder's cache is on before it has an entry
        for name in ("local-1", "local-2"):
            assert f'"target {name}","ok"' in done.stdout
            assert f'"target {name} pools","ok"' in done.stdout


def test_init_without_a_login(worker: Worker, tmp_path: Path) -> None:
    line = one_line(worker().run("init", "--cloud", "nobody", "--output", str(tmp_path / "x")), 2)
    assert "nobody" in line
    assert not (tmp_path / "x").exists()
