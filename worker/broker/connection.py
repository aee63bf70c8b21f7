"""Connections to a broker, and the messages and errors that come through them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from amqp.exceptions import AMQPError
from kombu.transport.pyamqp import Connection

from worker.broker.frames import tolerant
from worker.broker.url import Broker, Host, parse
from worker.core.errors import Temporary

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
_VALUE = r"(?:none|(?:the value )?'(?P<{}>[^']*)'(?: of type '\w+')?)"
_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for queue '(?P<queue>[^']+)' in vhost '[^']*': "
    rf"received {_VALUE.format('ours')} but current is {_VALUE.format('theirs')}"
)


def connect(
    broker: Broker,
    host: Host,
    *,
    name: str,
    on_blocked: Callable[[str], None] = lambda _: None,
    on_unblocked: Callable[[], None] = lambda: None,
) -> Connection:
    """Return an open connection to `host`; each read and write ends within IO_TIMEOUT.

    `name` is what the broker's listings show. Raises OSError or amqp.exceptions.AMQPError.
    """
    connection = Connection(
        host=str(host),
        userid=host.user,
        password=host.password,
        login_method="PLAIN",
        virtual_host=broker.virtual_host,
        ssl=False if broker.tls is None else broker.tls.options(host.name),
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


@contextlib.contextmanager
def connected(url: str, *, name: str) -> Iterator[Connection]:
    """Yield a connection to the first host that answers, for a command that asks something and
    leaves; a failure on the way is Temporary. Blocks."""
    broker = parse(url)
    problem = "no host"
    for host in broker.hosts:
        try:
            connection = connect(broker, host, name=name)
        except (OSError, AMQPError) as error:
            problem = f"{host}: {str(error) or type(error).__name__}"
        else:
            break
    else:
        raise Temporary(f"{broker}: {problem}")
    try:
        yield connection
    except (OSError, AMQPError) as error:
        raise Temporary(f"{broker}: {str(error) or type(error).__name__}") from error
    finally:
        with contextlib.suppress(OSError, AMQPError):
            connection.close()


def bytes_channel(connection: Any) -> Any:
    """Return a new channel that gives bytes, even of a message that claims to be text."""
    channel = connection.channel()
    channel.auto_decode = False
    return channel


def content(message: Any) -> tuple[bytes, str]:
    """Return the bytes of a delivered message and its `compression` header, "" if it has none."""
    body = message.body
    compression = (message.headers or {}).get("compression")
    # py-amqp gives text for an empty body, and where the channel decodes text
    raw = body.encode() if isinstance(body, str) else bytes(body)
    return raw, compression if isinstance(compression, str) else ""


def declared_otherwise_pause(times: int) -> float:
    """Return the seconds to leave a queue alone that has been found declared otherwise `times`
    times.

    Only an operator can change it, and the broker logs an error at each try.
    """
    return min(LONGEST_DECLARED_OTHERWISE_PAUSE, 2.5 * 2.0 ** min(times, 16))


def words(error: BaseException) -> str:
    """Return an error in one line; for a queue that exists with other arguments, the difference."""
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
