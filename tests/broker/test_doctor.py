"""What doctor finds on a real RabbitMQ with its management API; and that it leaves nothing behind
there."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from amqp import Message

from tests.broker.managed import Managed, managed
from tests.broker.rabbitmq import free_ports
from tests.configurations import GOOD, load
from worker.broker.connection import connect
from worker.broker.inspect import look
from worker.broker.topology import Topology
from worker.broker.url import parse
from worker.diagnose import upgrade
from worker.diagnose.check import Check
from worker.diagnose.doctor import look_at_brokers
from worker.diagnose.doctor.management import Management
from worker.settings import Settings
from worker.settings.subscription import subscription_of


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    with managed(tmp_path_factory.mktemp("managed")) as made:
        yield made


@pytest.fixture
def vhosts(broker: Managed) -> Iterator[tuple[str, str]]:
    """A vhost of the services and one of the lanes, of this test's own."""
    made = (f"services-{uuid.uuid4().hex[:6]}", f"lanes-{uuid.uuid4().hex[:6]}")
    for vhost in made:
        broker.api("PUT", f"vhosts/{vhost}")
        broker.api(
            "PUT", f"permissions/{vhost}/worker", {"configure": ".*", "write": ".*", "read": ".*"}
        )
    yield made
    for vhost in made:
        broker.api("DELETE", f"vhosts/{vhost}")


@pytest.fixture
def settings(broker: Managed, vhosts: tuple[str, str], tmp_path: Path) -> Settings:
    services, lanes = vhosts
    notifications = {"transport_urls": broker.at(services), "management_urls": broker.management}
    return load(
        tmp_path, {**GOOD, "notifications": notifications, "work": {"url": broker.at(lanes)}}
    )


def changed(tmp_path: Path, *, notifications: dict[str, object], work: str) -> Settings:
    return load(tmp_path, {**GOOD, "notifications": notifications, "work": {"url": work}})


def checks(settings: Settings) -> dict[str, Check]:
    found = look_at_brokers(settings)
    assert len({check.name for check in found}) == len(found)
    for check in found:
        assert check.advice or check.verdict in ("ok", "skipped"), check
    return {check.name: check for check in found}


@contextmanager
def connected(url: str) -> Iterator[Any]:
    broker = parse(url)
    connection = connect(broker, broker.hosts[0], name="test")
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def working(settings: Settings) -> Iterator[None]:
    """What a worker and the services have made on the brokers, and consumers as of a worker."""
    topology = Topology(prefix=settings.queue)
    with connected(settings.transport_urls[0]) as services, connected(settings.work_url) as work:
        for exchange in ("glance", "openstack"):
            services.channel().exchange_declare(exchange, "topic", durable=False, auto_delete=False)
        subscription_of(settings).declare(services)
        for exchange in ("glance", "openstack"):
            subscription_of(settings).bind(services, exchange)
        services.channel().basic_consume(settings.queue, callback=lambda message: None)
        topology.declare_delays(work)
        channel = work.channel()
        for lane in ("upload", "reclaim", "prewarm.fast", "prewarm.slow"):
            topology.declare_lane(channel, topology.queue(lane))
            channel.basic_consume(topology.queue(lane), callback=lambda message: None)
        topology.declare_dead(channel)
        yield


def state(broker: Managed, vhosts: tuple[str, str]) -> list[object]:
    """All that is declared, with how full it is."""
    found: list[object] = []
    for vhost in vhosts:
        found += (queues := broker.api("GET", f"queues/{vhost}?columns=name,arguments"))
        found += broker.api("GET", f"exchanges/{vhost}?columns=name")
        found += broker.api("GET", f"bindings/{vhost}")
        with connected(broker.at(vhost)) as connection:
            names = sorted(queue["name"] for queue in queues)
            found += [
                connection.channel().queue_declare(name, passive=True).message_count
                for name in names
            ]
    return found


def publish(url: str, queue: str, *, times: int = 1) -> None:
    with connected(url) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True, auto_delete=False)
        for _ in range(times):
            channel.basic_publish(Message(b"{}"), exchange="", routing_key=queue)


