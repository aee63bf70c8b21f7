"""A broker's URL is read as oslo.messaging reads it, and no password gets out."""

from __future__ import annotations

import math
import ssl

import pytest
from amqp.exceptions import PreconditionFailed
from amqp.serialization import loads
from oslo_config import cfg

from worker.broker.connection import words
from worker.broker.frames import readable_arguments

# From there, as it is imported there without its warnings
from worker.broker.oslo import oslo_messaging
from worker.broker.topology import Topology
from worker.broker.url import Tls, parse
from worker.core.errors import Misconfigured

URLS = [
    "rabbit://openstack:pw@rabbit-1:5672/",
    "rabbit://openstack:pw@rabbit-1:5672//",
    "rabbit://openstack:pw@rabbit-1:5672",
    "rabbit://openstack:pw@rabbit-1:5672,openstack:pw@rabbit-2:5673,openstack:pw@rabbit-3:5674/nova",
    "rabbit://us%40er:p%2Fa%3Ass@rabbit-1:5672/%2Fcinder",
    "rabbit://user@domain:pw@rabbit-1:5672/",
    "rabbit://openstack:p:w@rabbit-1:5672/glance?ssl=1&ssl_ca_file=/etc/ssl/rabbit.pem",
    "rabbit://openstack:pw@[::1]:5672,openstack:pw@[2001:db8::2]:5672/",
    "amqp://openstack:pw@10.0.0.1:5672/image-volume-worker",
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_read_as_oslo_messaging_reads_it(url: str) -> None:
    theirs = oslo_messaging.TransportURL.parse(cfg.ConfigOpts(), url)
    ours = parse(url)
    assert [(host.name, host.port, host.user, host.password) for host in ours.hosts] == [
        (host.hostname, host.port, host.username, host.password) for host in theirs.hosts
    ]
    assert ours.virtual_host == (theirs.virtual_host or "/")


@pytest.mark.parametrize("url", URLS)
def test_no_password_is_shown(url: str) -> None:
    broker = parse(url)
    for host in broker.hosts:
        assert host.password not in str(broker) + repr(broker) + str(host)


def test_what_is_left_out_has_the_usual_defaults() -> None:
    (host,) = parse("rabbit://rabbit-1").hosts
    assert (host.port, host.user, host.password) == (5672, "guest", "guest")
    (host,) = parse("amqps://rabbit-1").hosts
    assert host.port == 5671


@pytest.mark.parametrize(
    ("url", "tls"),
    [
        ("rabbit://h/", None),
        ("rabbit://h/?ssl=0", None),
        ("amqps://h/?ssl=false", None),
        ("amqps://h/", Tls()),
        ("rabbit://h/?ssl=True&ssl_version=TLSv1", Tls()),
        ("rabbit://h/?ssl=1&ssl_check_hostname=0", Tls(check_hostname=False)),
        (
            "rabbit://h/?ssl=1&ssl_ca_file=/ca&ssl_cert_file=/cert&ssl_key_file=/key",
            Tls(ca_file="/ca", cert_file="/cert", key_file="/key"),
        ),
    ],
)
def test_tls_is_what_the_query_says(url: str, tls: Tls | None) -> None:
    assert parse(url).tls == tls


def test_a_certificate_is_always_asked_for() -> None:
    assert Tls().options("h")["cert_reqs"] is ssl.CERT_REQUIRED
    assert Tls().options("h")["server_hostname"] == "h"
    assert "server_hostname" not in Tls(check_hostname=False).options("h")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "rabbit",
        "kafka://user:hidden@h/",
        "rabbit://",
        "rabbit:///vhost",
        "rabbit://user:hidden@h:port/",
        "rabbit://user:hidden@h:99999/",
        "rabbit://user:hidden@::1:5672/",
        "rabbit://user:hidden@[::1/",
        "rabbit://user:hidden@h/?ssl=maybe",
    ],
)
def test_what_names_no_rabbitmq_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        parse(url)
    assert refused.value.faults
    assert "hidden" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_the_name_for_logs() -> None:
    assert (
        str(parse("rabbit://u:pw@h1,u:pw@[::1]:5673/nova?ssl=1"))
        == "amqps://h1:5671,[::1]:5673/nova"
    )
    assert str(parse("rabbit://u:pw@h1//")) == "amqp://h1:5672/"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("received 'quorum' but current is 'classic'", "x-arg is classic there, and quorum here"),
        (
            "received the value '60000' of type 'signedint' but current is none",
            "x-arg is not set there, and 60000 here",
        ),
        (
            "received none but current is the value '1000' of type 'signedint'",
            "x-arg is 1000 there, and not set here",
        ),
    ],
)
def test_a_queue_that_is_there_otherwise_is_told_in_words(said: str, told: str) -> None:
    text = f"PRECONDITION_FAILED - inequivalent arg 'x-arg' for queue 'q' in vhost '/': {said}"
    assert words(PreconditionFailed(text, (50, 10), 406)) == (
        f"the queue q was declared otherwise: {told} (PRECONDITION_FAILED)"
    )


def test_other_errors_are_told_as_they_are() -> None:
    assert words(OSError("connection refused")) == "connection refused"
    assert words(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize(
    ("method", "read"),
    [
        (
            b"\x00\x3c\x00\x3c\x01t" + b"\xff" * 8 + b"\x00\x01e\x03k\xffk",
            ["t", 2**64 - 1, False, "e", "k?k"],
        ),
        (
            b"\x00\x3c\x00\x3c\x01t" + b"\xff" * 8 + b"\x00\x01e\x03k\xc3\xa4",
            ["t", 2**64 - 1, False, "e", "kä"],
        ),
        (
            b"\x00\x3c\x00\x3c\x01t" + b"\x00" * 8 + b"\x00\x01e\xc8" + b"\xff" * 200,
            ["t", 0, False, "e", "?" * 200],
        ),
    ],
)
def test_a_routing_key_that_is_no_text_is_made_one(method: bytes, read: list[object]) -> None:
    assert loads("sLbss", readable_arguments(method), 4)[0] == read


@pytest.mark.parametrize(
    ("after", "delayed"),
    [
        (math.nan, False),
        (-math.inf, False),
        (0.0, False),
        (0.1, True),
        (math.inf, True),
        (1e300, True),
    ],
)
def test_any_number_of_seconds_is_a_delay_or_none(after: float, delayed: bool) -> None:
    """A handler may say what it likes: what raised in the publisher would come again with each
    connection."""
    exchange, routing_key = Topology(prefix="p").address("p.lane", after=after)
    assert bool(exchange) is delayed
    assert routing_key.endswith("p.lane")
