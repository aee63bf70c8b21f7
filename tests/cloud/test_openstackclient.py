"""`openstack image volume …` by the stock client, with the logins of users and of an operator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.cloud.operate import HOME, TARGETS, is_warm, until
from scripts.cloud.people import Person
from tests.worker_process import WorkerProcess

Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]
CLIENT = Path(sys.executable).with_name("openstack")


def openstack(cloud: str, *words: str, status: int = 0) -> Any:
    """The JSON that the client prints; its text where that is none."""
    formatted = () if words[0] == "warm" else ("--format", "json")
    done = subprocess.run(
        [CLIENT, "--os-cloud", cloud, "image", "volume", *words, *formatted],
        env={**os.environ, "OS_CLIENT_CONFIG_FILE": str(HOME / "clouds.yaml")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout) if formatted else done.stdout


def paths(rows: list[dict[str, str]]) -> dict[str, str]:
    """Return the column `Volume is a`, by volume type."""
    return {row["Volume type"]: row["Volume is a"] for row in rows}


def test_openstack_image_volume(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person
) -> None:
    image_id = images(visibility="private", name="plain")
    assert set(paths(openstack("admin", "explain", image_id, status=3)).values()) == {"download"}
    (row,) = [row for row in openstack("alice", "list") if row["ID"] == image_id]
    assert (row["Name"], row["Format"], row["Prewarm"]) == ("plain", "raw/bare", "")
    with worker() as process:
        process.wait_ready()
        assert "yes/" in openstack("alice", "warm", image_id)
        until(lambda: is_warm(operator, alice, image_id), what="warm")
        clones = paths(openstack("admin", "explain", image_id))
        assert {name: clones[name] for name in TARGETS} == dict.fromkeys(TARGETS, "clone")
        # Its owner sees neither pools nor locations, and is told so
        theirs = openstack("alice", "explain", image_id, "--type", "local-1")
        assert paths(theirs) == {"local-1": "unknown"}
        (probed,) = openstack("alice", "probe", image_id, "--type", "local-1")
        assert probed["Result"] == "ok"
        assert not [volume for volume in alice.volumes() if "probe" in volume["name"]]
        shown = openstack("admin", "show", image_id)
        assert sum(name.startswith("volume ") for name in shown) == len(TARGETS)
        assert shown["locations"].count("cinder://") == len(TARGETS)
        # Nobody else's business
        assert image_id not in {row["ID"] for row in openstack("bob", "list")}
        assert image_id in {row["ID"] for row in openstack("admin", "list", "--all-projects")}
        openstack("alice", "warm", "--no", image_id)
        until(lambda: not is_warm(operator, alice, image_id), what="cold")
        assert set(paths(openstack("admin", "explain", image_id, status=3)))


def test_an_upload_tells_its_owner(images: Images, alice: Person) -> None:
    image_id = alice.queued("waits")
    try:
        (row,) = openstack("alice", "explain", image_id)
        assert row["Volume is a"] == "none"
        assert "queued" in row["Why"]
    finally:
        alice.delete_image(image_id)
