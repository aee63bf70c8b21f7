"""A broker as its URL names it, and connections to its hosts."""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from amqp import Message
from amqp.exceptions import AMQPError, ChannelError, NotFound
from kombu.transport.pyamqp import Connection

from worker.broker.frames import tolerant
from worker.core.errors import Misconfigured

HEARTBEAT = 30.0
"""Seconds; a broker that says nothing for twice as long is gone."""
IO_TIMEOUT = 30.0
"""Seconds that an answer, a write or the rest of a frame may take before the connection counts as
lost."""
CONNECT_TIMEOUT = 10.0
LONGEST_DECLARED_OTHERWISE_PAUSE = 300.0
CLASSIC = {"x-queue-type": "classic"}
"""For queues that are ours alone: a vhost's default_queue_type may be one that can't be
exclusive."""

_SCHEMES = {"rabbit": False, "kombu": False, "amqp": False, "pyamqp": False, "amqps": True}
_HOST = re.compile(r"(?:\[(?P<literal>[^]]+)]|(?P<name>[^:[\]]+))(?::(?P<port>\d{1,5}))?")
_VALUE = r"(?:none|(?:the value )?'(?P<{}>[^']*)'(?: of type '\w+')?)"
_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for queue '(?P<queue>[^']+)' in vhost '[^']*': "
    rf"received {_VALUE.format('ours')} but current is {_VALUE.format('theirs')}"
)
_WORDS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How to talk TLS: paths of PEM files ("" for the system's authorities, for no certificate of
    our own)."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    check_hostname: bool = True

    def options(self, host: str) -> dict[str, Any]:
        """Return py-amqp's `ssl` argument for a connection to `host`."""
        options = {
            "cert_reqs": ssl.CERT_REQUIRED,
            "ca_certs": self.ca_file or None,
            "certfile": self.cert_file or None,
            "keyfile": self.key_file or None,
        }
        # py-amqp checks the name whenever it is told one
        return {**options, "server_hostname": host} if self.check_hostname else options


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One node of a broker, and the login there."""

    name: str
    port: int
    user: str
    password: str = field(repr=False)

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """The nodes of one RabbitMQ, one of its virtual hosts, and TLS or None. Its `str` is fit for
    logs: no password."""

    hosts: tuple[Host, ...]
    virtual_host: str
    tls: Tls | None

    def __str__(self) -> str:
        scheme = "amqp" if self.tls is None else "amqps"
        return f"{scheme}://{','.join(str(host) for host in self.hosts)}/{self.virtual_host.removeprefix('/')}"

    def connect(
        self,
        host: Host,
        *,
        name: str,
        on_blocked: Callable[[str], None],
        on_unblocked: Callable[[], None],
    ) -> Connection:
        """An open connection to `host`, of which each read and write ends within IO_TIMEOUT.

        `name` is what the broker's listings show. Raises OSError or amqp.exceptions.AMQPError.
        """
        connection = Connection(
            host=str(host),
            userid=host.user,
            password=host.password,
            login_method="PLAIN",
            virtual_host=self.virtual_host,
            ssl=False if self.tls is None else self.tls.options(host.name),
            heartbeat=HEARTBEAT,
            connect_timeout=CONNECT_TIMEOUT,
            client_properties={"connection_name": name},
            on_blocked=on_blocked,
            on_unblocked=on_unblocked,
            frame_handler=tolerant,
        )
        try:
            connection.connect()
        except BaseException:
            # py-amqp leaves the socket open when the broker refuses the login
            connection.collect()
            raise
        connection.sock.settimeout(IO_TIMEOUT)
        return connection


def parse(url: str) -> Broker:
    """The broker that `rabbit://user:password@host:port,…/vhost?options` or `amqp(s)://…` names;
    Misconfigured if none.

    Read as oslo.messaging reads a transport URL (tests compare the two), but without importing it,
    which takes a second and brings eventlet along. Options: `ssl`, `ssl_ca_file`, `ssl_cert_file`,
    `ssl_key_file` as there, and `ssl_check_hostname` (yes). `ssl_version` is ignored: both sides
    take the newest version they share, naming one can only make that worse. No message has a part
    of the URL in it that may hold a password.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise Misconfigured(["not a URL"]) from None
    if parts.fragment:
        raise Misconfigured(["a # in a user or password has to be percent-encoded, as @ : / have"])
    if parts.scheme not in _SCHEMES:
        raise Misconfigured(
            [f"{parts.scheme or 'no'} scheme: expected one of {', '.join(_SCHEMES)}"]
        )
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    encrypted = _flag(options, "ssl", default=_SCHEMES[parts.scheme])
    hosts = tuple(_hosts(parts.netloc, port=5671 if encrypted else 5672))
    if not hosts:
        raise Misconfigured(["no host"])
    tls = Tls(
        ca_file=options.get("ssl_ca_file", ""),
        cert_file=options.get("ssl_cert_file", ""),
        key_file=options.get("ssl_key_file", ""),
        check_hostname=_flag(options, "ssl_check_hostname", default=True),
    )
    return Broker(
        hosts=hosts, virtual_host=unquote(parts.path[1:]) or "/", tls=tls if encrypted else None
    )


