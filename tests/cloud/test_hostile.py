"""Projects that mean harm: names and properties of any kind. And no secret in anything that a
worker tells."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import kombu
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from scripts.cloud.operate import PASSWORD, PATIENCE, TARGETS, groups, is_warm, rabbitmqctl, until
from scripts.cloud.people import HOME, Person
from tests.cloud.test_replay import Recording
from tests.devcloud import FORKED
from tests.worker_process import WorkerProcess

log = logging.getLogger(__name__)
Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]
MARK = "h0st1le"
LANES = {"url": f"amqp://openstack:{PASSWORD}@127.0.0.1:5672/worker"}
# Images of one project at once
BURST = 1000 if os.environ.get("LONG") else 16
PAGES = ("/", "/metrics", "/status.json", "/images.json", "/readyz", "/healthz")
# As long as Glance lets them be; each with what marks it
KINDS = {
    "as long as it may be": MARK + "x" * 248,
    "letters of four bytes": MARK + "\N{PILE OF POO}" * 60,
    "combining": MARK + "e" + "\N{COMBINING ACUTE ACCENT}" * 247,
    "terminal": f"{MARK}\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b31m",
    "lines": f'{MARK}\r\n{{"event": "job_done", "level": "error"}}\n',
    "nothing but spaces": MARK + " " * 248,
    "other way round": MARK + "\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe\N{ZERO WIDTH JOINER}",
    "markup": f"{MARK}<script>alert(1)</script><img src=x onerror=alert(1)>&lt;",
    "metrics": f'{MARK}"}} 1\nimage_volume_worker_ready 0\n#',
    "templates": f"{MARK}%s%n%(x)s{{0.__class__}}${{jndi:ldap://127.0.0.1/x}}{{{{7*7}}}}$(reboot)`reboot`",
    "paths": f"{MARK}/../../../../etc/passwd?a=b&c=d#e%00%2e%2e%2f",
    "quotes": MARK + "'\"\\" * 80 + "' OR '1'='1'; --",
    "JSON": MARK + '{"id": null, "links": [[[[' * 9,
}


def shown(process: WorkerProcess, path: str) -> str:
    """What the worker serves there, whatever its status."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{process.port}{path}", timeout=30) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()


