"""Ways to break the devcloud and a worker on it. Each context manager restores what it broke,
whatever happens."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import kombu

from scripts.cloud.operate import PASSWORD, devcloud, rabbitmqctl, until
from scripts.cloud.people import HOME, Person

# RabbitMQ's own default: seconds between heartbeats that it offers to clients
HEARTBEAT = 60
POLICY = HOME / "etc" / "glance" / "policy.yaml"
OURS = "# of a fault"
STAGING = HOME / "data" / "glance" / "staging"
# Python runs this module first: the clock is real time and what a file says.
# keystoneauth asks `datetime` what is expired
CLOCK = """
import datetime, time

_real = time.time
time.time = lambda: _real() + float(open({file!r}).read() or 0)


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)


datetime.datetime = Clock
"""


def set_clock(folder: Path, seconds: float) -> dict[str, str]:
    """Set the clock this far off for all processes that have the returned variables in their
    environment."""
    offset = folder / "offset"
    offset.with_suffix(".new").write_text(str(seconds))
    offset.with_suffix(".new").rename(offset)
    module = folder / "clock"
    module.mkdir(exist_ok=True)
    (module / "sitecustomize.py").write_text(CLOCK.format(file=str(offset)))
    return {"PYTHONPATH": str(module)}


@contextlib.contextmanager
def stopped(service: str) -> Iterator[None]:
    """Stop a service of the devcloud."""
    devcloud("stop", service)
    try:
        yield
    finally:
        devcloud("start", service)


@contextlib.contextmanager
def broker_node_lost() -> Iterator[None]:
    """Kill RabbitMQ and all its helpers with -9."""
    leader = (HOME / "run" / "rabbitmq.pid").read_text().split()[0]
    try:
        for process in session(leader):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        yield
    finally:
        devcloud("start", "rabbitmq")


def session(leader: str) -> Iterator[int]:
    """The processes of a session of the devcloud's, by its leader's id."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            if fields[3] == leader:
                yield int(folder.name)


@contextlib.contextmanager
def broker_short_of_memory() -> Iterator[None]:
    """Raise RabbitMQ's memory alarm: it takes nothing from publishers."""
    rabbitmqctl("set_vm_memory_high_watermark", "0.00001")
    try:
        until(
            lambda: "memory" in rabbitmqctl("eval", "rabbit_alarm:get_alarms()."),
            what="the alarm",
            seconds=60,
        )
        yield
    finally:
        # A RabbitMQ that was restarted meanwhile has forgotten it
        with contextlib.suppress(subprocess.SubprocessError):
            rabbitmqctl("set_vm_memory_high_watermark", "0.4")


def close_connections(times: int = 5, pause: float = 2.0) -> None:
    """Have RabbitMQ close all connections, of the services too, several times."""
    for _ in range(times):
        rabbitmqctl("close_all_connections", "fault")
        time.sleep(pause)


def queues(vhost: str, prefix: str) -> dict[str, int]:
    """The queues of a vhost whose names begin so, with the number of messages in each."""
    listed = rabbitmqctl("list_queues", "-p", vhost, "name", "messages", "--no-table-headers")
    rows = (line.split() for line in listed.splitlines())
    return {
        row[0]: int(row[1])
        for row in rows
        if len(row) == 2 and row[1].isdigit() and row[0].startswith(prefix)
    }


def delete_queue(vhost: str, name: str) -> None:
    """Delete a queue that is there."""
    with kombu.Connection(
        f"amqp://openstack:{PASSWORD}@127.0.0.1:5672/{vhost.lstrip('/')}"
    ) as connection:
        connection.default_channel.queue_declare(name, passive=True)
        connection.default_channel.queue_delete(name)


def heartbeat(seconds: int) -> None:
    """Have RabbitMQ give up a silent client after twice this time; it counts for new
    connections."""
    rabbitmqctl("eval", f"application:set_env(rabbit, heartbeat, {seconds}).")


def revoke(admin: Person, tokens: Iterable[str]) -> None:
    """Revoke tokens in Keystone and have the services forget that they have let them in."""
    for token in tokens:
        answer = admin.connection.identity.delete(
            "/auth/tokens", headers={"X-Subject-Token": token}
        )
        # 404: it has expired or was revoked before
        if answer.status_code not in (204, 404):
            raise RuntimeError(f"revoking a token: {answer.status_code} {answer.text[:300]}")
    devcloud("restart", "memcached")


@contextlib.contextmanager
def staging_full() -> Iterator[None]:
    """Leave Glance's staging area 8 MiB of room."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", STAGING], check=True)
    try:
        yield
    finally:
        # An import may have a file open there
        subprocess.run(["umount", "--lazy", STAGING], check=True)


@contextlib.contextmanager
def disk_full(folder: Path) -> Iterator[None]:
    """Fill the file system that a folder is on to the last byte: a small one, please."""
    ballast = folder / "ballast"
    try:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 20)):
                pass
        yield
    finally:
        ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def glance_policy(**rules: str) -> Iterator[None]:
    """Give Glance a policy file with these rules, which it reads with its next request; then one
    with the defaults."""
    if POLICY.exists() and not POLICY.read_text().startswith(OURS):
        raise RuntimeError(f"{POLICY} is there already, by a switch of the devcloud")
    defaults = glance_defaults()
    write_glance_policy(rules)
    try:
        yield
    finally:
        # Glance keeps rules that are no longer in the file until it is restarted
        write_glance_policy({name: defaults[name] for name in rules})


def write_glance_policy(rules: Mapping[str, str]) -> None:
    """Write the policy file at once: Glance may be reading it."""
    new = POLICY.with_suffix(".new")
    new.write_text(f"{OURS}\n" + "".join(f'"{name}": "{check}"\n' for name, check in rules.items()))
    new.rename(POLICY)


@functools.cache
def glance_defaults() -> dict[str, str]:
    """The rules of this release of Glance, by name."""
    python = HOME / f"venv-{(HOME / 'release').read_text().strip()}" / "bin" / "python"
    rules = "{rule.name: rule.check_str for rule in policies.list_rules()}"
    code = f"import json; from glance import policies; print(json.dumps({rules}))"
    done = subprocess.run(
        (python, "-c", code), capture_output=True, text=True, timeout=60, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def remove_glance_policy() -> None:
    """Remove what `glance_policy` has left."""
    if POLICY.exists() and POLICY.read_text().startswith(OURS):
        POLICY.unlink()
        devcloud("restart", "glance-api")
