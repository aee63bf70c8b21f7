"""The intake from any transport that oslo.messaging knows: its own listener, its own queues and
bindings."""

from __future__ import annotations

import asyncio
import json
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import product
from typing import Any

import structlog
from kombu import compression
from oslo_config import cfg

from worker.broker.subscription import Subscription
from worker.core.compression import METHODS, plain
from worker.core.errors import Malformed, Misconfigured
from worker.core.intake import Routed, Sink
from worker.core.notification import FIELDS
from worker.engine.threads import on_daemon_thread

with warnings.catch_warnings():
    # oslo.service imports eventlet, which warns of itself; nothing here runs on it.
    warnings.simplefilter("ignore")
    import oslo_messaging
    from oslo_messaging.notify.listener import BatchNotificationServer

log = structlog.get_logger(__name__)

TRY_AGAIN = 10.0
"""Seconds before a listener that failed to start is tried again."""
REFUSED_PAUSE = 5.0
"""Seconds before the transport is given a refused message back, which it delivers again at once."""
THREADS = 2
"""Groups that are settled side by side."""
THREAD = "oslo intake"
"""The name of threads that call oslo.messaging."""
NOT_RUNNING = "the intake is not running"
# The field that replaces a notification we can't read; it has the reason
UNREADABLE = "unreadable"


class OsloIntake:
    """Notifications by an oslo.messaging listener, which reconnects by itself and reports nothing.

    For transports that are not RabbitMQ: it is slower than RabbitIntake, reads ahead without a
    bound unless the driver has one (`rabbit_qos_prefetch_count`), and can't say whether it is
    connected or what it has missed.
    """

    def __init__(
        self,
        *,
        url: str,
        subscription: Subscription,
        group: int = 100,
        group_wait: float = 0.2,
        grace: float = 5.0,
        config_files: Iterable[str] = (),
        config_dirs: Iterable[str] = (),
    ) -> None:
        """The queue's name is the pool by which replicas share the notifications; `group`: messages
        settled together, or as many as come in `group_wait` seconds; `grace`: seconds a cancelled
        `run` waits for the sink; `config_files` and `config_dirs` have the options of
        [oslo_messaging_*]."""
        self._url = url
        self._targets = [
            oslo_messaging.Target(exchange=exchange, topic=topic)
            for exchange, topic in product(subscription.exchanges, subscription.topics)
        ]
        self._priorities = subscription.priorities
        self._pool = subscription.queue
        self._group = group
        self._group_wait = group_wait
        self._grace = grace
        self._config_files = list(config_files)
        self._config_dirs = list(config_dirs)
        self._problem: str | None = NOT_RUNNING

    async def run(self, sink: Sink) -> None:
        """Consume until cancelled. Misconfigured if the URL names no transport, or its options make
        no sense."""
        bound_decompression()
        conf = self._options()
        try:
            transport = oslo_messaging.get_notification_transport(conf, url=self._url)
        except (oslo_messaging.DriverLoadFailure, oslo_messaging.InvalidTransportURL):
            # Without the cause, whose text may have the URL in it, password and all
            raise Misconfigured("oslo.messaging knows no transport for the URL") from None
        if faults := list(_faults(conf)):
            transport.cleanup()
            raise Misconfigured(*faults)
        try:
            while True:
                await self._listen(transport, sink)
                await asyncio.sleep(TRY_AGAIN)
        finally:
            self._problem = NOT_RUNNING
            transport.cleanup()

    def _options(self) -> cfg.ConfigOpts:
        """Return the options of the files; oslo.messaging registers its own and reads them, as
        in a service."""
        conf = cfg.ConfigOpts()
        conf(
            [],
            project="image-volume-worker",
            default_config_files=self._config_files,
            default_config_dirs=self._config_dirs,
        )
        return conf

    def problem(self) -> str | None:
        """None while the listener runs, as far as we can tell."""
        return self._problem

    async def _listen(self, transport: Any, sink: Sink) -> None:
        """Listen until cancelled; return only if the listener does not start."""
        offers = _Offers(sink=sink, loop=asyncio.get_running_loop(), priorities=self._priorities)
        listener = BatchNotificationServer(
            transport,
            self._targets,
            offers,
            allow_requeue=True,
            pool=self._pool,
            batch_size=self._group,
            batch_timeout=self._group_wait,
        )
        self._problem = "connecting"
        try:
            # Drivers wait here for as long as their broker is away, and nothing can stop them
            await on_daemon_thread(partial(listener.start, override_pool_size=THREADS), name=THREAD)
        except Exception as error:
            # Every driver has errors of its own; none of them is a reason not to try again.
            self._problem = f"the listener does not start: {type(error).__name__}"
            log.warning("intake_not_opened", pool=self._pool, reason=self._problem)
            return
        self._problem = None
        log.info("intake_opened", pool=self._pool)
        try:
            sink.gap("connected")
            await asyncio.get_running_loop().create_future()
        finally:
            await on_daemon_thread(listener.stop, name=THREAD)
            await offers.close(grace=self._grace)
            await on_daemon_thread(listener.wait, name=THREAD)


