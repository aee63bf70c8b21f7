"""URLs of brokers: the nodes of a RabbitMQ, a virtual host, TLS. Pure."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from worker.core.errors import Misconfigured

_SCHEMES = {"rabbit": False, "kombu": False, "amqp": False, "pyamqp": False, "amqps": True}
_HOST = re.compile(r"(?:\[(?P<literal>[^]]+)]|(?P<name>[^:[\]]+))(?::(?P<port>\d{1,5}))?")
_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS of a connection: paths of PEM files, "" for the system's authorities, and for no
    certificate of our own."""

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
        # py-amqp checks the name if it is given one
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


def parse(url: str) -> Broker:
    """Return the broker that `rabbit://user:password@host:port,…/vhost?options` or `amqp(s)://…`
    names; Misconfigured if it names none.

    Read as oslo.messaging reads a transport URL (tests compare the two), but without importing it,
    which takes a second and brings eventlet along. Options: `ssl`, `ssl_ca_file`, `ssl_cert_file`,
    `ssl_key_file` as there, and `ssl_check_hostname` (yes). `ssl_version` is ignored: both sides
    take the newest version they share, and naming one can only make that worse. No message contains
    a part of the URL that may hold a password.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise Misconfigured("not a URL") from None
    if parts.fragment:
        raise Misconfigured("a # in a user or password has to be percent-encoded, as @ : / have")
    if parts.scheme not in _SCHEMES:
        raise Misconfigured(f"{parts.scheme or 'no'} scheme: expected one of {', '.join(_SCHEMES)}")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    encrypted = _flag(options, "ssl", default=_SCHEMES[parts.scheme])
    hosts = tuple(_hosts(parts.netloc, port=5671 if encrypted else 5672))
    if not hosts:
        raise Misconfigured("no host")
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
            raise Misconfigured(f"host {number} is no host:port")
        yield Host(
            name=match["literal"] or match["name"],
            port=int(match["port"] or port),
            user=unquote(user) or "guest",
            password=unquote(password) or "guest",
        )


def _flag(options: Mapping[str, str], name: str, *, default: bool) -> bool:
    if name not in options:
        return default
    word = options[name].lower()
    if word not in (*_ON, *_OFF):
        raise Misconfigured(f"{name}: expected 1 or 0")
    return word in _ON
