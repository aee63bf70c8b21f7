"""What doctor finds on a real cloud: nothing that fails where all is well, and each thing that is
broken by name."""

from __future__ import annotations

import http.client
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from scripts.cloud.operate import GLANCE, PASSWORD, TARGETS, URL, devcloud, groups, switched, until
from scripts.cloud.people import HOME, Person
from tests.broker.rabbitmq import free_ports
from tests.cloud.proxy import Proxy
from tests.devcloud import FORKED, has_new_location_api
from tests.worker_process import WorkerProcess
from worker.broker.connection import connect
from worker.broker.inspect import look
from worker.broker.topology import Topology
from worker.broker.url import parse

CINDER, KEYSTONE = "http://127.0.0.1:8776", "http://127.0.0.1:5000"
MANAGEMENT = f"http://openstack:{PASSWORD}@127.0.0.1:15672"
# Nobody's: doctor finds no worker there, whatever else runs
QUEUE = f"doctor-{uuid.uuid4().hex[:8]}"
WELL = {"transport_urls": URL, "queue": QUEUE, "management_urls": MANAGEMENT}


class Passing:
    """Passes everything on to a service, with other words in the answer's body, and another
    date."""

    def __init__(
        self, url: str, *, words: Mapping[str, str] | None = None, seconds: float = 0.0
    ) -> None:
        upstream = urlsplit(url).netloc
        passing = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                connection = http.client.HTTPConnection(upstream, timeout=60)
                connection.request(
                    self.command, self.path, body=body or None, headers=dict(self.headers.items())
                )
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                for word, other in passing.words.items():
                    content = content.replace(word.encode(), other.encode())
                self.send_response_only(answer.status)
                self.send_header("Date", formatdate(time.time() + seconds, usegmt=True))
                self.send_header("Content-Length", str(len(content)))
                for name in ("Content-Type", "X-Subject-Token", "OpenStack-API-Version"):
                    if name in answer.headers:
                        self.send_header(name, answer.headers[name])
                self.end_headers()
                self.wfile.write(content)

            # Named by http.server
            do_GET = do_POST = handle_any  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.words = dict(words or {}) | {url: self.url}

    def __enter__(self) -> Passing:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass(frozen=True)
class Report:
    """What doctor said, by check."""

    status: int
    rows: Mapping[str, Mapping[str, str]]

    def __getitem__(self, name: str) -> str:
        """How a check came out."""
        return self.rows[name]["Result"]

    def of(self, verdict: str) -> dict[str, str]:
        """The checks that came out so, with the reason."""
        return {name: row["Detail"] for name, row in self.rows.items() if row["Result"] == verdict}

    def says(self, name: str, verdict: str, word: str) -> None:
        """Assert how a check came out, and that there is advice."""
        row = self.rows[name]
        assert row["Result"] == verdict, row
        assert word in row["Detail"], row
        assert row["What to do"] or verdict in ("ok", "skipped"), row


Doctor = Callable[..., Report]


@pytest.fixture
def doctor(tmp_path: Path, devcloud_up: None) -> Doctor:
    """Runs doctor, with an entry of clouds.yaml that may be changed."""

    def run(
        settings: Mapping[str, Mapping[str, object]] | None = None,
        *,
        login: str = "operator",
        **changes: Any,
    ) -> Report:
        clouds = yaml.safe_load((HOME / "clouds.yaml").read_text())
        auth = changes.pop("auth", {})
        entry = clouds["clouds"][login] | changes
        entry["auth"] = entry["auth"] | auth
        file = tmp_path / "clouds.yaml"
        file.write_text(yaml.safe_dump({"clouds": {"tried": entry}}))
        file.chmod(0o600)
        chosen = {"notifications": WELL, "cloud": {"name": "tried"}} | dict(settings or {})
        process = WorkerProcess(tmp_path, groups(**chosen), clouds=file, forked=FORKED)
        done = process.run("doctor", "-f", "json", timeout=300)
        assert "Traceback" not in done.stderr
        assert PASSWORD not in json.dumps(
            [row for row in json.loads(done.stdout) if row["Check"] != "configuration"]
        )
        rows = json.loads(done.stdout)
        assert len({row["Check"] for row in rows}) == len(rows)
        failed = any(row["Result"] == "fail" for row in rows)
        assert done.returncode == (3 if failed else 0), done.stderr
        for row in rows:
            assert row["What to do"] or row["Result"] in ("ok", "skipped"), row
        return Report(done.returncode, {row["Check"]: row for row in rows})

    return run


