"""What looks like a secret in bytes that nobody could decode; decoded notifications:
test_recorder."""

from __future__ import annotations

import json
import time

import pytest

from worker.core.masking import masked, masked_bytes


def envelope(message: object) -> bytes:
    """As oslo.messaging sends it: JSON in JSON."""
    return json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(message)}).encode()


@pytest.mark.parametrize(
    "message",
    [
        {"_context_auth_token": "t0ken", "payload": {}},
        {"payload": {"rows": [{"connection_info": {"data": {"auth_password": "t0ken"}}}]}},
        {
            "payload": {
                "API-Key": 1,
                "api_key": "t0ken",
                "ClientSecret": "t0ken",
                "X-Subject-Token": "t0ken",
            }
        },
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


@pytest.mark.parametrize(
    "secret",
    [
        "ab'cdS3CRET",
        'ab"cdS3CRET',
        "ab\\cdS3CRET",
        'ab\\"S3CRET',
        "S3CRET\\",
        "a,b:S3CRET",
        "S3CRET e",
    ],
    ids=["apostrophe", "quote", "backslash", "both", "at the end", "comma", "blank"],
)
@pytest.mark.parametrize(
    "name", ["password", "adminPass", "auth_token", "user_data", "_context_auth_token"]
)
def test_no_letter_ends_a_secret(name: str, secret: str) -> None:
    message = {"event_type": "x", "payload": {name: secret, "size": 5}}
    for body in (envelope(message), json.dumps(message).encode()):
        for broken in (body, body[:-3], body[: body.rindex(b"S3CRET") + 6]):
            assert b"S3CRET" not in masked_bytes(broken)
            assert b"ab" not in masked_bytes(broken)


@pytest.mark.parametrize("value", [12345678, ["12345678"], {"a": "12345678"}, -12345678.5])
def test_a_secret_need_not_be_text(value: object) -> None:
    for body in (
        envelope({"password": value, "size": 5}),
        json.dumps({"connection_info": value}).encode(),
    ):
        assert b"12345678" not in masked_bytes(body)


@pytest.mark.parametrize(
    "text",
    [
        "rabbit://u:S3CRET@h:1,u2:S3CRET@h2:2/",
        "rabbit://u:S3,CRETS3CRET@h",
        "rabbit://u:p'S3CRET@h/",
        "failed with X-Auth-Token: S3CRET",
        "Authorization: Basic S3CRET",
        "gAAAAABS3CRETS3CRETS3CRET-_",
    ],
)
def test_a_secret_in_a_text_is_masked(text: str) -> None:
    assert "S3CRET" not in masked({"payload": [text]})["payload"][0]
    assert b"S3CRET" not in masked_bytes(envelope({"payload": text}))
    assert b"S3CRET" not in masked_bytes(text.encode())


def test_half_a_url_tells_no_password() -> None:
    for text in ("rabbit://u:S3CRET", "rabbit://u:p@h:1,u2:S3CRET"):
        assert b"S3CRET" not in masked_bytes(text.encode())
    assert masked("http://controller:9292") == "http://controller:9292"


def test_what_is_no_secret_stays() -> None:
    body = envelope(
        {
            "event_type": "image.update",
            "payload": {"id": "x", "name": "a password is no name", "size": 5},
        }
    )
    assert masked_bytes(body) == body


@pytest.mark.parametrize(
    "piece",
    [
        b"a", b"token", b'token"', b'token":', b"\\", b'"', b"gAAAA", b"://a:", b"token\\", b"://a:b@", b",a:",
        b'token":"', b'token":{', b"x-", b"authorization: ",
    ],
)  # fmt: skip
def test_it_takes_no_longer_however_it_is_made(piece: bytes) -> None:
    """Sixteen times as much takes some sixteen times as long: not its square."""

    def seconds(size: int) -> float:
        body = (piece * size)[:size]
        began = time.process_time()
        masked_bytes(body)
        return time.process_time() - began

    assert min(seconds(65_536) for _ in range(3)) < 64 * max(
        0.0005, min(seconds(4096) for _ in range(3))
    )
