"""A connection for a command that asks a broker something and leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from amqp.exceptions import AMQPError
from kombu.transport.pyamqp import Connection

from worker.broker.connection import parse
from worker.core.errors import Temporary


@contextlib.contextmanager
def connected(url: str, *, name: str) -> Iterator[Connection]:
    """A connection to the first host that answers, closed afterwards; what fails on the way is
    Temporary. Blocks."""
    broker = parse(url)
    problem = "no host"
    for host in broker.hosts:
        try:
            connection = broker.connect(
                host, name=name, on_blocked=lambda _: None, on_unblocked=lambda: None
            )
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