@pytest.fixture(scope="module")
def image(devcloud_up: None) -> Iterator[str]:
    """An image of alice's that lies in the store cinder-1."""
    alice = Person("alice")
    image_id = alice.image("doctor", store="cinder-1")
    yield image_id

    def gone() -> bool:
        # While Glance reads it to hash it, it can't be deleted
        answer = alice.connection.image.delete(f"/images/{image_id}")
        return answer.status_code in (204, 404)

    until(gone, what="the image is deleted")
    alice.connection.close()


def test_all_is_well(doctor: Doctor, image: str) -> None:
    report = doctor()
    assert report.of("fail") == {}
    assert report.status == 0
    # A worker has never run with this queue, and nothing drains what publishers make; `lanes` are
    # in memory; the users here have no private images, nor volumes
    expected = {
        "notifications 0 queue",
        "lanes",
        "notifications 0 notifications.info",
        "private images",
    }
    expected.add("rights in cinder")
    if "OLD_LOCATIONS=1" in devcloud("status"):
        expected.add("show_multiple_locations")
    if not has_new_location_api():
        expected.add("uploads")
    assert set(report.of("warn")) <= expected | {"notifications 0 notifications.error"}
    report.says("login", "ok", "user operator, project internal")
    if has_new_location_api():
        report.says("rights to locations", "ok", "reads locations of an image")
        report.says("glance", "ok", "has the New Location API")
    else:
        report.says("rights to locations", "ok", "no New Location API")
        report.says("glance", "ok", "has not the New Location API")
        report.says("uploads", "warn", "by the old location API")
    report.says("stores", "ok", "cinder-1 (cinder, local-1)")
    report.says("store cinder-1", "ok", "volumes of our project")
    report.says("cinder services", "ok", "3 up")
    for target in TARGETS:
        report.says(f"target {target}", "ok", f"strategy store in store cinder-{target[-1]}")
        report.says(f"target {target} pools", "ok", f"cloudhost@{target}#{target}")
        report.says(f"target {target} room", "ok", "GiB")
        report.says(f"target {target} quota", "ok", "")
    for service in ("keystone", "glance", "cinder"):
        report.says(f"clock {service}", "ok", "of ours")


