"""A link: one thread that owns one connection to a broker, and reconnects for as long as it
runs."""

from __future__ import annotations

import contextlib
import itertools
import random
import select
import socket
import threading
import time
import weakref
from typing import Any, Protocol

import structlog
from amqp.exceptions import AMQPError, PreconditionFailed

from worker.broker.connection import (
    HEARTBEAT,
    IO_TIMEOUT,
    connect,
    declared_otherwise_pause,
    words,
)
from worker.broker.url import Broker, Host

log = structlog.get_logger(__name__)

SHORTEST_PAUSE = 0.25
LONGEST_PAUSE = 10.0
"""Seconds between two rounds over all hosts; short, because nothing moves while the broker is
away."""
SETTLING = 5.0
"""Seconds before a lost connection is made anew. The node may have died, and for a moment the
others of its cluster take it to be there: RabbitMQ (seen with 3.10) may then never deliver to a
consumer of that moment, nor confirm, or take, what is published."""
HUNG_AFTER = 300.0
"""Seconds without a turn after which a thread has hung: a broker that dies slowly can cost one
after the other."""
LASTING = 30.0
"""Seconds after which a connection that breaks is a new outage, and no longer the one before."""
GOODBYE_TIMEOUT = 5.0
"""Seconds that an orderly close may take."""


class Session(Protocol):
    """The user of a link's connection. The link calls all methods on its thread."""

    def opened(self, connection: Any) -> None:
        """Declare and consume on a new connection."""

    def turn(self) -> float:
        """Do all that is due. Called after each burst of frames, after each `wake`, and after as
        many seconds as it returns."""

    def lost(self) -> None:
        """Note that the connection is gone, with everything that was not confirmed on it."""

    def finished(self) -> bool:
        """Whether everything is done before an orderly close; asked after each turn once the
        link stops."""


