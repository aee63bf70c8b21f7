"""Compressed bodies: what comes out is bounded, and what can't be had has a reason."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st
from kombu import compression as registry

from worker.broker.oslo import bound_decompression
from worker.core.compression import BZIP2, GZIP, LARGEST, LZMA, METHODS, ZSTD, head, plain
from worker.core.errors import Malformed

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    GZIP: zlib.compress,
    BZIP2: bz2.compress,
    LZMA: lzma.compress,
    ZSTD: zstd.compress,
}
each = pytest.mark.parametrize("method", METHODS)


@each
@pytest.mark.parametrize("size", [0, 1, 100_000, LARGEST])
def test_what_was_compressed_is_had_again(method: str, size: int) -> None:
    content = b"x" * size
    assert plain(COMPRESSORS[method](content), method) == content


def test_what_is_not_compressed_stays_as_it_is() -> None:
    assert plain(b"{}", "") == head(b"{}", "", 10) == b"{}"


def test_gzip_itself_is_read_too() -> None:
    assert plain(gzip.compress(b"{}"), GZIP) == b"{}"


@each
def test_what_is_too_large_is_told_and_not_unpacked(method: str) -> None:
    bomb = COMPRESSORS[method](bytes(LARGEST * 4))
    tracemalloc.start()
    try:
        with pytest.raises(Malformed, match="larger than 16 MiB once decompressed"):
            plain(bomb, method)
        assert tracemalloc.get_traced_memory()[1] < LARGEST * 3
        assert head(bomb, method, 100) == bytes(100)
    finally:
        tracemalloc.stop()


@each
def test_what_is_cut_short_or_nonsense_is_told(method: str) -> None:
    whole = COMPRESSORS[method](b"some text")
    for body in (whole[:-3], b"", b"\xfe\xfe nonsense"):
        with pytest.raises(Malformed, match=f"{method}"):
            plain(body, method)


def test_a_method_that_nobody_knows_is_named_and_only_text_is_shown() -> None:
    with pytest.raises(Malformed, match=f"'application/x-new', which is none of {GZIP}"):
        plain(b"{}", "application/x-new")
    assert head(b"{}", "application/x-new", 10) == b"{}"
    assert head(zlib.compress(b"a secret"), "application/x-new", 10) == b""


def test_a_dictionary_that_needs_much_memory_is_refused() -> None:
    huge = lzma.compress(b"{}", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}])
    with pytest.raises(Malformed, match=LZMA):
        plain(huge, LZMA)
    options = {zstd.CompressionParameter.window_log: 27}
    wide = zstd.ZstdCompressor(options=options)
    frame = wide.compress(bytes(1 << 20)) + wide.flush()
    with pytest.raises(Malformed, match=ZSTD):
        plain(frame, ZSTD)


@given(body=st.binary(), method=st.sampled_from([*METHODS, "", "application/x-new"]))
def test_nothing_raises_but_malformed(body: bytes, method: str) -> None:
    head(body, method, 64)
    content = b""
    with contextlib.suppress(Malformed):
        content = plain(body, method)
    assert method or content == body


@pytest.mark.parametrize(("name", "method"), [("gzip", GZIP), ("bzip2", BZIP2), ("lzma", LZMA)])
def test_kombu_names_its_methods_as_we_do(name: str, method: str) -> None:
    assert registry.get_encoder(name)[1] == method


@each
def test_kombu_decompresses_as_we_do(method: str) -> None:
    bound_decompression()
    assert registry.decompress(COMPRESSORS[method](b"{}"), method) == b"{}"
    assert b"not decompressible" in registry.decompress(b"junk", method)