def until(settings: Settings, name: str, word: str) -> dict[str, Check]:
    """The checks, once one says so: RabbitMQ counts what was published a moment ago a moment
    later."""
    deadline = time.monotonic() + 120
    while True:
        found = checks(settings)
        if word in found[name].detail:
            return found
        assert time.monotonic() < deadline, found[name]
        time.sleep(0.2)


def test_all_is_well_and_stays_as_it_is(
    broker: Managed, vhosts: tuple[str, str], settings: Settings
) -> None:
    with working(settings):
        before = state(broker, vhosts)
        found = checks(settings)
        assert state(broker, vhosts) == before
    assert {check.verdict for check in found.values()} == {"ok"}, found
    assert (
        "RabbitMQ 3." in found["notifications 0"].detail
        or "RabbitMQ 4." in found["notifications 0"].detail
    )
    assert found["notifications 0 exchanges"].detail == "glance, openstack"
    assert "1 consumers" in found["notifications 0 queue"].detail
    assert "bound to glance, openstack" in found["notifications 0 bindings"].detail
    assert found["lanes queues"].detail == "4 lanes, each with a worker; 0 jobs wait"
    assert not any(broker.password in check.detail + check.advice for check in found.values())


def test_nothing_is_there_yet_and_nothing_is_made(
    broker: Managed, vhosts: tuple[str, str], settings: Settings
) -> None:
    before = state(broker, vhosts)
    found = checks(settings)
    assert state(broker, vhosts) == before
    assert "none of glance" in found["notifications 0 exchanges"].detail
    assert "no worker has run" in found["notifications 0 queue"].detail
    assert "no worker has run yet" in found["lanes queues"].detail
    assert {check.verdict for check in found.values()} == {"ok", "warn"}


def test_a_worker_that_is_gone(settings: Settings) -> None:
    with working(settings):
        pass
    found = checks(settings)
    assert found["notifications 0 queue"].verdict == "warn"
    assert "0 consumers" in found["notifications 0 queue"].detail
    assert (
        "no worker serves upload, reclaim, prewarm.fast, prewarm.slow"
        in found["lanes queues"].detail
    )


def test_queues_that_nobody_reads(settings: Settings) -> None:
    publish(settings.transport_urls[0], "notifications.info", times=5)
    publish(settings.work_url, f"{settings.queue}.dead", times=3)
    until(settings, "notifications 0 notifications.info", "5 messages")
    # The broker counts each queue when it comes to it
    found = until(settings, "dead letters", "3")
    assert found["notifications 0 notifications.info"].verdict == "warn"
    assert found["dead letters"].verdict == "warn"
    assert found["dead letters"].detail == "3"
    assert "dead-letters list" in found["dead letters"].advice


@pytest.mark.parametrize("there", [True, False])
def test_policies_that_throw_away(
    broker: Managed, vhosts: tuple[str, str], settings: Settings, there: bool
) -> None:
    for vhost in vhosts:
        broker.ctl(
            "set_policy",
            "-p",
            vhost,
            "ttl",
            "^(?!reply_).*",
            '{"message-ttl": 70000}',
            "--apply-to",
            "queues",
        )
    if there:
        with working(settings):
            # The broker tells of each queue when it comes to it
            until(settings, "notifications 0 policies", "message-ttl 70000")
            found = until(settings, "lanes policies", "message-ttl")
    else:
        found = checks(settings)
    judged = found["notifications 0 policies"]
    assert (judged.verdict, "message-ttl 70000 (policy ttl)" in judged.detail) == ("warn", True), (
        judged
    )
    judged = found["lanes policies"]
    assert (judged.verdict, "image-volume-worker.prewarm.fast: message-ttl" in judged.detail) == (
        "fail",
        True,
    ), judged


def test_a_policy_bounds_what_nobody_reads(
    broker: Managed, vhosts: tuple[str, str], settings: Settings
) -> None:
    publish(settings.transport_urls[0], "notifications.info", times=5)
    broker.ctl(
        "set_policy", "-p", vhosts[0], "bound", r"^notifications\.info$", '{"max-length": 100}'
    )
    found = until(settings, "notifications 0 notifications.info", "bounded by policy bound")
    assert found["notifications 0 notifications.info"].verdict == "ok"
    assert found["notifications 0 policies"].verdict == "ok"


