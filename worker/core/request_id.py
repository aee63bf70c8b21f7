"""Request ids: one for all that a job asks of Keystone, Glance and Cinder.

The services log it as their global request id, and we log it as `request_id`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from structlog.contextvars import bound_contextvars, get_contextvars


def new() -> str:
    """Return an id in the form that OpenStack services accept from others."""
    return f"req-{uuid.uuid4()}"


def current() -> str:
    """Return the id of what is being done here; a new one outside of `bound`."""
    return str(get_contextvars().get("request_id") or new())


@contextmanager
def bound() -> Iterator[None]:
    """Give all requests and log lines of the block one new id."""
    with bound_contextvars(request_id=new()):
        yield
