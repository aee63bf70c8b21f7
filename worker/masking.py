"""What says how to get at data, masked: in decoded notifications, and in bytes that nobody could decode."""

from __future__ import annotations

import re
from typing import Any

from oslo_utils import strutils

MASK = "***"
# Hidden whatever is in it
HIDDEN = frozenset({
    "connection_info", "connector", "auth_ref", "trust_id", "ec2_keys", "user_data",
    "api_key", "apikey", "authorization", "cookie", "credential", "credentials",
})  # fmt: skip
IN_URL = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")
# In bytes: the value of a name like these, in quotes that JSON in JSON may have escaped
_NAMED = re.compile(
    rb"((?:token|passw|_pass|secret|credential|api_?key|authorization|cookie|auth_?key|private_key|keyring)"
    rb"""[\w.-]{0,64}\\{0,8}["']\s{0,8}[:=]\s{0,8}\\{0,8}["'])(?:[^"'\\]|\\+[^"'\\])+""",
    re.IGNORECASE,
)
# A token of Keystone's, wherever it stands
_TOKEN = re.compile(rb"gAAAA[\w=%-]{16,}")
# At the end of half a message there is no @ any more
_URL = re.compile(rb"""(://[^/\s:@]*:)(?:[^/\s@]+@|[^/\s@"'\\]+\Z)""")


def masked(value: Any) -> Any:
    """The same, with secrets masked: by their names, as OpenStack itself masks what it logs, and in URLs."""
    if isinstance(value, dict):
        clean = strutils.mask_dict_password(value)
        return {key: MASK if str(key).lower() in HIDDEN else masked(inner) for key, inner in clean.items()}
    if isinstance(value, list):
        return [masked(inner) for inner in value]
    return IN_URL.sub(rf"\1{MASK}@", strutils.mask_password(value)) if isinstance(value, str) else value


def masked_bytes(body: bytes) -> bytes:
    """What may be half a message, with everything masked that looks like a secret."""
    mask = MASK.encode()
    return _URL.sub(rb"\1" + mask + b"@", _TOKEN.sub(mask, _NAMED.sub(rb"\1" + mask, body)))
