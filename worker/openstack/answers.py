"""Answers of the services: their JSON, or one of our errors."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import requests

from worker.core.errors import Blocked, Conflict, NotFound, Temporary

LONGEST_WAIT = 900.0
"""Seconds that we wait for a Retry-After that asks for more."""


def one_line(error: BaseException) -> str:
    """Return the innermost reason in one line: the errors around it say the same again, with URLs
    and object ids."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].removesuffix(": ")


def _message(response: requests.Response) -> str:
    """Return the service's own message, from Cinder's JSON or Glance's page."""
    try:
        body = response.json()
        inner = next(iter(body.values())) if isinstance(body, dict) and body else body
        text = str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)
    except ValueError:
        text = response.text.split("</h1>")[-1]
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())[:300]


def _retry_after(response: requests.Response) -> float | None:
    """Return how many seconds the service asks us to wait, if it says so in seconds; bounded."""
    try:
        return min(max(0.0, float(response.headers.get("Retry-After", ""))), LONGEST_WAIT)
    except ValueError:
        return None


def read(service: str, method: str, response: requests.Response, certain: str = "") -> Any:
    """Return the answer's JSON, None if it is empty; the error whose policy fits if it failed.

    `certain` is text that a 404 must hold to be believed: a proxy has its own.
    """
    status = response.status_code
    if status < 300:
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            # A proxy's page or a body cut short: only asking again can help
            raise Temporary(
                f"{service}: an answer that is no JSON: {response.text[:100]!r}"
            ) from error
    text = f"{service}: {method} {urlsplit(response.url).path}: {status} {_message(response)}"
    match status:
        case 404 if certain and certain not in response.text:
            raise Temporary(f"{text} (not the service's own 404)")
        case 404:
            raise NotFound(text)
        case 400 | 409:
            raise Conflict(text)
        case 401 | 403 | 413:
            raise Blocked(text)
        case 429:
            raise Temporary(text, after=_retry_after(response))
        case _ if status >= 500:
            raise Temporary(text, after=_retry_after(response))
        case _:
            raise Blocked(text)
