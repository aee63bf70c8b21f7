"""Mask secrets in decoded notifications and in raw bytes."""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
# Hidden whatever is in it
HIDDEN = frozenset({
    "connection_info", "connector", "auth_ref", "trust_id", "ec2_keys", "user_data", "keyring",
    "api_key", "apikey", "authorization", "cookie", "credential", "credentials",
})  # fmt: skip
# The value of a name like these: in quotes that JSON in JSON may have escaped, up to the same at
# its end; a number, a list or an object
_NAMED = re.compile(
    rf"((?:token|pass|secret|api_?key|auth_?key|private_key|{'|'.join(sorted(HIDDEN))})[\w.-]{{0,64}}"
    r"""\\{0,8}["']\s{0,8}[:=]\s{0,8})"""
    r"""(?:(\\{0,8}["'])(?:.*?(?<!\\)(\2)|.*\Z)|[\d.+-][\w.+-]*|\[[^\]]*\]?|\{[^}]*\}?)""",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)
_HEADER = re.compile(
    r"""((?:x-[\w-]{0,40}token|authorization)\s{0,8}[:=]\s{0,8})(?:(?:basic|bearer)\s{1,8})?[^\s"'\\]+""",
    re.IGNORECASE | re.ASCII,
)
# A token of Keystone's, wherever it stands
_TOKEN = re.compile(r"gAAAA[\w=%-]{16,}", re.ASCII)
# Of one host or, for brokers, of several; at the end of half a message there is no @ any more
_AUTHORITY = re.compile(r"://[^/\s]*")
_LOGIN = re.compile(r"(?:(?<=//)|(?<=,))([^:@,]*:)(?:[^@]*@|[^@]+\Z)")


def masked(value: Any) -> Any:
    """The same, with secrets masked: by their names, as OpenStack itself masks what it logs, and in
    URLs."""
    # It compiles some hundred expressions when it is imported, and only `record` needs it
    from oslo_utils import strutils  # noqa: PLC0415

    if isinstance(value, dict):
        clean = strutils.mask_dict_password(value)
        return {
            key: MASK if str(key).lower() in HIDDEN else masked(inner)
            for key, inner in clean.items()
        }
    if isinstance(value, list):
        return [masked(inner) for inner in value]
    return _anywhere(strutils.mask_password(value), whole=True) if isinstance(value, str) else value


def masked_bytes(body: bytes) -> bytes:
    """Return bytes, which may be half a message, with everything masked that looks like a
    secret."""
    text = _NAMED.sub(rf"\1\2{MASK}\3", body.decode("latin-1"))
    return _anywhere(text, whole=False).encode("latin-1")


def _anywhere(text: str, *, whole: bool) -> str:
    """Text without what is a secret wherever it stands; if it is not the `whole` text, a URL may be
    cut off."""

    def login(found: re.Match[str]) -> str:
        cut = not whole and found.end() == len(text)
        return _LOGIN.sub(
            lambda one: f"{one[1]}{MASK}@" if one[0].endswith("@") or cut else one[0], found[0]
        )

    text = _HEADER.sub(rf"\1{MASK}", _TOKEN.sub(MASK, text))
    return _AUTHORITY.sub(login, text)