def test_names_and_properties_of_any_kind(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    taken: dict[str, str] = {}
    with worker() as process:
        process.wait_ready()
        queued: dict[str, str] = {}
        for kind, text in KINDS.items():
            properties = {"x_hostile": text, MARK: text, "image_volume_prewarm": text}
            try:
                taken[kind] = images(text, mebibytes=16, **properties)
            except RuntimeError as error:
                # Glance itself does not want it
                if not re.search(r": (4\d\d|500) ", str(error)):
                    raise
            # A wish for an upload that nobody can fulfil
            with contextlib.suppress(RuntimeError):
                queued[kind] = alice.queued(text, image_volume_source=text)
        for kind, one in queued.items():
            until(
                lambda image=one: alice.show(image).get("image_volume_status"),
                what=f"{kind}: refused",
            )
            assert "refused" in alice.show(one)["image_volume_status"]
            alice.delete_image(one)
        assert len(taken) >= 10, taken
        for kind, one in taken.items():
            until(lambda image=one: is_warm(operator, alice, image), what=f"{kind}: {one} warm")
        assert not process.events("job_parked")
        assert process.metric("ready") == 1
        # What it serves
        pages = {path: shown(process, path) for path in PAGES}
        families = list(text_string_to_metric_families(pages["/metrics"]))
        assert families
        assert MARK not in pages["/metrics"]
        assert "<script>alert" not in pages["/"]
        for path in PAGES[2:]:
            json.loads(pages[path])
        # What it logs: whole lines, each by itself
        for line in process.log.read_bytes().splitlines():
            assert json.loads(line)["event"]
            assert not re.search(rb"[\x00-\x1f\x7f]|\xc2[\x80-\x9f]", line)
        # What it tells
        for one in taken.values():
            told = process.run("explain", one)
            assert told.returncode == 0, told.stderr
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", told.stdout), told.stdout
        told = process.run("status")
        assert told.returncode == 0, told.stderr
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", told.stdout)


def test_a_burst_starves_nobody(
    worker: Worker, images: Images, others: Images, bob: Person, operator: Person
) -> None:
    process = worker(groups(work=LANES))
    with process:
        # Its queue is there from now on
        process.wait_ready()
    burst = {images(f"burst {number}") for number in range(BURST)}
    last = others("the other's")
    with process:
        until(
            lambda: is_warm(operator, bob, last),
            what="the other's is warm",
            seconds=PATIENCE + 2 * BURST,
        )

        def done(target: str) -> list[str]:
            return [
                line["image_id"] for line in process.events("job_done") if line["target"] == target
            ]

        until(lambda: all(last in done(target) for target in TARGETS), what="its jobs are done")
        # A lane has as many at once as its width
        before = {target: set(done(target)[: done(target).index(last)]) for target in TARGETS}
        assert all(len(ones & burst) < BURST / 2 for ones in before.values()), before
        until(
            lambda: all(burst <= set(done(target)) for target in TARGETS),
            what="all of the burst are warm",
            seconds=PATIENCE + 4 * BURST,
        )
        assert not process.events("job_parked")
    log.info(
        "of %s images of one project %s were warm before the other's, the last of all",
        BURST,
        {target: len(ones) for target, ones in before.items()},
    )


@pytest.fixture
def password() -> Iterator[str]:
    """That of a user of RabbitMQ's who may do everything."""
    made = "r4bb1t" + secrets.token_hex(12)
    rabbitmqctl("add_user", "hostile", made)
    for vhost in ("/", "worker"):
        rabbitmqctl("set_permissions", "-p", vhost, "hostile", ".*", ".*", ".*")
    yield made
    rabbitmqctl("delete_user", "hostile")


@pytest.fixture
def credential(operator: Person, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An application credential's secret, and a clouds.yaml with it."""
    identity, user = operator.connection.identity, operator.connection.current_user_id
    made = identity.create_application_credential(user, name=secrets.token_hex(4))
    entry = yaml.safe_load((HOME / "clouds.yaml").read_text())["clouds"]["operator"]
    entry["auth"] = {
        "auth_url": entry["auth"]["auth_url"], "application_credential_id": made.id,
        "application_credential_secret": made.secret,
    }  # fmt: skip
    file = tmp_path / "clouds.yaml"
    file.write_text(
        yaml.safe_dump({"clouds": {"operator": entry | {"auth_type": "v3applicationcredential"}}})
    )
    yield str(made.secret), file
    identity.delete_application_credential(user, made)


def test_no_secret_is_told(
    password: str,
    credential: tuple[str, Path],
    images: Images,
    alice: Person,
    operator: Person,
    tmp_path: Path,
) -> None:
    """Not in the log at level debug, the metrics, the page, what commands print, a recording, or a
    dead letter."""
    hidden, clouds = credential
    bus, lanes = (f"amqp://hostile:{password}@127.0.0.1:5672/{vhost}" for vhost in ("", "worker"))
    settings = groups(
        work={"url": lanes}, log={"format": "json", "level": "debug"},
        notifications={"transport_urls": bus.replace("amqp", "rabbit"), "queue": "image-volume-worker-test"},
    )  # fmt: skip
    process = WorkerProcess(tmp_path, settings, clouds=clouds, forked=FORKED)
    token = str(alice.connection.auth_token)
    told: dict[str, str] = {}

    def tell(*words: str) -> str:
        done = process.run(*words)
        told[" ".join(words)] = done.stdout + done.stderr
        return done.stdout

    with Recording(process, tmp_path / "capture.jsonl"), process:
        process.wait_ready()
        image_id = images()
        until(lambda: is_warm(operator, alice, image_id), what="warm")
        inner = json.dumps(
            {"event_type": "image.activate", "_context_auth_token": token, "payload": {"url": bus}}
        )
        body = json.dumps({"oslo.version": "2.0", "oslo.message": inner[:-1]}).encode()
        with kombu.Connection(bus) as connection:
            kombu.Producer(connection.default_channel).publish(
                body, exchange="glance", routing_key="notifications.info", content_type="application/json",
                content_encoding="utf-8",
            )  # fmt: skip
        until(lambda: process.events("message_unreadable"), what="the unreadable one")
        # It loses the broker, Keystone's token, and is to read what is wrong
        rabbitmqctl("close_all_connections", "a test")
        until(lambda: process.events("broker_back"), what="the broker again")
        good = process.config_path.read_text()
        process.config_path.write_text(good.replace("127.0.0.1:5672", "127.0.0.1:port"))
        process.signal(signal.SIGHUP)
        until(lambda: process.events("reload_refused"), what="refused")
        told["wrong configuration"] = (wrong := process.run("doctor")).stdout + wrong.stderr
        process.config_path.write_text(good)
        told |= {path: shown(process, path) for path in PAGES}
        mine = tell(
            "dead-letters", "list", "--reason", "not a notification", "-f", "value", "-c", "Id"
        ).split()
        assert mine
        assert "_context_auth_token" in tell("dead-letters", "show", mine[-1])
        for words in (
            ("doctor",), ("status",), ("explain", image_id), ("resync", "--dry-run"),
            ("dead-letters", "list"),
        ):  # fmt: skip
            tell(*words)
        tell("dead-letters", "drop", mine[-1])
    told["log"] = process.log.read_text()
    told["record"] = (tmp_path / "capture.jsonl").read_text()
    process.config_path.write_text(good.replace(password, f"{password}x"))
    tell("doctor")
    clouds.write_text(clouds.read_text().replace(hidden, f"{hidden}x"))
    tell("status")
    assert "image.activate" in told["record"]
    assert "job_done" in told["log"]
    for where, text in told.items():
        for secret in (password, hidden, token, "gAAAA"):
            assert secret not in text, f"{secret[:6]}... in {where}"
