"""The Ansible role: it deploys, reconfigures, upgrades and destroys on a booted Debian."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.broker.managed import Managed, managed
from tests.broker.rabbitmq import installed
from tests.deploy import debian
from tests.deploy.debian import ROOT, Machine, SmallCloud, until
from tests.worker_process import free_port

pytestmark = pytest.mark.skipif(not os.environ.get("LONG"), reason="takes two minutes; LONG=1")
NAME = "image-volume-worker"
VHOST = "lanes/of the worker"
WANTED = ("ansible-core>=2.19,<2.20",)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    scripts = installed()
    if scripts is None:
        pytest.fail("no RabbitMQ on this machine: scripts/test installs it")
    made = managed(tmp_path_factory.mktemp("managed"), scripts)
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A Debian with Ansible in it, our role, and our package."""
    debian.needs("mmdebstrap", "systemd-nspawn", "setpriv", "nsenter", "dpkg-deb")
    folder = tmp_path_factory.mktemp("ansible")
    python = [sys.executable, "-m"]
    wheels = folder / "wheels"
    debian.run(
        *python, "pip", "--quiet", "download", "--only-binary=:all:", "--python-version=3.11",
        f"--dest={wheels}", *WANTED,
    )  # fmt: skip
    debian.run(*python, "scripts.package", "deb", "--suite", "bookworm", "--out", folder, cwd=ROOT)
    (deb,) = folder.glob("*.deb")
    with debian.booted(folder) as machine:
        shutil.copytree(wheels, machine.tree / "srv" / "wheels")
        shutil.copytree(ROOT / "config", machine.tree / "srv" / "config")
        shutil.copy(deb, machine.tree / "srv" / "worker.deb")
        machine.do("python3", "-m", "venv", "/opt/ansible")
        machine.do(
            "/opt/ansible/bin/pip", "--quiet", "install", "--no-index", "--find-links=/srv/wheels",
            "ansible-core",
        )  # fmt: skip
        machine.write("/srv/hosts", "[image_volume_worker]\nlocalhost ansible_connection=local\n")
        machine.do("mkdir", "/srv/rules", "/srv/targets")
        yield machine


def play(machine: Machine, action: str, variables: dict[str, Any]) -> dict[str, int]:
    """Play the role; how many tasks were ok, changed and failed."""
    machine.write("/srv/variables.json", json.dumps(variables))
    printed = machine.do(
        "/opt/ansible/bin/ansible-playbook", "-i", "/srv/hosts",
        "/srv/config/ansible/image-volume-worker.yml", "-e", "@/srv/variables.json",
        "-e", f"image_volume_worker_action={action}",
        LC_ALL="C.UTF-8",
    )  # fmt: skip
    (recap,) = [
        line for line in printed.splitlines() if line.startswith("localhost ") and "ok=" in line
    ]
    counts = (word.split("=") for word in recap.split() if "=" in word)
    return {name: int(count) for name, count in counts}


def state(machine: Machine) -> dict[str, str]:
    shown = machine.do("systemctl", "show", "--property=ActiveState,MainPID,StatusText", NAME)
    return dict(line.split("=", 1) for line in shown.splitlines())


def test_from_nothing_to_nothing(machine: Machine, broker: Managed) -> None:
    cloud = SmallCloud()
    domain = {"user_domain_name": "Default", "project_domain_name": "Default"}
    login = {"username": "worker", "password": "se$cret", "project_name": "internal", **domain}
    variables: dict[str, Any] = {
        "image_volume_worker_package": "/srv/worker.deb",
        "image_volume_worker_transport_urls": [broker.at("/")],
        "image_volume_worker_work_url": broker.at(VHOST, user="lanes", password="pa$$word"),
        "image_volume_worker_cloud": {"auth": {"auth_url": f"{cloud.url}/identity/v3", **login}},
        "image_volume_worker_targets": {"fast": {"volume_type": "ssd", "strategy": "cache"}},
        "image_volume_worker_options": {"probes": {"bind": f"127.0.0.1:{free_port()}"}},
        "image_volume_worker_rabbitmq_api": f"http://127.0.0.1:{broker.management_port}",
        "image_volume_worker_rabbitmq_admin": "worker",
        "image_volume_worker_rabbitmq_admin_password": broker.password,
        "image_volume_worker_prometheus_rules": "/srv/rules",
        "image_volume_worker_prometheus_targets": "/srv/targets",
    }
    try:
        assert play(machine, "precheck", variables)["changed"] == 0
        assert play(machine, "deploy", variables)["failed"] == 0
        until(lambda: state(machine)["StatusText"] == "ready", what=lambda: state(machine))
        assert VHOST in {vhost["name"] for vhost in broker.api("GET", "vhosts")}
        (targets,) = json.loads(machine.do("cat", "/srv/targets/image-volume-worker.json"))
        assert targets["targets"] == ["localhost:9417"]
        assert "ImageVolumeWorkerDown" in machine.do("cat", "/srv/rules/image-volume-worker.rules")
        assert machine.do("stat", "--format=%a %G", f"/etc/{NAME}/clouds.yaml").split() == [
            "640",
            NAME,
        ]
        # Once more, nothing is left to change
        before = state(machine)["MainPID"]
        assert play(machine, "deploy", variables)["changed"] == 0
        assert state(machine)["MainPID"] == before
        variables["image_volume_worker_options"]["prewarm"] = {"visibilities": "public, community"}
        assert play(machine, "reconfigure", variables)["changed"] > 0
        until(lambda: state(machine)["StatusText"] == "ready", what=lambda: state(machine))
        assert state(machine)["MainPID"] != before
        before = state(machine)["MainPID"]
        play(machine, "upgrade", variables)
        until(lambda: state(machine)["StatusText"] == "ready", what=lambda: state(machine))
        assert state(machine)["MainPID"] != before
        play(machine, "stop", variables)
        assert state(machine)["ActiveState"] == "inactive"
        variables["image_volume_worker_destroy"] = "yes-i-really-really-mean-it"
        play(machine, "destroy", variables)
        assert not Path(machine.tree, f"etc/{NAME}").exists()
        assert VHOST not in {vhost["name"] for vhost in broker.api("GET", "vhosts")}
        assert "lanes" not in {user["name"] for user in broker.api("GET", "users")}
    finally:
        cloud.close()
        broker.delete("image-volume-worker")


def test_lint() -> None:
    tool = [Path(sys.executable).with_name("uv"), "tool", "run", "--from", "ansible-lint"]
    words = ["ansible-lint", "--offline", "-q", "--profile", "production", "."]
    debian.run(*tool, *words, cwd=ROOT / "config" / "ansible")


def test_what_is_missing_is_told_before_anything_is_done(machine: Machine) -> None:
    with pytest.raises(AssertionError, match="set image_volume_worker_transport_urls"):
        play(machine, "deploy", {"image_volume_worker_package": "/srv/worker.deb"})
    assert not Path(machine.tree, f"usr/lib/{NAME}").exists()
