"""The unit on a real systemd, installed as docs/systemd.md says, with a real RabbitMQ and a small
cloud."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.broker.rabbitmq import RabbitMQ
from tests.deploy import debian
from tests.deploy.debian import CLOUD, IMAGE_ID, ROOT, Machine, SmallCloud, until
from tests.worker_process import configuration, free_port

NAME = "image-volume-worker"
FOLDER = f"/etc/{NAME}"
DROP_INS = f"/etc/systemd/system/{NAME}.service.d"
QUEUE = "test-boot"
SOURCE = "/srv/checkout"
CHECKOUT = (
    "config",
    "docs",
    "handlers",
    "worker",
    "scripts/requirements.txt",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
# In its main thread it sleeps as long as one likes, and its other threads go on
STUCK = "import signal, time\nsignal.signal(signal.SIGUSR2, lambda *_: time.sleep(1e6))\n"


def steps(chapter: str) -> str:
    """The commands of a chapter of docs/systemd.md."""
    text = (ROOT / "docs" / "systemd.md").read_text()
    found = re.search(rf"^## {chapter}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found
    commands = re.findall(r"^    (\S.*)$", found[1], re.MULTILINE)
    assert commands, f"{chapter} has no commands"
    return "\n".join(commands)


def follow(machine: Machine, chapter: str) -> None:
    """Do what a chapter says, up to the first command that fails."""
    script = f"cd {SOURCE}\nexport PIP_NO_INDEX=1 PIP_FIND_LINKS=/srv/wheels\n{steps(chapter)}"
    machine.do("sh", "-exc", script)


class Service:
    """The unit, with a configuration of its own."""

    def __init__(self, machine: Machine, cloud: SmallCloud, url: str) -> None:
        self.machine = machine
        self.url = url
        self.port = free_port()
        self._since = time.time()
        machine.write(f"{FOLDER}/clouds.yaml", cloud.clouds_yaml)
        self.configure()

    def configure(self, **changes: Mapping[str, object]) -> None:
        """The configuration, with other groups."""
        groups: dict[str, Mapping[str, object]] = {
            "notifications": {"transport_urls": self.url, "queue": QUEUE},
            "cloud": {"name": CLOUD},
            "prewarm": {"targets": "fast"},
            "target:fast": {"volume_type": "ssd"},
            "probes": {"bind": f"127.0.0.1:{self.port}"},
        }
        self.machine.write(f"{FOLDER}/{NAME}.conf", configuration(groups | changes))
        self.machine.do("systemd-tmpfiles", "--create", f"{NAME}.conf")

    def drop_in(self, text: str) -> None:
        """Change the unit for this test."""
        self.machine.write(f"{DROP_INS}/test.conf", f"[Service]\n{text}")
        self.machine.do("systemctl", "daemon-reload")

    def control(self, verb: str, *words: str) -> None:
        self.machine.do("systemctl", verb, *words, NAME)

    def shows(self, **wanted: str) -> bool:
        """Whether systemd says so of the unit."""
        return self.state().items() >= wanted.items()

    def state(self) -> dict[str, str]:
        properties = "ActiveState,SubState,Result,NRestarts,ExecMainStatus,MainPID,StatusText"
        lines = self.machine.do("systemctl", "show", f"--property={properties}", NAME).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def becomes(self, **wanted: str) -> dict[str, str]:
        """Its state, once systemd says so."""
        until(lambda: self.shows(**wanted), what=lambda: (self.state(), self.log()))
        return self.state()

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """What the journal has of this test."""
        self.machine.do("journalctl", "--sync")
        printed = self.machine.do(
            "journalctl",
            f"--unit={NAME}",
            f"--since=@{self._since:.6f}",
            "--output=json",
            "--quiet",
            "--all",
            *matches,
        )
        return [json.loads(line) for line in printed.splitlines()]

    def log(self) -> str:
        return "\n".join(str(entry.get("MESSAGE")) for entry in self.entries()[-50:])

    def close(self) -> None:
        """Stop it, and leave the unit as it was installed."""
        self.machine.status("systemctl", "stop", NAME)
        shutil.rmtree(self.machine.tree / DROP_INS.removeprefix("/"), ignore_errors=True)
        self.machine.do("systemctl", "daemon-reload")
        self.machine.status("systemctl", "reset-failed", NAME)


@pytest.fixture(scope="module")
def machine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """A Debian with the worker installed, and not running."""
    debian.needs("mmdebstrap", "systemd-nspawn", "setpriv", "nsenter")
    folder = debian.kept(request, tmp_path_factory)
    wheels = debian.wheels(folder)
    with debian.booted(folder) as machine:
        shutil.copytree(wheels, machine.tree / "srv" / "wheels")
        for name in CHECKOUT:
            place = machine.tree / SOURCE.removeprefix("/") / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, place)
        follow(machine, "Install")
        yield machine


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallCloud]:
    made = SmallCloud()
    yield made
    made.close()


@pytest.fixture
def service(machine: Machine, cloud: SmallCloud, rabbitmq: RabbitMQ) -> Iterator[Service]:
    made = Service(machine, cloud, rabbitmq.url)
    yield made
    made.close()
    rabbitmq.delete(QUEUE)


def test_it_is_ready_when_it_consumes(service: Service, rabbitmq: RabbitMQ) -> None:
    rabbitmq.stop()
    try:
        service.control("start", "--no-block")
        until(lambda: "intake-0: " in service.state()["StatusText"], what=service.state)
        state = service.state()
        assert (state["ActiveState"], state["SubState"]) == ("activating", "start")
        assert f"127.0.0.1:{rabbitmq.port}" in state["StatusText"]
    finally:
        rabbitmq.start()
    state = service.becomes(ActiveState="active", StatusText="ready")
    assert state["NRestarts"] == "0"


def test_it_runs_as_its_own_user_and_can_do_nothing_else(service: Service) -> None:
    service.control("start")
    pid = service.state()["MainPID"]
    status = service.machine.do("cat", f"/proc/{pid}/status")
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    user = service.machine.do("id", "-u", NAME).strip()
    assert re.search(rf"^Uid:\s+{user}\s", status, re.MULTILINE)
    assert service.machine.status("nsenter", f"--target={pid}", "--mount", "touch", "/etc/x") != 0


def test_killed_it_comes_back(service: Service) -> None:
    service.control("start")
    before = service.state()["MainPID"]
    service.control("kill", "--signal=KILL")
    state = service.becomes(ActiveState="active", NRestarts="1", StatusText="ready")
    assert state["MainPID"] not in (before, "0")


def test_a_loop_that_is_stuck_is_found_and_ended(service: Service) -> None:
    service.machine.write("/usr/lib/stuck/sitecustomize.py", STUCK)
    service.drop_in("Environment=PYTHONPATH=/usr/lib/stuck\nWatchdogSec=10\nRestartSec=1\n")
    service.control("start")
    # Fed for longer than the watchdog waits: it is the loops that keep it alive
    time.sleep(12)
    before = service.state()
    assert (before["ActiveState"], before["NRestarts"]) == ("active", "0")
    service.control("kill", "--signal=USR2", "--kill-whom=main")
    state = service.becomes(ActiveState="active", NRestarts="1", StatusText="ready")
    assert state["MainPID"] not in (before["MainPID"], "0")
    assert "Watchdog timeout" in service.log()


def test_told_to_stop_it_drains_and_stays_down(service: Service) -> None:
    service.control("start")
    service.control("stop")
    state = service.state()
    assert (state["ActiveState"], state["Result"], state["ExecMainStatus"]) == (
        "inactive",
        "success",
        "0",
    )
    events = [entry.get("EVENT") for entry in service.entries()]
    assert events.index("draining") < events.index("stopped")
    assert state["NRestarts"] == "0"


def test_jobs_that_take_long_to_end_are_waited_for(service: Service, cloud: SmallCloud) -> None:
    service.configure(work={"drain_timeout": 60}, cloud={"name": CLOUD, "api_timeout": 60})
    service.drop_in("TimeoutStopSec=4\nWatchdogSec=8\n")
    cloud.delay = 20.0
    try:
        service.control("start")
        # The comparison has found the image, and the job about it asks for it
        until(lambda: service.entries("EVENT=resynced"), what=service.log)
        time.sleep(2)
        began = time.monotonic()
        service.control("stop")
        took = time.monotonic() - began
    finally:
        cloud.delay = 0.0
    assert took > 8.0, service.log()
    state = service.state()
    assert (state["ActiveState"], state["Result"], state["ExecMainStatus"]) == (
        "inactive",
        "success",
        "0",
    )
    assert [entry["IN_PROGRESS"] for entry in service.entries("EVENT=draining")] == ["1"]


def test_a_reload_takes_what_works_and_refuses_what_does_not(service: Service) -> None:
    service.control("start")
    before = service.state()["MainPID"]
    both = {"prewarm": {"targets": "fast,slow"}, "target:slow": {"volume_type": "hdd"}}
    service.configure(**both)
    service.control("reload")
    until(lambda: len(service.entries("EVENT=started")) == 2, what=service.log)
    service.becomes(ActiveState="active", StatusText="ready")
    assert service.entries("EVENT=started")[1]["TARGETS"] == '["fast", "slow"]'

    # What only the cloud knows, and what the file alone shows
    for changes, why in (
        (
            {"target:fast": {"volume_type": "none"}},
            "reload refused: [target:fast] volume_type: Cinder has no type 'none'",
        ),
        ({"work": {"max_attempts": "many"}}, "reload refused: [work] max_attempts: "),
        (
            {
                "notifications": {
                    "transport_urls": service.url,
                    "queue": QUEUE,
                    "queue_max_length": 7000,
                }
            },
            "reload refused: [notifications] transport_urls, number 1: ",
        ),
    ):
        service.configure(**changes)
        service.control("reload")
        until(lambda why=why: service.state()["StatusText"].startswith(why), what=service.state)  # type: ignore[misc]
        assert service.shows(ActiveState="active", MainPID=before)
    assert len(service.entries("EVENT=reload_refused", "PRIORITY=3")) == 3
    assert len(service.entries("EVENT=started")) == 2


def test_wrong_configuration_is_not_tried_again(service: Service) -> None:
    service.configure(prewarm={"targets": ""})
    assert service.machine.status("systemctl", "start", NAME) != 0
    state = service.state()
    assert (state["ActiveState"], state["Result"], state["ExecMainStatus"]) == (
        "failed",
        "exit-code",
        "2",
    )
    # It would be activating if it were to be started again
    assert (state["SubState"], state["NRestarts"]) == ("failed", "0")
    assert "[prewarm] targets is empty" in service.log()


def test_the_journal_has_fields(service: Service) -> None:
    service.control("start")
    until(lambda: service.entries("EVENT=job_again"), what=service.log)
    entry = service.entries(f"IMAGE_ID={IMAGE_ID}", "TARGET=fast", "EVENT=job_again")[0]
    assert entry["PRIORITY"] == "4"
    assert entry["HANDLER"] == "prewarm"
    assert entry["SYSLOG_IDENTIFIER"] == NAME
    assert "413" in entry["REASON"]
    assert entry["MESSAGE"].startswith("job_again reason=")
    assert entry["_SYSTEMD_UNIT"] == f"{NAME}.service"
    assert entry["_TRANSPORT"] == "journal"
    events = service.machine.do("journalctl", "--unit", NAME, "--field", "EVENT").split()
    assert {"started", "intake_opened", "job_again"} <= set(events)


def test_the_journal_takes_what_no_datagram_holds(service: Service) -> None:
    program = (
        "import logging; from worker.observe import log; log.setup(style='journal'); "
        "logging.error('x' * 500_000)"
    )
    service.machine.do(f"/opt/{NAME}/bin/python", "-c", program)
    until(
        lambda: (
            service.machine.do(
                "journalctl",
                "--identifier",
                NAME,
                "--output=cat",
                "--output-fields=EVENT",
                "LOGGER=root",
            ).count("x")
            == 500_000
        ),
        what=service.log,
    )


def test_secrets_that_only_root_can_read(service: Service, rabbitmq: RabbitMQ) -> None:
    follow(service.machine, "Secrets")
    folder = f"{FOLDER}/credentials"
    service.machine.write(
        f"{folder}/secrets.conf", f"[notifications]\ntransport_urls = {rabbitmq.url}\n", 0o600
    )
    service.configure(notifications={"queue": QUEUE})
    try:
        service.control("start")
        for file in (folder, f"{folder}/clouds.yaml", f"{folder}/secrets.conf"):
            assert service.machine.do("stat", "--format=%U %a", file).split()[0] == "root"
            assert service.machine.status("runuser", "-u", NAME, "--", "test", "-r", file) != 0
        pid = service.state()["MainPID"]
        told = service.machine.do(
            "cat", f"/proc/{pid}/environ", f"/proc/{pid}/cmdline", f"{FOLDER}/{NAME}.conf"
        )
        assert rabbitmq.password not in told
        # The copies are still there when they are read again
        service.configure(notifications={"queue": QUEUE}, resync={"interval": 1000})
        service.control("reload")
        until(lambda: len(service.entries("EVENT=started")) == 2, what=service.log)
    finally:
        shutil.rmtree(service.machine.tree / folder.removeprefix("/"))


def test_from_the_first_check_to_the_logs(service: Service) -> None:
    follow(service.machine, "Configure")
    follow(service.machine, "Start")
    assert service.shows(ActiveState="active", StatusText="ready")
    assert service.machine.do("systemctl", "is-enabled", NAME).strip() == "enabled"
    until(lambda: service.entries("EVENT=job_again"), what=service.log)
    for command in steps("Logs").splitlines():
        # That one waits for more
        if not command.endswith(" -f"):
            printed = service.machine.do("sh", "-c", command.replace("job_parked", "job_again"))
            assert printed.strip(), command
            assert "No entries" not in printed, command


def test_upgraded_and_removed(service: Service) -> None:
    service.control("start")
    before = service.state()["MainPID"]
    follow(service.machine, "Upgrade")
    assert service.becomes(ActiveState="active", StatusText="ready")["MainPID"] != before
    follow(service.machine, "Uninstall")
    assert service.machine.status("systemctl", "cat", NAME) != 0
    left = service.machine.do(
        "find", "/etc", "/opt", "/usr", "/var/lib", "/run", "-name", f"*{NAME}*"
    )
    assert left == ""
    assert NAME not in service.machine.do("cat", "/etc/passwd", "/etc/group")