def _faults(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Yield faults of options that oslo.messaging would stumble over at each connection."""
    for group in (name for name in conf if name.startswith("oslo_messaging_")):
        for option in conf[group]:
            try:
                conf[group][option]
            except (cfg.Error, ValueError) as error:
                yield f"[{group}] {option}: {str(error).rpartition('is not valid: ')[2]}"


class _Offers:
    """Offers messages of a listener to the sink, and tells the listener which to give back.

    It replaces oslo.messaging's own dispatcher, which gives a whole batch back when one message in
    it is not as expected: a batch with a notification whose priority is null would come again for
    ever.
    """

    def __init__(
        self, *, sink: Sink, loop: asyncio.AbstractEventLoop, priorities: Iterable[str]
    ) -> None:
        self.supported_priorities = tuple(priorities)
        self._sink = sink
        self._loop = loop
        self._open: set[Future[None]] = set()
        self._closed = threading.Event()

    def dispatch(self, incoming: Sequence[Any]) -> set[Any]:
        """Route a batch and have it accepted; return the messages that must come again. Called
        on a listener's thread."""
        routed = [(message, self._sink.route(wire(message.message))) for message in incoming]
        wanted = [(message, one) for message, one in routed if one]
        if not wanted or self._accepted([one for _, one in wanted]):
            return set()
        # One that is refused must not keep the others from being accepted
        alone = wanted if len(wanted) > 1 else ()
        accepted = {message for message, one in alone if self._accepted([one])}
        refused = {message for message, _ in wanted} - accepted
        if refused:
            self._closed.wait(REFUSED_PAUSE)
        return refused

    def _accepted(self, routed: Sequence[Routed]) -> bool:
        if self._closed.is_set():
            return False
        offer = asyncio.run_coroutine_threadsafe(self._sink.accept(routed), self._loop)
        self._open.add(offer)
        try:
            offer.result()
        except Exception as error:
            # The root of a listener's thread: after any error we still want the messages
            log.warning("notifications_not_accepted", messages=len(routed), reason=repr(error))
            return False
        finally:
            self._open.discard(offer)
        return True

    async def close(self, *, grace: float) -> None:
        """Wait up to `grace` seconds for open messages, then give them back."""
        if waiting := [asyncio.wrap_future(offer) for offer in tuple(self._open)]:
            await asyncio.wait(waiting, timeout=grace)
        self._closed.set()
        for offer in tuple(self._open):
            offer.cancel()


def wire(message: object) -> bytes:
    """Return a notification as it was on the wire, without its envelope and its context, which has
    tokens in it.

    Never raises: for anything else it returns something that the sink finds malformed.
    """
    try:
        if isinstance(message, Mapping):
            return json.dumps(
                {name: message[name] for name in (*FIELDS, UNREADABLE) if name in message},
                default=str,
            ).encode()
        return json.dumps(f"a notification is an object, not {type(message).__name__}").encode()
    except (TypeError, ValueError, RecursionError) as error:
        # Transports that hand over Python's own values can hold some that JSON does not have
        return json.dumps({UNREADABLE: f"{type(error).__name__}: {error}"}).encode()


def bound_decompression() -> None:
    """Have kombu decompress like the rest of the worker: bounded, and with a dead letter for a
    message that can't be decompressed.

    kombu's own decoders have no bound, and oslo.messaging acks and drops a message on which they
    raise. So the decoder returns a JSON document with the reason instead, which becomes the dead
    letter.
    """
    registry: Any = compression
    known = registry.encoders()
    for method in {*known, *METHODS}:
        # kombu before 5.7 knows zstd only by a library that we do not have. We compress nothing
        encoder = registry.get_encoder(method)[0] if method in known else None
        registry.register(encoder, partial(_decompressed, method), method)


def _decompressed(method: str, body: bytes | str) -> bytes:
    try:
        # kombu decodes a message that claims to be text
        return plain(body.encode() if isinstance(body, str) else body, method)
    except Malformed as error:
        return json.dumps({UNREADABLE: str(error)}).encode()
