"""A broker as its URL names it, and connections to its hosts."""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from amqp.exceptions import AMQPError, NotFound
from kombu.transport.pyamqp import Connection

from worker.errors import Misconfigured

HEARTBEAT = 30.0
"""Seconds; a broker that says nothing for twice as long is gone."""
IO_TIMEOUT = 30.0
"""Seconds that an answer, a write or the rest of a frame may take before the connection counts as lost."""
CONNECT_TIMEOUT = 10.0

_SCHEMES = {"rabbit": False, "kombu": False, "amqp": False, "pyamqp": False, "amqps": True}
_HOST = re.compile(r"(?:\[(?P<literal>[^]]+)]|(?P<name>[^:[\]]+))(?::(?P<port>\d{1,5}))?")
_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How to talk TLS: paths of PEM files ("" for the system's authorities, for no certificate of our own)."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    check_hostname: bool = True

    def options(self, host: str) -> dict[str, Any]:
        """What py-amqp takes as `ssl` for a connection to `host`."""
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
    """The nodes of one RabbitMQ, one of its virtual hosts, and TLS or None. Its `str` is fit for logs: no password."""

    hosts: tuple[Host, ...]
    virtual_host: str
    tls: Tls | None

    def __str__(self) -> str:
        scheme = "amqp" if self.tls is None else "amqps"
        return f"{scheme}://{','.join(str(host) for host in self.hosts)}/{self.virtual_host.removeprefix('/')}"

    def connect(
        self, host: Host, *, name: str, on_blocked: Callable[[str], None], on_unblocked: Callable[[], None]
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
    """The broker that `rabbit://user:password@host:port,…/vhost?options` or `amqp(s)://…` names; Misconfigured if none.

    Read as oslo.messaging reads a transport URL (tests compare the two), but without importing it, which takes
    a second and brings eventlet along. Options: `ssl`, `ssl_ca_file`, `ssl_cert_file`, `ssl_key_file` as there, and
    `ssl_check_hostname` (yes). `ssl_version` is ignored: both sides take the newest version they share, naming one
    can only make that worse. No message has a part of the URL in it that may hold a password.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise Misconfigured(["not a URL"]) from None
    if parts.fragment:
        raise Misconfigured(["a # in a user or password has to be percent-encoded, as @ : / have"])
    if parts.scheme not in _SCHEMES:
        raise Misconfigured([f"{parts.scheme or 'no'} scheme: expected one of {', '.join(_SCHEMES)}"])
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
    return Broker(hosts=hosts, virtual_host=unquote(parts.path[1:]) or "/", tls=tls if encrypted else None)


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
class Look:
    """What one look at a broker found: `exchanges` that are there, or the `problem` in one line."""

    broker: Broker
    exchanges: tuple[str, ...] = ()
    problem: str = ""


def look(url: str, *, exchanges: Iterable[str]) -> Look:
    """Connect to the first host that answers and see which exchanges are there. Blocks, changes nothing."""
    broker = parse(url)
    problem = "no host"
    for host in broker.hosts:
        try:
            connection = broker.connect(host, name="doctor", on_blocked=lambda _: None, on_unblocked=lambda: None)
        except (OSError, AMQPError) as error:
            problem = f"{host}: {str(error) or type(error).__name__}"
            continue
        try:
            return Look(broker=broker, exchanges=tuple(name for name in exchanges if _is_there(connection, name)))
        except (OSError, AMQPError) as error:
            problem = f"{host}: {str(error) or type(error).__name__}"
        finally:
            with contextlib.suppress(OSError, AMQPError):
                connection.close()
    return Look(broker=broker, problem=problem)


def _is_there(connection: Connection, exchange: str) -> bool:
    # A channel for the question alone, as the answer "not found" closes it
    with connection.channel() as channel:
        try:
            channel.exchange_declare(exchange, "topic", passive=True)
        except NotFound:
            return False
    return True
