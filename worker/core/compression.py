"""Compressed message bodies: kombu's `compression` header, decompressed without trusting how large
the content is.

Source: kombu/compression.py, which services use when [oslo_messaging_rabbit] kombu_compression is
set. Its own decoders have no bound: 100 kB on the wire may be 100 MB in memory.
"""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from worker.core.errors import Malformed

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LARGEST = 16 << 20
"""Bytes of a decompressed message; no notification is larger."""
# Bytes that xz may use for its dictionary: enough for its highest preset
_LZMA_MEMORY = 80 << 20
# zstd's window as a power of two: enough for its level 19
_ZSTD_WINDOW: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: 23}

GZIP, BZIP2, LZMA, ZSTD = (
    "application/x-gzip",
    "application/x-bz2",
    "application/x-lzma",
    "application/zstd",
)
# "x-gzip" is zlib's format in fact; 32 has zlib take both
_DECOMPRESSORS: Mapping[str, Callable[[], Any]] = {
    GZIP: lambda: zlib.decompressobj(32 + zlib.MAX_WBITS),
    BZIP2: bz2.BZ2Decompressor,
    LZMA: lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY),
    ZSTD: lambda: zstd.ZstdDecompressor(options=_ZSTD_WINDOW),
}
METHODS = tuple(_DECOMPRESSORS)
"""The values of the header that can be read."""


def plain(body: bytes, compression: str) -> bytes:
    """Return the body as it was before it was compressed; Malformed if that can't be had within
    LARGEST bytes."""
    if not compression:
        return body
    content, fault = _decompress(body, compression, LARGEST)
    if fault:
        raise Malformed(fault)
    return content


def head(body: bytes, compression: str, length: int) -> bytes:
    """Return the first `length` bytes of the decompressed body, or as many as can be had; never
    raises.

    Bytes that stay compressed are left out: nobody could mask the secrets in them.
    """
    if not compression:
        return body[:length]
    content, _ = _decompress(body, compression, length)
    return content or (body[:length] if _is_text(body) else b"")


def _decompress(body: bytes, compression: str, limit: int) -> tuple[bytes, str]:
    """Return at most `limit` bytes of content, and what is wrong; "" if this is all of it."""
    make = _DECOMPRESSORS.get(compression)
    if make is None:
        return b"", f"compressed by {compression!r:.100}, which is none of {', '.join(METHODS)}"
    decompressor = make()
    try:
        content = bytes(decompressor.decompress(body, limit))
        if not decompressor.eof and len(content) == limit:
            # All of it may be out already, and only the checksum be left
            more = decompressor.decompress(getattr(decompressor, "unconsumed_tail", b""), 1)
            if more or not decompressor.eof:
                return content, f"larger than {limit >> 20} MiB once decompressed ({compression})"
    except (
        OSError,
        ValueError,
        EOFError,
        MemoryError,
        zlib.error,
        lzma.LZMAError,
        zstd.ZstdError,
    ) as error:
        # bz2 has only OSError and ValueError
        return b"", f"not decompressible by {compression}: {error}"[:200]
    return content, "" if decompressor.eof else f"the compressed body is cut short ({compression})"


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