class Link:
    """A thread that owns one AMQP connection, since neither kombu nor py-amqp may be shared between
    threads.

    It sleeps until the socket or `wake` has something for it, and keeps the heartbeats. After an
    outage it tries one host after the other until it is connected; it logs the begin and the end of
    an outage once.
    """

    def __init__(self, *, broker: Broker, session: Session, name: str, burst: int = 100) -> None:
        """`burst`: messages read at most between two turns of the session."""
        self._broker = broker
        self._session = session
        self.name = name
        self._burst = burst
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._awake = False
        self._stop_by: float | None = None
        self._blocked = False
        self._problem: str | None = f"{broker}: connecting"
        self._lost_since: float | None = None
        # How often, one after the other, a queue was there that is not declared as the session
        # declares it
        self._refused = 0
        self._socket: socket.socket | None = None
        self._turned = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def hung(self) -> float:
        """Seconds for which the thread has not turned; 0 if a slow broker explains it, or it was
        not started."""
        late = time.monotonic() - self._turned
        if self._stop_by is not None or self._thread.ident is None:
            return 0.0
        # A thread that has died never turns again
        return late if late > HUNG_AFTER or not self._thread.is_alive() else 0.0

    @property
    def blocked(self) -> bool:
        """Whether the broker has stopped reading what this connection publishes (memory or disk
        alarm)."""
        return self._blocked

    @property
    def problem(self) -> str | None:
        """None while the session has its connection, else why not."""
        if self._problem is None and self._blocked:
            return f"{self._broker} takes no messages: it is short of memory or disk"
        return self._problem

    def start(self) -> None:
        """Begin; returns at once. RuntimeError if there is no thread for it; then another link has
        to be made."""
        self._turned = time.monotonic()
        try:
            self._thread.start()
        except RuntimeError:
            # There is no thread for it
            self._waker.close()
            self._wakened.close()
            raise
        _started.add(self)

    def wake(self) -> None:
        """Make the session take a turn now. May be called on any thread."""
        # The order matters: the thread clears the flag before it looks for work, the caller leaves
        # work before it asks.
        if not self._awake:
            self._awake = True
            # A full buffer wakes as well as one more byte, a closed one has nobody left to wake.
            with contextlib.suppress(OSError):
                self._waker.send(b"\0")

    def stop(self, *, grace: float) -> None:
        """Give the session `grace` seconds to finish, close the connection and end the thread.
        Blocks, but not for ever: if the broker does not answer, we hang up."""
        self._stop_by = time.monotonic() + grace
        self.wake()
        self._thread.join(grace + GOODBYE_TIMEOUT)
        if (sock := self._socket) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(GOODBYE_TIMEOUT)

    def _run(self) -> None:
        failures = 0
        hosts = itertools.cycle(self._broker.hosts)
        while self._stop_by is None:
            begun = self._turned = time.monotonic()
            try:
                served = self._connect(next(hosts))
            except Exception as error:
                # The root of the thread. Nobody begins it anew, and without it nothing comes in
                served = False
                self._problem = f"{self._broker}: {error!r}"
                log.exception("broker_session_failed", link=self.name)
            # A connection that breaks at once, time and again, is no better than none.
            failures = 1 if time.monotonic() - begun > LASTING else failures + 1
            self._pause(failures, shortest=SETTLING if served else 0.0)
        self._waker.close()
        self._wakened.close()

    def _connect(self, host: Host) -> bool:
        """Serve one connection until it is over; return whether it could be used."""
        connection, served = None, False
        try:
            connection = connect(
                self._broker,
                host,
                name=self.name,
                on_blocked=self._on_blocked,
                on_unblocked=self._on_unblocked,
            )
            self._socket = connection.sock
            self._session.opened(connection)
            self._refused, served = 0, True
            self._found()
            self._serve(connection)
        except (AMQPError, OSError) as error:
            self._refused = self._refused + 1 if isinstance(error, PreconditionFailed) else 0
            self._missed(f"{host}: {words(error)}")
        except Exception as error:
            # The root of a thread: py-amqp may raise anything when a connection breaks, and a fault
            # of ours must not end the intake for ever. The next connection ends both, or the log
            # shows them
            if connection is None or connection.connected:
                log.exception("broker_session_failed", link=self.name)
            self._missed(f"{host}: {error!r}")
        finally:
            _drop(connection, politely=self._stop_by is not None)
            self._socket = None
            self._blocked = False
            self._session.lost()
        return served

    def _serve(self, connection: Any) -> None:
        """Read, take turns and keep the heartbeats until the link stops or the connection
        breaks."""
        sock = connection.sock
        # OpenSSL reads ahead: poll does not see bytes that it has already decrypted
        decrypted = getattr(sock, "pending", lambda: 0)
        frames, wakes = select.poll(), select.poll()
        frames.register(sock, select.POLLIN)
        wakes.register(sock, select.POLLIN)
        wakes.register(self._wakened, select.POLLIN)
        while True:
            self._turned = time.monotonic()
            pause = self._session.turn()
            connection.heartbeat_tick()
            if self._stop_by is not None:
                left = self._stop_by - time.monotonic()
                if left <= 0 or self._session.finished():
                    return
                pause = min(pause, left)
            if not decrypted():
                wakes.poll(max(0.0, min(pause, HEARTBEAT / 4)) * 1000)
            self._clear_wake()
            messages = 0
            while messages < self._burst and (decrypted() or frames.poll(0)):
                messages += connection.blocking_read(IO_TIMEOUT)

    def _clear_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakened.recv(16)
        self._awake = False

    def _pause(self, failures: int, *, shortest: float) -> None:
        """Wait before the next try: briefly between the hosts of one round, longer after each
        round; a stop ends the wait.

        At least `shortest` seconds.
        """
        rounds = failures // len(self._broker.hosts)
        longest = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0 ** min(rounds, 16))
        if self._refused:
            longest = declared_otherwise_pause(self._refused)
        until = time.monotonic() + max(shortest, longest * random.uniform(0.5, 1))
        poll = select.poll()
        poll.register(self._wakened, select.POLLIN)
        while self._stop_by is None and (left := until - time.monotonic()) > 0:
            poll.poll(left * 1000)
            self._clear_wake()

    def _missed(self, reason: str) -> None:
        self._problem = reason
        if self._lost_since is None and self._stop_by is None:
            self._lost_since = time.monotonic()
            log.warning("broker_lost", link=self.name, broker=str(self._broker), reason=reason)

    def _found(self) -> None:
        self._problem = None
        if self._lost_since is not None:
            log.info(
                "broker_back", link=self.name, seconds=round(time.monotonic() - self._lost_since, 1)
            )
            self._lost_since = None

    def _on_blocked(self, reason: str) -> None:
        self._blocked = True
        log.warning("broker_blocked", link=self.name, reason=reason)

    def _on_unblocked(self) -> None:
        self._blocked = False
        log.info("broker_unblocked", link=self.name)


_started: weakref.WeakSet[Link] = weakref.WeakSet()


def hung() -> dict[str, str]:
    """Return the links of this process whose threads have stopped turning, each with a reason."""
    return {
        link.name: f"has not turned for {late:.0f} s"
        for link in tuple(_started)
        if (late := link.hung)
    }


def _drop(connection: Any, *, politely: bool) -> None:
    """Close a connection in any state."""
    if connection is None:
        return
    try:
        if connection.connected:
            connection.sock.settimeout(GOODBYE_TIMEOUT)
            if politely:
                connection.close()
    except Exception as error:
        # It breaks while it is closed: that is closed as well.
        log.debug("broker_goodbye_failed", reason=repr(error))
    finally:
        connection.collect()
