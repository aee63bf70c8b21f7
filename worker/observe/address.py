"""Addresses that the HTTP port is served at: as text, as sockets, as a person reads them."""

from __future__ import annotations

import ipaddress
import re
import socket

# Connections that wait to be accepted (the system may allow fewer), and how many of them are
# accepted at once
BACKLOG = 512
NUMBER = re.compile(r"[0-9]{1,5}")
# Part of a host's name (RFC 1123, and the underscore that some have)
LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


def listen(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen on each address of a host that this machine has; OSError if
    there is none. Blocks."""
    found = dict.fromkeys(
        (family, address)
        for family, _, _, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    )
    sockets: list[socket.socket] = []
    last: OSError | None = None
    for family, address in found:
        try:
            # As other servers do: [::] is every address, of IPv4 too
            both = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
            sockets.append(
                socket.create_server(
                    address, family=family, backlog=BACKLOG, dualstack_ipv6=both, reuse_port=False
                )
            )
        except OSError as error:
            last = error
            if port:
                continue
        if not port:
            # Each would get another one
            break
    if not sockets and last:
        raise last
    return sockets


def address_of(text: str) -> tuple[str, int] | None:
    """Return the address of HOST:PORT, with one of IPv6 in brackets as in a URL; None if there
    can be none. Asks nobody."""
    host, _, port = text.rpartition(":")
    if not NUMBER.fullmatch(port) or int(port) > 65_535:
        return None
    try:
        if host.startswith("[") and host.endswith("]"):
            ipaddress.IPv6Address(host[1:-1])
            return host[1:-1], int(port)
        if NUMBER.fullmatch(host.rpartition(".")[2]):
            # No top-level domain is a number
            ipaddress.IPv4Address(host)
            return host, int(port)
    except ValueError:
        return None
    return (
        (host, int(port))
        if len(host) < 254 and all(map(LABEL.fullmatch, host.split(".")))
        else None
    )


def shown(address: tuple[str, int]) -> str:
    """Return HOST:PORT, with an address of IPv6 in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