def test_a_host_that_is_down_hides_not_the_others(
    broker: Managed, settings: Settings, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    url = settings.transport_urls[0]
    address = f"worker:{broker.password}@127.0.0.1"
    both = url.replace(f"{address}:{broker.port}", f"{address}:{port},{address}:{broker.port}")
    found = checks(
        changed(tmp_path, notifications={"transport_urls": both}, work=settings.work_url)
    )
    assert found["notifications 0"].verdict == "ok"
    assert found["notifications 0 hosts"].verdict == "warn"
    assert (
        f"1 of 2 hosts do not let us in: 127.0.0.1:{port}" in found["notifications 0 hosts"].detail
    )
    assert "management_urls" in found["notifications 0 policies"].detail


def test_brokers_that_do_not_let_us_in(broker: Managed, settings: Settings, tmp_path: Path) -> None:
    urls = [
        f"amqp://worker:wrong@127.0.0.1:{broker.port}/",
        broker.at("nowhere"),
        f"amqp://worker:x@127.0.0.1:{free_ports(1)[0]}/",
        settings.transport_urls[0],
    ]
    found = checks(
        changed(
            tmp_path, notifications={"transport_urls": ",".join(urls)}, work=broker.at("nowhere")
        )
    )
    assert [found[f"notifications {number}"].verdict for number in range(4)] == [
        "fail",
        "fail",
        "fail",
        "ok",
    ]
    assert "refused" in found["notifications 0"].detail.lower()
    assert "nowhere" in found["notifications 1"].detail
    assert found["lanes"].verdict == "fail"
    assert "notifications 3 queue" in found


def test_rights_are_tried(
    broker: Managed, vhosts: tuple[str, str], settings: Settings, tmp_path: Path
) -> None:
    services, lanes = vhosts
    broker.ctl("add_user", "poor", "poor")
    try:
        for vhost in vhosts:
            broker.ctl("set_permissions", "-p", vhost, "poor", "^$", ".*", ".*")
        poor = changed(
            tmp_path,
            notifications={"transport_urls": broker.at(services, user="poor", password="poor")},
            work=broker.at(lanes, user="poor", password="poor"),
        )
        with working(settings):
            found = checks(poor)
        assert found["lanes rights"].verdict == "fail"
        assert "refused" in found["lanes rights"].detail
        assert "set_permissions" in found["lanes rights"].advice
        assert found["notifications 0 queue"].verdict == "fail"
        # The rights that README names are enough
        broker.ctl(
            "set_permissions",
            "-p",
            services,
            "poor",
            "^image-volume-worker$",
            "^image-volume-worker$",
            ".*",
        )
        ours = r"^image-volume-worker[._].*"
        broker.ctl("set_permissions", "-p", lanes, "poor", ours, rf"{ours}|^amq\.default$", ours)
        with working(settings):
            found = checks(poor)
        # This user has none for the management API
        assert {check.verdict for check in found.values()} == {"ok", "skipped"}, found
        assert found["notifications 0 policies"].verdict == "skipped"
    finally:
        broker.ctl("delete_user", "poor")


def test_the_lane_of_a_target_that_was_renamed_is_named(settings: Settings) -> None:
    topology = Topology(prefix=settings.queue)
    with working(settings), connected(settings.work_url) as work:
        assert checks(settings)["lanes left over"].verdict == "ok"
        topology.declare_lane(work.channel(), topology.queue("prewarm.renamed"))
        found = checks(settings)["lanes left over"]
    assert found.verdict == "warn"
    assert f"{settings.queue}.prewarm.renamed (" in found.detail


def test_upgrade_check(broker: Managed, vhosts: tuple[str, str], settings: Settings) -> None:
    def verdicts() -> dict[str, str]:
        return {one.name: one.verdict for one in upgrade.look_at_brokers(settings)}

    assert verdicts() == {"Notifications 0": "ok", "Lanes": "ok"}
    with working(settings):
        before = state(broker, vhosts)
        assert verdicts() == {"Notifications 0": "ok", "Lanes": "ok"}
        assert state(broker, vhosts) == before


def test_upgrade_check_of_queues_of_an_older_version(broker: Managed, settings: Settings) -> None:
    old = {"x-queue-type": "quorum", "x-max-length": 100000, "x-overflow": "drop-head"}
    topology = Topology(prefix=settings.queue)
    with connected(settings.transport_urls[0]) as services, connected(settings.work_url) as work:
        expires = {"x-expires": round(settings.queue_expires * 1000)}
        services.channel().queue_declare(
            settings.queue, durable=True, auto_delete=False,
            arguments={**old, **expires, "x-max-length": settings.queue_max_length},
        )  # fmt: skip
        work.channel().queue_declare(
            topology.queue("upload"), durable=True, auto_delete=False, arguments=old
        )
    services_queue, lanes = upgrade.look_at_brokers(settings)
    assert services_queue.verdict == "warn"
    assert "x-delivery-limit" in services_queue.detail
    assert lanes.verdict == "fail"
    assert "declared otherwise" in lanes.detail


def test_a_queue_made_with_other_options(settings: Settings, tmp_path: Path) -> None:
    with working(settings):
        other = changed(
            tmp_path,
            notifications={"transport_urls": settings.transport_urls[0], "queue_expires": 60},
            work=settings.work_url,
        )
        found = checks(other)
    assert found["notifications 0 queue"].verdict == "fail"
    assert "declared otherwise: x-expires is " in found["notifications 0 queue"].detail
    assert "delete_queue" in found["notifications 0 queue"].advice


def test_a_broker_short_of_memory(broker: Managed, settings: Settings) -> None:
    with working(settings):
        broker.ctl("set_vm_memory_high_watermark", "0.00001")
        try:
            found = until(settings, "notifications 0 alarms", "memory")
        finally:
            broker.ctl("set_vm_memory_high_watermark", "0.4")
    assert found["notifications 0 alarms"].verdict == "fail"
    assert found["lanes rights"].verdict == "fail"
    assert "takes no messages" in found["lanes rights"].detail
    assert found["notifications 0 queue"].verdict == "ok"


def test_the_management_api_is_no_condition(
    broker: Managed, settings: Settings, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    urls = f"{broker.management.replace(broker.password, 'wrong')}, http://u:p@127.0.0.1:{port}"
    notifications = {"transport_urls": settings.transport_urls[0], "management_urls": urls}
    found = checks(changed(tmp_path, notifications=notifications, work=settings.work_url))
    apis = [check for name, check in found.items() if name.startswith("management ")]
    assert [api.verdict for api in apis] == ["warn", "warn"]
    assert "401" in apis[0].detail
    assert "refused" in apis[1].detail
    assert found["notifications 0"].verdict == "ok"
    assert found["notifications 0 policies"].verdict == "skipped"


def test_a_user_of_the_management_api_with_few_rights(
    broker: Managed, vhosts: tuple[str, str], settings: Settings, tmp_path: Path
) -> None:
    broker.ctl("add_user", "watch", "watch")
    try:
        broker.ctl("set_user_tags", "watch", "management")
        for vhost in vhosts:
            broker.ctl("set_permissions", "-p", vhost, "watch", "^$", "^$", ".*")
        url = f"http://watch:watch@127.0.0.1:{broker.management_port}"
        notifications = {"transport_urls": settings.transport_urls[0], "management_urls": url}
        few = changed(tmp_path, notifications=notifications, work=settings.work_url)
        broker.ctl(
            "set_policy",
            "-p",
            vhosts[1],
            "ttl",
            "prewarm",
            '{"message-ttl": 70000}',
            "--apply-to",
            "queues",
        )
        with working(settings):
            found = until(few, "lanes policies", "message-ttl 70000")
        assert "monitoring" in found["notifications 0 alarms"].detail
        assert found["notifications 0 bindings"].verdict in ("ok", "skipped")
    finally:
        broker.ctl("delete_user", "watch")


def test_the_cluster_is_the_one_that_amqp_names(broker: Managed) -> None:
    assert Management(broker.management).cluster() == look(broker.url).cluster != ""


def test_a_broker_that_is_down_hides_not_the_other(settings: Settings, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    gone = f"amqp://u:p@127.0.0.1:{port}/"
    found = checks(
        changed(tmp_path, notifications={"transport_urls": gone}, work=settings.work_url)
    )
    assert found["notifications 0"].verdict == "fail"
    assert found["lanes"].verdict == "ok"
    assert found["lanes rights"].verdict == "ok"