def _hosts(netloc: str, *, port: int) -> Iterator[Host]:
    for number, item in enumerate(filter(None, netloc.split(",")), start=1):
        login, _, address = item.rpartition("@")
        user, _, password = login.partition(":")
        match = _HOST.fullmatch(address)
        if match is None or int(match["port"] or port) > 65535:
            raise Misconfigured([f"host {number} is no host:port"])
        yield Host(
            name=match["literal"] or match["name"],
            port=int(match["port"] or port),
            user=unquote(user) or "guest",
            password=unquote(password) or "guest",
        )


def _flag(options: Mapping[str, str], name: str, *, default: bool) -> bool:
    word = options.get(name)
    if word is None:
        return default
    if word.lower() not in _WORDS:
        raise Misconfigured([f"{name}: expected 1 or 0"])
    return _WORDS[word.lower()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """A queue that is there: messages that wait, consumers; or the `problem` it has, say that its
    node is down."""

    messages: int = 0
    consumers: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The answers of one look at a broker.

    `away` has the hosts that don't answer, each with the reason; when that is all of them the rest
    is empty. `exchanges` and `queues` are those that are there, of those that were asked for.
    `refused` is what the broker said to the trial, "" when it let us. `cluster` and `version` are
    the broker's own words.
    """

    broker: Broker
    away: Mapping[str, str] = field(default_factory=dict)
    cluster: str = ""
    version: str = ""
    exchanges: tuple[str, ...] = ()
    queues: Mapping[str, Depth] = field(default_factory=dict)
    refused: str = ""

    @property
    def problem(self) -> str:
        """Why nobody answers; "" if a host does."""
        if len(self.away) < len(self.broker.hosts):
            return ""
        return "; ".join(f"{host}: {reason}" for host, reason in self.away.items())


def content(message: Any) -> tuple[bytes, str]:
    """Return the bytes of a delivered message and its `compression` header, "" if it has none."""
    body = message.body
    compression = (message.headers or {}).get("compression")
    # Text where the channel decodes what claims to be text, and for an empty body
    raw = body.encode() if isinstance(body, str) else bytes(body)
    return raw, compression if isinstance(compression, str) else ""


class Alarm(OSError):
    """The broker is short of memory or disk, and says so when one publishes to it."""


Trial = Callable[[Connection, Mapping[str, Depth]], object]
"""What is tried on a connection, once it is known which queues are there; AMQPError when it is
refused."""


def look(
    url: str,
    *,
    exchanges: Iterable[str] = (),
    queues: Iterable[str] = (),
    trial: Trial | None = None,
) -> Look:
    """Connect to every host, and ask one that answers what is there. Blocks; changes nothing but by
    `trial`."""
    broker = parse(url)
    with ThreadPoolExecutor(max_workers=len(broker.hosts)) as threads:
        tried = list(threads.map(lambda host: _open(broker, host), broker.hosts))
    pairs = list(zip(broker.hosts, tried, strict=True))
    away = {str(host): one for host, one in pairs if isinstance(one, str)}
    found = Look(broker=broker, away=away)
    for host, connection in pairs:
        if isinstance(connection, str):
            continue
        try:
            if not found.version:
                found = _ask(connection, found, tuple(exchanges), tuple(queues), trial)
        except (OSError, AMQPError) as error:
            away[str(host)] = words(error)
        finally:
            with contextlib.suppress(OSError, AMQPError):
                connection.close()
    return found


def scratch(connection: Connection, name: str) -> None:
    """Make a queue that is ours alone, publish to it and read it again: whoever may do that may
    work here.

    It is gone with the connection at the latest. Raises AMQPError where the broker refuses, OSError
    where it takes no messages.
    """
    # Not closed by a `with`: a broker with an alarm would not answer to that either
    channel = connection.channel()
    channel.queue_declare(name, exclusive=True, auto_delete=True, durable=False, arguments=CLASSIC)
    channel.basic_publish(Message(b"doctor"), exchange="", routing_key=name)
    channel.basic_get(name, no_ack=True)
    channel.queue_delete(name)
    channel.close()


def _open(broker: Broker, host: Host) -> Connection | str:
    """A connection, or why there is none."""
    try:
        return broker.connect(host, name="doctor", on_blocked=_stop, on_unblocked=lambda: None)
    except (OSError, AMQPError) as error:
        return words(error)


def _stop(reason: str) -> None:
    # The broker reads nothing more from us until its alarm is over: to wait for an answer would
    # take until then
    raise Alarm(f"the broker takes no messages: {reason}")


def _ask(
    connection: Connection,
    found: Look,
    exchanges: tuple[str, ...],
    queues: tuple[str, ...],
    trial: Trial | None,
) -> Look:
    there = tuple(name for name in exchanges if _is_there(connection, name))
    depths = {name: depth for name in queues if (depth := _depth(connection, name)) is not None}
    refused = ""
    if trial is not None:
        try:
            trial(connection, depths)
        except Alarm as error:
            refused = words(error)
            connection.collect()
        except (OSError, AMQPError) as error:
            refused = words(error)
    properties = connection.server_properties
    return replace(
        found,
        version=str(properties.get("version") or "unknown"),
        cluster=str(properties.get("cluster_name") or ""),
        exchanges=there,
        queues=depths,
        refused=refused,
    )


def declared_otherwise_pause(times: int) -> float:
    """Seconds to leave a queue alone that has been found declared otherwise so many times.

    Only an operator can change it, and the broker logs an error at each try.
    """
    return min(LONGEST_DECLARED_OTHERWISE_PAUSE, 2.5 * 2.0 ** min(times, 16))


def words(error: BaseException) -> str:
    """Return what went wrong in a line; of a queue that is there, but not as we declare it, what is
    different."""
    said = str(getattr(error, "reply_text", "") or error) or type(error).__name__
    match = _INEQUIVALENT.search(said)
    if match is None:
        return said
    here, there = (match[side] or "not set" for side in ("ours", "theirs"))
    return (
        f"the queue {match['queue']} was declared otherwise: {match['argument']} is {there} "
        f"there, and {here} here "
        "(PRECONDITION_FAILED)"
    )


def _is_there(connection: Connection, exchange: str) -> bool:
    # A channel for the question alone, as the answer "not found" closes it
    with connection.channel() as channel:
        try:
            channel.exchange_declare(exchange, "topic", passive=True)
        except NotFound:
            return False
    return True


def _depth(connection: Connection, queue: str) -> Depth | None:
    """How full a queue is; None if there is none of this name."""
    with connection.channel() as channel:
        try:
            answer = channel.queue_declare(queue, passive=True)
        except NotFound as error:
            # Also said of a queue that is there, on a node that is not
            return (
                None
                if "no queue" in str(error.reply_text)
                else Depth(problem=str(error.reply_text))
            )
        except ChannelError as error:
            return Depth(problem=words(error))
    return Depth(messages=answer.message_count, consumers=answer.consumer_count)
