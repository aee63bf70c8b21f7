"""A RabbitMQ of our own on loopback: free ports, its own node name and port mapper, a folder that
goes away."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import amqp

SERVER = "rabbitmq-server"
HOMES = (Path("/usr/lib/rabbitmq/bin"), Path("/usr/local/sbin"), Path("/opt/rabbitmq/sbin"))
"""Where the scripts lie that any user may call; Debian's /usr/sbin/rabbitmq-server insists on root
or rabbitmq."""
STARTUP_TIMEOUT = 120.0
FORWARD_AGAIN = 10.0
"""Seconds after which RabbitMQ forwards an expired job again if its lane was not back; 180 by
default."""


def installed() -> Path | None:
    """The folder of RabbitMQ's own scripts, if there is one."""
    return next((home for home in HOMES if (home / SERVER).exists()), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What a node of a cluster shares with the others, and the port mapper by which it finds
    them."""

    name: str
    mapper_port: int
    cookie: str
    password: str


class RabbitMQ:
    """One node; `start` and `stop` it as often as needed, `remove` it at the end."""

    def __init__(
        self, *, folder: Path, scripts: Path, config: str = "", member: Member | None = None
    ) -> None:
        """`member`: of a cluster whose port mappers run already; else the node is alone, and has
        its own."""
        self._folder = folder
        self._scripts = scripts
        self._mapped = member is not None
        self._mapper: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self.port, self._mapper_port, self._node_port = free_ports(3)
        self.name = f"worker{self.port}@localhost"
        self._password = secrets.token_hex(8)
        self._folder.mkdir(parents=True, exist_ok=True)
        if member is not None:
            self.name, self._mapper_port, self._password = (
                member.name,
                member.mapper_port,
                member.password,
            )
            cookie = self._folder / ".erlang.cookie"
            cookie.write_text(member.cookie)
            cookie.chmod(0o400)
        (self._folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = 127.0.0.1:{self.port}\n"
            f"default_user = worker\ndefault_pass = {self._password}\n"
            "log.console.level = error\n" + config
        )
        (self._folder / "enabled_plugins").write_text("[].\n")

    @property
    def password(self) -> str:
        """Of the user `worker`, who may do everything."""
        return self._password

    @property
    def url(self) -> str:
        """The broker as an AMQP URL, with its default virtual host."""
        return f"amqp://worker:{self._password}@127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Start the node and wait until it lets us in."""
        if not self._mapped and (self._mapper is None or self._mapper.poll() is not None):
            self._mapper = self._spawn("epmd", "-relaxed_command_check", executable="epmd")
        self._server = self._spawn(str(self._scripts / SERVER), executable=SERVER)
        deadline = time.monotonic() + STARTUP_TIMEOUT
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"RabbitMQ did not start, see {self._folder}/{SERVER}.log")
            time.sleep(0.1)

    def stop(self, *, kill: bool = False) -> None:
        """Stop the node, in order or (`kill`) as a power cut would."""
        if self._server is not None:
            self._server.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            try:
                self._server.wait(60)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            self._server = None

    def remove(self) -> None:
        """Stop everything that was started here and delete its state."""
        self.stop()
        if self._mapper is not None:
            self._mapper.terminate()
            self._mapper.wait()
            self._mapper = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` prints for these arguments."""
        done = subprocess.run(
            [str(self._scripts / "rabbitmqctl"), "--quiet", *arguments],
            env=self._environment(),
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.stdout

    def errors(self) -> list[str]:
        """The errors that the node has logged up to now, a line each."""
        return (self._folder / f"{SERVER}.log").read_text(errors="replace").splitlines()

    @contextlib.contextmanager
    def channel(self) -> Iterator[amqp.Channel]:
        """A channel on a connection of its own, with publisher confirms."""
        with self._connection() as connection, connection.channel() as channel:
            yield channel

    def declare_exchange(self, name: str) -> None:
        """A topic exchange as oslo.messaging declares it: not durable."""
        with self.channel() as channel:
            channel.exchange_declare(name, "topic", durable=False, auto_delete=False)

    def delete_exchange(self, name: str) -> None:
        with self.channel() as channel:
            channel.exchange_delete(name)

    def publish(self, *bodies: bytes, exchange: str = "", routing_key: str) -> None:
        """Publish persistent messages, confirmed."""
        with self.channel() as channel:
            for body in bodies:
                message = amqp.Message(body, delivery_mode=2, content_encoding="utf-8")
                channel.basic_publish(message, exchange=exchange, routing_key=routing_key)

    def bodies(self, queue: str) -> list[bytes]:
        """Take everything out of a queue."""
        found = []
        with self.channel() as channel:
            channel.auto_decode = False
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                found.append(bytes(message.body))
        return found

    def depth(self, queue: str) -> int | None:
        """Messages waiting in a queue; None if there is no such queue."""
        with self._connection() as connection:
            try:
                return int(connection.channel().queue_declare(queue, passive=True).message_count)
            except amqp.NotFound:
                return None

    def delete(self, *queues: str) -> None:
        """Delete queues, whether they are there or not."""
        with self.channel() as channel:
            for queue in queues:
                channel.queue_delete(queue)

    def _connection(self) -> amqp.Connection:
        return amqp.Connection(
            f"127.0.0.1:{self.port}",
            userid="worker",
            password=self._password,
            login_method="PLAIN",
            confirm_publish=True,
            # On a busy machine a handshake has taken longer than 5 s
            connect_timeout=30,
            read_timeout=30,
        )

    def _answers(self) -> bool:
        connection = self._connection()
        try:
            connection.connect()
        except (OSError, amqp.AMQPError):
            return False
        else:
            connection.close()
            return True
        finally:
            connection.collect()

    def _spawn(self, *command: str, executable: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{executable}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _environment(self) -> Mapping[str, str]:
        folder = str(self._folder)
        return {
            "PATH": f"{self._scripts}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            # The Erlang cookie is made here, or was put here for a node of a cluster
            "HOME": folder,
            "ERL_CRASH_DUMP": "/dev/null",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._mapper_port),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            # No busy waiting, as the machine has other things to do
            "RABBITMQ_SERVER_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} "
                f"-rabbit dead_letter_worker_publisher_confirm_timeout {1000 * FORWARD_AGAIN:.0f}"
            ),
            # The script becomes the server instead of watching over it: one process, and its id is
            # ours to signal
            "RUNNING_UNDER_SYSTEMD": "true",
        }


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
