"""The session: requests on threads, with deadlines and retries; libraries' errors become ours."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import keystoneauth1.exceptions as ksa
import openstack.exceptions
import requests
import structlog
from openstack.connection import Connection

from worker.core.errors import Blocked, Malformed, Misconfigured, NotFound, Temporary, TooLarge
from worker.engine.retry import reading
from worker.observe import tracing
from worker.observe.metrics import Metrics
from worker.openstack.answers import one_line, read
from worker.openstack.deadline import Deadline
from worker.openstack.paging import LARGEST_PAGE, PAGE, PageSize, marker, with_limit
from worker.openstack.parse import each, link, parsed

# Of a listing: ten million rows. One with more never ends
MOST_PAGES = 10_000
UNANSWERED = (
    ksa.ClientException,
    ksa.RetriableConnectionFailure,
    openstack.exceptions.SDKException,
    requests.RequestException,
)
OURS = (Temporary, Blocked, NotFound, Malformed, Misconfigured)
T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]

log = structlog.get_logger(__name__)


class Session:
    """Requests to one cloud. Threads carry them, `concurrency` at once.

    A request may take `timeout` seconds in all, with the token and the versions that it may have to
    ask for first.
    """

    def __init__(
        self,
        *,
        connection: Connection,
        metrics: Metrics,
        concurrency: int,
        timeout: float,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._connection = connection
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="api")
        self._timeout = timeout
        self._under_way: set[Deadline] = set()
        self._sleep = sleep
        self._strange = ""

    def close(self) -> None:
        """Let go of threads and connections; requests under way end with an error."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for deadline in tuple(self._under_way):
            deadline.cut()
        self._connection.session.session.close()

    async def _pages(
        self,
        service: str,
        url: str,
        name: str,
        parse: Callable[[Any], T],
        following: Callable[[Any], str | None],
        *,
        most: int = PAGE,
        past: Callable[[str], Awaitable[str | None]] | None = None,
        microversion: str = "",
    ) -> AsyncIterator[T]:
        """Yield the rows of a listing, page by page, up to `most` a page; `following` finds the
        next page.

        `past` finds the page after a row that is too large alone, which is left out then. TooLarge
        if there is no `past`.
        """
        next_url: str | None = url
        seen = set[str]()
        size = PageSize(most)
        while next_url:
            place = with_limit(next_url, most)
            if place in seen or len(seen) == MOST_PAGES:
                raise Temporary(f"{service}: the pages of {name} go round in circles")
            seen.add(place)
            try:
                rows, next_url = await self._page(
                    service,
                    place,
                    lambda page: (each(name, parse)(page), link(following(page))),
                    size=size,
                    microversion=microversion,
                )
            except TooLarge as error:
                found = f"{error}: one of the {name}, the next after {marker(place) or 'none'}"
                if past is None:
                    raise TooLarge(found) from error
                rows, next_url = (), await past(with_limit(place, 1))
                left_out = marker(next_url or "")
                log.warning("row_left_out", service=service, id=left_out, error=found)
            for row in rows:
                yield row

    async def _page(
        self,
        service: str,
        url: str,
        parse: Callable[[Any], T],
        *,
        size: PageSize,
        microversion: str,
    ) -> T:
        """Return a page as `parse` reads it; TooLarge if one row alone is too large.

        After each try that failed it asks for fewer rows: a page may be too large to be read, or to
        be made in time, and then our last try is for one row.
        """

        async def ask() -> T:
            while True:
                asked = size.rows
                try:
                    answer = await self._request(
                        service,
                        "GET",
                        with_limit(url, asked),
                        microversion=microversion,
                        largest=LARGEST_PAGE if asked > 1 else None,
                    )
                    page = parsed(service, parse, answer)
                except TooLarge:
                    if asked == 1:
                        raise
                    size.shrink()
                except Temporary:
                    size.shrink()
                    raise
                else:
                    size.grow()
                    return page

        return await self._retried(service, ask)

    async def _read(
        self,
        service: str,
        url: str,
        parse: Callable[[Any], T],
        *,
        certain: str = "",
        microversion: str = "",
    ) -> T:
        """Return the answer as `parse` reads it. One that makes no sense may have been cut short,
        and is asked for again."""

        async def ask() -> T:
            answer = await self._request(
                service, "GET", url, certain=certain, microversion=microversion
            )
            return parsed(service, parse, answer)

        return await self._retried(service, ask)

    async def _write(
        self,
        service: str,
        method: str,
        url: str,
        body: object = None,
        *,
        content_type: str = "application/json",
    ) -> Any:
        """Return the answer's JSON. Never asked again: it may have happened."""
        return await self._request(service, method, url, body=body, content_type=content_type)

    async def _retried(self, service: str, call: Callable[[], Awaitable[T]]) -> T:
        counted = self._metrics.api_retries
        async for attempt in reading(
            lambda reason: counted.labels(service, reason).inc(), sleep=self._sleep
        ):
            with attempt:
                return await call()
        raise AssertionError("tenacity raises the last error instead")

    async def _request(
        self,
        service: str,
        method: str,
        url: str,
        *,
        body: object = None,
        content_type: str = "application/json",
        certain: str = "",
        microversion: str = "",
        largest: int | None = None,
    ) -> Any:
        """Return the answer's JSON; see `read` for `certain`, `Deadline` for `largest`."""

        def ask() -> Any:
            proxy = self._connection.image if service == "image" else self._connection.block_storage
            # None would hide the overrides of clouds.yaml
            where: dict[str, Any] = {}
            if service == "image":
                # The catalog's endpoint may or may not end in /v2; ours are absolute below it
                where["endpoint_override"] = (
                    (proxy.get_endpoint() or "").rstrip("/").removesuffix("/v2")
                )
            if microversion:
                where["microversion"] = microversion
            response = proxy.request(
                url,
                method,
                raise_exc=False,
                connect_retries=0,
                # keystoneauth's own makes each request wait until the clock has caught up, if it
                # was set back
                rate_semaphore=contextlib.nullcontext(),
                **where,
                headers={"Accept": "application/json"}
                | ({"Content-Type": content_type} if body is not None else {}),
                data=None if body is None else json.dumps(body),
            )
            self._metrics.api_requests.labels(service, method, str(response.status_code)).inc()
            tracing.note("url.path", urlsplit(response.url).path)
            tracing.note("http.response.status_code", response.status_code)
            log.debug(
                "api_answered",
                service=service,
                method=method,
                path=urlsplit(response.url).path,
                status=response.status_code,
            )
            return read(service, method, response, certain)

        return await self._guarded(service, method, ask, largest=largest)

    async def _guarded(
        self, service: str, method: str, ask: Callable[[], T], *, largest: int | None = None
    ) -> T:
        """Run a request in a span of its own; see `_translated`."""
        with tracing.span(f"{method} {service}", {"http.request.method": method}):
            return await self._translated(service, method, ask, largest)

    async def _translated(
        self, service: str, method: str, ask: Callable[[], T], largest: int | None
    ) -> T:
        """Run a request on a thread, and translate libraries' errors into ours; nothing else does.

        An error that we do not know is Temporary: a file that is being replaced, an answer that a
        library stumbles over, no free thread.
        """
        began = time.monotonic()
        context, deadline = contextvars.copy_context(), Deadline(largest)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, context.run, self._within, deadline, asyncio.get_running_loop(), ask
            )
        except TooLarge as error:
            self._metrics.api_requests.labels(service, method, "none").inc()
            raise TooLarge(f"{service}: {error}") from error
        except OURS:
            raise
        except (ksa.Unauthorized, ksa.Forbidden) as error:
            raise Blocked(
                f"{service}: Keystone refuses our credentials: {one_line(error)}"
            ) from error
        except (
            ksa.MissingRequiredOptions,
            ksa.NoMatchingPlugin,
            openstack.exceptions.ConfigException,
        ) as error:
            raise Blocked(f"{service}: credentials are incomplete: {one_line(error)}") from error
        except Exception as error:
            self._metrics.api_requests.labels(service, method, "none").inc()
            if deadline.over:
                raise Temporary(f"{service}: no whole answer within {self._timeout:g} s") from error
            if isinstance(error, openstack.exceptions.NotSupported):
                # It looks for the service's versions first, and has found none
                raise Temporary(
                    f"{service}: no answer: its endpoint tells no API version, is it there?"
                ) from error
            if not isinstance(error, UNANSWERED) and self._strange != (strange := one_line(error)):
                self._strange = strange
                log.warning(
                    "request_failed_strangely", service=service, error=strange, exc_info=error
                )
            raise Temporary(f"{service}: no answer: {one_line(error)}") from error
        finally:
            self._metrics.api_seconds.labels(service, method).observe(time.monotonic() - began)

    def _within(
        self, deadline: Deadline, loop: asyncio.AbstractEventLoop, ask: Callable[[], T]
    ) -> T:
        """Call `ask` on this thread; cut its connections once it has taken `timeout` seconds."""
        with deadline:
            self._under_way.add(deadline)
            # Counted from now: it may have waited for its turn
            loop.call_soon_threadsafe(loop.call_later, self._timeout, deadline.cut)
            try:
                return ask()
            finally:
                self._under_way.discard(deadline)
