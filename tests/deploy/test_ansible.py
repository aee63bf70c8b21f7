"""The Ansible role: it deploys, reconfigures, upgrades and destroys on a booted Debian."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.broker.managed import Managed, managed
from tests.deploy import debian
from tests.deploy.debian import ROOT, Machine, SmallCloud
from tests.worker_process import free_port

pytestmark = pytest.mark.long
NAME = "image-volume-worker"
VHOST = "lanes/of the worker"
QUEUE = "test-ansible"
WANTED = ("ansible-core>=2.19,<2.20",)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    with managed(tmp_path_factory.mktemp("managed")) as made:
        yield made


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


def play(machine: Machine, action: str, variables: dict[str, Any], *more: str) -> dict[str, int]:
    """Play the role; how many tasks were ok, changed and failed."""
    machine.write("/srv/variables.json", json.dumps(variables))
    printed = machine.do(
        "/opt/ansible/bin/ansible-playbook", "-i", "/srv/hosts",
        "/srv/config/ansible/image-volume-worker.yml", "-e", "@/srv/variables.json",
        "-e", f"image_volume_worker_action={action}", *more,
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


@pytest.fixture
def variables(broker: Managed) -> Iterator[dict[str, Any]]:
    """The variables that an operator sets; a small cloud answers the worker."""
    cloud = SmallCloud()
    domain = {"user_domain_name": "Default", "project_domain_name": "Default"}
    login = {"username": "worker", "password": "se$cret", "project_name": "internal", **domain}
    port = free_port()
    yield {
        "image_volume_worker_package": "/srv/worker.deb",
        "image_volume_worker_transport_urls": [broker.at("/"), broker.at("/")],
        "image_volume_worker_work_hosts": [f"127.0.0.1:{broker.port}", f"localhost:{broker.port}"],
        "image_volume_worker_work_user": "lanes",
        "image_volume_worker_work_password": "pa$$ w+rd/:@%",
        "image_volume_worker_work_vhost": VHOST,
        "image_volume_worker_cloud": {"auth": {"auth_url": f"{cloud.url}/identity/v3", **login}},
        "image_volume_worker_targets": {"fast": {"volume_type": "ssd", "strategy": "cache"}},
        "image_volume_worker_options": {
            "probes": {"bind": f"127.0.0.1:{port}"},
            "notifications": {"queue": QUEUE, "topics": None},
        },
        "image_volume_worker_rabbitmq_api": f"http://127.0.0.1:{broker.management_port}",
        "image_volume_worker_rabbitmq_admin": "worker",
        "image_volume_worker_rabbitmq_admin_password": broker.password,
        "image_volume_worker_prometheus_rules": "/srv/rules",
        "image_volume_worker_prometheus_targets": "/srv/targets",
        "image_volume_worker_addresses": [f"127.0.0.1:{port}"],
    }
    cloud.close()
    broker.delete(QUEUE)


def test_from_nothing_to_nothing(
    machine: Machine, broker: Managed, variables: dict[str, Any]
) -> None:
    assert play(machine, "deploy", variables)["failed"] == 0
    assert state(machine)["StatusText"] == "ready"
    assert VHOST in {vhost["name"] for vhost in broker.api("GET", "vhosts")}
    (targets,) = json.loads(machine.do("cat", "/srv/targets/image-volume-worker.json"))
    assert targets["targets"] == variables["image_volume_worker_addresses"]
    assert "ImageVolumeWorkerDown" in machine.do("cat", "/srv/rules/image-volume-worker.rules")
    assert machine.do("stat", "--format=%a %G", f"/etc/{NAME}/clouds.yaml").split() == ["640", NAME]
    # Once more, nothing is left to change
    before = state(machine)["MainPID"]
    assert play(machine, "deploy", variables)["changed"] == 0
    assert state(machine)["MainPID"] == before
    # A faulty configuration restarts nothing; the next good one does
    options = variables["image_volume_worker_options"]
    options["prewarm"] = {"visibilities": ["nobody"]}
    with pytest.raises(AssertionError, match="visibilities"):
        play(machine, "reconfigure", variables)
    assert state(machine)["MainPID"] == before
    options["prewarm"] = {"visibilities": ["public", "community"]}
    assert play(machine, "reconfigure", variables)["changed"] > 0
    assert state(machine)["StatusText"] == "ready"
    assert state(machine)["MainPID"] not in (before, "0")
    play(machine, "stop", variables)
    assert state(machine)["ActiveState"] == "inactive"
    play(machine, "upgrade", variables)
    assert state(machine)["StatusText"] == "ready"
    variables["image_volume_worker_destroy"] = "yes-i-really-really-mean-it"
    play(machine, "destroy", variables)
    assert not Path(machine.tree, f"etc/{NAME}").exists()
    assert VHOST not in {vhost["name"] for vhost in broker.api("GET", "vhosts")}
    assert "lanes" not in {user["name"] for user in broker.api("GET", "users")}
    assert machine.do("ls", "/srv/targets", "/srv/rules").split() == [
        "/srv/rules:",
        "/srv/targets:",
    ]


@pytest.mark.parametrize(
    ("name", "value"), [("user", "worker"), ("vhost", "%2f"), ("vhost", "services")]
)
def test_what_is_somebody_elses_is_left_alone(
    machine: Machine, broker: Managed, variables: dict[str, Any], name: str, value: str
) -> None:
    broker.api("PUT", "vhosts/services")
    before = broker.api("GET", "users"), {one["name"] for one in broker.api("GET", "vhosts")}
    changed = {**variables, f"image_volume_worker_work_{name}": value.replace("%2f", "/")}
    with pytest.raises(AssertionError, match=r"somebody else's|of the worker's own"):
        play(machine, "deploy", changed)
    changed["image_volume_worker_destroy"] = "yes-i-really-really-mean-it"
    play(machine, "destroy", changed)
    after = broker.api("GET", "users"), {one["name"] for one in broker.api("GET", "vhosts")}
    assert after[1] >= before[1]
    assert {user["name"]: user["tags"] for user in after[0]}["worker"] == ["administrator"]
    assert broker.api("GET", "overview")["cluster_name"], "the login still works"


def test_lint() -> None:
    tool = [Path(sys.executable).with_name("uv"), "tool", "run", "--from", "ansible-lint"]
    words = ["ansible-lint", "--offline", "-q", "--profile", "production", "."]
    debian.run(*tool, *words, cwd=ROOT / "config" / "ansible")


def test_what_is_missing_is_told_before_anything_is_done(machine: Machine) -> None:
    with pytest.raises(AssertionError, match="set image_volume_worker_transport_urls"):
        play(machine, "deploy", {"image_volume_worker_package": "/srv/worker.deb"})
    assert not Path(machine.tree, f"usr/lib/{NAME}").exists()


def test_the_login_may_come_from_a_vault(machine: Machine, variables: dict[str, Any]) -> None:
    machine.write("/srv/vault-password", "vault")
    vault = ["/opt/ansible/bin/ansible-vault", "encrypt_string", "--vault-password-file"]
    secret = machine.do(*vault, "/srv/vault-password", "se$cret", LC_ALL="C.UTF-8")
    machine.write("/srv/secret.yml", f"secret: {secret[secret.index('!vault') :]}")
    variables["image_volume_worker_cloud"]["auth"]["password"] = "{{ secret }}"
    files = ["-e", "@/srv/secret.yml", "--vault-password-file", "/srv/vault-password"]
    play(machine, "deploy", variables, *files)
    login = json.loads((machine.tree / f"etc/{NAME}/clouds.yaml").read_text())
    assert login["clouds"][NAME]["auth"]["password"] == "se$cret"
    play(
        machine,
        "destroy",
        {**variables, "image_volume_worker_destroy": "yes-i-really-really-mean-it"},
    )