def test_it_only_reads(doctor: Doctor, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def note(method: str, path: str) -> None:
        asked.append((method, path))

    with Proxy(GLANCE) as glance, Proxy(CINDER) as cinder:
        glance.fault = cinder.fault = note
        with through(glance=glance.url, cinder=cinder.url) as entry:
            doctor(**entry)
    asked_for = {path.partition("?")[0].rpartition("/")[2] for _, path in asked}
    assert {"images", "detail", "get_pools", "os-services", "import"} <= asked_for
    assert {method for method, _ in asked} == {"GET"}


@contextmanager
def through(*, glance: str = GLANCE, cinder: str = CINDER) -> Iterator[dict[str, Any]]:
    """An entry of clouds.yaml with a Keystone whose catalog has these endpoints."""
    with Passing(KEYSTONE, words={GLANCE: glance, CINDER: cinder}) as keystone:
        yield {"auth": {"auth_url": f"{keystone.url}/v3"}}


def test_a_worker_that_runs(worker: Callable[..., WorkerProcess], tmp_path: Path) -> None:
    queue = f"doctor-{uuid.uuid4().hex[:8]}"
    lanes = URL.replace("rabbit://", "amqp://") + "worker"
    notifications = WELL | {"queue": queue}
    settings = groups(notifications=notifications, work={"url": lanes}, resync={"on_start": False})
    try:
        with worker(settings) as process:
            process.wait_ready()

            def report() -> Report:
                done = process.run("doctor", "-f", "json")
                return Report(
                    done.returncode, {row["Check"]: row for row in json.loads(done.stdout)}
                )

            until(lambda: report()["lanes queues"] == "ok", what="the lanes are served")
            last = report()
            assert last.of("fail") == {}
            last.says("worker", "ok", "is ready")
            last.says("notifications 0 queue", "ok", "1 consumers")
            last.says("lanes queues", "ok", "4 lanes, each with a worker")
            last.says("lanes rights", "ok", "configure, write, read")
            last.says("notifications 0 policies", "ok", "none makes messages go away")
    finally:
        remove(queue)


def remove(queue: str) -> None:
    """Delete the queues that begin like this, and the exchanges."""
    topology = Topology(prefix=queue)
    names = [queue, topology.dead, *(topology.queue(f"prewarm.{name}") for name in TARGETS)]
    names += [topology.queue("upload"), topology.queue("reclaim")]
    names += [f"{queue}_celery_delayed_{bit}" for bit in range(28)]
    exchanges = [f"{queue}_celery_delayed_{bit}" for bit in range(28)] + [
        f"{queue}_celery_delayed_delivery"
    ]
    for url in (URL, URL + "worker"):
        broker = parse(url)
        connection = connect(broker, broker.hosts[0], name="test", on_blocked=print)
        for name in names:
            connection.channel().queue_delete(name)
        for name in exchanges:
            connection.channel().exchange_delete(name)
        connection.close()
        assert look(url, queues=names, exchanges=exchanges).queues == {}


def test_a_wrong_password(doctor: Doctor) -> None:
    report = doctor(auth={"password": "wrong"})
    report.says("login", "fail", "refuses our credentials")
    report.says("notifications 0", "ok", "RabbitMQ")
    report.says("clock keystone", "ok", "of ours")
    report.says("glance", "warn", "without a login")
    report.says("cinder", "warn", "without a login")
    assert {"configuration", "notifications 0 queue", "target local-1"} <= set(report.rows)


def test_a_keystone_that_is_away(doctor: Doctor) -> None:
    (port,) = free_ports(1)
    report = doctor(auth={"auth_url": f"http://127.0.0.1:{port}/v3"})
    report.says("login", "fail", "no answer")
    report.says("clock keystone", "warn", "no answer")
    report.says("notifications 0", "ok", "RabbitMQ")


def test_a_login_without_roles(doctor: Doctor, image: str) -> None:
    report = doctor(login="alice")
    report.says("roles", "fail", "lacks admin")
    report.says("rights in glance", "fail", "403")
    if has_new_location_api():
        report.says("rights to locations", "fail", "403")
    assert report["glance"] == report["cinder"] == "ok"
    report.says("stores", "warn", "403")
    report.says("target local-1 pools", "skipped", "administrator")


@pytest.mark.needs_new_location_api
def test_a_login_without_the_role_service(doctor: Doctor, image: str) -> None:
    report = doctor(login="admin")
    report.says("roles", "ok", "admin")
    # Since 2025.2 Glance lets an admin look without it, but not add one
    refused = report.rows["rights to locations"]
    assert refused["Result"] == "fail"
    assert re.search("lacks the role service|403", refused["Detail"])
    assert "service" in report.rows["rights to locations"]["What to do"]


def test_a_volume_type_and_a_zone_that_are_not_there(doctor: Doctor) -> None:
    report = doctor(
        {
            "target:local-1": {"volume_type": "nowhere"},
            "target:local-2": {
                "volume_type": "local-2",
                "availability_zone": "mars",
                "max_gigabytes": 1_000_000,
            },
        }
    )
    report.says("target local-1", "fail", "no volume type nowhere")
    report.says("target local-2", "ok", "strategy store")
    report.says("target local-2 zone", "fail", "no zone mars is available, only nova")
    report.says("target local-2 room", "warn", "the budget would take")


def test_a_type_that_leads_to_two_backends(doctor: Doctor, admin: Person) -> None:
    cinder = admin.connection.block_storage
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    specs = {"volume_backend_name": "<or> local-1 <or> local-2"}
    made = cinder.post("/types", json={"volume_type": {"name": name, "extra_specs": specs}}).json()[
        "volume_type"
    ]["id"]
    secret = cinder.post("/types", json={"volume_type": {"name": f"{name}-secret"}}).json()[
        "volume_type"
    ]["id"]
    encryption = {
        "provider": "luks",
        "control_location": "front-end",
        "cipher": "aes-xts-plain64",
        "key_size": 256,
    }
    assert (
        cinder.post(f"/types/{secret}/encryption", json={"encryption": encryption}).status_code
        == 200
    )
    try:
        report = doctor(
            {
                "target:local-1": {"volume_type": name, "strategy": "cache"},
                "target:local-2": {"volume_type": f"{name}-secret", "strategy": "cache"},
            }
        )
    finally:
        for type_id in (made, secret):
            assert cinder.delete(f"/types/{type_id}").status_code == 202
    report.says("target local-1 pools", "ok", "leads to 2 pools")
    report.says("target local-2 encryption", "fail", "encrypted")
    report.says("target local-1 cache", "warn", "0 entries seen")


def test_a_broker_that_is_down(doctor: Doctor) -> None:
    (port,) = free_ports(1)
    gone = f"rabbit://openstack:{PASSWORD}@127.0.0.1:{port}/"
    report = doctor(
        {
            "notifications": {"transport_urls": gone, "queue": QUEUE},
            "work": {"url": gone + "worker"},
        }
    )
    report.says("notifications 0", "fail", "refused")
    report.says("lanes", "fail", "refused")
    assert (
        report["login"] == report["glance"] == report["cinder"] == report["target local-1"] == "ok"
    )


@pytest.mark.parametrize(
    ("broken", "well"),
    [
        ("glance", ("cinder", "cinder services", "quota", "target local-1 pools")),
        ("cinder", ("glance", "stores", "copy-image", "uploads", "rights in glance")),
    ],
)
@pytest.mark.parametrize("fault", [500, "drop", 403])
def test_a_service_that_is_broken_hides_no_other(
    doctor: Doctor, broken: str, well: tuple[str, ...], fault: int | str
) -> None:
    with Proxy(GLANCE) as glance, Proxy(CINDER) as cinder:
        (glance if broken == "glance" else cinder).fault = lambda method, path: fault
        with through(glance=glance.url, cinder=cinder.url) as entry:
            report = doctor(**entry)
    assert report[broken] == "fail"
    for name in ("notifications 0", "login", *well):
        # By the old location API they are warned of
        right = "warn" if name == "uploads" and not has_new_location_api() else "ok"
        assert report[name] == right, report.rows[name]


def test_what_only_an_administrator_may_see_is_not_demanded(doctor: Doctor, image: str) -> None:
    def forbidden(method: str, path: str) -> int | None:
        closed = ("/scheduler-stats", "/os-services", "/encryption")
        return 403 if any(word in path for word in closed) else None

    with Proxy(CINDER) as cinder:
        cinder.fault = forbidden
        with through(cinder=cinder.url) as entry:
            report = doctor(**entry)
        assert cinder.faults > 3
    assert report.of("fail") == {}
    report.says("cinder services", "skipped", "administrator")
    report.says("target local-1 pools", "skipped", "administrator")


def test_locations_that_glance_shows(doctor: Doctor, image: str) -> None:
    with switched("OLD_LOCATIONS=1"):
        report = doctor()
    report.says(
        "show_multiple_locations", "warn", "show_multiple_locations and show_image_direct_url on"
    )
    assert "OSSN-0090" in report.rows["show_multiple_locations"]["Detail"]


def test_locations_that_a_target_needs(doctor: Doctor, image: str) -> None:
    location = {"volume_type": "local-1", "strategy": "location", "glance_store": "cinder-1"}
    with switched("OLD_LOCATIONS=0"):
        report = doctor({"target:local-1": location})
    report.says("show_multiple_locations", "fail", "off, but target local-1 (strategy location)")


@pytest.fixture
def stranger(admin: Person) -> Iterator[tuple[str, str]]:
    """A project of its own, and a user there with the roles that a worker needs."""
    identity = admin.connection.identity
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    project = identity.create_project(name=name, domain_id="default")
    user = identity.create_user(
        name=name, password=PASSWORD, domain_id="default", default_project_id=project.id
    )
    for role in identity.roles():
        if role.name in ("admin", "service"):
            identity.assign_project_role_to_user(project, user, role)
    yield name, project.id
    identity.delete_user(user)
    identity.delete_project(project)


def test_a_project_without_quota_that_is_not_the_stores(
    doctor: Doctor, admin: Person, stranger: tuple[str, str], image: str
) -> None:
    name, project_id = stranger
    quota = {"volumes": 0, "gigabytes": 1000, "gigabytes_local-1": 0, "volumes_local-2": 5}
    cinder = admin.connection.block_storage
    assert cinder.put(f"/os-quota-sets/{project_id}", json={"quota_set": quota}).status_code == 200
    try:
        report = doctor(auth={"username": name, "password": PASSWORD, "project_name": name})
    finally:
        cinder.delete(f"/os-quota-sets/{project_id}")
    report.says("login", "ok", project_id)
    report.says("quota", "fail", "used up: volumes 0 of 0")
    report.says("target local-1 quota", "fail", "gigabytes_local-1 0 of 0")
    report.says("target local-2 quota", "warn", "volumes_local-2 0 of 5")
    report.says("store cinder-1", "fail", f"not of ours ({project_id})")


def test_a_clock_that_is_wrong(doctor: Doctor) -> None:
    with Passing(CINDER, seconds=-30.0) as cinder, through(cinder=cinder.url) as entry:
        report = doctor(**entry)
    report.says("clock cinder", "warn", "s behind ours")
    assert report["clock glance"] == report["clock keystone"] == report["cinder"] == "ok"


def test_wrong_configuration_ends_with_2(tmp_path: Path, devcloud_up: None) -> None:
    process = WorkerProcess(
        tmp_path, groups(notifications={"transport_urls": ""}), clouds=HOME / "clouds.yaml"
    )
    done = process.run("doctor")
    assert done.returncode == 2
    assert "transport_urls is empty" in done.stderr
    process = WorkerProcess(
        tmp_path, groups(cloud={"name": "nobody"}), clouds=HOME / "clouds.yaml", forked=FORKED
    )
    done = process.run("doctor")
    assert done.returncode == 2
    assert "nobody" in done.stderr
