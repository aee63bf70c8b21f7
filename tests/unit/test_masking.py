"""What looks like a secret in bytes that nobody could decode; decoded notifications: test_recorder."""

from __future__ import annotations

import json
import time

import pytest

from worker.masking import masked_bytes


def envelope(message: object) -> bytes:
    """As oslo.messaging sends it: JSON in JSON."""
    return json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(message)}).encode()


@pytest.mark.parametrize(
    "message",
    [
        {"_context_auth_token": "t0ken", "payload": {}},
        {"payload": {"rows": [{"connection_info": {"data": {"auth_password": "t0ken"}}}]}},
        {"payload": {"API-Key": 1, "api_key": "t0ken", "ClientSecret": "t0ken", "X-Subject-Token": "t0ken"}},
        {"payload": "https://user:t0ken@host/"},
        {"payload": "Bearer gAAAAABt0kent0kent0kent0ken-_"},
    ],
)
def test_half_a_message_tells_no_secret(message: object) -> None:
    for body in (envelope(message), json.dumps(message).encode(), repr(message).encode()):
        at = body.rindex(b"t0ken") + len(b"t0ken")
        for broken in (body, body[:-3], body[:at], b"\xff" + body):
            clean = masked_bytes(broken)
            assert b"t0ken" not in clean
            assert clean[:10] == broken[:10]


def test_what_is_no_secret_stays() -> None:
    body = envelope({"event_type": "image.update", "payload": {"id": "x", "name": "a password is no name", "size": 5}})
    assert masked_bytes(body) == body


@pytest.mark.parametrize("piece", [b"a", b"token", b'token"', b'token":', b"\\", b'"', b"gAAAA", b"://a:", b"token\\"])
def test_it_takes_no_longer_however_it_is_made(piece: bytes) -> None:
    """Sixteen times as much takes some sixteen times as long: not its square."""

    def seconds(size: int) -> float:
        body = (piece * size)[:size]
        began = time.process_time()
        masked_bytes(body)
        return time.process_time() - began

    assert min(seconds(65_536) for _ in range(3)) < 64 * max(0.0005, min(seconds(4096) for _ in range(3)))
