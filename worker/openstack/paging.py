"""Pages of a listing: how many rows to ask for. Users decide how large a row is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode

T = TypeVar("T")

PAGE = 1000
"""Rows of a page, the most that Glance and Cinder give by default."""
LARGEST_PAGE = 8 << 20
"""Bytes of a page of several rows, decompressed. An ordinary row has a few thousand, so 1000 rows
are well below; to read a page takes about three times its size in memory. A row alone may be as
large as any other answer."""
FEWER = 10
"""After a page that is too large, how many times fewer rows to ask for: a large row is soon found,
at the cost of few large answers."""


class PageSize:
    """Rows to ask for next: fewer after a page that failed, then twice as many with each page."""

    def __init__(self, most: int) -> None:
        self.rows = most
        self._most = most

    def shrink(self) -> None:
        """Ask for fewer; at least for one."""
        self.rows = max(1, self.rows // FEWER)

    def grow(self) -> None:
        """Ask for more again."""
        self.rows = min(self._most, self.rows * 2)


def with_limit(url: str, rows: int) -> str:
    """Return the URL of a page, asking for this number of rows."""
    path, _, query = url.partition("?")
    fields = dict(parse_qsl(query, keep_blank_values=True))
    return f"{path}?{urlencode(fields | {'limit': str(rows)})}"


def marker(url: str) -> str:
    """Return the id of the last row before a page; "" for the first page."""
    return dict(parse_qsl(url.partition("?")[2])).get("marker", "")


async def first(number: int, rows: AsyncIterator[T]) -> AsyncIterator[T]:
    """Yield this many rows of a listing; later pages are not asked for."""
    async for row in rows:
        yield row
        number -= 1
        if not number:
            return
