"""A cluster of RabbitMQ on loopback, whose nodes talk to each other through proxies that a test can
block."""

from __future__ import annotations

import asyncio
import json
import secrets
import struct
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.broker.rabbitmq import Member, RabbitMQ

NET_TICK = 24
"""Seconds without a word after which nodes count each other as down (a quarter more or less); 60 by
default."""

# Requests and answers of Erlang's port mapper (epmd): the chapter "Distribution Protocol" of
# Erlang's documentation
_REGISTER, _REGISTERED, _LOOK_UP, _FOUND, _NAMES = 120, 118, 122, 119, 110
_NODE = struct.pack(">BBHH", 77, 0, 6, 5)
"""A node that is not hidden, by TCP, and the versions of the distribution protocol that nodes here
speak."""

_Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Wires:
    """The ways between nodes: a port mapper for each node, and a proxy for each ordered pair of
    them.

    A node asks its own port mapper where another one listens, and is told the port of a proxy. So a
    test can stop what two nodes say to each other while clients still reach both.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = [name.partition("@")[0] for name in names]
        self._listening: dict[str, int] = {}
        self._proxies: dict[tuple[str, str], int] = {}
        self._ways: dict[tuple[str, str], asyncio.Event] = {}
        self._servers: list[asyncio.Server] = []
        self._talks: set[asyncio.Task[None]] = set()
        self._starts = 0
        self.mapper_ports: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    def cut(self, name: str) -> None:
        """Let nothing through between a node and the others, in silence, as when a cable is
        pulled."""
        for pair, way in self._ways.items():
            if name.partition("@")[0] in pair:
                self._loop.call_soon_threadsafe(way.clear)

    def mend(self) -> None:
        """Let everything through again."""
        for way in self._ways.values():
            self._loop.call_soon_threadsafe(way.set)

    def close(self) -> None:
        """End every connection and listen no more."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        for name in self._names:
            self.mapper_ports[name] = await self._serve(self._mapper_of(name))
            for other in self._names:
                if other != name:
                    self._ways[name, other] = asyncio.Event()
                    self._ways[name, other].set()
                    self._proxies[name, other] = await self._serve(self._proxy_of(name, other))

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _serve(self, handle: _Handle) -> int:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task
            self._talks.add(task)
            try:
                # Either side may break off at any time
                with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await handle(reader, writer)
            finally:
                self._talks.discard(task)
                writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    def _mapper_of(self, name: str) -> _Handle:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            (length,) = struct.unpack(">H", await reader.readexactly(2))
            asked = await reader.readexactly(length)
            match asked[0]:
                case 120:  # _REGISTER
                    port, size = struct.unpack(">xH6xH", asked[:11])
                    node = asked[11 : 11 + size].decode()
                    # Also a command's, to which each node of the cluster talks
                    self._listening[node] = port
                    self._starts += 1
                    writer.write(struct.pack(">BBI", _REGISTERED, 0, 3 + self._starts))
                    # It is registered for as long as this connection lasts
                    await reader.read()
                    if self._listening.get(node) == port:
                        del self._listening[node]
                case 122:  # _LOOK_UP
                    node = asked[1:].decode()
                    port = self._listening.get(node, 0) and self._proxies.get(
                        (name, node), self._listening[node]
                    )
                    text = struct.pack(">H", len(node)) + node.encode() + b"\0\0"
                    writer.write(
                        bytes([_FOUND, 0]) + struct.pack(">H", port) + _NODE + text
                        if port
                        else bytes([_FOUND, 1])
                    )
                    await writer.drain()
                case 110:  # _NAMES
                    own = self._listening.get(name)
                    writer.write(struct.pack(">I", self.mapper_ports[name]))
                    writer.write(f"name {name} at port {own}\n".encode() if own else b"")
                    await writer.drain()

        return answer

    def _proxy_of(self, name: str, other: str) -> _Handle:
        way = self._ways[name, other]

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while data := await reader.read(1 << 16):
                    await way.wait()
                    writer.write(data)
                    await writer.drain()
                await way.wait()
            finally:
                writer.close()

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await way.wait()
            far_reader, far_writer = await asyncio.open_connection(
                "127.0.0.1", self._listening.get(other, 1)
            )
            await asyncio.gather(
                pass_on(reader, far_writer), pass_on(far_reader, writer), return_exceptions=True
            )

        return connect


class Cluster:
    """Nodes of one RabbitMQ: `start` them, break them by `nodes` and `wires`, `remove` them at the
    end."""

    def __init__(self, *, folder: Path, scripts: Path, size: int = 3) -> None:
        password, cookie = secrets.token_hex(8), secrets.token_hex(8)
        names = [
            f"worker{number}-{secrets.token_hex(4)}@localhost" for number in range(1, size + 1)
        ]
        listed = "".join(
            f"cluster_formation.classic_config.nodes.{number} = {name}\n"
            for number, name in enumerate(names, 1)
        )
        self.wires = Wires(names)
        self.nodes = [
            RabbitMQ(
                folder=folder / name.partition("@")[0],
                scripts=scripts,
                config="cluster_formation.peer_discovery_backend = classic_config\n"
                f"{listed}net_ticktime = {NET_TICK}\n",
                member=Member(
                    name=name,
                    mapper_port=self.wires.mapper_ports[name.partition("@")[0]],
                    cookie=cookie,
                    password=password,
                ),
            )
            for name in names
        ]

    def url(self, *, first: int = 0) -> str:
        """All nodes as one URL; clients try them in order, beginning with the node `first`."""
        hosts = [node.url.removeprefix("amqp://").rstrip("/") for node in self.nodes]
        return f"rabbit://{','.join([*hosts[first:], *hosts[:first]])}/"

    def start(self) -> None:
        """Start all nodes, at once, as they wait for each other."""
        with ThreadPoolExecutor() as threads:
            list(threads.map(RabbitMQ.start, self.nodes))
        self.nodes[0].ctl("await_online_nodes", str(len(self.nodes)))

    def leader(self, queue: str) -> RabbitMQ:
        """The node that leads a quorum queue."""
        listed = json.loads(self.nodes[0].ctl("list_queues", "name", "leader", "--formatter=json"))
        (name,) = (row["leader"] for row in listed if row["name"] == queue)
        return next(node for node in self.nodes if node.name == name)

    def remove(self) -> None:
        """Stop everything that was started here and delete its state."""
        with ThreadPoolExecutor() as threads:
            list(threads.map(RabbitMQ.remove, self.nodes))
        self.wires.close()
